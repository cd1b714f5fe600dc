//! `galoo import`: sends a file's runs as numbered batches, so that a repeated import stores nothing twice.
//!
//! A run's number is the batch's number and the file's identity the producer, whatever the options: an import that was
//! killed goes on where it was, and so does one of a file that was appended to.

use std::{
    io::IsTerminal,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use galoo_client::{Answer, Client, Producer};
use galoo_import::{
    compression::Meter,
    dead_letter::{DeadLetters, default_path},
    detect::{Detection, MappingOptions, detect},
    fields::Fields,
    identity,
    instant::TimeUnitOption,
    mapping::{EventTimes, Mapping},
    runs::{Run, RunReader},
    source::{Line, Source, SourceError},
};
use galoo_proto::{command::rejection::Reason, value::Event};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::sync::mpsc;

use super::{Connection, Failure, output};

#[derive(Args)]
pub(super) struct ImportArgs {
    /// The file: NDJSON, plain, gzip or zstd; `-` for standard input
    file: PathBuf,
    #[arg(long)]
    game: String,
    /// Names the source instead of the file's name and content; standard input needs it
    ///
    /// A compressed file is read twice: first to its end, to see what of it is sure, then to import that. Standard input
    /// can be read only once: what comes before a damage of it is stored, although it may be wrong where the damage
    /// shows only in a checksum.
    #[arg(long)]
    source: Option<String>,
    /// The field that holds the player [default: detected]
    #[arg(long)]
    player_field: Option<String>,
    /// The field that holds the time [default: detected]
    #[arg(long)]
    time_field: Option<String>,
    /// Its unit: s, ms, us, ns, rfc3339 or auto
    #[arg(long, default_value = "auto")]
    time_unit: TimeUnitOption,
    /// The field that holds the event's type [default: detected]
    #[arg(long)]
    type_field: Option<String>,
    /// The field that holds an id of the event, if it has one: an event with an id that its player has an event with,
    /// stored within a day, is not stored, whichever file or client brought that
    #[arg(long)]
    id_field: Option<String>,
    /// Where bad lines go [default: FILE.rejected.ndjson in the current folder]
    #[arg(long)]
    rejected: Option<PathBuf>,
    #[command(flatten)]
    connection: Connection,
}

/// Batches on their way at once.
const WINDOW: usize = 32;
/// Mapped runs that wait to be sent.
const RUNS_AHEAD_MAX: usize = 8;
/// Between two pictures of what turns while a file is looked at.
const SPINNER_TICK: Duration = Duration::from_millis(100);

/// A run, mapped.
struct Batch {
    number: u64,
    may_grow: bool,
    events: Vec<Event>,
    lines: u64,
    bad: Vec<(u64, String, Vec<u8>)>,
}

/// What an import did.
#[derive(Default)]
pub(super) struct Report {
    lines: u64,
    pub(super) bad_lines: u64,
    pub(super) stored: u64,
    pub(super) duplicates: u64,
}

impl Report {
    fn take(&mut self, answers: &[Answer]) {
        for answer in answers {
            self.stored += answer.stored.stored;
            self.duplicates += answer.stored.duplicates;
        }
    }
}

fn source_failure(error: SourceError) -> Failure {
    Failure::Refused(error.to_string())
}

/// Says of a run whose number is known with other content what may have happened.
fn append_failure(error: galoo_client::Error) -> Failure {
    let is_conflict = matches!(
        &error,
        galoo_client::Error::Rejected { rejection, .. } if rejection.reason() == Reason::BatchConflict
    );
    match Failure::from(error) {
        Failure::Refused(message) if is_conflict => Failure::Refused(format!(
            "{message}: either the beginning of the file was changed, or it was first imported with other fields (give \
             the same --player-field, --time-field, --time-unit, --type-field and --id-field again), or --source named \
             another file"
        )),
        failure => failure,
    }
}

/// Finds the fields in the first run.
fn detected(args: &ImportArgs, first: Option<&Run>) -> Result<Detection, Failure> {
    let options = MappingOptions {
        player_field: args.player_field.clone(),
        time_field: args.time_field.clone(),
        time_unit: args.time_unit,
        type_field: args.type_field.clone(),
        id_field: args.id_field.clone(),
    };
    let lines = first.into_iter().flat_map(Run::lines).filter_map(|(_, line)| match line {
        Line::Text(text) => Some(text),
        Line::Blank { .. } | Line::TooLong { .. } => None,
    });
    detect(options, lines).map_err(|error| Failure::Refused(error.to_string()))
}

fn map_run(mapping: &mut Mapping, run: &Run) -> Batch {
    let mut batch =
        Batch { number: run.index(), may_grow: run.may_grow(), events: Vec::new(), lines: 0, bad: Vec::new() };
    for (number, line) in run.lines() {
        batch.lines += 1;
        match mapping.map_line(line) {
            None => {}
            Some(Ok(event)) => batch.events.push(Event {
                player_id: event.player_id,
                event_time_ms: event.event_time_ms,
                event_type: event.event_type,
                properties: event.properties,
                event_id: event.event_id,
            }),
            Some(Err(reason)) => {
                let text = match line {
                    Line::Text(text) => text.to_vec(),
                    Line::TooLong { head, .. } => head.to_vec(),
                    Line::Blank { .. } => Vec::new(),
                };
                batch.bad.push((number, reason.to_string(), text));
            }
        }
    }
    batch
}

/// Reads and maps runs on a thread of its own; returns the times seen and how the source ended.
fn read_runs(
    mut first: Option<Run>,
    mut runs: RunReader,
    mut mapping: Mapping,
    batches: &mpsc::Sender<Batch>,
) -> (Option<EventTimes>, Result<(), SourceError>) {
    loop {
        let run = match first.take() {
            Some(run) => run,
            None => match runs.next_run() {
                Ok(Some(run)) => run,
                Ok(None) => return (mapping.times(), Ok(())),
                Err(error) => return (mapping.times(), Err(error)),
            },
        };
        if batches.blocking_send(map_run(&mut mapping, &run)).is_err() {
            return (mapping.times(), Ok(()));
        }
    }
}

/// How far an import is: what was acknowledged, and how much of the file was read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    pub(super) lines: u64,
    pub(super) events: u64,
    pub(super) bytes: u64,
}

/// A file whose fields are known: what is left is to send it.
pub(super) struct Import {
    pub(super) detection: Detection,
    /// Of the file, before decompression; none for standard input.
    pub(super) total_bytes: Option<u64>,
    args: ImportArgs,
    name: String,
    prefix: Bytes,
    meter: Arc<Meter>,
    own_key: String,
    first: Option<Run>,
    runs: RunReader,
}

/// What became of an import.
pub(super) struct Imported {
    pub(super) report: Report,
    source: String,
    fields: Fields,
    times: Option<EventTimes>,
    rejected: Option<PathBuf>,
    /// How the source ended; what came before is stored.
    ended: Result<(), Failure>,
}

impl ImportArgs {
    /// Returns what imports `file` with everything detected, bad lines going to `rejected`.
    pub(super) fn detecting(file: PathBuf, game: String, rejected: PathBuf, connection: Connection) -> Self {
        let (source, player_field, time_field, type_field, id_field) = (None, None, None, None, None);
        let (time_unit, rejected) = (TimeUnitOption::default(), Some(rejected));
        Self { file, game, source, player_field, time_field, time_unit, type_field, id_field, rejected, connection }
    }
}

impl Import {
    /// Opens the file and finds its fields; a compressed one is read to its end before.
    pub(super) fn open(args: ImportArgs) -> Result<Self, Failure> {
        let source = Source::open(&args.file, args.source.as_deref()).map_err(source_failure)?;
        let (name, prefix, meter) = (source.identity().name.clone(), source.prefix(), source.meter());
        let (own_key, total_bytes) = (source.source_key(), source.total_bytes());
        let mut runs = RunReader::new(source);
        let first = runs.next_run().map_err(source_failure)?;
        let detection = detected(&args, first.as_ref())?;
        Ok(Self { detection, total_bytes, args, name, prefix, meter, own_key, first, runs })
    }

    /// Sends everything to a game that exists, and tells how far it is after each run.
    pub(super) async fn send(self, client: &Client, mut tell: impl FnMut(Progress)) -> Result<Imported, Failure> {
        let Self { detection, args, name, prefix, meter, own_key, first, runs, .. } = self;
        let source = if args.source.is_some() {
            own_key
        } else {
            let known = client.list_producers(&args.game, &format!("file:{name}")).await?;
            identity::choose(&known, &name, &prefix).unwrap_or(own_key)
        };
        let producer = Producer::register(client, &args.game, &source).await?;
        let mut stream = producer.stream(WINDOW).await?;
        let fields = detection.fields;
        let mapping = Mapping::new(fields.clone()).map_err(|error| Failure::Refused(error.to_string()))?;
        let rejected = args.rejected.clone().unwrap_or_else(|| default_path(&name));
        let mut dead_letters = DeadLetters::new(&rejected).map_err(|error| Failure::Refused(error.to_string()))?;

        let (sender, mut batches) = mpsc::channel(RUNS_AHEAD_MAX);
        let reader = tokio::task::spawn_blocking(move || read_runs(first, runs, mapping, &sender));
        let mut report = Report::default();
        while let Some(batch) = batches.recv().await {
            report.lines += batch.lines;
            report.bad_lines += batch.bad.len() as u64;
            for (line, reason, text) in &batch.bad {
                dead_letters.add(*line, reason, text).context("dead letters")?;
            }
            if !batch.events.is_empty() {
                let sent = stream.send(batch.number, batch.events, batch.may_grow).await;
                report.take(&sent.map_err(append_failure)?);
            }
            let events = report.stored + report.duplicates;
            tell(Progress { lines: report.lines, events, bytes: meter.bytes_read() });
        }
        report.take(&stream.finish().await.map_err(append_failure)?);
        let (times, ended) = reader.await.context("the reading thread")?;
        let rejected = dead_letters.finish().context("dead letters")?;
        Ok(Imported { report, source, fields, times, rejected, ended: ended.map_err(source_failure) })
    }
}

pub(super) async fn run(args: ImportArgs) -> Result<(), Failure> {
    let started = Instant::now();
    let (quiet, connection, game) = (args.connection.json, args.connection.clone(), args.game.clone());
    let spinner = spinner(&args);
    let opened = Import::open(args);
    spinner.finish_and_clear();
    let import = opened?;
    // Whether somebody reads this or not, the import goes on.
    let say = |text: String| if quiet { Ok(()) } else { output::line(text) };
    let _ = say(import.detection.to_string());
    let client = connection.connect().await?;
    match client.create_game(&game, 0, 0).await {
        Ok(game) => {
            let _ = say(format!("created game {} with {} shards", game.name, game.shards));
        }
        Err(galoo_client::Error::Status { code: tonic::Code::AlreadyExists, .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let bar = progress_bar(import.total_bytes, quiet);
    let tell = |progress: Progress| {
        bar.set_position(progress.bytes);
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = progress.events as f64 / started.elapsed().as_secs_f64();
        bar.set_message(format!("{} lines, {rate:.0} events/s", progress.lines));
    };
    let imported = import.send(&client, tell).await?;
    bar.finish_and_clear();
    let printed = imported.print(started, quiet);
    imported.ended.and(printed)
}

impl Imported {
    fn print(&self, started: Instant, quiet: bool) -> Result<(), Failure> {
        let Self { report, fields, times, rejected, .. } = self;
        let seconds = started.elapsed().as_secs_f64();
        if quiet {
            let range = times.map(|times| json!([times.min_ms, times.max_ms]));
            return output::line(json!({
                "source": self.source, "player_field": fields.player, "time_field": fields.time,
                "time_unit": fields.time_unit.name(), "type_field": fields.event_type,
                "id_field": fields.event_id,
                "lines": report.lines, "bad_lines": report.bad_lines,
                "events_stored": report.stored, "duplicates": report.duplicates, "time_range_ms": range,
                "seconds": seconds, "rejected": rejected.as_ref().map(|path| path.display().to_string()),
            }));
        }
        if let Some(times) = times {
            let (from, to) = (output::time_text(times.min_ms), output::time_text(times.max_ms));
            output::line(format_args!("times from {from} to {to}"))?;
        }
        let (stored, duplicates, lines) = (report.stored, report.duplicates, report.lines);
        output::line(format_args!(
            "stored {stored} events ({duplicates} were stored before) of {lines} lines in {seconds:.1} s"
        ))?;
        match rejected {
            Some(path) => output::line(format_args!("{} bad lines: {}", report.bad_lines, path.display())),
            None => Ok(()),
        }
    }

    /// Returns the report of an import whose source was whole.
    pub(super) fn whole(self) -> Result<Report, Failure> {
        self.ended.map(|()| self.report)
    }
}

/// Turns while a compressed file is read to its end.
fn spinner(args: &ImportArgs) -> ProgressBar {
    if args.connection.json || args.file.as_os_str() == "-" || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let spinner = ProgressBar::new_spinner().with_message("looking whether the file is whole");
    spinner.enable_steady_tick(SPINNER_TICK);
    spinner
}

fn progress_bar(total_bytes: Option<u64>, quiet: bool) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = total_bytes.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    let template = "{bar:30} {bytes}/{total_bytes} {msg} {eta}";
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
