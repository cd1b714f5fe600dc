//! A keyspace's frozen content as blocks that another node pulls, and the filling of a fresh keyspace with them.
//!
//! An [`Export`] works from a snapshot of the engine and keeps the segment files open, so that what it hands out stays
//! the same whatever becomes of the keyspace. Blocks are made when they are asked for: a pull goes on after a failure
//! with the cursor that comes next, and an export costs nothing while nobody pulls. An [`Import`] takes the blocks in
//! order and refuses everything else. Files come before rows: a file and its folder are durable before the row that
//! names them is written. Nothing refers to the keyspace until the caller does, after [`Import::finish`].
//!
//! ```text
//! block    version u8 = 1 | kind u8 | cursor text | next text | body | CRC-32 u32 of all before    (little-endian)
//! text     length u32 | bytes
//! kind 1   body: (family u8 | key text, without the keyspace | value text) ...
//! kind 2   body: Segment record text (empty but at the file's start) | offset u64 | bytes of the file
//! cursor   empty: the start, and as `next` the end
//!          0x01 | segment u64 | offset u64                    a file, from this byte on
//!          0x02 | family u8 | key, without the keyspace       rows of the family from this key on, then of the others
//! ```
//!
//! The bytes of a file are also compared with the block CRCs of its record, which is a row like any other.

mod import;

use std::sync::Arc;

use bytes::Bytes;
use galoo_proto::{Keyspace, record};
use prost::Message;

pub use self::import::Import;
use crate::{
    Error, Result,
    engine::{Direction, Family, Reader},
    key,
    segment::{SegmentFile, SegmentFiles, has_file},
    view::read_segments,
};

const VERSION: u8 = 1;
const ROWS: u8 = 1;
const FILE: u8 = 2;

const AT_FILE: u8 = 1;
const AT_ROWS: u8 = 2;

/// Bytes of a block at which it ends; it is larger by one row at most.
pub const BLOCK_BYTES_TARGET: usize = 1 << 20;
/// Bytes of a file in one block: whole blocks of its record's CRCs.
const PIECE_BYTES: usize = 1 << 20;

fn corrupt(reason: impl ToString) -> Error {
    Error::row("snapshot block", reason)
}

fn push_text(bytes: &mut Vec<u8>, text: &[u8]) {
    bytes.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(text);
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Result<&'a [u8]> {
    let (head, tail) = bytes.split_at_checked(length).ok_or_else(|| corrupt("it ends within a field"))?;
    *bytes = tail;
    Ok(head)
}

fn take_text<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8]> {
    let length = take(bytes, 4)?.try_into().map(u32::from_le_bytes).unwrap_or_default();
    take(bytes, length as usize)
}

fn take_u64(bytes: &mut &[u8]) -> Result<u64> {
    Ok(take(bytes, 8)?.try_into().map(u64::from_le_bytes).unwrap_or_default())
}

/// A cursor, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cursor {
    File { segment: u64, offset: u64 },
    Rows { family: Family, key: Vec<u8> },
}

impl Cursor {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Self::File { segment, offset } => {
                bytes.push(AT_FILE);
                bytes.extend_from_slice(&segment.to_le_bytes());
                bytes.extend_from_slice(&offset.to_le_bytes());
            }
            Self::Rows { family, key } => {
                bytes.extend_from_slice(&[AT_ROWS, number(*family)]);
                bytes.extend_from_slice(key);
            }
        }
        bytes
    }

    fn decode(mut bytes: &[u8]) -> Option<Self> {
        match *bytes.split_off_first()? {
            AT_FILE => {
                let (segment, offset) = (take_u64(&mut bytes).ok()?, take_u64(&mut bytes).ok()?);
                bytes.is_empty().then_some(Self::File { segment, offset })
            }
            AT_ROWS => {
                let family = family(*bytes.split_off_first()?)?;
                Some(Self::Rows { family, key: bytes.to_vec() })
            }
            _ => None,
        }
    }
}

/// A family's number in a block. Part of the format.
fn number(family: Family) -> u8 {
    match family {
        Family::Meta => 0,
        Family::Cells => 1,
        Family::Chunks => 2,
        Family::Producers => 3,
        Family::Rollups => 4,
        Family::History => 5,
    }
}

fn family(byte: u8) -> Option<Family> {
    Family::ALL.into_iter().find(|family| number(*family) == byte)
}

fn after(family: Family) -> Option<Family> {
    let place = Family::ALL.iter().position(|other| *other == family)?;
    Family::ALL.get(place + 1).copied()
}

/// A frozen keyspace, to be pulled block by block.
pub struct Export {
    reader: Arc<dyn Reader>,
    keyspace: Keyspace,
    files: Vec<(record::Segment, Arc<SegmentFile>)>,
    block_bytes: usize,
}

impl Export {
    /// Freezes a keyspace that has no files.
    pub fn of_rows(reader: Arc<dyn Reader>, keyspace: Keyspace) -> Self {
        Self { reader, keyspace, files: Vec::new(), block_bytes: BLOCK_BYTES_TARGET }
    }

    /// Freezes a shard's keyspace with its segments. Opens every segment.
    pub fn of_shard(reader: Arc<dyn Reader>, keyspace: Keyspace, files: &SegmentFiles) -> Result<Self> {
        let records = read_segments(reader.as_ref(), keyspace)?;
        let open = |record: record::Segment| files.open(keyspace, &record).map(|file| (record, file));
        let files = records.into_iter().filter(has_file).map(open).collect::<Result<_>>()?;
        Ok(Self { files, ..Self::of_rows(reader, keyspace) })
    }

    /// Ends blocks of rows at another size.
    pub fn with_block_bytes(self, block_bytes: usize) -> Self {
        Self { block_bytes, ..self }
    }

    /// Returns the block at a cursor: empty for the first, then what [`Import::cursor`] says.
    ///
    /// # Errors
    /// [`Error::Cursor`] for one that is of no block; and whatever reading meets.
    pub fn block(&self, cursor: &[u8]) -> Result<Bytes> {
        let start = || match self.files.first() {
            Some((record, _)) => Cursor::File { segment: record.id, offset: 0 },
            None => Cursor::Rows { family: Family::ALL[0], key: Vec::new() },
        };
        let at = if cursor.is_empty() { start() } else { Cursor::decode(cursor).ok_or(Error::Cursor)? };
        let (kind, next, body) = match &at {
            Cursor::File { segment, offset } => self.piece(*segment, *offset)?,
            Cursor::Rows { family, key } => self.rows(*family, key)?,
        };
        let mut block = vec![VERSION, kind];
        push_text(&mut block, cursor);
        push_text(&mut block, &next.map(|next| next.encode()).unwrap_or_default());
        block.extend_from_slice(&body);
        let crc = crc32fast::hash(&block);
        block.extend_from_slice(&crc.to_le_bytes());
        Ok(block.into())
    }

    fn piece(&self, segment: u64, offset: u64) -> Result<(u8, Option<Cursor>, Vec<u8>)> {
        let place = self.files.iter().position(|(record, _)| record.id == segment).ok_or(Error::Cursor)?;
        let (record, file) = &self.files[place];
        let left = record.file_bytes.checked_sub(offset).ok_or(Error::Cursor)?;
        let length = PIECE_BYTES.min(usize::try_from(left).unwrap_or(PIECE_BYTES));
        let bytes = file.bytes(offset, length)?;
        let mut body = Vec::with_capacity(length + 64);
        push_text(&mut body, &if offset == 0 { record.encode_to_vec() } else { Vec::new() });
        body.extend_from_slice(&offset.to_le_bytes());
        body.extend_from_slice(&bytes);
        let end = offset + length as u64;
        let next = if end < record.file_bytes {
            Cursor::File { segment, offset: end }
        } else if let Some((record, _)) = self.files.get(place + 1) {
            Cursor::File { segment: record.id, offset: 0 }
        } else {
            Cursor::Rows { family: Family::ALL[0], key: Vec::new() }
        };
        Ok((FILE, Some(next), body))
    }

    fn rows(&self, first: Family, from: &[u8]) -> Result<(u8, Option<Cursor>, Vec<u8>)> {
        let range = key::keyspace_range(self.keyspace);
        let prefix = range.start.len();
        let mut start = range.start.clone();
        start.extend_from_slice(from);
        let mut body = Vec::new();
        let mut families = Some(first);
        while let Some(family) = families {
            let mut rows = self.reader.rows(family, &start..&range.end, Direction::Forward)?;
            while let Some((key, value)) = rows.next()? {
                if body.len() >= self.block_bytes {
                    return Ok((ROWS, Some(Cursor::Rows { family, key: key[prefix..].to_vec() }), body));
                }
                body.push(number(family));
                push_text(&mut body, &key[prefix..]);
                push_text(&mut body, value);
            }
            families = after(family);
            start = range.start.clone();
        }
        Ok((ROWS, None, body))
    }
}
