//! Bad input through the command line and gRPC: a clear error, an exit code that is not 0, and nothing changed (P9).

mod support;

use std::{
    fs,
    io::Write,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use galoo_client::Client;
use galoo_proto::{
    admin::{CreateGameRequest, admin_client::AdminClient},
    data::{
        AppendRequest, AppendResponse, GetManyRequest, GetRequest, MutateRequest, append_part, data_client::DataClient,
    },
    value::{self, Event, Mutation, mutation::Change, value::Kind},
};
use serde_json::Value;
use support::Server;
use tonic::{Code, codegen::http, transport::Channel};

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
    let mut bytes = std::process::Command::new(env!("CARGO_BIN_EXE_galoo"));
    bytes.args(["append", "--addr", &server.grpc().to_string(), "--game", "g"]);
    let output = bytes.arg(std::ffi::OsStr::from_bytes(b"a\xff")).arg("login").output().expect("runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(2) && said.contains("player_id is \"a\\xFF\"") && said.contains("UTF-8"),
        "{said}"
    );
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
            ..Default::default()
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

/// What the command line refuses, a client of gRPC is refused with a code that it can tell apart.
#[test]
fn bad_input_over_grpc_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let server = Server::start(&folder.path().join("data"), &[]);
    done(&server, &["game", "create", "g", "--shards", "3"]);
    done(&server, &["append", "--game", "g", "ann", "login"]);
    let before = checksums(&server);
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    runtime.block_on(async {
        let channel = Channel::from_shared(format!("http://{}", server.grpc())).expect("an address");
        let channel = channel.connect().await.expect("connects");
        let (mut data, mut admin) = (DataClient::new(channel.clone()), AdminClient::new(channel.clone()));
        let event = |player: &str, event_time_ms, properties: &str| Event {
            player_id: player.to_owned(),
            event_time_ms,
            event_type: "t".to_owned(),
            properties: properties.to_owned(),
            ..Default::default()
        };
        let many = (0..257).map(|i| format!("\"p{i}\":1")).collect::<Vec<_>>().join(",");
        let large = format!("{{\"a\":\"{}\"}}", "x".repeat(1 << 20));
        for (game, event, code, words) in [
            ("g", event("", 1, ""), Code::InvalidArgument, ["player_id is empty", "256"]),
            ("g", event(&"x".repeat(257), 1, ""), Code::InvalidArgument, ["player_id has 257 bytes", "256"]),
            ("g", event("ann", -1, ""), Code::InvalidArgument, ["event_time_ms is -1", "0"]),
            ("g", event("ann", 7_258_118_400_000, ""), Code::InvalidArgument, ["7258118400000", "2200"]),
            ("g", event("ann", 1, "[1]"), Code::InvalidArgument, ["properties is not valid", "[1]"]),
            ("g", event("ann", 1, &format!("{{{many}}}")), Code::InvalidArgument, ["257 properties", "256"]),
            ("g", event("ann", 1, &large), Code::InvalidArgument, ["event has", "the limit is 1048576"]),
            ("other", event("ann", 1, ""), Code::NotFound, ["game \"other\"", "does not exist"]),
        ] {
            let request = AppendRequest { game: game.to_owned(), producer: None, events: vec![event] };
            let refused = data.append(request).await.expect_err("refused");
            let said = refused.message();
            assert!(refused.code() == code && words.iter().all(|word| said.contains(word)), "{refused:?}");
        }
        let change = |family: &str, change: Change| {
            let (family, qualifier) = (family.to_owned(), "x".to_owned());
            let mutation = Mutation { family, qualifier, change: Some(change), ..Mutation::default() };
            let (game, player_id) = ("g".to_owned(), "ann".to_owned());
            MutateRequest { game, player_id, mutations: vec![mutation], ..MutateRequest::default() }
        };
        let json = |text: &str| value::Value { kind: Some(Kind::Json(text.to_owned())) };
        let deep = ["[", "]"].map(|bracket| bracket.repeat(129)).concat();
        let other = Event { player_id: "bob".to_owned(), ..event("ann", 1, "") };
        for (request, words) in [
            (change("s", Change::Put(json("{\"a\":"))), ["value is not valid", "EOF while parsing"]),
            (change("s", Change::SetAdd(json(&deep))), ["nests 129 deep", "the limit is 128"]),
            (change("", Change::Increment(1)), ["family is empty", "64"]),
            (change("s", Change::Put(value::Value::default())), ["value", "missing"]),
            (MutateRequest { events: vec![other], ..change("s", Change::Increment(1)) }, ["events.player_id", "bob"]),
        ] {
            let refused = data.mutate(request).await.expect_err("refused");
            let said = refused.message();
            let is_said = words.iter().all(|word| said.contains(word));
            assert!(refused.code() == Code::InvalidArgument && is_said, "{refused:?}");
        }
        let of_each = || Some(GetRequest { game: "g".to_owned(), ..GetRequest::default() });
        for (request, word) in [
            (GetManyRequest { of_each: of_each(), player_ids: vec![] }, "player_ids has 0"),
            (GetManyRequest { of_each: of_each(), player_ids: vec!["p".to_owned(); 1_001] }, "player_ids has 1001"),
            (GetManyRequest { of_each: None, player_ids: vec!["p".to_owned()] }, "of_each is missing"),
        ] {
            let refused = data.get_many(request).await.expect_err("refused");
            assert!(refused.code() == Code::InvalidArgument && refused.message().contains(word), "{refused:?}");
        }
        let twice = CreateGameRequest { name: "g".to_owned(), ..Default::default() };
        let refused = admin.create_game(twice).await.expect_err("refused");
        assert!(refused.code() == Code::AlreadyExists && refused.message().contains("\"g\""), "{refused:?}");

        // More than a message may hold, before anybody looks at its events.
        let events = (0..9).map(|_| event("ann", 1, &large)).collect();
        let request = AppendRequest { game: "g".to_owned(), producer: None, events };
        let refused = data.append(request).await.expect_err("refused");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        assert!(
            ["request is too large", "9437", "8388608"].iter().all(|word| refused.message().contains(word)),
            "{refused:?}"
        );

        // What no string of Rust holds, sent as bytes.
        let mut raw = tonic::client::Grpc::new(channel);
        raw.ready().await.expect("connected");
        let events = vec![RawEvent { player_id: vec![b'a', 0xff], event_time_ms: 1, event_type: b"t".to_vec() }];
        let request = tonic::Request::new(RawAppend { game: "g".to_owned(), events });
        let path = http::uri::PathAndQuery::from_static("/galoo.data.v1.Data/Append");
        let codec = tonic_prost::ProstCodec::<RawAppend, AppendResponse>::default();
        let refused = raw.unary(request, path, codec).await.expect_err("refused");
        let said = refused.message();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        assert!(said.contains("Event.player_id") && said.contains("not UTF-8"), "{said}");
    });
    assert_eq!(checksums(&server), before);
    assert!(server.stop().success());
}

/// An `AppendRequest` whose player may be any bytes.
#[derive(Clone, PartialEq, prost::Message)]
struct RawAppend {
    #[prost(string, tag = "1")]
    game: String,
    #[prost(message, repeated, tag = "3")]
    events: Vec<RawEvent>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RawEvent {
    #[prost(bytes = "vec", tag = "1")]
    player_id: Vec<u8>,
    #[prost(int64, tag = "2")]
    event_time_ms: i64,
    #[prost(bytes = "vec", tag = "3")]
    event_type: Vec<u8>,
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
    done(&server, &["game", "create", "g"]);
    done(&server, &["append", "--game", "g", "ann", "login"]);
    let before = checksums(&server);
    server_fails(&data, &[], &["in use by another process"]);
    let other = folder.path().join("other");
    for (flag, front, taken) in [
        ("--grpc", "gRPC", server.grpc()),
        ("--pg", "the Postgres protocol", server.pg()),
        ("--http", "HTTP", server.http()),
    ] {
        let taken = taken.to_string();
        server_fails(&other, &[flag, &taken], &[&format!("cannot serve {front} on"), &taken, "in use"]);
    }
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
    let server = Server::start(&data, &[]);
    assert_eq!(checksums(&server), before);
    assert!(server.stop().success());
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
    // The damage lies far behind the first runs.
    let mut lines = event_lines(40_000);
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
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    /// Returns `None`, and says which test is skipped, where file systems may not be mounted.
    fn mount(test: &str) -> Option<Self> {
        let disk = Self { folder: tempfile::tempdir().expect("folder") };
        fs::create_dir(disk.path()).expect("folder");
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=160m", "galoo-test"]).arg(disk.path()).output();
        if mount.is_ok_and(|done| done.status.success()) {
            return Some(disk);
        }
        eprintln!("SKIPPED {test}: no right to mount a file system");
        None
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("small")
    }

    /// A file on the disk that holds this one.
    fn outside(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a configuration file outside.
    fn config(&self, settings: &str) -> String {
        let config = self.outside("config.toml");
        fs::write(&config, settings).expect("writes");
        config.to_str().expect("UTF-8").to_owned()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
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
            Event {
                player_id: format!("p{}", place % 50),
                event_time_ms: 1,
                event_type: "e".into(),
                properties,
                ..Default::default()
            }
        };
        (0..2_000).map(event).collect()
    }
}

/// A full disk refuses what brings data with its figures, loses nothing that was acknowledged, and goes on by itself when there
/// is room again.
#[test]
fn a_full_disk_refuses_and_goes_on_when_there_is_room() {
    let Some(disk) = SmallDisk::mount("a_full_disk_refuses_and_goes_on_when_there_is_room") else { return };
    let reserve_bytes = 64 << 20;
    let settings = format!(
        "[storage]\ndisk_reserve_bytes = {reserve_bytes}\nmemtable_bytes = 8388608\nlog_bytes = 8388608\nseal_bytes = 2097152\n"
    );
    let server = Server::start(&disk.path().join("data"), &["--config", &disk.config(&settings)]);
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
            let file = disk.path().join("ballast");
            fs::write(&file, vec![0; 72 << 20]).expect("writes");
            ballast = Some(file);
        }
    };
    assert!(refusal.message.contains("bytes free") && refusal.message.contains("67108864"), "{}", refusal.message);
    // What is refused changes nothing; background work may have made room for one more.
    loop {
        let (before, events) = (checksums(&server), digits.events());
        let count = events.len() as u64;
        let request = AppendRequest { game: "g".into(), producer: None, events };
        let mut answer = runtime.block_on(client.append(request)).expect("answers").into_inner();
        if let Some(append_part::Result::Error(_)) = answer.parts.remove(0).result {
            assert_eq!(checksums(&server), before);
            break;
        }
        stored += count;
    }
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
    let Some(disk) = SmallDisk::mount("a_node_that_cannot_write_ends_and_has_lost_nothing") else { return };
    let config = disk.config("[storage]\ndisk_reserve_bytes = 0\nlog_bytes = 8388608\n");
    let arguments = ["--config", &config];
    let (data, ballast) = (disk.path().join("data"), disk.path().join("ballast"));
    // Its output must not meet the full disk.
    let stderr = disk.outside("stderr");
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

/// So many events whose digits hardly compress.
fn event_lines(count: usize) -> String {
    let mut state = 7u64;
    let mut lines = String::new();
    for line in 0..count {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let player = line % 97;
        lines.push_str(&format!(
            "{{\"player\":\"p{player}\",\"ts_ms\":{line},\"event\":\"e\",\"n\":{line},\"x\":\"{state}\"}}\n"
        ));
    }
    lines
}

/// Packs a text as one zstd frame with a checksum.
fn zstd_frame(text: &str) -> Vec<u8> {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 3).expect("an encoder");
    encoder.include_checksum(true).expect("a checksum");
    encoder.write_all(text.as_bytes()).and_then(|()| encoder.finish()).expect("compresses")
}

/// Flips the first bit behind byte `from` that decodes and shows in nothing but a checksum.
fn flip_unnoticed(packed: &[u8], from: usize) -> Vec<u8> {
    let decoding_says = |packed: &[u8]| {
        let input = Box::new(std::io::Cursor::new(packed.to_vec()));
        let mut decoded = galoo_import::compression::Decoded::new(input).expect("a format");
        let mut room = vec![0; 1 << 16];
        loop {
            match decoded.read(&mut room) {
                Ok(0) => return String::new(),
                Ok(_) => {}
                Err(error) => return error.to_string(),
            }
        }
    };
    let flip = |bit: usize| {
        let mut flipped = packed.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        flipped
    };
    let mut all = (from * 8..packed.len() * 8).map(flip);
    all.find(|flipped| decoding_says(flipped).contains("checksum")).expect("a bit that only a checksum shows")
}

/// Nothing is stored that a damage may have changed which shows only in a checksum; the repaired file is stored once.
#[test]
fn a_damage_that_only_a_checksum_shows_stores_nothing_wrong() {
    let folder = tempfile::tempdir().expect("folder");
    let server = Server::start(&folder.path().join("data"), &[]);
    let text = event_lines(40_000);
    let plain = folder.path().join("plain.ndjson");
    fs::write(&plain, &text).expect("writes");
    let gzip = Command::new("gzip").arg("-c").arg(&plain).output().expect("runs").stdout;
    let one_frame = zstd_frame(&text);
    let cut = text.match_indices('\n').nth(30_499).map(|(at, _)| at + 1).expect("a line");
    let first_frame = zstd_frame(&text[..cut]);
    let two_frames = [&first_frame[..], &zstd_frame(&text[cut..])].concat();
    let behind = (first_frame.len() + two_frames.len()) / 2;
    // Whole and damaged content, events that the damaged one stores, and what is said of it.
    let nothing = "nothing of it is taken";
    let cases = [
        ("middle.zst", &one_frame, flip_unnoticed(&one_frame, one_frame.len() / 2), 0, nothing),
        ("first-mib.zst", &one_frame, flip_unnoticed(&one_frame, one_frame.len() / 10), 0, nothing),
        ("middle.gz", &gzip, flip_unnoticed(&gzip, gzip.len() / 2), 0, nothing),
        ("first-mib.gz", &gzip, flip_unnoticed(&gzip, gzip.len() / 10), 0, nothing),
        ("first-frame.zst", &two_frames, flip_unnoticed(&two_frames, first_frame.len() / 2), 0, nothing),
        ("second-frame.zst", &two_frames, flip_unnoticed(&two_frames, behind), 30_000, "is damaged after line 30500"),
    ];
    let files = cases.len();
    for (name, whole, damaged, kept, words) in cases {
        let file = folder.path().join(name);
        fs::write(&file, damaged).expect("writes");
        let (code, report, said) = import(&server, &file, &[]);
        assert_eq!(code, Some(3), "{name}: {said}");
        assert!(said.contains(name) && said.contains(words) && said.contains("checksum"), "{name}: {said}");
        assert_eq!(report["events_stored"].as_u64().unwrap_or(0), kept, "{name}");
        fs::write(&file, whole).expect("writes");
        let (code, report, said) = import(&server, &file, &[]);
        assert_eq!(code, Some(0), "{name}: {said}");
        assert_eq!(report["events_stored"], 40_000 - kept, "{name}");
        assert_eq!(report["duplicates"], kept, "{name}");
    }
    let sql = "select count(*), count(distinct n) from events";
    let rows = support::psql(server.pg().port(), "g", sql).expect("answers");
    let counts: Vec<_> = rows[0].iter().map(|cell| cell.as_deref().expect("a number").to_owned()).collect();
    assert_eq!(counts, [(files * 40_000).to_string(), "40000".to_owned()]);
    assert!(server.stop().success());
}

/// What is appended to a file does not change which fields it is read by; other fields are refused with the cause.
#[test]
fn an_appended_file_keeps_its_fields() {
    let folder = tempfile::tempdir().expect("folder");
    let server = Server::start(&folder.path().join("data"), &[]);
    let file = folder.path().join("short.ndjson");
    let first = "{\"user\":\"ann\",\"time\":1700000000,\"type\":\"login\",\"what\":\"x\"}\n";
    let more = "{\"player_id\":\"bob\",\"user\":\"ann\",\"ts_ms\":1700000001000,\"time\":1700000002,\
                \"event_type\":\"y\",\"type\":\"move\",\"what\":\"x\"}\n";
    fs::write(&file, first).expect("writes");
    let (code, report, said) = import(&server, &file, &[]);
    assert_eq!((code, &report["events_stored"]), (Some(0), &Value::from(1)), "{said}");
    assert_eq!(report["time_range_ms"], serde_json::json!([1_700_000_000_000_i64, 1_700_000_000_000_i64]));

    fs::write(&file, [first, &more.repeat(50)].concat()).expect("writes");
    let (code, report, said) = import(&server, &file, &[]);
    assert_eq!((code, &report["events_stored"]), (Some(0), &Value::from(50)), "{said}");
    let chosen = ["player_field", "time_field", "time_unit", "type_field"].map(|key| report[key].as_str());
    assert_eq!(chosen, [Some("user"), Some("time"), Some("s"), Some("type")]);
    assert_eq!(report["time_range_ms"], serde_json::json!([1_700_000_000_000_i64, 1_700_000_002_000_i64]));

    let (code, _, said) = import(&server, &file, &["--type-field", "what"]);
    assert_eq!(code, Some(3), "{said}");
    for word in ["named other content before", "was changed", "other fields", "--player-field", "--type-field"] {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
    let rows = support::psql(server.pg().port(), "g", "select count(*) from events").expect("answers");
    assert_eq!(rows[0][0].as_deref(), Some("51"));
    assert!(server.stop().success());
}
