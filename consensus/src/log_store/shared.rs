//! The shared log on raft-engine. The one module that names `raft_engine`.
//!
//! All groups append to the same files; a write is one record and one `fdatasync`. Records larger than a threshold are
//! LZ4-compressed by the engine, and each has a CRC. The engine drops a bad record at the end of the last file as a torn
//! tail; that it was the last one is checked before ([`check`]), and whether it was synced against the state machines when
//! groups are opened ([`crate::Error::Damaged`]).

mod check;
mod synced;

use std::{fs::File, path::Path, sync::Mutex};

use raft::eraftpb::{Entry, HardState};
use raft_engine::{Command, Config, Engine, LogBatch, MessageExt, ReadableSize, RecoveryMode};
use tracing::warn;

use self::synced::Synced;
use super::{GroupRecord, GroupWrite, LogStore};
use crate::{Error, GroupId, Result};

const RECORD: &[u8] = b"record";
const HARD_STATE: &[u8] = b"hard_state";

/// A purge moves entries twice at most: from the append files, and from those that it rewrites.
const READ_TRIES_MAX: u32 = 4;
/// Batches of so many bytes are compressed: on smaller ones it costs more than it spares.
const COMPRESSED_BYTES_MIN: u64 = 32 << 10;
/// Log files are closed at this size, or at an eighth of the log's.
const FILE_BYTES_MAX: u64 = 64 << 20;

#[derive(Clone)]
struct RaftEntry;

impl MessageExt for RaftEntry {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

impl From<raft_engine::Error> for Error {
    fn from(error: raft_engine::Error) -> Self {
        Self::Log(error.to_string())
    }
}

/// The log in a folder of the node.
pub struct SharedLog {
    engine: Engine,
    /// Empty between two writes; its memory is used again.
    batch: Mutex<LogBatch>,
    synced: Mutex<Synced>,
}

impl SharedLog {
    /// Opens the log in a folder, and makes it when the folder is empty.
    ///
    /// Above half of `bytes`, [`SharedLog::purge`] rewrites what is still needed of the oldest files and removes them.
    pub fn open(folder: &Path, bytes: u64) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|error| Error::Log(format!("create {}: {error}", folder.display())))?;
        let config = Config {
            dir: folder.to_string_lossy().into_owned(),
            recovery_mode: RecoveryMode::TolerateTailCorruption,
            recovery_threads: 2,
            target_file_size: ReadableSize((bytes / 8).clamp(1, FILE_BYTES_MAX)),
            batch_compression_threshold: ReadableSize(COMPRESSED_BYTES_MIN),
            purge_threshold: ReadableSize((bytes / 2).max(1)),
            ..Config::default()
        };
        let synced = Synced::read(folder)?;
        check::check(folder, synced.mark())?;
        let log = Self { engine: Engine::open(config)?, batch: Mutex::default(), synced: Mutex::new(synced) };
        // The engine syncs the folder after each file but the first.
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(|error| Error::Log(format!("sync {}: {error}", folder.display())))?;
        log.cut_again()?;
        Ok(log)
    }

    /// Drops entries that were cut and are back: the engine may forget that it dropped entries which it had moved from
    /// file to file before. The group's record says where it was cut.
    fn cut_again(&self) -> Result<()> {
        let mut batch = self.batch.lock().expect("nobody else has the log yet");
        for (group, record) in self.groups()? {
            if self.engine.first_index(group.0).is_some_and(|first| first <= record.cut_index) {
                batch.add_command(group.0, Command::Compact { index: record.cut_index + 1 });
            }
        }
        if !batch.is_empty() {
            self.engine.write(&mut batch, true)?;
        }
        Ok(())
    }

    /// Removes log files that hold nothing that is still needed.
    ///
    /// Returns the groups that hold on to old files: cutting their logs lets more go.
    pub fn purge(&self) -> Result<Vec<GroupId>> {
        // One purge at a time: what is marked is what its own has synced.
        let mut synced = self.synced.lock().expect("a purge that panicked left the log unknown: the node stops");
        let groups = self.engine.purge_expired_files()?;
        synced.advance()?;
        Ok(groups.into_iter().map(GroupId).collect())
    }

    /// Bytes of the log's files.
    pub fn bytes(&self) -> u64 {
        self.engine.get_used_size() as u64
    }
}

impl LogStore for SharedLog {
    fn groups(&self) -> Result<Vec<(GroupId, GroupRecord)>> {
        let mut groups = Vec::new();
        for group in self.engine.raft_groups().into_iter().map(GroupId) {
            let reason = "the log holds entries and no record of it".to_owned();
            let record = self.record(group)?.ok_or(Error::Damaged { group, reason })?;
            groups.push((group, record));
        }
        Ok(groups)
    }

    fn record(&self, group: GroupId) -> Result<Option<GroupRecord>> {
        let Some(bytes) = self.engine.get(group.0, RECORD) else { return Ok(None) };
        let reason = || "its record does not decode".to_owned();
        GroupRecord::decode(&bytes).map(Some).ok_or_else(|| Error::Damaged { group, reason: reason() })
    }

    fn hard_state(&self, group: GroupId) -> Result<Option<HardState>> {
        Ok(self.engine.get_message(group.0, HARD_STATE)?)
    }

    fn write(&self, writes: &[(GroupId, GroupWrite)]) -> Result<()> {
        let mut batch = self.batch.lock().expect("a write that panicked left the log unknown: the node stops");
        for (group, write) in writes {
            if write.clear {
                batch.add_command(group.0, Command::Clean);
            }
            if let Some(record) = &write.record {
                batch.put(group.0, RECORD.to_vec(), record.encode())?;
            }
            if let Some(hard_state) = &write.hard_state {
                batch.put_message(group.0, HARD_STATE.to_vec(), hard_state)?;
            }
            batch.add_entries::<RaftEntry>(group.0, &write.entries)?;
            if let Some(cut) = write.cut {
                batch.add_command(group.0, Command::Compact { index: cut + 1 });
            }
        }
        if !batch.is_empty() {
            self.engine.write(&mut batch, true)?;
        }
        Ok(())
    }

    fn entries(&self, group: GroupId, low: u64, high: u64, bytes_max: Option<u64>) -> Result<Vec<Entry>> {
        let bytes_max = bytes_max.and_then(|bytes| usize::try_from(bytes).ok());
        let mut tries = READ_TRIES_MAX;
        loop {
            tries -= 1;
            let mut entries = Vec::new();
            // The engine looks up where entries are, and reads them there; a purge between the two moves them and removes
            // the file. The next look finds them where they are then.
            match self.engine.fetch_entries_to::<RaftEntry>(group.0, low, high, bytes_max, &mut entries) {
                Ok(_) => return Ok(entries),
                Err(error) if tries > 0 => warn!(%group, low, high, %error, "entries could not be read; tried again"),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn bounds(&self, group: GroupId) -> Result<Option<(u64, u64)>> {
        Ok(self.engine.first_index(group.0).zip(self.engine.last_index(group.0)))
    }
}

#[cfg(test)]
mod crash;
