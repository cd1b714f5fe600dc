//! Lines that are no events, kept in a file beside the import so that they can be looked at, mended and sent again.
//!
//! ```text
//! {"line":17,"reason":"no player field player_id","text":"{\"ts\":1}"}
//! ```
//!
//! One JSON object a line: the line's number in the input, why it is bad, and its text, cut to 64 KiB, with U+FFFD for
//! what is not UTF-8.
//!
//! The file holds the bad lines of *one* import. They gather in a temporary file beside it, which takes its place in
//! one step when the import has ended ([`DeadLetters::finish`]): a reader sees the old lines or the new ones, an import
//! that is repeated does not double them, and one that fails leaves the old file alone. Without a bad line no file is
//! made, and one that an earlier import left is removed. A file that no import wrote is never touched.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::source::LINE_HEAD_BYTES;

/// Bytes of a bad line that are kept.
pub const TEXT_BYTES_MAX: usize = 64 << 10;

/// The source keeps enough of a line that is too long.
const _: () = assert!(TEXT_BYTES_MAX <= LINE_HEAD_BYTES);

/// What every file of dead letters begins with.
const BEGINNING: &[u8] = b"{\"line\":";

/// Why dead letters cannot be kept. The events are not affected.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    /// Something else stands where the file should. Name another file.
    #[error("{} holds no rejected lines of an import and is not replaced", path.display())]
    NotOurs {
        /// The path.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// The file it was tried on.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// One bad line, as it stands in the file.
#[derive(Serialize)]
struct Letter<'a> {
    line: u64,
    reason: &'a str,
    text: &'a str,
}

/// The bad lines of one import, in the order in which they are added.
pub struct DeadLetters {
    path: PathBuf,
    temporary: PathBuf,
    /// Open from the first bad line on.
    writer: Option<BufWriter<File>>,
    count: u64,
}

/// The name of the file for an input, unless an option names another: in the current folder, after the input.
pub fn default_path(input_name: &str) -> PathBuf {
    // A name given by --source may hold what a path takes for folders.
    let name = input_name.replace(['/', '\0'], "_");
    PathBuf::from(format!("{name}.rejected.ndjson"))
}

impl DeadLetters {
    /// Prepares to keep bad lines at `path`; no file is made yet.
    ///
    /// # Errors
    /// [`DeadLetterError::NotOurs`] when something stands there that is not empty and no import wrote, the import's
    /// own input for example.
    pub fn new(path: &Path) -> Result<DeadLetters, DeadLetterError> {
        is_ours(path)?;
        let name = path.file_name().ok_or_else(|| DeadLetterError::NotOurs { path: path.to_owned() })?;
        let mut temporary = name.to_owned();
        temporary.push(format!(".{}.tmp", std::process::id()));
        let temporary = path.with_file_name(temporary);
        Ok(DeadLetters { path: path.to_owned(), temporary, writer: None, count: 0 })
    }

    /// Bad lines so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Adds a bad line: its number, why it is bad, and the line or its head.
    ///
    /// # Errors
    /// [`DeadLetterError::File`], when the disk is full for example.
    pub fn add(&mut self, line: u64, reason: &dyn Display, text: &[u8]) -> Result<(), DeadLetterError> {
        let writer = match &mut self.writer {
            Some(writer) => writer,
            None => {
                let file = File::create(&self.temporary).map_err(file_error("create", &self.temporary))?;
                self.writer.insert(BufWriter::new(file))
            }
        };
        let reason = reason.to_string();
        let text = String::from_utf8_lossy(cut(text));
        serde_json::to_writer(&mut *writer, &Letter { line, reason: &reason, text: &text })
            .map_err(io::Error::from)
            .and_then(|()| writer.write_all(b"\n"))
            .map_err(file_error("write", &self.temporary))?;
        self.count += 1;
        Ok(())
    }

    /// Puts the file in its place, durably, and returns its path; `None` when there was no bad line and there is no
    /// file.
    ///
    /// # Errors
    /// [`DeadLetterError`]; the file that was there is still there then.
    pub fn finish(mut self) -> Result<Option<PathBuf>, DeadLetterError> {
        // Somebody may have put another file there in the meantime.
        let exists = is_ours(&self.path)?;
        let Some(writer) = self.writer.as_mut() else {
            if exists {
                fs::remove_file(&self.path).map_err(file_error("remove", &self.path))?;
                sync_folder(&self.path)?;
            }
            return Ok(None);
        };
        writer.flush().and_then(|()| writer.get_ref().sync_all()).map_err(file_error("write", &self.temporary))?;
        fs::rename(&self.temporary, &self.path).map_err(file_error("replace", &self.path))?;
        self.writer = None;
        sync_folder(&self.path)?;
        Ok(Some(self.path.clone()))
    }
}

/// An import that did not end leaves no temporary file.
impl Drop for DeadLetters {
    fn drop(&mut self) {
        if self.writer.is_some() {
            // There is nobody to tell; the file is named so that a person knows it for what it is.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Says whether a file stands at `path`, and refuses one that no import wrote.
fn is_ours(path: &Path) -> Result<bool, DeadLetterError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(file_error("open", path)(source)),
    };
    let mut beginning = Vec::with_capacity(BEGINNING.len());
    let not_ours = || DeadLetterError::NotOurs { path: path.to_owned() };
    if !file.metadata().map_err(file_error("open", path))?.is_file() {
        return Err(not_ours());
    }
    (&mut file).take(BEGINNING.len() as u64).read_to_end(&mut beginning).map_err(file_error("read", path))?;
    if beginning.is_empty() || beginning == BEGINNING { Ok(true) } else { Err(not_ours()) }
}

/// Makes the names in a file's folder durable.
fn sync_folder(path: &Path) -> Result<(), DeadLetterError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(file_error("sync", folder))
}

/// Says which step failed on which file.
fn file_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DeadLetterError {
    let path = path.to_owned();
    move |source| DeadLetterError::File { what, path, source }
}

/// Cuts a text to the bytes that are kept, not inside a character.
fn cut(text: &[u8]) -> &[u8] {
    if text.len() <= TEXT_BYTES_MAX {
        return text;
    }
    let kept = &text[..TEXT_BYTES_MAX];
    // A character that the cut takes the end of began in the last three bytes.
    let Some(back) = kept.iter().rev().take(3).position(|byte| *byte >= 0xc0) else { return kept };
    let start = TEXT_BYTES_MAX - 1 - back;
    match std::str::from_utf8(&kept[start..]) {
        Err(error) if error.error_len().is_none() => &kept[..start],
        _ => kept,
    }
}

#[cfg(test)]
#[path = "dead_letter_tests.rs"]
mod tests;
