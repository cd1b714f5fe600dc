//! What a process did to a folder, one record after the other. The recorder includes this file by its path: it names
//! nothing but the standard library.

/// What was done; a record's `number`, `path` and `data` mean something else for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An empty file was made.
    Create,
    /// A folder was made.
    MakeFolder,
    /// `data` was written at offset `number`.
    Write,
    /// The file is `number` bytes long now: cut off, or longer with zeros.
    Resize,
    /// What was done to the file or folder before position `number` of the journal is on the disk: it was synced, and
    /// that ended here.
    Sync,
    /// The file or folder is called `data` now.
    Rename,
    /// The file has another name, `data`.
    Link,
    /// The name of a file, or an empty folder, is gone.
    Remove,
}

/// One thing that was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it was.
    pub kind: Kind,
    /// An offset, a length or a position.
    pub number: u64,
    /// Relative to the folder; the folder itself has the empty path.
    pub path: String,
    /// Bytes, or another path.
    pub data: Vec<u8>,
}

impl Record {
    /// Kind, number, length of the path, length of the data, path, data; integers are little-endian.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + self.path.len() + self.data.len());
        bytes.push(self.kind as u8);
        bytes.extend(self.number.to_le_bytes());
        bytes.extend((self.path.len() as u64).to_le_bytes());
        bytes.extend((self.data.len() as u64).to_le_bytes());
        bytes.extend(self.path.as_bytes());
        bytes.extend(&self.data);
        bytes
    }
}

const HEAD_BYTES: usize = 1 + 3 * 8;

/// Names the folder whose changes are recorded, an absolute path without links.
pub const FOLDER_VARIABLE: &str = "GALOO_DISK_FOLDER";
/// Names the file that records are appended to, outside of the folder.
pub const JOURNAL_VARIABLE: &str = "GALOO_DISK_JOURNAL";
/// Names a file: while it is there, writes to the engine's sorted files hang.
pub const HANG_VARIABLE: &str = "GALOO_DISK_HANG";
