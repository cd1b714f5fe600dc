//! RocksDB's manifest, read before RocksDB reads it.
//!
//! The manifest says which files make up the database. RocksDB finds most damage of it by CRC; but a damaged header may make
//! it read the same bytes for ever (seen with 11.8 when a record's type was flipped to one with a longer header), and a node
//! that hangs is worse than one that says what is wrong. So every record's header and CRC are checked first.
//!
//! ```text
//! manifest   blocks of 32 KiB; a record does not cross blocks: what is left of one that takes no header is zero
//! record     crc u32 (CRC-32C of type and payload, masked) | length u16 | type u8 (1 to 4: whole, first, middle, last) | payload
//! ```
//! (little-endian; `db/log_format.h` in RocksDB)

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use crate::{Error, Result};

const BLOCK_BYTES: usize = 32 << 10;
const HEADER_BYTES: usize = 7;
/// A disk writes so many bytes whole or not at all, and the system hands it so many at a time, in which a power cut may leave
/// later ones and not earlier ones.
const SECTOR_BYTES: usize = 512;
const PAGE_BYTES: usize = 4_096;

/// Checks the manifest that a database's folder names; one that holds none yet is as it should be.
///
/// # Errors
/// [`Error::CorruptFile`] with the offset of the first record that is not what was written. A record that is cut short by the end
/// of the file is one that a crash interrupted, and RocksDB leaves it out.
pub(super) fn check(folder: &Path) -> Result<()> {
    let read =
        |path: &Path| fs::read(path).map_err(|source| Error::File { action: "read", path: path.to_owned(), source });
    let current = folder.join("CURRENT");
    let name = match read(&current) {
        Err(Error::File { source, .. }) if source.kind() == ErrorKind::NotFound => return Ok(()),
        name => name?,
    };
    let corrupt = |path: &Path, offset: usize, reason: &str| Error::CorruptFile {
        what: "manifest",
        path: path.to_owned(),
        offset: offset as u64,
        reason: reason.to_owned(),
    };
    let named = std::str::from_utf8(&name).ok().and_then(|name| name.strip_suffix('\n'));
    let named = named.filter(|name| name.starts_with("MANIFEST-") && !name.contains('/'));
    let path: PathBuf = folder.join(named.ok_or_else(|| corrupt(&current, 0, "it names no manifest"))?);
    let bytes = read(&path)?;
    match damage(&bytes) {
        None => Ok(()),
        Some((offset, reason)) => Err(corrupt(&path, offset, reason)),
    }
}

/// Where the first damaged record of a manifest is, and what is wrong with it.
fn damage(bytes: &[u8]) -> Option<(usize, &'static str)> {
    let mut at = 0;
    while at < bytes.len() {
        let block_end = (at / BLOCK_BYTES + 1) * BLOCK_BYTES;
        if block_end - at < HEADER_BYTES {
            if bytes[at..block_end.min(bytes.len())].iter().any(|byte| *byte != 0) {
                return Some((at, "a block does not end in zeros"));
            }
            at = block_end;
            continue;
        }
        let ([a, b, c, d, low, high, kind], rest) = bytes[at..].split_first_chunk::<HEADER_BYTES>()?;
        let length = usize::from(u16::from_le_bytes([*low, *high]));
        let sector_end = ((at / SECTOR_BYTES + 1) * SECTOR_BYTES).min(bytes.len());
        let is_torn = bytes.len() - at <= PAGE_BYTES && bytes[at..sector_end].iter().all(|byte| *byte == 0);
        if *kind == 0 && (is_torn || bytes[at..].iter().all(|byte| *byte == 0)) {
            // Room that was made and not used; or the last write, of which a power cut left only later sectors. RocksDB
            // reads no further either.
            return None;
        }
        if !(1..=4).contains(kind) {
            return Some((at, "a record of no known type"));
        }
        if at + HEADER_BYTES + length > block_end {
            return Some((at, "a record crosses its block"));
        }
        let is_crc = |crc: u32| crc.rotate_right(15).wrapping_add(0xa282_ead8) == u32::from_le_bytes([*a, *b, *c, *d]);
        let begun = crc32c::crc32c(&[*kind]);
        let Some(payload) = rest.get(..length) else {
            // A crash cut it short; unless it is whole, and its length is not what was written.
            let mut crc = begun;
            let mut grown = rest.iter().map(|byte| {
                crc = crc32c::crc32c_append(crc, &[*byte]);
                crc
            });
            return (is_crc(begun) || grown.any(is_crc)).then_some((at, "a record's length is another"));
        };
        if !is_crc(crc32c::crc32c_append(begun, payload)) {
            return Some((at, "a record's CRC is another"));
        }
        at += HEADER_BYTES + length;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Engine, Family, WriteBatch, rocks, rocks::RocksEngine};

    /// Every bit of a real manifest is found when it flips; a record that was cut short is what a crash leaves.
    #[test]
    fn every_flipped_bit_of_a_manifest_is_found() {
        let folder = tempfile::tempdir().expect("folder");
        for round in 0..3u8 {
            let engine = RocksEngine::open(folder.path(), &rocks::Options::default()).expect("opens");
            let mut batch = WriteBatch::default();
            batch.put(Family::Meta, vec![round; 8], vec![round]);
            engine.write(batch).expect("writes");
            engine.flush().expect("flushes");
        }
        check(folder.path()).expect("is whole");
        let current = fs::read_to_string(folder.path().join("CURRENT")).expect("reads");
        let path = folder.path().join(current.trim_end());
        let good = fs::read(&path).expect("reads");
        assert_eq!(damage(&good), None);
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert!(damage(&bad).is_some(), "bit {bit} of byte {at}");
            }
            assert_eq!(damage(&good[..at]), None, "cut at {at}");
        }
        // The last write is torn: what a reader takes for its end is zero to the end of a sector, and no other zeros are.
        let end = (1..=3).map(|sectors| sectors * SECTOR_BYTES).find(|end| *end > good.len()).expect("a short one");
        let mut torn = good.clone();
        torn.resize(end, 0);
        torn.extend([1; 100]);
        assert_eq!(damage(&torn), None);
        torn[end - 1] = 1;
        assert!(damage(&torn).is_some());
        torn[end - 1] = 0;
        torn.resize(good.len() + PAGE_BYTES + 1, 1);
        assert!(damage(&torn).is_some(), "more than a page behind it");
        fs::write(&path, [&good[..40], &[good[40] ^ 1], &good[41..]].concat()).expect("writes");
        let error = RocksEngine::open(folder.path(), &rocks::Options::default()).err().expect("is refused").to_string();
        assert!(error.contains("corrupt manifest at offset 0 of") && error.contains("MANIFEST-"), "{error}");
        fs::write(folder.path().join("CURRENT"), "MANIFEST-\u{0}").expect("writes");
        assert!(RocksEngine::open_read_only(folder.path()).is_err());
    }
}
