//! Kills processes with SIGKILL in the middle of an import: nothing acknowledged is lost and nothing is stored twice
//! (P1, P3), whichever side dies, and what a shard holds is the same before and after (P5).

mod support;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::Value;
use support::{Server, import, report};

/// Small chunks and segments, so that a short test goes through every tier.
const CONFIG: &str =
    "[storage]\nseal_bytes = 65536\nsegment_bytes_min = 65536\nsegment_bytes_max = 262144\nlog_bytes = 4194304\n";
/// The last run of 1,000 lines is not full.
const LINES: u64 = 60_500;
/// An import of so many lines takes seconds.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Writes events of 500 players, some lines twice, times out of order: a function of `LINES`.
fn write_events(path: &Path, lines: u64) {
    let mut state = 42u64;
    let mut next = |n: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    let mut text = String::new();
    for line in 0..lines {
        let (player, time) = (next(500), 1_700_000_000_000 + line * 10 - next(100_000));
        let kind = ["login", "move", "buy"][next(3) as usize];
        text.push_str(&format!(
            "{{\"player\":\"p{player}\",\"ts_ms\":{time},\"event\":\"{kind}\",\"gold\":{},\"x\":{}.5}}\n",
            next(1_000),
            next(200)
        ));
    }
    fs::write(path, text).expect("writes");
}

fn stored(addr: &str) -> u64 {
    let output = support::galoo(&["status", "--addr", addr, "--json"]);
    let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let shards = status["shards"].as_array().cloned().unwrap_or_default();
    shards.iter().filter_map(|shard| shard["events"].as_u64()).sum()
}

/// Waits until the server holds so many events; the import is over long before the bound.
fn wait_for(addr: &str, events: u64) {
    let since = Instant::now();
    while stored(addr) < events {
        assert!(since.elapsed() < WAIT_MAX, "{events} events never came");
    }
}

fn checksums(addr: &str) -> Vec<(Value, Value)> {
    let output = support::galoo(&["checksum", "--addr", addr, "--game", "g", "--json"]);
    assert!(output.status.success());
    let shards: Vec<Value> = serde_json::from_slice(&output.stdout).expect("checksums");
    shards.iter().map(|shard| (shard["shard"].clone(), shard["checksum"].clone())).collect()
}

fn counts(server: &Server) -> Vec<support::Row> {
    let sql =
        "select count(*), count(distinct player_id), sum(gold), sum(x), min(event_time), max(event_time) from events";
    support::psql(server.pg().port(), "g", sql).expect("answers")
}

#[test]
fn an_import_survives_the_death_of_either_side() {
    let folder = tempfile::tempdir().expect("folder");
    let (data, events, config) =
        (folder.path().join("data"), folder.path().join("events.ndjson"), folder.path().join("galoo.toml"));
    write_events(&events, LINES);
    fs::write(&config, CONFIG).expect("writes");
    let config = ["--config", config.to_str().expect("UTF-8")];
    let mut server = Server::start(&data, &config);
    let addr = server.grpc().to_string();

    // The server dies twice under a running import, which goes on by itself.
    let running = import(&addr, &events);
    for part in [4, 2] {
        wait_for(&addr, LINES / part);
        server.kill9();
        server = Server::start_at(&data, &addr, &config);
    }
    let first = report(running);
    assert_eq!(first["lines"], LINES);
    let after = counts(&server);
    assert_eq!(after[0][0].as_deref(), Some(LINES.to_string().as_str()), "{first}");

    // An independent count of the same file.
    let text = fs::read_to_string(&events).expect("reads");
    let gold: u64 = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["gold"].as_u64().expect("gold"))
        .sum();
    assert_eq!(after[0][2].as_deref(), Some(gold.to_string().as_str()));

    // The same file again stores nothing; an importer that is killed and run again neither.
    assert_eq!(report(import(&addr, &events))["events_stored"], 0);
    let mut killed = import(&addr, &events);
    killed.kill().expect("kills");
    killed.wait().expect("ends");
    assert_eq!(report(import(&addr, &events))["events_stored"], 0);

    // An appended file goes on behind its last, incomplete run.
    let more = LINES + 1_234;
    write_events(&events, more);
    assert_eq!(report(import(&addr, &events))["events_stored"], 1_234);
    let before = (counts(&server), checksums(&addr));
    assert_eq!(before.0[0][0].as_deref(), Some(more.to_string().as_str()));

    // All tiers are the same after a crash, and after an orderly stop.
    server.kill9();
    let server = Server::start_at(&data, &addr, &config);
    assert_eq!((counts(&server), checksums(&addr)), before);
    assert!(server.stop().success());

    // A log without its state, and a state without its log, are refused, and nothing of the other is removed.
    for (lost, words) in [("log", "its folder `log` is another's or lost"), ("data", "its folder `data`")] {
        let elsewhere = folder.path().join("elsewhere");
        fs::rename(data.join(lost), &elsewhere).expect("moves");
        let mut command = support::binary().command(&["server", "--grpc", &addr, "--pg", "127.0.0.1:0"]);
        command.args(["--http", "127.0.0.1:0", "--data-dir"]).arg(&data).args(config);
        let refused = support::output(command, WAIT_MAX);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && said.contains(words), "{said}");
        fs::remove_dir_all(data.join(lost)).expect("removes what the refused start made");
        fs::rename(&elsewhere, data.join(lost)).expect("moves back");
    }
    let server = Server::start_at(&data, &addr, &config);
    assert_eq!((counts(&server), checksums(&addr)), before);
}
