//! The command line as shells and scripts use it: its output is piped to who reads none or a part of it, SQL comes from a
//! pipe, and programs read what `--json` prints.

mod support;

use std::{
    collections::BTreeMap,
    fs,
    io::{PipeWriter, Write},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use galoo_harness::Process;
use support::Server;

fn galoo(server: &Server, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_galoo"));
    command.args(arguments).args(["--addr", &server.grpc().to_string()]).stdin(Stdio::null());
    command
}

/// A pipe whose reader is gone.
fn unread() -> PipeWriter {
    let (_, writer) = std::io::pipe().expect("a pipe");
    writer
}

/// Starts a server with a game `g` that has an event and a cell.
fn served(folder: &tempfile::TempDir) -> Server {
    let server = Server::start(&folder.path().join("data"), &[]);
    for arguments in [
        ["game", "create", "g", "--shards", "1"].as_slice(),
        &["append", "--game", "g", "ann", "login"],
        &["put", "--game", "g", "ann", "s:n", "1"],
    ] {
        let output = galoo(&server, arguments).output().expect("runs");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    server
}

#[test]
fn a_command_whose_reader_is_gone_ends_quietly() {
    let folder = tempfile::tempdir().expect("folder");
    let server = served(&folder);
    for arguments in [
        ["status"].as_slice(),
        &["status", "--json"],
        &["game", "list"],
        &["game", "list", "--json"],
        &["game", "create", "h"],
        &["game", "drop", "h"],
        &["checksum", "--game", "g"],
        &["checksum", "--game", "g", "--json"],
        &["append", "--game", "g", "ann", "login"],
        &["get", "--game", "g", "ann"],
        &["get", "--game", "g", "ann", "--json"],
        &["put", "--game", "g", "ann", "s:n", "-5"],
        &["scan", "--game", "g"],
        &["tail", "--game", "g", "--from-start"],
        &["sql", "--game", "g", "-c", "select 1"],
        &["sql", "--game", "g", "-c", "select 1", "--json"],
        &["bench", "get", "--game", "g", "--players", "1", "--seconds", "0.1", "--warm-up-seconds", "0"],
    ] {
        let output = galoo(&server, arguments).stdout(unread()).output().expect("runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), said.as_ref()), (Some(0), ""), "{arguments:?}");
    }
    // Nobody hears the reason either: the exit code stays what it is.
    let refused = galoo(&server, &["game", "drop", "none"]).stdout(unread()).stderr(unread()).status().expect("runs");
    assert_eq!(refused.code(), Some(3));
    assert!(server.stop().success());
}

/// Runs `galoo sql` with a script on its standard input.
fn script(server: &Server, arguments: &[&str], text: &str) -> (Option<i32>, String, String) {
    let mut command = galoo(server, &[&["sql", "--game", "g"], arguments].concat());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("starts");
    child.stdin.take().expect("an input").write_all(text.as_bytes()).expect("reads");
    let Output { status, stdout, stderr } = child.wait_with_output().expect("ends");
    (status.code(), String::from_utf8(stdout).expect("UTF-8"), String::from_utf8(stderr).expect("UTF-8"))
}

#[test]
fn a_script_runs_to_its_end_or_to_its_first_error() {
    let folder = tempfile::tempdir().expect("folder");
    let server = served(&folder);
    let (code, printed, said) = script(&server, &[], "select 40 + 1 as a;\nselect 40\n + 2 as b");
    assert_eq!(code, Some(0), "{said}");
    assert!(printed.contains("41") && printed.contains("42"), "{printed}");
    for between in [";\n", "; "] {
        let text = ["select 11 as a", "select nothing", "select 33 as c"].join(between);
        let (code, printed, said) = script(&server, &[], &text);
        assert_eq!(code, Some(3), "{printed}{said}");
        assert!(printed.contains("11") && !printed.contains("33") && said.contains("42703"), "{printed}{said}");
    }
    assert_eq!(script(&server, &[], "").0, Some(0));
    assert!(server.stop().success());
}

#[test]
fn json_rows_hold_numbers_booleans_and_nulls_in_the_order_of_their_columns() {
    let folder = tempfile::tempdir().expect("folder");
    let server = served(&folder);
    let text = "select 9007199254740993 as z, cast('1.5' as double precision) as f, true as b, null as n, ';' as a, \
                cast('NaN' as double precision) as nan, cast('2.50' as numeric(10, 2)) as m;\n\
                set timezone = 'UTC'; show timezone; select event_type as t, count(*) as c from events group by 1";
    let (code, printed, said) = script(&server, &["--json"], text);
    assert_eq!(code, Some(0), "{said}");
    let expected = [
        r#"{"z":9007199254740993,"f":1.5,"b":true,"n":null,"a":";","nan":"NaN","m":"2.50"}"#,
        r#"{"timezone":"UTC"}"#,
        r#"{"t":"login","c":1}"#,
    ];
    assert_eq!(printed.lines().collect::<Vec<_>>(), expected);
    assert!(server.stop().success());
}

#[test]
fn a_server_says_in_json_where_it_serves() {
    let folder = tempfile::tempdir().expect("folder");
    let any = "127.0.0.1:0";
    let mut command = support::binary().command(&["server", "--json", "--grpc", any, "--pg", any, "--http", any]);
    command.arg("--data-dir").arg(folder.path().join("data"));
    support::done(async {
        let mut server = Process::start(command, &folder.path().join("stderr"))?;
        let said: serde_json::Value = serde_json::from_str(&server.says("{").await?)?;
        assert_eq!(said["state"], "ready", "{said}");
        for front in ["grpc", "pg", "http"] {
            let address = said[front].as_str().unwrap_or_default();
            std::net::TcpStream::connect(address).unwrap_or_else(|error| panic!("{front} in {said}: {error}"));
        }
        assert!(server.stop().await?.success());
        Ok(())
    });
}

/// Runs a command that must succeed and returns what it prints.
fn printed(server: &Server, arguments: &[&str]) -> String {
    let output = galoo(server, arguments).output().expect("runs");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn state_is_changed_under_conditions_and_read_as_it_was() {
    let folder = tempfile::tempdir().expect("folder");
    let server = served(&folder);
    let put = |rest: &[&str]| printed(&server, &[&["put", "--game", "g", "bob"], rest].concat()).trim().to_owned();
    let refused = |rest: &[&str], words: &str| {
        let output = galoo(&server, &[&["put", "--game", "g", "bob"], rest].concat()).output().expect("runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(3) && said.contains(words), "{rest:?}: {said}");
    };
    let cells = |rest: &[&str]| {
        let arguments = [&["get", "--game", "g", "bob", "--json"], rest].concat();
        let read = |line: &str| {
            let cell: serde_json::Value = serde_json::from_str(line).expect("JSON");
            let name = |part: &str| cell[part].as_str().expect("a name").to_owned();
            format!("{}:{}={}", name("family"), name("qualifier"), cell["value"])
        };
        printed(&server, &arguments).lines().map(read).collect::<Vec<_>>()
    };
    assert_eq!(put(&["bag:gold", "--increment", "5", "--floor", "0", "--if-absent"]), "5");
    refused(&["bag:gold", "--increment", "-6", "--floor", "0"], "bag:gold is 5; adding -6 goes below the floor 0");
    refused(&["bag:gold", "7", "--if-absent"], "bag:gold is there");
    refused(&["bag:gold", "7", "--if-equals", "4"], "bag:gold is not as expected");
    let taken = put(&["quests:open", "--append", "\"wolf\"", "--event", "quest", "--properties", "{\"level\":3}"]);
    assert_eq!(taken, r#"["wolf"]"#);
    put(&["quests:open", "--append", "\"bear\""]);
    assert_eq!(put(&["quests:open", "--append", "\"dragon\"", "--keep", "2"]), r#"["bear","dragon"]"#);
    put(&["badges:all", "--add", "1"]);
    assert_eq!(put(&["badges:all", "--add", "1"]), "[1]");
    let before: serde_json::Value =
        serde_json::from_str(&put(&["badges:all", "--remove", "1", "--json"])).expect("JSON");
    assert_eq!(before["value"], serde_json::json!([]));
    let version = before["version"].as_u64().expect("a version");
    put(&["bag:bow", "1", "--if-absent"]);
    put(&["bag", "--delete"]);
    refused(&["badges:all", "--delete", "--if-version", "1"], "badges:all has version");
    put(&["badges:all", "--delete", "--if-version", &version.to_string()]);
    let open = r#"quests:open=["bear","dragon"]"#;
    assert_eq!(cells(&[]), [open]);
    let then = (version >> 16).to_string();
    assert_eq!(cells(&["--as-of", &then]), ["badges:all=[]", "bag:gold=5", open]);
    assert_eq!(cells(&["bag", "--prefix", "go", "--as-of", &then]), ["bag:gold=5"]);
    assert_eq!(cells(&["bag", "--from", "a", "--to", "gold", "--as-of", &then]), [""; 0]);
    put(&["--delete", "--if-exists"]);
    assert_eq!(cells(&[]), [""; 0]);
    refused(&["--delete", "--if-exists"], "the row is not there");
    let quest = printed(&server, &["scan", "--game", "g", "--player", "bob"]);
    assert!(quest.contains("quest  {\"level\":3}") && quest.lines().count() == 1, "{quest}");
    assert!(server.stop().success());
}

/// Every file below a folder with its bytes, by name.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("lists") {
        let path = entry.expect("lists").path();
        if path.is_dir() {
            all.append(&mut files(&path));
        } else {
            all.insert(path.clone(), fs::read(&path).expect("reads"));
        }
    }
    all
}

#[test]
fn the_folder_of_a_stopped_node_is_looked_into_and_left_alone() {
    let folder = tempfile::tempdir().expect("folder");
    let data = folder.path().join("data");
    let debug = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_galoo"));
        command.arg("debug").args(arguments).arg(&data).stdin(Stdio::null());
        let output = command.output().expect("runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, _, said) = debug(&["shards"]);
    assert!(code == Some(3) && said.contains("no data folder of a node"), "{said}");

    let server = served(&folder);
    let rollup =
        "create rollup r as select time_bucket('1 day', event_time) as day, count(*) as n from events group by 1";
    printed(&server, &["sql", "--game", "g", "-c", rollup]);
    printed(&server, &["compact", "--game", "g"]);
    printed(&server, &["append", "--game", "g", "bob", "logout", "--properties", r#"{"after":7}"#]);
    let checksum = printed(&server, &["checksum", "--game", "g", "--json"]);
    let (code, _, said) = debug(&["shards"]);
    assert!(code == Some(3) && said.contains("in use by another process"), "{said}");
    assert!(server.stop().success());

    let before = files(&data);
    let asked = |arguments: &[&str]| match debug(arguments) {
        (Some(0), told, _) => told,
        other => panic!("{arguments:?}: {other:?}"),
    };
    let lines = |arguments: &[&str]| -> Vec<serde_json::Value> {
        let told = asked(&[arguments, &["--json"]].concat());
        told.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    let shards = lines(&["shards"]);
    let shard = shards[0]["shard"].to_string();
    assert!(shards.len() == 1 && shards[0]["last_seq"] == 2, "{shards:?}");
    let of = |command: &'static str| vec![command, "--shard", shard.as_str()];
    let kinds: Vec<_> = lines(&of("sources")).iter().map(|source| source["kind"].to_string()).collect();
    assert_eq!(kinds, [r#""segment""#, r#""chunk""#]);
    let events = lines(&of("events"));
    assert!(events.len() == 2 && events[1]["properties"]["after"] == 7, "{events:?}");
    let first = asked(&[of("events"), vec!["--limit", "1"]].concat());
    assert!(first.contains("ann") && !first.contains("bob"), "{first}");
    for (family, kind) in [("meta", "shard state"), ("cells", "cell"), ("chunks", "run"), ("rollups", "rollup mark")] {
        let rows = lines(&[of("rows"), vec!["--family", family]].concat());
        assert!(rows.iter().any(|row| row["kind"] == kind), "{family}: {rows:?}");
        assert!(rows.iter().all(|row| row["kind"] != "unreadable"), "{family}: {rows:?}");
    }
    let sums = lines(&["checksum"]);
    assert!(checksum.contains(sums[0]["checksum"].as_str().expect("a sum")), "{sums:?}, not {checksum}");
    let groups = lines(&["log"]);
    assert_eq!(groups.len(), 2, "the meta group and the shard's: {groups:?}");
    assert!(asked(&["check"]).contains("1 segment files read"));
    assert_eq!(debug(&["sources", "--shard", "99"]).0, Some(3));
    assert_eq!(files(&data), before, "something was changed");

    let segment = before.keys().find(|path| path.extension().is_some_and(|one| one == "parquet")).expect("a segment");
    let mut bytes = before[segment].clone();
    bytes[20] ^= 1;
    fs::write(segment, bytes).expect("writes");
    let (code, told, said) = debug(&["check"]);
    assert!(code == Some(1) && said.contains("1 findings"), "{said}");
    assert!(told.contains("corrupt segment at offset 0") && told.contains(segment.to_str().expect("UTF-8")), "{told}");
}

/// An event's id stands for it, whichever command, file or client brings it, also after a crash; for the game's window.
#[test]
fn an_event_with_an_id_is_stored_once() {
    let folder = tempfile::tempdir().expect("folder");
    let data = folder.path().join("data");
    let server = Server::start(&data, &[]);
    printed(&server, &["game", "create", "g", "--shards", "3"]);
    let append = |server: &Server, player: &str, id: &str| {
        let told = printed(server, &["append", "--game", "g", player, "buy", "--event-id", id, "--json"]);
        serde_json::from_str::<serde_json::Value>(&told).expect("JSON")["events_stored"].as_u64().expect("a number")
    };
    assert_eq!(
        [append(&server, "ann", "a-0"), append(&server, "ann", "a-0"), append(&server, "bob", "a-0")],
        [1, 0, 1]
    );
    let line =
        |at: u64| format!("{{\"player\":\"p{}\",\"ts\":{},\"type\":\"buy\",\"id\":\"i{at}\"}}\n", at % 7, 1_000 + at);
    let import = |server: &Server, name: &str, lines: std::ops::Range<u64>| {
        let file = folder.path().join(name);
        fs::write(&file, lines.map(line).collect::<String>()).expect("writes");
        let file = file.to_str().expect("UTF-8");
        let arguments = ["import", "--game", "g", file, "--time-unit", "s", "--id-field", "id", "--json"];
        let told: serde_json::Value = serde_json::from_str(&printed(server, &arguments)).expect("JSON");
        assert_eq!(told["id_field"], "id");
        ["events_stored", "duplicates"].map(|count| told[count].as_u64().expect("a number"))
    };
    assert_eq!(import(&server, "first.ndjson", 0..3_000), [3_000, 0]);
    assert_eq!(import(&server, "second.ndjson", 2_000..4_000), [1_000, 1_000]);
    server.kill9();
    let server = Server::start(&data, &[]);
    assert_eq!(import(&server, "third.ndjson", 1_500..4_500), [500, 2_500]);
    assert_eq!(append(&server, "ann", "a-0"), 0);
    let count = "select count(*), count(distinct id) from events where event_type = 'buy'";
    let rows = support::psql(server.pg().port(), "g", count).expect("answers");
    assert_eq!(rows, [["4502", "4500"].map(|cell| Some(cell.to_owned())).to_vec()]);

    let alter = |window: &str| galoo(&server, &["game", "alter", "g", "--event-id-window", window, "--json"]);
    let told = alter("1s").output().expect("runs").stdout;
    let told: serde_json::Value = serde_json::from_slice(&told).expect("JSON");
    assert_eq!((&told["event_id_window_ms"], &told["events_retention_ms"]), (&1_000.into(), &0.into()));
    // Its event was stored more than a second ago, or soon was.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while append(&server, "ann", "a-0") == 0 {
        assert!(std::time::Instant::now() < deadline, "the id is known for longer than its window");
    }
    for (window, words) in [("999ms", "at least 1000"), ("32d", "the limit is 2678400000")] {
        let refused = alter(window).output().expect("runs");
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(3) && said.contains(words), "{said}");
    }
    let long = "x".repeat(129);
    let refused = galoo(&server, &["append", "--game", "g", "ann", "buy", "--event-id", &long]).output().expect("runs");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(3) && said.contains("event_id has 129 bytes; the limit is 128"), "{said}");
    assert!(server.stop().success());
}

/// The catalog says what values there are; a declared type stays a column's, and what does not fit is null there, stays in
/// its event, and is counted.
#[test]
fn properties_are_listed_and_declared() {
    let folder = tempfile::tempdir().expect("folder");
    let server = Server::start(&folder.path().join("data"), &[]);
    printed(&server, &["game", "create", "g", "--shards", "2"]);
    let append = |player: &str, properties: &str| {
        printed(&server, &["append", "--game", "g", player, "t", "--properties", properties]);
    };
    let listed = || -> serde_json::Value {
        serde_json::from_str(&printed(&server, &["property", "list", "--game", "g", "--json"])).expect("JSON")
    };
    let ask = |sql: &str| support::psql(server.pg().port(), "g", sql).expect("answers");
    append("ann", r#"{"gold":5,"name":"x"}"#);
    append("bob", r#"{"gold":"six","nested":{"a":1}}"#);
    append("cid", r#"{"gold":7.5,"name":null}"#);
    append("dan", "{}");
    let told = listed();
    assert_eq!((&told["events"], told["properties"].as_array().map(Vec::len)), (&4.into(), Some(3)));
    let gold = &told["properties"][0];
    assert_eq!(gold["values"], serde_json::json!({"float": 1, "int": 1, "string": 1}));
    let shown = ["name", "column", "declared", "null_share", "misfits"].map(|field| gold[field].to_string());
    assert_eq!(shown, ["\"gold\"", "\"text\"", "null", "0.25", "0"]);
    let name = &told["properties"][1];
    assert_eq!((&name["nulls"], &name["null_share"]), (&1.into(), &0.75.into()));
    let seen = ["first_seen_ms", "last_seen_ms"].map(|field| name[field].as_u64().expect("a time"));
    assert!(seen[0] - seen[1] < 3_600_000 && seen[1].is_multiple_of(3_600_000), "{seen:?}");

    printed(&server, &["property", "declare", "--game", "g", "gold", "int"]);
    printed(&server, &["compact", "--game", "g"]);
    append("eve", r#"{"gold":"many"}"#);
    let gold = |field: &str| listed()["properties"][0][field].to_string();
    assert_eq!(["column", "declared", "misfits"].map(gold), ["\"bigint\"", "\"int\"", "3"]);
    let sums = ask("select sum(gold), count(gold), count(*) from events");
    assert_eq!(sums, [["5", "1", "5"].map(|cell| Some(cell.to_owned())).to_vec()]);
    let bob = ask("select gold, properties from events where player_id = 'bob'");
    assert_eq!(bob, [vec![None, Some(r#"{"nested":{"a":1},"gold":"six"}"#.to_owned())]]);
    printed(&server, &["property", "declare", "--game", "g", "never", "bool"]);
    assert_eq!(ask("select count(never) from events")[0], [Some("0".to_owned())]);

    let run = |arguments: &[&str]| {
        let output = galoo(&server, arguments).output().expect("runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    printed(&server, &["property", "drop", "--game", "g", "gold"]);
    assert_eq!(["column", "misfits"].map(gold), ["\"text\"", "0"]);
    let (code, said) = run(&["property", "drop", "--game", "g", "gold"]);
    assert!(code == Some(3) && said.contains("property \"gold\" is not declared"), "{said}");
    let (code, said) = run(&["property", "declare", "--game", "g", &"x".repeat(257), "int"]);
    assert!(code == Some(3) && said.contains("property.name has 257 bytes; the limit is 256"), "{said}");
    assert!(server.stop().success());
}
