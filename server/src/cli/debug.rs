//! `galoo debug`: what a node's data folder holds, while no node runs there. Nothing in it is changed.
//!
//! The engine is read as it was flushed; what was applied since is in the log, and a node applies it again when it starts.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use clap::{Args, Subcommand};
use galoo_cluster::machine::META_KEYSPACE;
use galoo_consensus::log_store::{LogStore, shared::SharedLog};
use galoo_proto::{Keyspace, Seq, TokenRange, record::ShardState};
use galoo_storage::{
    compaction::keyspaces,
    engine::{Engine, Family, rocks::RocksEngine},
    inspect::Inspector,
    segment::SegmentFiles,
    shard::Checksum,
    view::{EventFilter, Source, View},
};
use serde_json::json;

use super::{Failure, output};
use crate::data_folder::DataFolder;

/// Rows and events that are shown when it is not said how many.
const LIMIT: usize = 100;

#[derive(Subcommand)]
pub(super) enum DebugCommand {
    /// List the shards
    #[command(after_help = "Example: galoo debug shards /var/lib/galoo")]
    Shards(FolderArgs),
    /// List a shard's chunks and segments, in order of their events
    #[command(after_help = "Example: galoo debug sources /var/lib/galoo --shard 3")]
    Sources(ShardArgs),
    /// Show a shard's rows in a family of the engine, with what keys and values say
    #[command(after_help = "Example: galoo debug rows /var/lib/galoo --shard 3 --family cells --limit 10")]
    Rows {
        #[command(flatten)]
        shard: ShardArgs,
        /// meta, cells, history, chunks, producers or rollups
        #[arg(long, value_parser = family)]
        family: Family,
        /// At most so many
        #[arg(long, default_value_t = LIMIT)]
        limit: usize,
    },
    /// Show a shard's events as they are stored, one JSON object a line
    #[command(after_help = "Example: galoo debug events /var/lib/galoo --shard 3 --after 1000 --limit 10")]
    Events {
        #[command(flatten)]
        shard: ShardArgs,
        /// Events behind this sequence number
        #[arg(long, default_value_t = 0)]
        after: u64,
        /// At most so many
        #[arg(long, default_value_t = LIMIT)]
        limit: usize,
    },
    /// Show the checksum of each shard, as `galoo checksum` does
    #[command(after_help = "Example: galoo debug checksum /var/lib/galoo")]
    Checksum(FolderArgs),
    /// List the Raft groups of the log: it is read in a copy, in the system's folder for temporary files
    #[command(after_help = "Example: galoo debug log /var/lib/galoo")]
    Log(FolderArgs),
    /// Read everything and say what is wrong; exit code 1 if anything is
    #[command(after_help = "Example: galoo debug check /var/lib/galoo")]
    Check(FolderArgs),
}

#[derive(Args)]
pub(super) struct FolderArgs {
    /// The node's data folder
    folder: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(super) struct ShardArgs {
    #[command(flatten)]
    folder: FolderArgs,
    /// The shard's number
    #[arg(long)]
    shard: u64,
}

fn family(name: &str) -> Result<Family, String> {
    let known = || Family::ALL.map(Family::name).join(", ");
    Family::ALL.into_iter().find(|family| family.name() == name).ok_or_else(|| format!("there are {}", known()))
}

pub(super) fn run(command: DebugCommand) -> Result<(), Failure> {
    match command {
        DebugCommand::Shards(args) => shards(&args),
        DebugCommand::Sources(args) => sources(&args),
        DebugCommand::Rows { shard, family, limit } => rows(&shard, family, limit),
        DebugCommand::Events { shard, after, limit } => events(&shard, after, limit),
        DebugCommand::Checksum(args) => checksum(&args),
        DebugCommand::Log(args) => log(&args),
        DebugCommand::Check(args) => check(&args),
    }
}

/// A data folder that is looked into, and that no node can open meanwhile.
struct Looked {
    /// Locked as long as this lives.
    _folder: DataFolder,
    engine: Arc<dyn Engine>,
    files: Arc<SegmentFiles>,
    inspector: Inspector,
}

impl Looked {
    fn open(path: &Path) -> Result<Self, Failure> {
        let folder = locked(path)?;
        let engine: Arc<dyn Engine> = Arc::new(RocksEngine::open_read_only(&folder.join("data")).map_err(failed)?);
        let files = Arc::new(SegmentFiles::new(&folder.join("segments")).map_err(failed)?);
        let shards = keyspaces(engine.as_ref()).map_err(failed)?.into_iter().filter(|one| *one != META_KEYSPACE);
        let inspector = Inspector::open(engine.clone(), shards).map_err(failed)?;
        Ok(Self { _folder: folder, engine, files, inspector })
    }

    fn view(&self, keyspace: Keyspace) -> Result<View, Failure> {
        let view = View::open(self.engine.snapshot(), keyspace, self.files.clone()).map_err(failed)?;
        view.ok_or_else(|| Failure::Refused(format!("{keyspace} holds no shard")))
    }

    fn keyspace(&self, shard: u64) -> Result<Keyspace, Failure> {
        let found = self.inspector.shards().iter().find(|(_, state)| state.shard == shard);
        found.map(|(keyspace, _)| *keyspace).ok_or_else(|| Failure::Refused(format!("there is no shard s{shard} here")))
    }
}

fn failed(error: impl Into<anyhow::Error>) -> Failure {
    Failure::Failed(error.into())
}

fn locked(path: &Path) -> Result<DataFolder, Failure> {
    if !path.join("node.json").is_file() {
        return Err(Failure::Refused(format!("{} is no data folder of a node: it has no node.json", path.display())));
    }
    let folder = DataFolder::open(path).map_err(|error| Failure::Refused(error.to_string()))?;
    folder.identity().map_err(|error| Failure::Refused(error.to_string()))?;
    Ok(folder)
}

fn range_text(state: &ShardState) -> String {
    TokenRange::from(state.range.unwrap_or_default()).to_string()
}

fn shards(args: &FolderArgs) -> Result<(), Failure> {
    let looked = Looked::open(&args.folder)?;
    let shards = looked.inspector.shards();
    if args.json {
        return shards.iter().try_for_each(|(keyspace, state)| {
            output::line(json!({
                "shard": state.shard, "keyspace": keyspace.0, "game": state.game, "range": range_text(state),
                "format": state.version, "applied": state.applied, "last_seq": state.last_seq,
            }))
        });
    }
    let rows = shards.iter().map(|(keyspace, state)| {
        let numbers =
            [state.game, state.version.into(), state.applied, state.last_seq].map(|number| number.to_string());
        [vec![format!("s{}", state.shard), keyspace.to_string(), range_text(state)], numbers.to_vec()].concat()
    });
    output::table(&["shard", "keyspace", "tokens", "game", "format", "applied", "last seq"], rows)
}

fn sources(args: &ShardArgs) -> Result<(), Failure> {
    let looked = Looked::open(&args.folder.folder)?;
    let keyspace = looked.keyspace(args.shard)?;
    let view = looked.view(keyspace)?;
    let mut rows = Vec::new();
    for source in view.sources().map_err(failed)? {
        let (kind, id, bytes, times) = match source {
            Source::Chunk(chunk) => ("chunk", chunk.id, chunk.bytes, (chunk.time_min_ms, chunk.time_max_ms)),
            Source::Segment(segment) => {
                ("segment", segment.id, segment.file_bytes, (segment.time_min_ms, segment.time_max_ms))
            }
        };
        rows.push((kind, id, source.first_seq().0, source.last_seq().0, source.rows(), bytes, times));
    }
    if args.folder.json {
        return rows.into_iter().try_for_each(|(kind, id, first, last, events, bytes, (from_ms, to_ms))| {
            output::line(json!({
                "kind": kind, "id": id, "first_seq": first, "last_seq": last, "events": events, "bytes": bytes,
                "time_min_ms": from_ms, "time_max_ms": to_ms,
            }))
        });
    }
    let rows = rows.into_iter().map(|(kind, id, first, last, events, bytes, (from_ms, to_ms))| {
        let numbers = [id, first, last, events, bytes].map(|number| number.to_string());
        [vec![kind.to_owned()], numbers.to_vec(), vec![output::time_text(from_ms), output::time_text(to_ms)]].concat()
    });
    output::table(&["kind", "id", "first seq", "last seq", "events", "bytes", "from", "to"], rows)
}

fn rows(args: &ShardArgs, family: Family, limit: usize) -> Result<(), Failure> {
    let looked = Looked::open(&args.folder.folder)?;
    let keyspace = looked.keyspace(args.shard)?;
    let (mut shown, mut outcome) = (0, Ok(()));
    let read = looked.inspector.rows(keyspace, family, &mut |key, row| {
        if shown == limit {
            return false;
        }
        shown += 1;
        let (kind, named, value) = match row {
            Ok(row) => (row.kind.to_owned(), row.key, row.value),
            Err(error) => {
                let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
                ("unreadable".to_owned(), vec![("bytes", key)], error.to_string())
            }
        };
        outcome = if args.folder.json {
            let named: serde_json::Map<_, _> =
                named.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
            output::line(json!({"kind": kind, "key": named, "value": value}))
        } else {
            let named: Vec<_> = named.into_iter().map(|(name, value)| format!("{name} {value}")).collect();
            output::line(format_args!("{kind}  {}  {value}", named.join("  ")))
        };
        outcome.is_ok()
    });
    outcome?;
    read.map_err(failed)
}

fn events(args: &ShardArgs, after: u64, limit: usize) -> Result<(), Failure> {
    let looked = Looked::open(&args.folder.folder)?;
    let view = looked.view(looked.keyspace(args.shard)?)?;
    for event in view.events_after(Seq(after), EventFilter::default()).take(limit) {
        output::line(output::event_json(&event.map_err(failed)?))?;
    }
    Ok(())
}

fn checksum(args: &FolderArgs) -> Result<(), Failure> {
    let looked = Looked::open(&args.folder)?;
    let mut rows = Vec::new();
    for (keyspace, state) in looked.inspector.shards() {
        rows.push((state.shard, Checksum::of(&looked.view(*keyspace)?).map_err(failed)?));
    }
    if args.json {
        return rows.into_iter().try_for_each(|(shard, sum)| {
            output::line(json!({
                "shard": shard, "applied": sum.applied, "events": sum.events, "checksum": format!("{:016x}", sum.sum),
            }))
        });
    }
    let rows = rows.into_iter().map(|(shard, sum)| {
        vec![format!("s{shard}"), sum.applied.to_string(), sum.events.to_string(), format!("{:016x}", sum.sum)]
    });
    output::table(&["shard", "applied", "events", "checksum"], rows)
}

fn log(args: &FolderArgs) -> Result<(), Failure> {
    let folder = locked(&args.folder)?;
    // Opening a log changes it.
    let copy = tempfile::tempdir().context("cannot make a folder for the log's copy")?;
    let log = folder.join("log");
    for entry in std::fs::read_dir(&log).with_context(|| format!("cannot list {}", log.display()))? {
        let path = entry.context("cannot list the log")?.path();
        if path.is_file() && path.file_name().is_some_and(|name| name != "LOCK") {
            let to = copy.path().join(path.file_name().unwrap_or_default());
            std::fs::copy(&path, &to).with_context(|| format!("cannot copy {} to {}", path.display(), to.display()))?;
        }
    }
    let log = SharedLog::open(copy.path(), u64::MAX / 2).map_err(failed)?;
    let mut rows = Vec::new();
    for (group, record) in log.groups().map_err(failed)? {
        let hard = log.hard_state(group).map_err(failed)?.unwrap_or_default();
        let last = log.bounds(group).map_err(failed)?.map_or(record.cut_index, |(_, last)| last);
        rows.push((group, record, hard, last));
    }
    rows.sort_by_key(|(group, ..)| group.0);
    if args.json {
        return rows.into_iter().try_for_each(|(group, record, hard, last)| {
            output::line(json!({
                "group": group.0, "keyspace": record.place, "cut_index": record.cut_index, "last_index": last,
                "term": hard.term, "vote": hard.vote, "commit": hard.commit, "voters": record.voters,
                "destroyed": record.destroyed,
            }))
        });
    }
    let rows = rows.into_iter().map(|(group, record, hard, last)| {
        let voters = record.voters.iter().map(|node| format!("n{node}")).collect::<Vec<_>>().join(" ");
        let numbers = [record.place, record.cut_index, last, hard.term, hard.vote, hard.commit];
        [vec![group.0.to_string()], numbers.map(|number| number.to_string()).to_vec(), vec![voters]].concat()
    });
    output::table(&["group", "keyspace", "cut", "last", "term", "vote", "commit", "voters"], rows)
}

fn check(args: &FolderArgs) -> Result<(), Failure> {
    let looked = Looked::open(&args.folder)?;
    let mut outcome = Ok(());
    let mut finding = |what: String| {
        if outcome.is_ok() {
            outcome = if args.json { output::line(json!({"finding": what})) } else { output::line(what) };
        }
    };
    let checked = looked.inspector.check(&looked.files, &mut finding).map_err(failed)?;
    outcome?;
    if args.json {
        output::line(json!({"rows": checked.rows, "files": checked.files, "findings": checked.findings}))?;
    } else {
        output::line(format_args!("{} rows and {} segment files read", checked.rows, checked.files))?;
    }
    match checked.findings {
        0 => Ok(()),
        some => Err(Failure::Failed(anyhow::anyhow!("{some} findings"))),
    }
}
