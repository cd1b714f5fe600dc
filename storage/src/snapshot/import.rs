//! The filling of a fresh keyspace with pulled blocks, each checked before anything of it is written.

use std::{
    fs::{self, File},
    io::Write,
    path::PathBuf,
    sync::Arc,
};

use galoo_proto::{Keyspace, SegmentId, ShardId, record};
use prost::Message;

use super::{FILE, ROWS, VERSION, corrupt, family, take, take_text, take_u64};
use crate::{
    Error, Result,
    engine::{Direction, Engine, Family, WriteBatch},
    key,
    segment::{BLOCK_BYTES, SegmentFiles, failed, has_file, sync_folders},
    shard,
    view::read_segments,
};

/// A keyspace that is being filled.
pub struct Import {
    engine: Arc<dyn Engine>,
    keyspace: Keyspace,
    files: Option<Arc<SegmentFiles>>,
    /// The cursor of the block that comes next; `None` when there is none.
    next: Option<Vec<u8>>,
    file: Option<Filling>,
    segments: Vec<record::Segment>,
}

/// A file that is not complete yet.
struct Filling {
    record: record::Segment,
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Import {
    /// Starts to fill a keyspace. Without `files` it takes rows only.
    ///
    /// # Errors
    /// The keyspace holds something: it is not fresh.
    pub fn new(engine: Arc<dyn Engine>, keyspace: Keyspace, files: Option<Arc<SegmentFiles>>) -> Result<Self> {
        let range = key::keyspace_range(keyspace);
        for family in Family::ALL {
            if engine.rows(family, &range.start..&range.end, Direction::Forward)?.next()?.is_some() {
                return Err(Error::row("fresh keyspace", format!("{keyspace} holds {} rows", family.name())));
            }
        }
        Ok(Self { engine, keyspace, files, next: Some(Vec::new()), file: None, segments: Vec::new() })
    }

    /// The cursor to ask the next block for; `None` when all are here.
    pub fn cursor(&self) -> Option<&[u8]> {
        self.next.as_deref()
    }

    /// Takes the next block. After an error nothing of it is kept, and it may be pulled again.
    ///
    /// # Errors
    /// The block is damaged, of a newer format, or not the one that comes next; or the disk failed.
    pub fn take(&mut self, block: &[u8]) -> Result<()> {
        let (mut body, crc) = block.split_last_chunk::<4>().ok_or_else(|| corrupt("it is too short"))?;
        let (found, recorded) = (crc32fast::hash(body), u32::from_le_bytes(*crc));
        if found != recorded {
            return Err(corrupt(format!("CRC {found:08x}, recorded {recorded:08x}")));
        }
        let header = take(&mut body, 2)?;
        if header[0] > VERSION {
            return Err(Error::NewerFormat { what: "snapshot", found: header[0].into(), known: VERSION.into() });
        }
        let (cursor, next) = (take_text(&mut body)?, take_text(&mut body)?.to_vec());
        if self.next.as_deref() != Some(cursor) {
            return Err(corrupt("it is not the one that comes next"));
        }
        match header[1] {
            ROWS => self.rows(body)?,
            FILE => self.piece(body)?,
            kind => return Err(corrupt(format!("its kind is {kind}"))),
        }
        self.next = Some(next).filter(|next| !next.is_empty());
        Ok(())
    }

    fn rows(&mut self, mut body: &[u8]) -> Result<()> {
        if self.file.is_some() {
            return Err(corrupt("rows come before a file's end"));
        }
        let prefix = key::keyspace_range(self.keyspace).start;
        let mut batch = WriteBatch::default();
        while !body.is_empty() {
            let byte = take(&mut body, 1)?[0];
            let family = family(byte).ok_or_else(|| corrupt(format!("family {byte} is not known")))?;
            let key = [prefix.as_slice(), take_text(&mut body)?].concat();
            batch.put(family, key, take_text(&mut body)?.to_vec());
        }
        self.engine.write(batch)
    }

    fn piece(&mut self, mut body: &[u8]) -> Result<()> {
        let files = self.files.clone().ok_or_else(|| corrupt("a file, where only rows are taken"))?;
        let (record, offset) = (take_text(&mut body)?, take_u64(&mut body)?);
        let mut filling = match self.file.take() {
            Some(filling) => filling,
            None => {
                let record = record::Segment::decode(record).map_err(corrupt)?;
                let path = files.path(self.keyspace, SegmentId(record.id));
                let folder = path.parent().unwrap_or(&path);
                fs::create_dir_all(folder).map_err(|source| failed("create", folder, source))?;
                let file = File::create(&path).map_err(|source| failed("create", &path, source))?;
                Filling { record, path, file, bytes: 0 }
            }
        };
        if let Err(reason) = filling.fits(offset, body) {
            // What is there of the file is right: the same piece may be pulled again.
            self.file = Some(filling).filter(|filling| filling.bytes > 0);
            return Err(corrupt(reason));
        }
        let written = filling.file.write_all(body);
        written.map_err(|source| failed("write", &filling.path, source))?;
        filling.bytes += body.len() as u64;
        if filling.bytes < filling.record.file_bytes {
            self.file = Some(filling);
            return Ok(());
        }
        filling.file.sync_all().map_err(|source| failed("sync", &filling.path, source))?;
        sync_folders(&filling.path)?;
        self.segments.push(filling.record);
        Ok(())
    }

    /// Makes everything durable. The caller may refer to the keyspace afterwards.
    ///
    /// # Errors
    /// Blocks are missing, or the rows name other segments than there are files.
    pub fn finish(self) -> Result<()> {
        if self.next.is_some() {
            return Err(corrupt("it is missing: not all blocks are here"));
        }
        if self.files.is_some() {
            let mut named = read_segments(self.engine.as_ref(), self.keyspace)?;
            named.retain(has_file);
            let mut here = self.segments;
            named.sort_by_key(|segment| segment.id);
            here.sort_by_key(|segment| segment.id);
            if named != here {
                return Err(corrupt(format!("rows name {} segments, {} files came", named.len(), here.len())));
            }
        }
        self.engine.flush()
    }

    /// Makes everything durable, and checks that it is this shard with this index applied.
    pub fn finish_shard(self, expected: ShardId, applied: u64) -> Result<()> {
        let (engine, keyspace) = (self.engine.clone(), self.keyspace);
        self.finish()?;
        let state = engine.get_persisted(Family::Meta, &key::state(keyspace))?;
        let found = shard::decode_state(state.as_deref())?.unwrap_or_default();
        if found.shard != expected.0 || found.applied != applied {
            let (found_shard, found) = (ShardId(found.shard), found.applied);
            return Err(corrupt(format!("it is {found_shard} at {found}, not {expected} at {applied}")));
        }
        Ok(())
    }
}

impl Filling {
    /// Whether bytes continue the file and match the record's CRCs.
    fn fits(&self, offset: u64, bytes: &[u8]) -> Result<(), String> {
        let end = offset.saturating_add(bytes.len() as u64);
        let whole = end == self.record.file_bytes || bytes.len().is_multiple_of(BLOCK_BYTES);
        if offset != self.bytes || end > self.record.file_bytes || !whole || bytes.is_empty() {
            return Err(format!(
                "bytes {offset}..{end} of a file of {} do not follow {}",
                self.record.file_bytes, self.bytes
            ));
        }
        let first = usize::try_from(offset).unwrap_or(usize::MAX) / BLOCK_BYTES;
        for (place, block) in bytes.chunks(BLOCK_BYTES).enumerate() {
            let recorded = self.record.block_crcs.get(first + place).copied();
            if recorded != Some(crc32fast::hash(block)) {
                return Err(format!("block {} of {} does not match its record", first + place, self.path.display()));
            }
        }
        Ok(())
    }
}
