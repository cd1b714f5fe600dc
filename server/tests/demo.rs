//! `galoo demo --once` proves its answers with a node killed on the way, from a simulated game and from a file, and leaves
//! neither processes nor folders behind, also when nobody reads it to its end.

mod support;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::Command,
};

use galoo_workload::{Config, Simulation, Step, ndjson};
use serde_json::Value;

const EVENTS: u64 = 60_000;

fn demo(folder: &Path, arguments: &[&str]) -> Value {
    let dir = folder.to_str().expect("UTF-8");
    let output = support::galoo(&[&["demo", "--once", "--json", "--dir", dir], arguments].concat());
    let (printed, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {printed}\n{said}", output.status);
    let report: Value = serde_json::from_str(&printed).expect("one JSON object");
    for proof in ["rollup = raw", "acknowledged = stored", "same everywhere"] {
        assert_eq!(report[proof]["holds"], true, "{proof}: {}", report[proof]["found"]);
    }
    assert!(report["restart"]["killed"].is_string(), "no node was killed: {report}");
    let nodes = report["nodes"].as_array().expect("nodes");
    assert_eq!(nodes.len(), 3);
    for node in nodes {
        let process = node["process"].as_str().expect("a process");
        assert!(!Path::new("/proc").join(process).exists(), "process {process} still runs");
    }
    report
}

#[test]
fn a_simulated_game_is_loaded_through_an_outage_and_proved() {
    let folder = tempfile::tempdir().expect("folder");
    let report = demo(folder.path(), &["--events", &EVENTS.to_string()]);
    assert_eq!((&report["events"], &report["load"]["events"]), (&EVENTS.into(), &EVENTS.into()));
    assert!(report["state"].as_array().is_some_and(|cells| !cells.is_empty()));
    assert_eq!(fs::read_dir(folder.path()).expect("lists").count(), 0, "folders are left");
}

#[test]
fn a_file_is_imported_through_an_outage_and_proved() {
    let folder = tempfile::tempdir().expect("folder");
    let (nodes, file) = (folder.path().join("nodes"), folder.path().join("game.ndjson"));
    fs::create_dir(&nodes).expect("creates");
    let mut text = String::new();
    for step in Simulation::new(Config::new(2, EVENTS)).expect("a simulation") {
        if let Step::Event(event) = step {
            ndjson::push_line(&mut text, &event);
        }
    }
    fs::write(&file, text).expect("writes");
    let report = demo(&nodes, &["--data", file.to_str().expect("UTF-8")]);
    assert_eq!(report["events"], EVENTS);
    assert_eq!(fs::read_dir(&nodes).expect("lists").count(), 0, "folders are left");
}

/// As `galoo demo 2>&1 | head` does, a reader goes away while the nodes run.
#[test]
fn a_demo_that_nobody_reads_any_more_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("folder");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut command = Command::new(env!("CARGO_BIN_EXE_galoo"));
    command.args(["demo", "--once", "--events", &EVENTS.to_string(), "--dir"]).arg(folder.path());
    command.stdout(writer.try_clone().expect("a second end")).stderr(writer);
    let mut demo = command.spawn().expect("starts");
    // It holds ends of the pipe, which must not keep this test reading.
    drop(command);
    let mut processes = Vec::new();
    for line in BufReader::new(reader).lines() {
        let line = line.expect("a line of text");
        if line.starts_with("Three nodes formed a cluster") {
            break;
        }
        let words: Vec<_> = line.split_whitespace().collect();
        if let ["n1" | "n2" | "n3", .., process] = words[..] {
            processes.push(process.to_owned());
        }
    }
    // Interrupted, as by Ctrl-C.
    let ended = demo.wait().expect("ends");
    assert_eq!(ended.code(), Some(1), "{ended}");
    assert_eq!(processes.len(), 3);
    for process in processes {
        assert!(!Path::new("/proc").join(&process).exists(), "process {process} still runs");
    }
    assert_eq!(fs::read_dir(folder.path()).expect("lists").count(), 0, "folders are left");
}
