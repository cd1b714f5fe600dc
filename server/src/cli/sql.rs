//! `galoo sql`: SQL over the node's Postgres protocol, one statement with `-c` or line by line with history.

use anyhow::Context;
use clap::Args;
use rustyline::{DefaultEditor, error::ReadlineError};
use serde_json::{Map, json};
use tokio_postgres::{NoTls, SimpleQueryMessage};

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
    let address: std::net::SocketAddr =
        status.pg_addr.parse().with_context(|| format!("the node's Postgres address {:?}", status.pg_addr))?;
    let mut config = tokio_postgres::Config::new();
    config.host(address.ip().to_string()).port(address.port()).dbname(&args.game).user("galoo");
    let (client, connection) = config.connect(NoTls).await.map_err(failure)?;
    tokio::spawn(connection);
    match args.command {
        Some(command) => statement(&client, &command, args.connection.json).await,
        None => interactive(&client, &args.game, args.connection.json).await,
    }
}

fn failure(error: tokio_postgres::Error) -> Failure {
    match error.as_db_error() {
        Some(db) => Failure::Refused(format!("{} ({})", db.message(), db.code().code())),
        None => Failure::Unreachable(error.to_string()),
    }
}

async fn statement(client: &tokio_postgres::Client, sql: &str, as_json: bool) -> Result<(), Failure> {
    let mut header: Vec<String> = Vec::new();
    let mut rows: Vec<Vec<Option<String>>> = Vec::new();
    for message in client.simple_query(sql).await.map_err(failure)? {
        match message {
            SimpleQueryMessage::RowDescription(columns) => {
                header = columns.iter().map(|column| column.name().to_owned()).collect();
            }
            SimpleQueryMessage::Row(row) => {
                rows.push((0..row.len()).map(|place| row.get(place).map(str::to_owned)).collect());
            }
            SimpleQueryMessage::CommandComplete(count) => {
                print(&header, &rows, as_json);
                if !as_json && !header.is_empty() {
                    println!("({count} rows)");
                }
                (header, rows) = (Vec::new(), Vec::new());
            }
            _ => {}
        }
    }
    Ok(())
}

fn print(header: &[String], rows: &[Vec<Option<String>>], as_json: bool) {
    if as_json {
        for row in rows {
            let object: Map<_, _> = header.iter().cloned().zip(row.iter().map(|value| json!(value))).collect();
            println!("{}", serde_json::Value::from(object));
        }
    } else if !header.is_empty() {
        let header: Vec<_> = header.iter().map(String::as_str).collect();
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        output::table(&header, rows.iter().map(|row| row.iter().map(text).collect()));
    }
}

async fn interactive(client: &tokio_postgres::Client, game: &str, as_json: bool) -> Result<(), Failure> {
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
        match tokio::task::block_in_place(|| editor.readline(&prompt)) {
            Ok(line) => {
                text.push_str(&line);
                text.push('\n');
            }
            Err(ReadlineError::Interrupted) => {
                text.clear();
                continue;
            }
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(Failure::Failed(error.into())),
        }
        if text.trim().is_empty() {
            text.clear();
        } else if matches!(text.trim(), "quit" | "exit" | "\\q") {
            break;
        } else if text.trim_end().ends_with(';') {
            let _ = editor.add_history_entry(text.trim());
            if let Err(error) = statement(client, &text, as_json).await {
                eprintln!("{error}");
            }
            text.clear();
        }
    }
    if let Some(history) = &history {
        let _ = editor.save_history(history);
    }
    Ok(())
}
