//! Segments: immutable Parquet files of adjacent chunks, sorted by (token, player, event_time, seq).
//!
//! ```text
//! token       i64 (bits of the u64)   sorted runs: an index by page finds a player
//! player_id   text, bloom filter      event_time  i64, Unix ms      event_type  text
//! seq         i64                     ingest_hlc  i64 (bits of the u64)
//! b:NAME i:NAME f:NAME s:NAME j:NAME  a property's booleans, integers, floats, strings, and JSON texts (nested values,
//!                                     numbers that nothing else holds exactly, and `null` for JSON null)
//! extra       text                    members of properties beyond the columns' limit, as JSON without the braces
//! ```
//!
//! Splitting a property by kind keeps every value exactly as it came, and null apart from absent, in columns that
//! compress and prune. The file's record in the engine holds its length and a CRC-32 of each 64 KiB block: Parquet's
//! own pages, footer, indexes and filters carry none.

mod blocks;
mod files;
mod kinds;
mod merge;
mod quarantine;
mod read;
mod write;

pub(crate) use self::{blocks::BLOCK_BYTES, files::failed, files::sync_folders, merge::merge, read::SegmentFile};
pub use self::{files::SegmentFiles, merge::Kept, quarantine::DamagedSegment, read::SegmentScan, write::SegmentWriter};

/// What long work does after a piece of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Goes on.
    On,
    /// Ends, and leaves nothing.
    Cancel,
}

/// Whether a segment has a file: where all of its events are gone there is none.
pub fn has_file(record: &galoo_proto::record::Segment) -> bool {
    record.rows > 0
}

/// The newest format of a segment that this version knows.
pub const FORMAT_VERSION: u32 = 1;

/// Names of a segment's columns that every event has.
pub mod names {
    /// The player's token.
    pub const TOKEN: &str = "token";
    /// The player.
    pub const PLAYER_ID: &str = "player_id";
    /// Unix milliseconds.
    pub const EVENT_TIME: &str = "event_time";
    /// The event's type.
    pub const EVENT_TYPE: &str = "event_type";
    /// Sequence number.
    pub const SEQ: &str = "seq";
    /// Commit HLC.
    pub const INGEST_HLC: &str = "ingest_hlc";
    /// Members beyond the columns' limit.
    pub const EXTRA: &str = "extra";
}

/// The kind of values that a property's column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PropertyTag {
    /// `b:`
    Bool,
    /// `i:`
    Int,
    /// `f:`
    Float,
    /// `s:`
    String,
    /// `j:`
    Json,
}

impl PropertyTag {
    fn letter(self) -> char {
        match self {
            Self::Bool => 'b',
            Self::Int => 'i',
            Self::Float => 'f',
            Self::String => 's',
            Self::Json => 'j',
        }
    }

    /// Returns the name of the column that holds a property's values of this kind.
    pub fn column(self, property: &str) -> String {
        format!("{}:{property}", self.letter())
    }

    /// Returns the kind of values of a property's column; `None` for a column that every event has.
    pub fn of(column: &str) -> Option<Self> {
        Self::property(column)?;
        let tags = [Self::Bool, Self::Int, Self::Float, Self::String, Self::Json];
        tags.into_iter().find(|tag| column.starts_with(tag.letter()))
    }

    /// Returns the property that a column belongs to; `None` for a column that every event has.
    pub fn property(column: &str) -> Option<&str> {
        column.get(2..).filter(|_| column.as_bytes()[1] == b':')
    }
}
