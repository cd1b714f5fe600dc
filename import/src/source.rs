//! Lines out of a file or a pipe, as slices of one buffer, with no allocation for a line.
//!
//! A line ends with LF or CRLF; the last one may end with the input. A UTF-8 byte order mark at the start is dropped.
//! Every line has a number from 1, the blank ones too. A line above [`LINE_BYTES_MAX`] is passed over in bounded
//! memory and given out as what it is: its length and its first [`LINE_HEAD_BYTES`].
//!
//! Promises: whole lines before a damage are given out before the error, and the torn line at the damage never is. The
//! error names the input, the last whole line and what the decompressor said. Lines are the same for the same
//! decompressed content, however it was packed and in whatever pieces it came. Memory: the first MiB (kept for
//! [`crate::identity`]), a buffer of some hundred KiB that grows to 1.6 MiB for a longest line, the decompressor.
//!
//! A compressed file is decoded to its end before its first line is given out (`verify`), as some damage shows only
//! there: lines that it may have changed are never given out. A file that is known by its first MiB and damaged in it
//! gives out nothing: what it is known by is not sure. A pipe cannot be read twice, so lines before its damage may be
//! wrong.
//!
//! It does not know JSON.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use memchr::memchr;

use crate::compression::{Compression, Decoded, Meter};
use crate::identity::{Identity, PREFIX_BYTES_MAX, base_name};
use crate::verify::{Damage, find_damage};

/// Longest line that is read as a line. A longer one is a bad line: it is skipped, counted and reported.
///
/// An event has at most 1 MiB; 64 KiB more leave room for white space and escapes that mapping takes away.
pub const LINE_BYTES_MAX: usize = (1 << 20) + (64 << 10);

/// First bytes of a line that is too long which are kept to show it.
pub const LINE_HEAD_BYTES: usize = 64 << 10;

/// Bytes of a name given by `--source`; an empty or longer one is refused.
pub const SOURCE_NAME_BYTES_MAX: usize = 256;

/// Bytes of text that are asked of the decompressor at once.
const CHUNK_BYTES: usize = 256 << 10;

/// The head of a line that is too long is in the buffer by the time its length is known.
const _: () = assert!(LINE_HEAD_BYTES < LINE_BYTES_MAX);

/// The byte order mark that some editors put before UTF-8 text.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Why lines cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file cannot be opened. Fix the path or the rights.
    #[error("cannot open {}: {source}", path.display())]
    Open {
        /// The path as it was given.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Standard input has no name to be recognised by. Give one.
    #[error("standard input needs a name to continue under: give --source NAME")]
    StdinNeedsName,
    /// The name given by `--source` has no legal length. Give another.
    #[error("source name has {bytes} bytes, it must have 1 to {max}")]
    SourceName {
        /// Its length.
        bytes: usize,
        /// The longest legal one.
        max: usize,
    },
    /// The file or pipe broke off under the reader. Running again may help.
    #[error("cannot read {name} after line {line_last}: {source}")]
    Read {
        /// The input's name.
        name: String,
        /// Number of the last whole line, 0 if there is none.
        line_last: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The compressed content is cut short or corrupt. Get the file again.
    #[error("{name} is damaged after line {line_last}: {compression} says: {source}")]
    Damaged {
        /// The input's name.
        name: String,
        /// The format that is damaged.
        compression: Compression,
        /// Number of the last whole line, 0 if there is none.
        line_last: u64,
        /// What the decompressor said.
        source: io::Error,
    },
    /// The compressed content is damaged in what the file is known by, so that no line of it is taken. Get the file
    /// again, or name it by `--source` to take the lines before the damage.
    #[error(
        "{name} is damaged and only {sure_bytes} bytes of its text are sure, of {} that it is known by, so nothing of \
         it is taken: {compression} says: {source}",
        PREFIX_BYTES_MAX
    )]
    DamagedBeginning {
        /// The file's name.
        name: String,
        /// The format that is damaged.
        compression: Compression,
        /// Bytes of text before the damage.
        sure_bytes: u64,
        /// What the decompressor said.
        source: io::Error,
    },
}

/// One line, without its line end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line<'a> {
    /// A line with something on it, at most [`LINE_BYTES_MAX`] bytes.
    Text(&'a [u8]),
    /// A line of nothing but spaces and tabs: neither good nor bad.
    Blank {
        /// Its length.
        bytes: u64,
    },
    /// A bad line: longer than [`LINE_BYTES_MAX`].
    TooLong {
        /// Its first [`LINE_HEAD_BYTES`] bytes.
        head: &'a [u8],
        /// Its length.
        bytes: u64,
    },
}

impl Line<'_> {
    /// Length of the line as it came, without its line end.
    pub fn bytes(&self) -> u64 {
        match self {
            Line::Text(text) => text.len() as u64,
            Line::Blank { bytes } | Line::TooLong { bytes, .. } => *bytes,
        }
    }
}

/// An input that is read line by line.
pub struct Source {
    name: String,
    source_name: Option<String>,
    identity: Identity,
    total_bytes: Option<u64>,
    decoded: Decoded,
    prefix: Bytes,
    /// Bytes of the prefix that are passed on to the buffer already.
    prefix_taken: usize,
    /// Why no more can be read, kept until the lines before it are given out.
    failure: Option<io::Error>,
    buffer: Vec<u8>,
    /// Bytes of the buffer that are read and not given out.
    unread: Range<usize>,
    /// First bytes of a line that did not fit into the buffer.
    long_head: Vec<u8>,
    line_last: u64,
    ended: End,
}

/// Whether the input has ended, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It has not, or not been seen to.
    NotYet,
    /// After a line end, or it is empty.
    AfterLineEnd,
    /// In the middle of a line: what is appended to the input later may make this line longer.
    InsideLine,
    /// By an error.
    Failed,
}

impl Source {
    /// Opens the file at `path`, or standard input when it is `-`, and reads its first MiB. A compressed file is
    /// decoded to its end before.
    ///
    /// # Errors
    /// [`SourceError::Open`], [`SourceError::StdinNeedsName`], [`SourceError::SourceName`],
    /// [`SourceError::DamagedBeginning`], or [`SourceError::Read`] when the file cannot be read. Other damage is told
    /// later, after the lines before it.
    pub fn open(path: &Path, source_name: Option<&str>) -> Result<Source, SourceError> {
        if path.as_os_str() == "-" {
            if source_name.is_none() {
                return Err(SourceError::StdinNeedsName);
            }
            return Source::from_reader("standard input", Box::new(io::stdin()), None, source_name);
        }
        let open = |source| SourceError::Open { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(open)?;
        let metadata = file.metadata().map_err(open)?;
        let name = base_name(path);
        if !metadata.is_file() {
            return Source::from_reader(&name, Box::new(file), None, source_name);
        }
        let read = |source| SourceError::Read { name: name.clone(), line_last: 0, source };
        let damage = find_damage(&mut file).map_err(read)?;
        file.rewind().map_err(read)?;
        Source::before(damage, &name, Box::new(file), Some(metadata.len()), source_name)
    }

    /// Reads lines from `input`; `name` is shown in errors and is the identity's name.
    ///
    /// # Errors
    /// As [`Source::open`], but that all damage is told later.
    pub fn from_reader(
        name: &str,
        input: Box<dyn Read + Send>,
        total_bytes: Option<u64>,
        source_name: Option<&str>,
    ) -> Result<Source, SourceError> {
        Source::before(None, name, input, total_bytes, source_name)
    }

    /// Reads the lines before a damage.
    fn before(
        damage: Option<Damage>,
        name: &str,
        input: Box<dyn Read + Send>,
        total_bytes: Option<u64>,
        source_name: Option<&str>,
    ) -> Result<Source, SourceError> {
        if let Some(given) = source_name
            && !(1..=SOURCE_NAME_BYTES_MAX).contains(&given.len())
        {
            return Err(SourceError::SourceName { bytes: given.len(), max: SOURCE_NAME_BYTES_MAX });
        }
        let mut decoded =
            Decoded::new(input).map_err(|source| SourceError::Read { name: name.to_owned(), line_last: 0, source })?;
        if let Some(damage) = damage {
            if source_name.is_none() && damage.sure_bytes < PREFIX_BYTES_MAX as u64 {
                let (name, compression) = (name.to_owned(), decoded.compression);
                let Damage { sure_bytes, error } = damage;
                return Err(SourceError::DamagedBeginning { name, compression, sure_bytes, source: error });
            }
            decoded.end_before(damage);
        }
        let (prefix, failure) = read_prefix(&mut decoded);
        Ok(Source {
            name: name.to_owned(),
            source_name: source_name.map(str::to_owned),
            identity: Identity::of(name, &prefix),
            total_bytes,
            decoded,
            prefix_taken: if prefix.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 },
            prefix: Bytes::from(prefix),
            failure,
            buffer: Vec::new(),
            unread: 0..0,
            long_head: Vec::new(),
            line_last: 0,
            ended: End::NotYet,
        })
    }

    /// The input's name: its base name, or `standard input`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the input is known by.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The key to keep progress under when no earlier one matches: the name given by `--source`, else the identity.
    pub fn source_key(&self) -> String {
        match &self.source_name {
            Some(name) => format!("source:{name}"),
            None => self.identity.source_key(),
        }
    }

    /// The first MiB of the decompressed input, or all of it: what earlier keys are compared with.
    pub fn prefix(&self) -> Bytes {
        self.prefix.clone()
    }

    /// How the input is compressed.
    pub fn compression(&self) -> Compression {
        self.decoded.compression
    }

    /// Counts the bytes read of the input as it lies on the disk, for a progress bar.
    pub fn meter(&self) -> Arc<Meter> {
        Arc::clone(&self.decoded.meter)
    }

    /// Length of the input as it lies on the disk; `None` for a pipe.
    pub fn total_bytes(&self) -> Option<u64> {
        self.total_bytes
    }

    /// Number of the last line given out, 0 before the first.
    pub fn line_last(&self) -> u64 {
        self.line_last
    }

    /// Whether the input has ended, and how.
    pub fn ended(&self) -> End {
        self.ended
    }

    /// Returns the next line, or `None` at the end, and for good after an error.
    ///
    /// # Errors
    /// [`SourceError::Read`] or [`SourceError::Damaged`], once, after all whole lines before it.
    pub fn next_line(&mut self) -> Result<Option<Line<'_>>, SourceError> {
        if self.ended != End::NotYet {
            return Ok(None);
        }
        // No line end stands in the first `searched` unread bytes.
        let mut searched = 0;
        loop {
            let unread = &self.buffer[self.unread.clone()];
            if let Some(offset) = memchr(b'\n', &unread[searched..]) {
                let line = self.unread.start..self.unread.start + searched + offset;
                self.unread.start = line.end + 1;
                self.line_last += 1;
                return Ok(Some(classify(&self.buffer[line])));
            }
            searched = unread.len();
            // One byte more than the limit may be the CR of a line end.
            if searched > LINE_BYTES_MAX + 1 {
                return self.skip_long_line().map(Some);
            }
            if !self.fill()? {
                return Ok(self.last_line());
            }
        }
    }

    /// Gives out what stands after the last line end.
    fn last_line(&mut self) -> Option<Line<'_>> {
        let line = self.unread.clone();
        self.unread.start = line.end;
        if line.is_empty() {
            self.ended = End::AfterLineEnd;
            return None;
        }
        self.ended = End::InsideLine;
        self.line_last += 1;
        Some(classify(&self.buffer[line]))
    }

    /// Passes over a line whose unread part is above the limit already, and keeps its head.
    fn skip_long_line(&mut self) -> Result<Line<'_>, SourceError> {
        self.long_head.clear();
        let head = self.unread.start..self.unread.start + LINE_HEAD_BYTES;
        self.long_head.extend_from_slice(&self.buffer[head]);
        let mut bytes = 0_u64;
        let mut last = 0;
        loop {
            let unread = &self.buffer[self.unread.clone()];
            let end = memchr(b'\n', unread);
            let passed = end.unwrap_or(unread.len());
            bytes += passed as u64;
            if let Some(byte) = unread[..passed].last() {
                last = *byte;
            }
            self.unread.start += passed + usize::from(end.is_some());
            if end.is_some() {
                break;
            }
            if !self.fill()? {
                self.ended = End::InsideLine;
                break;
            }
        }
        self.line_last += 1;
        bytes -= u64::from(last == b'\r');
        Ok(Line::TooLong { head: &self.long_head, bytes })
    }

    /// Adds text to the unread part of the buffer, which it may move; `false` at the end of the input.
    fn fill(&mut self) -> Result<bool, SourceError> {
        // What is unread here is the beginning of one line: moving it costs little.
        self.buffer.copy_within(self.unread.clone(), 0);
        self.unread = 0..self.unread.len();
        let room = self.unread.end..self.unread.end + CHUNK_BYTES;
        if self.buffer.len() < room.end {
            self.buffer.resize(room.end, 0);
        }
        let room = &mut self.buffer[room];
        let kept = &self.prefix[self.prefix_taken..];
        let count = if !kept.is_empty() {
            let count = kept.len().min(room.len());
            room[..count].copy_from_slice(&kept[..count]);
            self.prefix_taken += count;
            count
        } else {
            let read = match self.failure.take() {
                Some(error) => Err(error),
                None => self.decoded.read(room),
            };
            read.map_err(|error| self.fail(error))?
        };
        self.unread.end += count;
        Ok(count > 0)
    }

    /// Says what an error of the reader means.
    fn fail(&mut self, source: io::Error) -> SourceError {
        self.ended = End::Failed;
        let (name, line_last, compression) = (self.name.clone(), self.line_last, self.decoded.compression);
        if compression == Compression::Plain || self.decoded.meter.failed() {
            SourceError::Read { name, line_last, source }
        } else {
            SourceError::Damaged { name, compression, line_last, source }
        }
    }
}

/// Reads the first MiB of text, or what there is before the end or an error.
fn read_prefix(decoded: &mut Decoded) -> (Vec<u8>, Option<io::Error>) {
    let mut prefix = vec![0; PREFIX_BYTES_MAX];
    let mut length = 0;
    let mut failure = None;
    while length < PREFIX_BYTES_MAX {
        match decoded.read(&mut prefix[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
    }
    prefix.truncate(length);
    prefix.shrink_to_fit();
    (prefix, failure)
}

/// Says what a line is, given without its LF.
fn classify(line: &[u8]) -> Line<'_> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let bytes = line.len() as u64;
    if line.len() > LINE_BYTES_MAX {
        Line::TooLong { head: &line[..LINE_HEAD_BYTES], bytes }
    } else if line.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\r')) {
        Line::Blank { bytes }
    } else {
        Line::Text(line)
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
