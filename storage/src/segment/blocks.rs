//! A segment's file as checked bytes: the one module that maps files into memory.
//!
//! The first touch of a 64 KiB block reads it with `pread` and compares its CRC with the record's; from then on it is
//! read through the map. A block that does not match is an error that names file and offset, never data (P7).

use std::{
    fs::File,
    io::{self, Read},
    ops::RangeInclusive,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use galoo_proto::{Keyspace, SegmentId, record};
use parquet::{
    errors::ParquetError,
    file::reader::{ChunkReader, Length},
};

use super::{
    Step,
    files::failed,
    quarantine::{Damage, Quarantine},
};
use crate::{Error, Result};

/// Bytes that one CRC covers.
pub(crate) const BLOCK_BYTES: usize = 64 << 10;

/// Returns the CRCs of a file's blocks.
pub(super) fn block_crcs(path: &Path, file: &File) -> Result<(u64, Vec<u32>)> {
    let failed = |source| Error::File { action: "read", path: path.to_owned(), source };
    let length = file.metadata().map_err(failed)?.len();
    let mut block = vec![0; BLOCK_BYTES];
    let mut crcs = Vec::new();
    let mut offset = 0;
    while offset < length {
        let bytes = BLOCK_BYTES.min(usize::try_from(length - offset).unwrap_or(BLOCK_BYTES));
        file.read_exact_at(&mut block[..bytes], offset).map_err(failed)?;
        crcs.push(crc32fast::hash(&block[..bytes]));
        offset += bytes as u64;
    }
    Ok((length, crcs))
}

/// Linux' number of an input or output error.
const EIO: i32 = 5;

/// Which file it is, and where it goes when it is damaged.
#[derive(Clone)]
pub(super) struct Origin {
    pub(super) path: PathBuf,
    pub(super) keyspace: Keyspace,
    pub(super) segment: SegmentId,
    pub(super) seqs: RangeInclusive<u64>,
    pub(super) quarantine: Arc<Quarantine>,
}

impl Origin {
    fn failed(&self, source: io::Error) -> Error {
        failed("read", &self.path, source)
    }

    /// Quarantines the file.
    fn corrupt(&self, offset: u64, reason: String) -> Error {
        let damage = Damage { path: self.path.clone(), seqs: self.seqs.clone(), offset, reason };
        self.quarantine.put(self.keyspace, self.segment, damage)
    }

    /// Opens the file, which must be as long as its record says.
    fn open(&self, record: &record::Segment) -> Result<File> {
        let file = File::open(&self.path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => self.corrupt(0, "the file is missing".to_owned()),
            _ => self.failed(source),
        })?;
        let length = file.metadata().map_err(|source| self.failed(source))?.len();
        let blocks = record.file_bytes.div_ceil(BLOCK_BYTES as u64);
        if length == record.file_bytes && blocks == record.block_crcs.len() as u64 {
            return Ok(file);
        }
        Err(self.corrupt(length, format!("the file has {length} bytes, its record {}", record.file_bytes)))
    }

    /// Reads a block from disk and compares it with its CRC.
    fn verify(&self, file: &File, block: &mut [u8], offset: u64, recorded: u32) -> Result<()> {
        file.read_exact_at(block, offset).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => self.corrupt(offset, "the file ends".to_owned()),
            // The device cannot read its sector.
            _ if source.raw_os_error() == Some(EIO) => self.corrupt(offset, source.to_string()),
            _ => self.failed(source),
        })?;
        let found = crc32fast::hash(block);
        if found == recorded {
            return Ok(());
        }
        Err(self.corrupt(offset, format!("CRC {found:08x}, recorded {recorded:08x}")))
    }
}

/// Reads a file that a segment's record describes from disk, whatever was checked before, and compares every block with its
/// CRC. `pace` is asked before each block, with its bytes, and may take its time; returns false when it cancels.
pub(super) fn scrub(origin: &Origin, record: &record::Segment, pace: &mut dyn FnMut(usize) -> Step) -> Result<bool> {
    let file = origin.open(record)?;
    let length = record.file_bytes;
    let mut block = vec![0; BLOCK_BYTES];
    for (at, recorded) in (0u64..).zip(&record.block_crcs) {
        let offset = at * BLOCK_BYTES as u64;
        let bytes = BLOCK_BYTES.min(usize::try_from(length.saturating_sub(offset)).unwrap_or(BLOCK_BYTES));
        if pace(bytes) == Step::Cancel {
            return Ok(false);
        }
        origin.verify(&file, &mut block[..bytes], offset, *recorded)?;
    }
    Ok(true)
}

/// An open file whose bytes are checked on first touch. Cheap to clone.
#[derive(Clone)]
pub(super) struct Blocks(Arc<Inner>);

struct Inner {
    origin: Origin,
    file: File,
    map: Bytes,
    crcs: Vec<u32>,
    /// A bit a block: it was compared with its CRC.
    verified: Vec<AtomicU64>,
    /// Counts what is read, of all files.
    reads: Arc<AtomicU64>,
}

impl Blocks {
    /// Opens a file that a segment's record describes.
    pub(super) fn open(origin: Origin, record: &record::Segment, reads: Arc<AtomicU64>) -> Result<Self> {
        let file = origin.open(record)?;
        // SAFETY: the file is immutable once its record exists, and nothing but this process opens the folder (it holds
        // the folder's lock). A file cut behind our back would raise SIGBUS, which ends the process.
        #[allow(unsafe_code, reason = "the one place that maps a file")]
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|source| origin.failed(source))?;
        let verified = (0..record.block_crcs.len().div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let map = Bytes::from_owner(map);
        Ok(Self(Arc::new(Inner { origin, file, map, crcs: record.block_crcs.clone(), verified, reads })))
    }

    /// Returns bytes of the file, each block of them compared with its CRC at least once.
    pub(super) fn checked(&self, start: u64, length: usize) -> Result<Bytes> {
        let inner = &self.0;
        let outside = || Error::CorruptFile {
            what: "segment",
            path: inner.origin.path.clone(),
            offset: start,
            reason: format!("{length} bytes asked for, the file has {}", inner.map.len()),
        };
        let start = usize::try_from(start).map_err(|_| outside())?;
        let end = start.checked_add(length).filter(|end| *end <= inner.map.len()).ok_or_else(outside)?;
        for block in start / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES) {
            let (word, bit) = (&inner.verified[block / 64], 1 << (block % 64));
            if word.load(Ordering::Acquire) & bit == 0 {
                self.verify(block)?;
                word.fetch_or(bit, Ordering::Release);
            }
        }
        Ok(inner.map.slice(start..end))
    }

    fn verify(&self, block: usize) -> Result<()> {
        let inner = &self.0;
        let offset = block * BLOCK_BYTES;
        let mut bytes = vec![0; BLOCK_BYTES.min(inner.map.len() - offset)];
        inner.origin.verify(&inner.file, &mut bytes, offset as u64, inner.crcs[block])
    }
}

impl Length for Blocks {
    fn len(&self) -> u64 {
        self.0.map.len() as u64
    }
}

impl ChunkReader for Blocks {
    type T = BlocksRead;

    fn get_read(&self, start: u64) -> parquet::errors::Result<BlocksRead> {
        Ok(BlocksRead { blocks: self.clone(), at: start })
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        self.0.reads.fetch_add(1, Ordering::Relaxed);
        self.checked(start, length).map_err(|error| ParquetError::External(Box::new(error)))
    }
}

/// Reads on from an offset.
pub(super) struct BlocksRead {
    blocks: Blocks,
    at: u64,
}

impl Read for BlocksRead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.blocks.len().saturating_sub(self.at);
        let bytes = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let found = self.blocks.checked(self.at, bytes).map_err(io::Error::other)?;
        buffer[..bytes].copy_from_slice(&found);
        self.at += bytes as u64;
        Ok(bytes)
    }
}
