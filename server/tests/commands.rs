//! The command line as shells and scripts use it: its output is piped to who reads none or a part of it, SQL comes from a
//! pipe, and programs read what `--json` prints.

mod support;

use std::{
    io::{PipeWriter, Write},
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
