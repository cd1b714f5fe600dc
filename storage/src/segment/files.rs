//! The files of a node's segments: where they are, which are open, and which belong to nobody.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use galoo_proto::{Keyspace, SegmentId, record};

use super::{
    Step,
    blocks::{Origin, scrub},
    quarantine::{DamagedSegment, Quarantine},
    read::SegmentFile,
};
use crate::{Error, Result, lru::Lru};

/// Bytes that open segments take: what tells where their pages are. Beyond it the one used longest ago is closed (a reader
/// that holds it goes on).
const OPEN_BYTES_MAX: usize = 128 << 20;
/// An open segment's share of the bound beside its footer, so that their number is bounded too: each is a map of the process.
const OPEN_BYTES: usize = 32 << 10;

/// All segments of a node, in `FOLDER/k<keyspace>/<segment>.parquet`.
pub struct SegmentFiles {
    folder: PathBuf,
    open: Mutex<OpenFiles>,
    quarantine: Arc<Quarantine>,
    reads: Arc<AtomicU64>,
}

type OpenFiles = Lru<(Keyspace, SegmentId), Arc<SegmentFile>>;

impl SegmentFiles {
    /// Takes the folder, which is made when it is missing.
    pub fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|source| failed("create", folder, source))?;
        Ok(Self {
            folder: folder.to_owned(),
            open: Mutex::new(Lru::new(OPEN_BYTES_MAX)),
            quarantine: Arc::default(),
            reads: Arc::default(),
        })
    }

    /// Pieces of files that were read so far: pages, and what tells where they are.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Bytes that open segments take, about, and may take.
    pub fn memory(&self) -> (usize, usize) {
        (self.lock().size(), OPEN_BYTES_MAX)
    }

    /// Returns a segment's path.
    pub fn path(&self, keyspace: Keyspace, segment: SegmentId) -> PathBuf {
        self.folder.join(keyspace.to_string()).join(format!("{:010}.parquet", segment.0))
    }

    /// Opens the file of a record, or returns it when it is open.
    pub(crate) fn open(&self, keyspace: Keyspace, record: &record::Segment) -> Result<Arc<SegmentFile>> {
        let id = SegmentId(record.id);
        if let Some(file) = self.lock().get(&(keyspace, id)) {
            return Ok(file.clone());
        }
        let file = self.open_anew(keyspace, record)?;
        self.lock().put((keyspace, id), file.clone(), OPEN_BYTES + file.memory_bytes());
        Ok(file)
    }

    /// Opens the file of a record, of which nothing counts as checked.
    pub(crate) fn open_anew(&self, keyspace: Keyspace, record: &record::Segment) -> Result<Arc<SegmentFile>> {
        let origin = self.origin(keyspace, record);
        match self.quarantine.error(keyspace, SegmentId(record.id)) {
            Some(error) => Err(error),
            None => Ok(Arc::new(SegmentFile::open(origin, record, self.reads.clone())?)),
        }
    }

    /// Reads a segment's file from disk and compares every block with its CRC; one that is damaged is read no more.
    ///
    /// `pace` is asked before each block, with its bytes, and may take its time. Returns false when it cancels.
    ///
    /// # Errors
    /// [`Error::CorruptFile`] names the file and the offset of the first block that is not what was written.
    pub fn scrub(
        &self,
        keyspace: Keyspace,
        record: &record::Segment,
        pace: &mut dyn FnMut(usize) -> Step,
    ) -> Result<bool> {
        let scrubbed = scrub(&self.origin(keyspace, record), record, pace);
        if scrubbed.is_err() && self.quarantine.error(keyspace, SegmentId(record.id)).is_some() {
            self.lock().retain(|open| *open != (keyspace, SegmentId(record.id)));
        }
        scrubbed
    }

    /// The segments that were found damaged, by a read or by scrubbing.
    pub fn damaged(&self) -> Vec<DamagedSegment> {
        self.quarantine.all()
    }

    fn origin(&self, keyspace: Keyspace, record: &record::Segment) -> Origin {
        let segment = SegmentId(record.id);
        let (path, seqs) = (self.path(keyspace, segment), record.first_seq..=record.last_seq);
        Origin { path, keyspace, segment, seqs, quarantine: self.quarantine.clone() }
    }

    /// Removes the files that `known` does not name: left by a crash before their record was durable.
    ///
    /// Returns how many there were.
    pub fn remove_unknown(&self, known: &HashSet<(Keyspace, SegmentId)>) -> Result<usize> {
        let known: HashSet<PathBuf> = known.iter().map(|(keyspace, segment)| self.path(*keyspace, *segment)).collect();
        let mut removed = 0;
        let list = |folder: &Path| -> Result<Vec<PathBuf>> {
            let entries = fs::read_dir(folder).map_err(|source| failed("list", folder, source))?;
            let paths = entries.map(|entry| entry.map(|entry| entry.path()));
            paths.collect::<io::Result<_>>().map_err(|source| failed("list", folder, source))
        };
        for keyspace in list(&self.folder)?.into_iter().filter(|path| path.is_dir()) {
            for path in list(&keyspace)? {
                if !known.contains(&path) {
                    fs::remove_file(&path).map_err(|source| failed("remove", &path, source))?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }

    /// Removes a segment's file, which no record names for good; a reader that has it open goes on.
    pub fn remove(&self, keyspace: Keyspace, segment: SegmentId) -> Result<()> {
        self.lock().retain(|open| *open != (keyspace, segment));
        self.quarantine.retain(|of, one| (of, one) != (keyspace, segment));
        let path = self.path(keyspace, segment);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path, source)),
            _ => Ok(()),
        }
    }

    /// Removes all files of a keyspace whose records are gone for good.
    pub fn remove_keyspace(&self, keyspace: Keyspace) -> Result<()> {
        self.lock().retain(|(of, _)| *of != keyspace);
        self.quarantine.retain(|of, _| of != keyspace);
        let folder = self.folder.join(keyspace.to_string());
        match fs::remove_dir_all(&folder) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(failed("remove", &folder, source)),
            _ => Ok(()),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, OpenFiles> {
        self.open.lock().expect("a thread that held the open segments panicked")
    }
}

/// Makes the name of a segment's file durable, and that of its folder.
pub(crate) fn sync_folders(path: &Path) -> Result<()> {
    for folder in path.ancestors().skip(1).take(2) {
        let synced = fs::File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(|source| failed("sync", folder, source))?;
    }
    Ok(())
}

pub(crate) fn failed(action: &'static str, path: &Path, source: io::Error) -> Error {
    Error::File { action, path: path.to_owned(), source }
}
