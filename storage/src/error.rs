//! What can go wrong in storage, by what the caller does next.
//!
//! A *rejected* command is no error: it is an [`galoo_proto::command::Outcome`], equal on every replica. Whatever is
//! here stops the shard (in apply) or fails the one read that met it.

use std::path::PathBuf;

/// A failure of the store below a shard.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine failed; the data folder wants a look.
    #[error("storage engine: {0}")]
    Engine(String),
    /// A file could not be read or written.
    #[error("{action} {path}: {source}", path = path.display())]
    File {
        /// What was tried, such as `create`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Bytes on disk are not what was written. They are never returned as data.
    #[error("corrupt {what} at offset {offset} of {path}: {reason}", path = path.display())]
    CorruptFile {
        /// The kind of file.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// A row of the engine does not decode.
    #[error("corrupt {what}: {reason}")]
    CorruptRow {
        /// The kind of row.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A segment's columns could not be written or read.
    #[error("segment: {0}")]
    Segment(#[from] parquet::errors::ParquetError),
    /// Columns do not fit together.
    #[error("columns: {0}")]
    Columns(#[from] arrow::error::ArrowError),
    /// A command or record is of a format that this version does not know.
    #[error("{what} has format version {found}; this version knows up to {known}")]
    NewerFormat {
        /// What was read.
        what: &'static str,
        /// Its version.
        found: u32,
        /// The newest known version.
        known: u32,
    },
    /// A record is of a format that this version reads no more.
    #[error("{what} has format version {found}; this version reads {known} and later: import the data anew")]
    OlderFormat {
        /// What was read.
        what: &'static str,
        /// Its version.
        found: u32,
        /// The oldest version that is read.
        known: u32,
    },
    /// The data folder is of another kind or in use.
    #[error("data folder {path}: {reason}", path = path.display())]
    DataFolder {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A rollup's definition contradicts itself.
    #[error("rollup: {0}")]
    Rollup(#[from] crate::rollup::InvalidRollup),
    /// A rollup's sum does not fit its column.
    #[error("rollup: {0}")]
    SumTooLarge(#[from] crate::rollup::accumulator::SumTooLarge),
    /// A part of a rollup that is too large to be compared at once.
    #[error("the rollup's cells there take more than {bytes_max} bytes in memory; compare a shorter time")]
    TooManyCells {
        /// How much may be compared.
        bytes_max: usize,
    },
    /// The state as it was at a time is not kept any more.
    #[error("as_of is {as_of}; the state is kept from {oldest} on")]
    HistoryGone {
        /// The time that was asked for.
        as_of: galoo_proto::Hlc,
        /// The earliest that can be read.
        oldest: galoo_proto::Hlc,
    },
    /// A read that lasted too long: what it saw is not kept any more.
    #[error("the read began {} s ago, and what it saw is not kept any more; begin it again", age.as_secs())]
    SnapshotTooOld {
        /// When it began.
        age: std::time::Duration,
    },
    /// A cursor was not made by this store.
    #[error("cursor does not belong to this scan")]
    Cursor,
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn row(what: &'static str, reason: impl ToString) -> Self {
        Self::CorruptRow { what, reason: reason.to_string() }
    }
}
