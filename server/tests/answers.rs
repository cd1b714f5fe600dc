//! Galoo answers the questions of the shared data sets, and of one generated here, as DuckDB does.
//!
//! It guards two promises on real, untidy events: SQL through psql is exact, and an import that is run again stores nothing.
//! The questions and DuckDB's answers are in `*.answers.json`; `answers/queries.sql` asks them in Galoo's SQL.
//!
//! - `GALOO_SHARED` names the folder shared/ (see [`support::shared_data`]).
//! - `GALOO_PYTHON` names a Python that has duckdb; `GALOO_SEED` makes another generated set.

mod support;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Map, Value};
use support::{Row, done};

/// Galoo's SQL for each entry; its head says how it is laid out.
const QUERIES: &str = include_str!("answers/queries.sql");
const GENERATOR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/answers/generate.py");
const GENERATED_EVENTS: u32 = 60_000;
/// The generator needs seconds.
const GENERATOR_WAIT_MAX: Duration = Duration::from_secs(300);
/// Two engines add floats in different orders.
const FLOAT_ERROR_RELATIVE_MAX: f64 = 1e-9;

#[test]
fn sc2_answers() {
    shared_answers("sc2_answers", "sc2", 1);
}

/// Loaded through one of three nodes, asked through another.
#[test]
fn sc2_answers_of_three_nodes() {
    shared_answers("sc2_answers_of_three_nodes", "sc2", 3);
}

#[test]
fn w3g_answers() {
    shared_answers("w3g_answers", "w3g", 1);
}

#[test]
fn generated_answers() {
    let python = env::var("GALOO_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let seed = env::var("GALOO_SEED").unwrap_or_else(|_| "20240229".to_owned());
    if Command::new(&python).args(["-c", "import duckdb"]).output().is_ok_and(|output| output.status.success()) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut command = Command::new(&python);
        command.arg(GENERATOR).arg(folder.path()).arg(&seed).arg(GENERATED_EVENTS.to_string());
        let output = support::output(command.into(), GENERATOR_WAIT_MAX);
        assert!(output.status.success(), "{GENERATOR}: {}", String::from_utf8_lossy(&output.stderr));
        eprintln!("the same data again: GALOO_SEED={seed}");
        let (events, answers) = (folder.path().join("generated.ndjson"), folder.path().join("generated.answers.json"));
        check("generated", &events, &answers, 1);
        check("generated", &events, &answers, 3);
    } else {
        assert!(env::var("CI").as_deref() != Ok("true"), "{python} cannot import duckdb (GALOO_PYTHON)");
        support::skipped("generated_answers", &format!("{python} cannot import duckdb (GALOO_PYTHON)"));
    }
}

/// Checks a data set of the folder shared/data, where there is one.
fn shared_answers(test: &str, game: &str, nodes: usize) {
    match support::shared_data() {
        Some(data) => {
            let (events, answers) = (format!("{game}.ndjson.zst"), format!("{game}.answers.json"));
            check(game, &data.join(events), &data.join(answers), nodes);
        }
        None => support::skipped(test, "no shared data (GALOO_SHARED)"),
    }
}

/// Imports `events` twice into a cluster of its own and compares its answers with those in the file `answers`.
///
/// The first node is given the events, the last one is asked.
fn check(game: &str, events: &Path, answers: &Path, nodes: usize) {
    let text = fs::read_to_string(answers).unwrap_or_else(|error| panic!("cannot read {}: {error}", answers.display()));
    let answers: Map<String, Value> = serde_json::from_str(&text).expect("the answers are a JSON object");
    let count = answers["events"]["rows"][0][0].as_u64().expect("the entry 'events' holds their count");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut cluster = support::cluster(folder.path(), nodes);
    done(cluster.form());
    let (loaded, asked) = (cluster.grpc(0), cluster.nodes()[nodes - 1].pg.port());

    for (run, events_stored) in [("first", count), ("second", 0)] {
        let report = import(&loaded, game, events);
        for (key, expected) in [("events_stored", events_stored), ("lines", count), ("bad_lines", 0)] {
            assert_eq!(report[key].as_u64(), Some(expected), "{key} of the {run} import: {report}");
        }
        let stored = support::psql(asked, game, "select count(*) from events");
        assert_eq!(stored, Ok(vec![vec![Some(count.to_string())]]), "events after the {run} import");
    }

    let translations = translations(QUERIES);
    let ask = |sql: &str| support::psql(asked, game, sql);
    let wrong: Vec<String> = answers
        .iter()
        .filter(|(name, _)| *name != "engine")
        .flat_map(|(name, entry)| questions(name, entry))
        .filter_map(|question| question.check(&translations, ask).err())
        .collect();
    assert!(wrong.is_empty(), "{} wrong answers about {game}\n{}", wrong.len(), wrong.join("\n"));
    for node in 0..nodes {
        assert!(done(cluster.stop(node)).success(), "the server ends well");
    }
}

/// Runs `galoo import` and returns the JSON object that it prints last.
fn import(address: &str, game: &str, events: &Path) -> Value {
    let events = events.to_str().expect("a path in UTF-8");
    let output = support::galoo(&["import", "--addr", address, "--game", game, events, "--json"]);
    let (printed, complaints) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "galoo import {events}: {}\n{printed}\n{complaints}", output.status);
    let start = printed.rfind("\n{").map_or(0, |line_end| line_end + 1);
    serde_json::from_str(&printed[start..]).unwrap_or_else(|error| panic!("no JSON object ends '{printed}': {error}"))
}

/// Reads a file of translations: each starts with a line `-- name: NAME`.
fn translations(text: &str) -> BTreeMap<&str, &str> {
    let mut found = BTreeMap::new();
    for part in text.split("-- name: ").skip(1) {
        let (name, sql) = part.split_once('\n').expect("a line ends after a name");
        assert!(found.insert(name.trim(), sql.trim()).is_none(), "two translations of '{name}'");
    }
    found
}

/// One query and the rows that answer it.
struct Question<'a> {
    /// The name of its translation.
    name: String,
    /// What stands in the translation for `$NAME`, as SQL.
    parameters: Vec<(&'static str, String)>,
    rows: Vec<&'a [Value]>,
}

/// Returns the queries that an entry of the answers stands for: one, or two for a player's time range.
fn questions<'a>(name: &str, entry: &'a Value) -> Vec<Question<'a>> {
    let rows = |key: &str| -> Vec<&'a [Value]> {
        let rows = entry[key].as_array().unwrap_or_else(|| panic!("entry '{name}' has no {key}"));
        rows.iter()
            .map(|row| row.as_array().unwrap_or_else(|| panic!("entry '{name}': {row} is no row")))
            .map(Vec::as_slice)
            .collect()
    };
    let Some(player) = entry["player_id"].as_str() else {
        return vec![Question { name: name.to_owned(), parameters: Vec::new(), rows: rows("rows") }];
    };
    // The player comes last, so that nothing is put into its name.
    let parameters = vec![
        ("$from_ms", entry["from_ms"].to_string()),
        ("$to_ms", entry["to_ms"].to_string()),
        ("$player", format!("'{}'", player.replace('\'', "''"))),
    ];
    vec![
        Question {
            name: format!("{name}.count"),
            parameters: parameters.clone(),
            rows: vec![std::slice::from_ref(&entry["count"])],
        },
        Question { name: format!("{name}.by_type"), parameters, rows: rows("by_type") },
    ]
}

impl Question<'_> {
    /// Asks the query and says what is wrong with the answer.
    fn check(
        &self,
        translations: &BTreeMap<&str, &str>,
        ask: impl Fn(&str) -> Result<Vec<Row>, String>,
    ) -> Result<(), String> {
        let name = &self.name;
        let translation = translations.get(name.as_str()).ok_or(format!("{name}: no translation in queries.sql"))?;
        let fill = |sql: String, (key, value): &(&str, String)| sql.replace(key, value);
        let sql = self.parameters.iter().fold((*translation).to_owned(), fill);
        let answered = ask(&sql).map_err(|error| format!("{name}: {error}\n  {sql}"))?;
        if answered.len() != self.rows.len() {
            return Err(format!("{name}: {} rows instead of {}\n  {sql}", answered.len(), self.rows.len()));
        }
        for (index, (row, expected)) in answered.iter().zip(&self.rows).enumerate() {
            if !same_row(row, expected) {
                return Err(format!("{name}: row {index} is {row:?} instead of {expected:?}\n  {sql}"));
            }
        }
        Ok(())
    }
}

fn same_row(row: &Row, expected: &[Value]) -> bool {
    row.len() == expected.len() && row.iter().zip(expected).all(|(cell, value)| same_cell(cell.as_deref(), value))
}

/// Whether psql's text says the value: floats nearly, all else exactly. An integer must be printed as one.
fn same_cell(cell: Option<&str>, expected: &Value) -> bool {
    match (cell, expected) {
        (None, Value::Null) => true,
        (Some(text), Value::String(expected)) => text == expected,
        (Some(text), Value::Bool(expected)) => text == if *expected { "t" } else { "f" },
        (Some(text), Value::Number(expected)) if expected.is_f64() => {
            let (Ok(found), Some(expected)) = (text.parse::<f64>(), expected.as_f64()) else { return false };
            (found - expected).abs() <= FLOAT_ERROR_RELATIVE_MAX * found.abs().max(expected.abs())
        }
        (Some(text), Value::Number(expected)) => text == expected.to_string(),
        _ => false,
    }
}

#[test]
fn cells_are_compared_by_type() {
    let cases = [
        (None, Value::Null, true),
        (Some(""), Value::Null, false),
        (None, Value::from(""), false),
        (Some("1.0"), Value::from(1), false),
        (Some("1"), Value::from(1.0), true),
        (Some("1.0000000001"), Value::from(1.0), true),
        (Some("1.00000001"), Value::from(1.0), false),
        (Some("NaN"), Value::from(1.0), false),
        (Some("0"), Value::from("0"), true),
        (Some("t"), Value::from(true), true),
    ];
    for (cell, expected, same) in cases {
        assert_eq!(same_cell(cell, &expected), same, "{cell:?} and {expected}");
    }
}
