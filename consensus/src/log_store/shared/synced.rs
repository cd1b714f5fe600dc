//! How far the files are on the disk into which the engine moves records: a mark beside them.
//!
//! A purge moves records without syncing each, syncs them all, and only then removes the files that they came from. After
//! a power cut a moved record may be torn and a later one whole, and both are where they came from. After the purge a
//! record that does not read is a loss. The files alone do not tell one from the other; the mark, made durable behind each
//! purge, does: what is before it was synced.
//!
//! ```text
//! synced   file u64 | bytes u64 | CRC-32 u32    (little-endian)
//! ```

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::check;
use crate::{Error, Result};

const NAME: &str = "synced";
const DRAFT: &str = "synced.draft";

/// Moved records of earlier files, and of this one up to so many bytes, are on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) file: u64,
    pub(super) bytes: u64,
}

/// The mark of a log, and where it was looked last.
pub(super) struct Synced {
    folder: PathBuf,
    mark: Mark,
    looked: Option<(u64, u64, SystemTime)>,
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Error {
    Error::Log(format!("{what} {}: {error}", path.display()))
}

impl Synced {
    /// Reads the mark of the log in a folder; before the first purge there is none.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(NAME);
        let mark = match fs::read(&path) {
            Ok(bytes) => decode(&bytes).ok_or_else(|| Error::Log(format!("{} is corrupt", path.display())))?,
            Err(error) if error.kind() == ErrorKind::NotFound => Mark::default(),
            Err(error) => return Err(failed("read", &path, &error)),
        };
        Ok(Self { folder: folder.to_owned(), mark, looked: None })
    }

    pub(super) fn mark(&self) -> Mark {
        self.mark
    }

    /// A purge is done: all that was moved is synced.
    pub(super) fn advance(&mut self) -> Result<()> {
        let Some((file, path)) = check::files(&self.folder, check::MOVED)?.pop_last() else { return Ok(()) };
        let looks = fs::metadata(&path).and_then(|data| Ok((file, data.len(), data.modified()?)));
        let looks = looks.map_err(|error| failed("look at", &path, &error))?;
        if self.looked == Some(looks) {
            return Ok(());
        }
        // A purge that moved nothing synced nothing, and a new file's beginning may not be on the disk.
        File::open(&path).and_then(|file| file.sync_data()).map_err(|error| failed("sync", &path, &error))?;
        let content = fs::read(&path).map_err(|error| failed("read", &path, &error))?;
        let mark = Mark { file, bytes: check::whole_bytes(&content, file) as u64 };
        if mark != self.mark {
            self.write(mark).map_err(|error| failed("write", &self.folder.join(NAME), &error))?;
            self.mark = mark;
        }
        self.looked = Some(looks);
        Ok(())
    }

    fn write(&self, mark: Mark) -> io::Result<()> {
        let draft = self.folder.join(DRAFT);
        let mut file = File::create(&draft)?;
        file.write_all(&encode(mark))?;
        file.sync_all()?;
        fs::rename(&draft, self.folder.join(NAME))?;
        File::open(&self.folder)?.sync_all()
    }
}

fn encode(mark: Mark) -> Vec<u8> {
    let mut bytes = [mark.file.to_le_bytes(), mark.bytes.to_le_bytes()].concat();
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<Mark> {
    let (file, rest) = bytes.split_first_chunk()?;
    let (length, _) = rest.split_first_chunk()?;
    let mark = Mark { file: u64::from_le_bytes(*file), bytes: u64::from_le_bytes(*length) };
    (encode(mark) == bytes).then_some(mark)
}
