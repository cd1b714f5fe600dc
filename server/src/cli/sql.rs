//! `galoo sql`: SQL over the node's Postgres protocol: one command with `-c`, a script from a pipe or a file, or line by
//! line with history.
//!
//! Statements run one after the other. A command and a script end at the first that fails, as `psql -v ON_ERROR_STOP=1`
//! does.

use std::{io::IsTerminal, net::SocketAddr};

use anyhow::{Context, anyhow};
use clap::Args;
use datafusion::sql::sqlparser::{
    dialect::PostgreSqlDialect,
    tokenizer::{Location, Token, Tokenizer},
};
use rustyline::{DefaultEditor, error::ReadlineError};
use serde_json::{Value, json};
use tokio::task::block_in_place;
use tokio_postgres::{NoTls, SimpleQueryMessage, types::Type};

use super::{Connection, Failure, output};

#[derive(Args)]
pub(super) struct SqlArgs {
    /// Run this and end
    #[arg(short, long)]
    command: Option<String>,
    #[arg(long)]
    game: String,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn run(args: SqlArgs) -> Result<(), Failure> {
    let status = args.connection.connect().await?.status().await?;
    let address: SocketAddr =
        status.pg_addr.parse().with_context(|| format!("the node's Postgres address {:?}", status.pg_addr))?;
    let mut config = tokio_postgres::Config::new();
    for host in hosts(address, &args.connection.addr) {
        config.host(host);
    }
    config.port(address.port()).dbname(&args.game).user("galoo");
    let (client, connection) = config.connect(NoTls).await.map_err(failure)?;
    tokio::spawn(connection);
    let session = Session { client, json: args.connection.json };
    match args.command {
        Some(command) => session.run(&command).await,
        None if std::io::stdin().is_terminal() => session.interactive(&args.game).await,
        None => session.script().await,
    }
}

/// Where a node that serves the Postgres protocol on this address is found: a node that serves all of its addresses, on
/// one of those that it was asked at.
fn hosts(pg: SocketAddr, asked: &str) -> Vec<String> {
    if !pg.ip().is_unspecified() {
        return vec![pg.ip().to_string()];
    }
    let host = |addr: &str| addr.rsplit_once(':').map_or(addr, |(host, _)| host).trim_matches(['[', ']']).to_owned();
    asked.split(',').map(|addr| host(addr.trim())).collect()
}

fn failure(error: tokio_postgres::Error) -> Failure {
    match error.as_db_error() {
        Some(db) => failure_of(db.code().code(), format!("{} ({})", db.message(), db.code().code())),
        None => Failure::Unreachable(error.to_string()),
    }
}

/// Sorts a node's error by the class of its SQLSTATE.
fn failure_of(sqlstate: &str, message: String) -> Failure {
    match sqlstate.get(..2) {
        // The connection, an unknown outcome, too few resources, somebody's intervention: another try may do.
        Some("08" | "40" | "53" | "57") => Failure::Unreachable(message),
        // The system below, or the node itself.
        Some("58" | "XX") => Failure::Failed(anyhow!(message)),
        _ => Failure::Refused(message),
    }
}

/// A connection, and how its answers are printed.
struct Session {
    client: tokio_postgres::Client,
    json: bool,
}

impl Session {
    /// Runs the statements of a text, up to the first that fails.
    async fn run(&self, text: &str) -> Result<(), Failure> {
        for statement in statements(text) {
            // Answers to simple queries do not tell the types of their columns.
            let types = if self.json { self.types(statement).await? } else { Vec::new() };
            let mut header: Vec<String> = Vec::new();
            let mut rows: Vec<Vec<Option<String>>> = Vec::new();
            for message in self.client.simple_query(statement).await.map_err(failure)? {
                match message {
                    SimpleQueryMessage::RowDescription(columns) => {
                        header = columns.iter().map(|column| column.name().to_owned()).collect();
                    }
                    SimpleQueryMessage::Row(row) => {
                        rows.push((0..row.len()).map(|place| row.get(place).map(str::to_owned)).collect());
                    }
                    _ => {}
                }
            }
            if self.json {
                rows.iter().try_for_each(|row| output::line(object(&header, &types, row)))?;
            } else if !header.is_empty() {
                let header: Vec<_> = header.iter().map(String::as_str).collect();
                let count = rows.len();
                let shown = |cell: Option<String>| cell.unwrap_or_default();
                output::table(&header, rows.into_iter().map(|row| row.into_iter().map(shown).collect()))?;
                output::line(format_args!("({count} rows)"))?;
            }
        }
        Ok(())
    }

    /// The types of a statement's columns.
    async fn types(&self, statement: &str) -> Result<Vec<Type>, Failure> {
        let prepared = self.client.prepare(statement).await.map_err(failure)?;
        Ok(prepared.columns().iter().map(|column| column.type_().clone()).collect())
    }

    /// Runs what comes from standard input, also what no `;` ends.
    async fn script(&self) -> Result<(), Failure> {
        let mut lines = std::io::stdin().lines();
        let mut text = String::new();
        // Reading blocks this thread; the connection runs on the others.
        while let Some(line) = block_in_place(|| lines.next()) {
            match entered(&mut text, &line.context("standard input")?) {
                Entered::Part => {}
                Entered::Whole => {
                    self.run(&text).await?;
                    text.clear();
                }
                Entered::Quit => return Ok(()),
            }
        }
        self.run(&text).await
    }

    /// Runs what a person types; an error ends nothing.
    async fn interactive(&self, game: &str) -> Result<(), Failure> {
        let mut editor = DefaultEditor::new().context("the terminal")?;
        let history = std::env::var_os("HOME").map(|home| std::path::Path::new(&home).join(".galoo_history"));
        if let Some(history) = &history {
            // There is none before the first session.
            let _ = editor.load_history(history);
        }
        let mut text = String::new();
        loop {
            let prompt = if text.is_empty() { format!("{game}=> ") } else { format!("{game}-> ") };
            // Reading blocks this thread; the connection runs on the others.
            let line = match block_in_place(|| editor.readline(&prompt)) {
                Ok(line) => line,
                Err(ReadlineError::Interrupted) => {
                    text.clear();
                    continue;
                }
                Err(ReadlineError::Eof) => break,
                Err(error) => return Err(Failure::Failed(error.into())),
            };
            match entered(&mut text, &line) {
                Entered::Part => {}
                Entered::Whole => {
                    let _ = editor.add_history_entry(text.trim());
                    match self.run(&text).await {
                        Ok(()) => {}
                        Err(Failure::Unread) => return Err(Failure::Unread),
                        Err(error) => output::say(error),
                    }
                    text.clear();
                }
                Entered::Quit => break,
            }
        }
        if let Some(history) = &history {
            let _ = editor.save_history(history);
        }
        Ok(())
    }
}

/// What a text is after a further line.
enum Entered {
    /// More is to come.
    Part,
    /// It ends with `;`.
    Whole,
    Quit,
}

/// Adds a line to a text.
fn entered(text: &mut String, line: &str) -> Entered {
    text.push_str(line);
    text.push('\n');
    let typed = text.trim();
    if typed.is_empty() {
        text.clear();
        Entered::Part
    } else if matches!(typed, "quit" | "exit" | "\\q") {
        Entered::Quit
    } else if typed.ends_with(';') {
        Entered::Whole
    } else {
        Entered::Part
    }
}

/// Cuts a text at every `;` that is in no string, name or comment. What cannot be cut is for the node to refuse.
fn statements(text: &str) -> Vec<&str> {
    let Ok(tokens) = Tokenizer::new(&PostgreSqlDialect {}, text).tokenize_with_location() else { return vec![text] };
    let ends = tokens.iter().filter(|token| token.token == Token::SemiColon).map(|token| token.span.start);
    let mut ends = ends.peekable();
    let (mut here, mut start, mut found) = (Location::new(1, 1), 0, Vec::new());
    for (at, character) in text.char_indices() {
        if ends.next_if_eq(&here).is_some() {
            found.push(&text[start..at]);
            start = at + character.len_utf8();
        }
        let (line, column) = if character == '\n' { (here.line + 1, 1) } else { (here.line, here.column + 1) };
        here = Location::new(line, column);
    }
    found.push(&text[start..]);
    found.retain(|statement| !statement.trim().is_empty());
    found
}

/// A row as a JSON object with its columns in their order.
fn object(header: &[String], types: &[Type], row: &[Option<String>]) -> String {
    let columns = header.iter().zip(types).zip(row);
    let members = columns.map(|((name, kind), text)| format!("{}:{}", json!(name), cell(kind, text.as_deref())));
    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
}

/// A cell as JSON: integers, finite floats, booleans and null as such, all else as its text.
fn cell(kind: &Type, text: Option<&str>) -> Value {
    let Some(text) = text else { return Value::Null };
    let value = match *kind {
        Type::BOOL if text == "t" => Some(Value::Bool(true)),
        Type::BOOL if text == "f" => Some(Value::Bool(false)),
        Type::INT2 | Type::INT4 | Type::INT8 => text.parse::<i64>().ok().map(Value::from),
        Type::FLOAT4 | Type::FLOAT8 => text.parse::<f64>().ok().filter(|number| number.is_finite()).map(Value::from),
        _ => None,
    };
    value.unwrap_or_else(|| json!(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_into_its_statements() {
        assert_eq!(statements("select 1"), ["select 1"]);
        assert_eq!(statements(" ;; \n"), [""; 0]);
        let cut = statements("select 'é;';\nselect \";\" -- ;\n; /* ; */ show x");
        assert_eq!(cut, ["select 'é;'", "\nselect \";\" -- ;\n", " /* ; */ show x"]);
        assert_eq!(statements("select 1; select 'open"), ["select 1; select 'open"]);
    }

    #[test]
    fn a_node_on_all_addresses_is_asked_where_it_was_found() {
        let at = |pg: &str, asked: &str| hosts(pg.parse().expect("an address"), asked);
        assert_eq!(at("10.0.0.7:5433", "lobby:7400"), ["10.0.0.7"]);
        assert_eq!(at("0.0.0.0:5433", "lobby:7400, 10.0.0.7:7400"), ["lobby", "10.0.0.7"]);
        assert_eq!(at("[::]:5433", "[fd00::7]:7400"), ["fd00::7"]);
    }

    #[test]
    fn lines_become_statements() {
        let mut text = String::new();
        assert!(matches!(entered(&mut text, " "), Entered::Part) && text.is_empty());
        assert!(matches!(entered(&mut text, "select"), Entered::Part));
        assert!(matches!(entered(&mut text, "1; "), Entered::Whole));
        assert_eq!(text, "select\n1; \n");
        assert!(matches!(entered(&mut String::new(), "\\q"), Entered::Quit));
    }

    #[test]
    fn cells_are_json_of_their_types() {
        for (kind, text, json) in [
            (Type::INT8, "9007199254740993", "9007199254740993"),
            (Type::INT4, "-1", "-1"),
            (Type::FLOAT8, "0.1", "0.1"),
            (Type::FLOAT8, "NaN", "\"NaN\""),
            (Type::FLOAT8, "-Infinity", "\"-Infinity\""),
            (Type::BOOL, "t", "true"),
            (Type::BOOL, "f", "false"),
            (Type::NUMERIC, "2.50", "\"2.50\""),
            (Type::TEXT, "1", "\"1\""),
        ] {
            assert_eq!(cell(&kind, Some(text)).to_string(), json, "{kind} {text}");
            assert_eq!(cell(&kind, None), Value::Null);
        }
        let header = ["z".to_owned(), "a".to_owned()];
        let row = [Some("1".to_owned()), None];
        assert_eq!(object(&header, &[Type::INT8, Type::TEXT], &row), r#"{"z":1,"a":null}"#);
    }

    #[test]
    fn an_error_has_the_exit_code_of_its_class() {
        for (code, sqlstates) in [
            (1, ["XX000", "XX001", "58030"]),
            (3, ["42601", "25006", "3D000"]),
            (4, ["57P03", "53200", "40003"]),
            (4, ["57014", "57P01", "08006"]),
        ] {
            for sqlstate in sqlstates {
                assert_eq!(failure_of(sqlstate, String::new()).exit_code(), code, "{sqlstate}");
            }
        }
    }
}
