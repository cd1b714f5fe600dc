//! Bad input through the command line and gRPC: a clear error, an exit code that is not 0, and nothing changed (P9).

mod support;

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use galoo_client::Client;
use galoo_proto::{
    data::{AppendRequest, append_part, data_client::DataClient},
    value::Event,
};
use serde_json::Value;
use support::Server;

fn galoo(server: &Server, arguments: &[&str]) -> Output {
    let addr = server.grpc().to_string();
    let mut all = arguments.to_vec();
    all.extend(["--addr", &addr]);
    support::galoo(&all)
}

fn refused(server: &Server, arguments: &[&str], code: i32, words: &[&str]) {
    let output = galoo(server, arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{arguments:?} does not say {word:?}: {said}");
    }
}

fn done(server: &Server, arguments: &[&str]) -> String {
    let output = galoo(server, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn checksums(server: &Server) -> Vec<String> {
    let shards: Vec<Value> = serde_json::from_str(&done(server, &["checksum", "--game", "g", "--json"])).expect("JSON");
    shards.iter().map(|shard| shard["checksum"].to_string()).collect()
}

#[test]
fn bad_events_and_cells_are_refused_and_change_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let server = Server::start(&folder.path().join("data"), &[]);
    done(&server, &["game", "create", "g", "--shards", "3"]);
    done(&server, &["append", "--game", "g", "ann", "login"]);
    done(&server, &["put", "--game", "g", "ann", "s:name", "Ann"]);
    let before = checksums(&server);
    let append = |rest: &[&'static str]| [&["append", "--game", "g"], rest].concat();
    let long: &'static str = "x".repeat(257).leak();
    let many = (0..257).map(|i| format!("\"p{i}\":1")).collect::<Vec<_>>().join(",");
    let many: &'static str = format!("{{{many}}}").leak();
    refused(&server, &append(&["", "login"]), 3, &["player_id is empty", "256"]);
    refused(&server, &append(&[long, "login"]), 3, &["player_id has 257 bytes", "256"]);
    refused(&server, &append(&["ann", ""]), 3, &["event_type is empty"]);
    refused(&server, &append(&["ann", "login", "--time", "-1"]), 3, &["event_time_ms is -1"]);
    refused(&server, &append(&["ann", "login", "--time", "7258118400000"]), 3, &["7258118400000", "2200"]);
    refused(&server, &append(&["ann", "login", "--properties", "[1]"]), 3, &["properties is not valid", "[1]"]);
    refused(&server, &append(&["ann", "login", "--properties", "{\"a\":1,\"a\":2}"]), 3, &["\"a\" is given twice"]);
    refused(&server, &append(&["ann", "login", "--properties", many]), 3, &["257 properties", "256"]);
    refused(&server, &["append", "--game", "other", "ann", "login"], 3, &["game \"other\" does not exist"]);
    refused(&server, &["game", "create", "g"], 3, &["game \"g\" exists already"]);
    refused(&server, &["game", "create", "No"], 3, &["game is \"No\"", "[a-z][a-z0-9_]*"]);
    refused(&server, &["game", "create", "many", "--shards", "1025"], 3, &["shards has 1025", "1024"]);
    refused(&server, &["game", "create", "three", "--replicas", "3"], 3, &["replicas is 3", "1 nodes"]);
    refused(&server, &["game", "drop", "other"], 3, &["\"other\" does not exist"]);
    refused(&server, &["put", "--game", "g", "ann", "nofamily", "1"], 3, &["FAMILY:QUALIFIER"]);
    refused(&server, &["put", "--game", "g", "ann", "s:name", "--increment", "1"], 3, &["s:name is no integer"]);
    refused(&server, &["scan", "--game", "g", "--player", long], 3, &["player_id has 257 bytes"]);
    refused(&server, &["sql", "--game", "g", "-c", "insert into events values (1)"], 3, &["25006"]);
    refused(&server, &["append", "ann"], 2, &["--game"]);
    assert_eq!(checksums(&server), before);

    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    runtime.block_on(async {
        let client = Client::connect(&server.grpc().to_string()).await.expect("connects");
        let event = |properties: String| Event {
            player_id: "ann".into(),
            event_time_ms: 1,
            event_type: "t".into(),
            properties,
        };
        let append = async |events| {
            let request = AppendRequest { game: "g".into(), producer: None, events };
            client.append(request).await.expect_err("refused").to_string()
        };
        let long = event(format!("{{\"a\":\"{}\"}}", "x".repeat(1 << 20)));
        assert!(append(vec![long]).await.contains("event has 1048585 bytes; the limit is 1048576"));
        let too_many = append(vec![event(String::new()); 10_001]).await;
        assert!(too_many.contains("events has 10001 elements"), "{too_many}");
        let large = event(format!("{{\"a\":\"{}\"}}", "x".repeat(1 << 19)));
        let too_large = append(vec![large; 9]).await;
        assert!(too_large.contains("the limit is 4194304"), "{too_large}");
        // One bad event refuses its whole batch.
        assert!(append(vec![event(String::new()), event("rubbish".into())]).await.contains("rubbish"));
    });
    assert_eq!(checksums(&server), before);
    assert!(server.stop().success());
}

fn server_fails(data: &Path, arguments: &[&str], words: &[&str]) {
    let mut all = vec!["server", "--data-dir", data.to_str().expect("UTF-8")];
    all.extend(arguments);
    for (flag, addr) in [("--grpc", "127.0.0.1:0"), ("--pg", "127.0.0.1:0"), ("--http", "127.0.0.1:0")] {
        if !arguments.contains(&flag) {
            all.extend([flag, addr]);
        }
    }
    let output = support::galoo(&all);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    for word in words {
        assert!(said.contains(word), "{arguments:?} does not say {word:?}: {said}");
    }
}

#[test]
fn a_server_refuses_what_it_cannot_serve() {
    let folder = tempfile::tempdir().expect("folder");
    let data = folder.path().join("data");
    let server = Server::start(&data, &[]);
    server_fails(&data, &[], &["in use by another process"]);
    let other = folder.path().join("other");
    let taken = server.grpc().to_string();
    server_fails(&other, &["--grpc", &taken], &["cannot serve gRPC on", &taken]);
    server_fails(&other, &["--pg", "0.0.0.0:0"], &["--pg is 0.0.0.0:0", "--insecure"]);
    let config = folder.path().join("bad.toml");
    fs::write(&config, "[storage]\nseal_bytes = 3\n").expect("writes");
    server_fails(&other, &["--config", config.to_str().expect("UTF-8")], &["storage.seal_bytes is 3"]);
    fs::write(&config, "unknown = 1\n").expect("writes");
    server_fails(&other, &["--config", config.to_str().expect("UTF-8")], &["unknown"]);
    assert!(server.stop().success());
    let identity = data.join("node.json");
    let good = fs::read_to_string(&identity).expect("reads");
    fs::write(&identity, good.replace("\"format\":1", "\"format\":2")).expect("writes");
    server_fails(&data, &[], &["has format 2", "up to 1"]);
    fs::write(&identity, good).expect("writes");
    assert!(Server::start(&data, &[]).stop().success());
}

fn import(server: &Server, file: &Path, more: &[&str]) -> (Option<i32>, Value, String) {
    let rejected = file.with_extension("rejected");
    let mut arguments = vec!["import", "--game", "g", "--json", "--rejected", rejected.to_str().expect("UTF-8")];
    arguments.push(file.to_str().expect("UTF-8"));
    arguments.extend(more);
    let output = galoo(server, &arguments);
    let report = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code(), report, String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_damaged_file_keeps_whole_runs_and_goes_on_when_repaired() {
    let folder = tempfile::tempdir().expect("folder");
    let server = Server::start(&folder.path().join("data"), &[]);
    // Random digits hardly compress, so that the damage lies far behind the first runs.
    let mut state = 7u64;
    let mut lines = String::new();
    for line in 0..40_000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        lines.push_str(&format!("{{\"player\":\"p{}\",\"ts_ms\":{line},\"event\":\"e\",\"n\":{state}}}\n", line % 97));
    }
    lines.insert_str(0, "{\"player\":\"\",\"ts_ms\":1,\"event\":\"e\"}\nrubbish\n");
    let whole = zstd::encode_all(lines.as_bytes(), 3).expect("compresses");
    let file = folder.path().join("events.ndjson.zst");
    fs::write(&file, &whole[..whole.len() * 2 / 3]).expect("writes");
    let (code, report, said) = import(&server, &file, &[]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("events.ndjson.zst") && said.contains("line"), "{said}");
    let stored = report["events_stored"].as_u64().expect("a count");
    assert!(stored > 1_000 && (stored + 2) % 1_000 == 0, "{stored} events are no whole runs");
    assert_eq!(report["bad_lines"], 2);

    fs::File::create(&file).and_then(|mut file| file.write_all(&whole)).expect("writes");
    let (code, report, said) = import(&server, &file, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(report["events_stored"].as_u64().map(|more| more + stored), Some(40_000));
    let rejected = fs::read_to_string(file.with_extension("rejected")).expect("dead letters");
    let letters: Vec<Value> = rejected.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(letters.iter().map(|letter| letter["line"].as_u64()).collect::<Vec<_>>(), vec![Some(1), Some(2)]);
    let count =
        support::psql(server.pg().port(), "g", "select count(*), count(distinct n) from events").expect("answers");
    assert_eq!(count[0][0].as_deref(), Some("40000"));

    let (code, _, said) = import(&server, &folder.path().join("absent"), &[]);
    assert!(code == Some(3) && said.contains("absent"), "{said}");
    let (code, _, said) = import(&server, &file, &["--player-field", "who"]);
    assert!(code == Some(3) && said.contains("who"), "{said}");
}

/// A small file system of its own, in memory; unmounted with the test.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    /// Returns `None` where file systems may not be mounted.
    fn mount(at: &'a Path, mib: u64) -> Option<Self> {
        let size = format!("size={mib}m");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "galoo-test"]).arg(at).output();
        mount.is_ok_and(|done| done.status.success()).then_some(Self(at))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

/// Digits that hardly compress.
struct Digits(u64);

impl Digits {
    /// Events of 50 players.
    fn events(&mut self) -> Vec<Event> {
        let event = |place| {
            let mut digits = String::new();
            for _ in 0..8 {
                self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                digits.push_str(&self.0.to_string());
            }
            let properties = format!("{{\"digits\":\"{digits}\"}}");
            Event { player_id: format!("p{}", place % 50), event_time_ms: 1, event_type: "e".into(), properties }
        };
        (0..2_000).map(event).collect()
    }
}

/// A full disk refuses what brings data with its figures, loses nothing that was acknowledged, and goes on by itself when there
/// is room again.
#[test]
fn a_full_disk_refuses_and_goes_on_when_there_is_room() {
    let folder = tempfile::tempdir().expect("folder");
    let small = folder.path().join("small");
    fs::create_dir(&small).expect("folder");
    let Some(_mounted) = SmallDisk::mount(&small, 160) else {
        eprintln!("SKIPPED a_full_disk_refuses_and_goes_on_when_there_is_room: no right to mount a file system");
        return;
    };
    let config = folder.path().join("config.toml");
    let reserve_bytes = 64 << 20;
    let settings = format!(
        "[storage]\ndisk_reserve_bytes = {reserve_bytes}\nmemtable_bytes = 8388608\nlog_bytes = 8388608\nseal_bytes = 2097152\n"
    );
    fs::write(&config, settings).expect("writes");
    let server = Server::start(&small.join("data"), &["--config", config.to_str().expect("UTF-8")]);
    done(&server, &["game", "create", "g", "--shards", "1"]);
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let addr = server.grpc().to_string();
    let mut client = runtime.block_on(DataClient::connect(format!("http://{addr}"))).expect("connects");
    let (mut stored, mut digits, mut ballast) = (0u64, Digits(1), None);
    let refusal = loop {
        let events = digits.events();
        let count = events.len() as u64;
        let request = AppendRequest { game: "g".into(), producer: None, events };
        let answer = runtime.block_on(client.append(request)).expect("answers").into_inner();
        match answer.parts[0].result.clone().expect("a result") {
            append_part::Result::Appended(appended) => stored += u64::from(appended.count),
            append_part::Result::Error(error) => break error,
        }
        assert!(stored < 4_000_000, "the disk is never full");
        if ballast.is_none() && stored > count {
            // Most of the room is taken by somebody else.
            let file = small.join("ballast");
            fs::write(&file, vec![0; 72 << 20]).expect("writes");
            ballast = Some(file);
        }
    };
    assert!(refusal.message.contains("bytes free") && refusal.message.contains("67108864"), "{}", refusal.message);
    let count = || {
        let rows = support::psql(server.pg().port(), "g", "select count(*) from events").expect("answers");
        rows[0][0].clone().expect("a number").parse::<u64>().expect("a number")
    };
    assert_eq!(count(), stored, "reads go on");
    // A client that waits is served as soon as there is room.
    let waiting = Command::new(env!("CARGO_BIN_EXE_galoo"))
        .args(["append", "--addr", &addr, "--game", "g", "p1", "late"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    fs::remove_file(ballast.expect("written")).expect("removes");
    let done = waiting.wait_with_output().expect("ends");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(count(), stored + 1);
    assert!(server.stop().success());
}

/// Somebody else takes also what is kept in reserve: the node cannot write what it must, and ends instead of living on
/// without doing anything. Started again when there is room it has everything that it acknowledged.
#[test]
fn a_node_that_cannot_write_ends_and_has_lost_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let small = folder.path().join("small");
    fs::create_dir(&small).expect("folder");
    let Some(_mounted) = SmallDisk::mount(&small, 160) else {
        eprintln!("SKIPPED a_node_that_cannot_write_ends_and_has_lost_nothing: no right to mount a file system");
        return;
    };
    let config = folder.path().join("config.toml");
    fs::write(&config, "[storage]\ndisk_reserve_bytes = 0\nlog_bytes = 8388608\n").expect("writes");
    let arguments = ["--config", config.to_str().expect("UTF-8")];
    let (data, ballast) = (small.join("data"), small.join("ballast"));
    // Its output must not meet the full disk.
    let stderr = folder.path().join("stderr");
    std::os::unix::fs::symlink(&stderr, data.with_extension("stderr")).expect("links");
    let server = Server::start(&data, &arguments);
    done(&server, &["game", "create", "g", "--shards", "1"]);
    done(&server, &["append", "--game", "g", "p1", "first"]);
    let filled = fs::write(&ballast, vec![0; 160 << 20]);
    assert!(filled.is_err(), "the disk has room for everything");

    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let mut client = runtime.block_on(DataClient::connect(format!("http://{}", server.grpc()))).expect("connects");
    // Until a call is not acknowledged: the log's files have some room in them.
    let (mut acknowledged, mut digits) = (0, Digits(1));
    let tried = loop {
        let events = digits.events();
        let tried = events.len() as u64;
        let request = AppendRequest { game: "g".into(), producer: None, events };
        let Ok(answer) = runtime.block_on(client.append(request)) else { break tried };
        let part = answer.into_inner().parts.remove(0).result;
        let Some(append_part::Result::Appended(appended)) = part else { break tried };
        acknowledged += u64::from(appended.count);
        assert!(acknowledged < 1_000_000, "the disk is never full");
    };
    let ended = server.gone();
    let said = fs::read_to_string(&stderr).expect("its log");
    assert!(!ended.success() && said.contains("the node ends"), "{ended}; {said}");

    fs::remove_file(&ballast).expect("removes");
    let server = Server::start(&data, &arguments);
    let rows = support::psql(server.pg().port(), "g", "select count(*) from events").expect("answers");
    let stored: u64 = rows[0][0].as_deref().expect("a number").parse().expect("a number");
    // The first one, what was acknowledged, and the last call's, of which nothing is known, or not.
    let all = acknowledged + 1;
    assert!(stored == all || stored == all + tried, "{stored} are stored, {all} acknowledged");
    assert!(server.stop().success());
}
