//! The log's files, read before the engine reads them.
//!
//! The engine takes whatever does not read at the end of its last file for the record that a crash cut short, and cuts the
//! file there: also where a whole record, which was synced and answered, comes behind. In files before the last one it
//! does so with a last record whose entries do not read. A log that loses what it promised in silence is worse than one
//! that does not open: here every record of every file is checked, and only what is behind the last whole record of the
//! last file may be cut off. That the last record itself is damaged, and was not cut short, cannot be told. Of the files
//! into which records are moved, what is behind the mark of [`super::synced`] may be in any state: it is where it was, too,
//! and is cut off here, since the engine would take a record whose entries are torn for the newer copy. What is before the
//! mark must be there.
//!
//! ```text
//! file     magic | version u64 (1 or 2) | alignment u64 (of version 2; 0) | record ... (zeros, or what an older file left)
//! record   length u56, compression u8 | footer's offset u64 | entries, CRC-32 u32 (unless empty) | footer, CRC-32 u32
//! ```
//! (integers big-endian but for CRCs; a footer's CRC is XORed with the file's number in version 2; raft-engine 0.4,
//! `log_batch.rs`, `file_pipe_log/format.rs`)

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::synced::Mark;
use crate::{Error, Result};

const MAGIC: &[u8] = b"RAFT-LOG-FILE-HEADER-9986AB3E47F320B394C8E84916EB0ED5";
const RECORD_HEADER_BYTES: usize = 16;
/// Bytes whose CRCs are compared, at most, to find a whole record behind one that does not read: about a second.
const SCANNED_BYTES_MAX: usize = 4 << 30;
/// Digits of a file's number, which its name begins with.
const NUMBER_DIGITS: usize = 16;
/// Log files that are appended to.
const APPENDED: &str = ".raftlog";
/// Those into which older records are moved.
pub(super) const MOVED: &str = ".rewrite";

/// The log's files whose names end so, by their numbers.
pub(super) fn files(folder: &Path, ending: &str) -> Result<BTreeMap<u64, PathBuf>> {
    let failed = |error: std::io::Error| Error::Log(format!("list {}: {error}", folder.display()));
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(ending));
        if let Some(number) = name.filter(|name| name.len() == NUMBER_DIGITS).and_then(|name| name.parse().ok()) {
            files.insert(number, path);
        }
    }
    Ok(files)
}

/// Checks the files of a log, in which what was moved is synced up to `synced`, and cuts off what was being moved.
///
/// # Errors
/// [`Error::Log`] with the file and the offset of the first record that is not what was written.
pub(super) fn check(folder: &Path, synced: Mark) -> Result<()> {
    for ending in [APPENDED, MOVED] {
        let files = files(folder, ending)?;
        let last = files.keys().next_back().copied();
        // A later one may have taken its place.
        if ending == MOVED && last.unwrap_or(0) < synced.file {
            let missing = format!("{}: file {} of moved records is missing", folder.display(), synced.file);
            return Err(Error::Log(missing));
        }
        for (number, path) in &files {
            let bytes = fs::read(path).map_err(|error| Error::Log(format!("read {}: {error}", path.display())))?;
            let is_last = last == Some(*number);
            let mut found = damage(&bytes, *number, is_last);
            if ending == MOVED && is_last {
                let whole = whole_bytes(&bytes, *number);
                let marked = if *number == synced.file { synced.bytes } else { 0 };
                if (whole as u64) < marked {
                    found = Some((whole, "a record does not read that was synced"));
                } else if found.take().is_some() {
                    cut_off(path, whole)?;
                }
            }
            if let Some((offset, reason)) = found {
                return Err(Error::Log(format!("{} is corrupt at offset {offset}: {reason}", path.display())));
            }
        }
    }
    Ok(())
}

/// Cuts off what is behind so many bytes of a file; removes one that has not even a beginning.
fn cut_off(path: &Path, bytes: usize) -> Result<()> {
    let cut = || {
        if bytes == 0 {
            return fs::remove_file(path);
        }
        let file = fs::File::options().write(true).open(path)?;
        file.set_len(bytes as u64)?;
        file.sync_all()
    };
    cut().map_err(|error: std::io::Error| Error::Log(format!("cut {}: {error}", path.display())))
}

/// Where a file is damaged, and how. Of the last file what is behind its last whole record does not count.
fn damage(bytes: &[u8], number: u64, is_last: bool) -> Option<(usize, &'static str)> {
    let Some((start, signature)) = header(bytes, number) else {
        // Either signature: the damaged header does not say which.
        let holds = [0, number as u32].into_iter().any(|signature| next_whole(bytes, 0, signature).is_some());
        return (holds || !is_last).then_some((0, "it does not begin as a file of the log"));
    };
    let at = end_of_whole(bytes, start, signature);
    let rest = &bytes[at..];
    if rest.iter().all(|byte| *byte == 0) {
        return None;
    }
    if next_whole(bytes, at, signature).is_some() {
        return Some((at, "a record does not read, and whole ones come behind"));
    }
    (!is_last).then_some((at, "a record does not read, and files come behind"))
}

/// How many bytes a file begins with that are a file of the log and its records.
pub(super) fn whole_bytes(bytes: &[u8], number: u64) -> usize {
    header(bytes, number).map_or(0, |(start, signature)| end_of_whole(bytes, start, signature))
}

fn end_of_whole(bytes: &[u8], start: usize, signature: u32) -> usize {
    let mut at = start;
    while let Some(length) = whole(&bytes[at..], signature) {
        at += length;
    }
    at
}

/// Where records begin, and what their footers' CRCs are XORed with.
fn header(bytes: &[u8], number: u64) -> Option<(usize, u32)> {
    let mut rest = bytes.strip_prefix(MAGIC)?;
    match take_u64(&mut rest)? {
        1 => Some((bytes.len() - rest.len(), 0)),
        // What a file of more than 2^32 files before it is signed with is these bits too.
        2 => take_u64(&mut rest).map(|_| (bytes.len() - rest.len(), number as u32)),
        _ => None,
    }
}

fn take_u64(bytes: &mut &[u8]) -> Option<u64> {
    let (head, tail) = bytes.split_first_chunk::<8>()?;
    *bytes = tail;
    Some(u64::from_be_bytes(*head))
}

/// The first place from `from` on at which a whole record begins. What was written may look like the beginnings of many long
/// ones: where reading them would take too long, one of them counts as whole.
fn next_whole(bytes: &[u8], from: usize, signature: u32) -> Option<usize> {
    let mut left = SCANNED_BYTES_MAX;
    (from..bytes.len()).find(|at| {
        let Some((length, _)) = lengths(&bytes[*at..]) else { return false };
        left = left.saturating_sub(length);
        left == 0 || whole(&bytes[*at..], signature).is_some()
    })
}

/// Lengths of the record that bytes begin with, and of what is before its footer, if it fits.
fn lengths(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut rest = bytes;
    let (packed, footer) = (take_u64(&mut rest)?, take_u64(&mut rest)?);
    let (length, footer) = (usize::try_from(packed >> 8).ok()?, usize::try_from(footer).ok()?);
    let fits = packed & 0xff <= 1 && (RECORD_HEADER_BYTES..length).contains(&footer) && length <= bytes.len();
    fits.then_some((length, footer))
}

/// The length of the record that bytes begin with, if it is whole.
fn whole(bytes: &[u8], signature: u32) -> Option<usize> {
    let (length, footer) = lengths(bytes)?;
    let (entries, footer) = (&bytes[RECORD_HEADER_BYTES..footer], &bytes[footer..length]);
    let holds = has_crc(footer, signature) && (entries.is_empty() || has_crc(entries, 0));
    holds.then_some(length)
}

/// Whether bytes end with the CRC of those before.
fn has_crc(bytes: &[u8], signature: u32) -> bool {
    match bytes.split_last_chunk::<4>() {
        Some((content, crc)) if !content.is_empty() => crc32fast::hash(content) == u32::from_le_bytes(*crc) ^ signature,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use raft::eraftpb::{Entry, HardState};

    use super::*;
    use crate::{
        GroupId,
        log_store::{GroupRecord, GroupWrite, LogStore, shared::SharedLog},
        raft_loop::splitmix64,
    };

    const LOG_BYTES: u64 = 1 << 18;
    const GROUPS: u64 = 3;

    /// Everything that a log holds, or why it cannot be read.
    fn content(log: &SharedLog) -> Result<Vec<String>> {
        let mut said = Vec::new();
        for (group, record) in log.groups()? {
            said.push(format!("{group} is {record:?} {:?}", log.hard_state(group)?));
            let Some((first, last)) = log.bounds(group)? else { continue };
            said.extend(
                log.entries(group, first, last + 1, None)?.iter().map(|entry| format!("{group} has {entry:?}")),
            );
        }
        Ok(said)
    }

    fn read(folder: &Path) -> Result<Vec<String>> {
        content(&SharedLog::open(folder, LOG_BYTES)?)
    }

    fn copy(from: &Path, to: &Path) {
        let _ = fs::remove_dir_all(to);
        fs::create_dir_all(to).expect("makes");
        for file in fs::read_dir(from).expect("lists") {
            let path = file.expect("lists").path();
            fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("copies");
        }
    }

    /// A flipped byte, or a file cut short, is found; or it is as if the last write had never been, or harmless. What was
    /// synced before the last write is never missing in silence.
    #[test]
    fn nothing_but_the_last_write_is_ever_missing() {
        let (folder, work) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
        let log = SharedLog::open(folder.path(), LOG_BYTES).expect("opens");
        let mut seed = 3;
        let mut without_last = Vec::new();
        let writes = 150;
        for index in 1..=writes {
            if index == writes {
                without_last = content(&log).expect("reads");
            }
            let write = |group| {
                // Some are compressed.
                let words = if group == 1 && index % 10 == 0 { 5_000 } else { splitmix64(&mut seed) % 60 };
                let data: Vec<u8> = (0..words).flat_map(|_| (splitmix64(&mut seed) % 99).to_le_bytes()).collect();
                let entry = Entry { index, term: 1, data: data.into(), ..Default::default() };
                let hard_state =
                    (index % 7 == 0).then(|| HardState { term: 1, commit: index - 1, ..Default::default() });
                let record = (index == 1).then(GroupRecord::default);
                (GroupId(group), GroupWrite { record, hard_state, entries: vec![entry], ..Default::default() })
            };
            log.write(&(1..=GROUPS).map(write).collect::<Vec<_>>()).expect("writes");
        }
        let all = content(&log).expect("reads");
        drop(log);
        copy(folder.path(), work.path());
        assert_eq!(read(work.path()).expect("opens"), all);
        let files: Vec<_> =
            fs::read_dir(folder.path()).expect("lists").map(|file| file.expect("lists").path()).collect();
        let files: Vec<_> = files.iter().filter(|path| path.extension().is_some_and(|one| one == "raftlog")).collect();
        assert!(files.len() > 3, "{files:?}");
        let (mut found, mut harmless, mut cut) = (0, 0, 0);
        for round in 0..1_500 {
            let path = files[round % files.len()];
            let good = fs::read(path).expect("reads");
            let at = usize::try_from(splitmix64(&mut seed)).unwrap_or(0) % good.len();
            let mut bad = good.clone();
            if round % 16 == 0 {
                bad.truncate(at);
            } else {
                bad[at] ^= 1 << (splitmix64(&mut seed) % 8);
            }
            copy(folder.path(), work.path());
            fs::write(work.path().join(path.file_name().expect("a name")), bad).expect("writes");
            match read(work.path()) {
                Err(_) => found += 1,
                Ok(said) if said == all => harmless += 1,
                Ok(said) if round % 16 == 0 => {
                    // A file that was cut: only the last one may be, and what is left is a beginning.
                    assert!(said.iter().all(|one| all.contains(one) || one.contains(" is ")), "byte {at} of {path:?}");
                    cut += 1;
                }
                Ok(said) => {
                    assert_eq!(said, without_last, "byte {at} of {path:?} ({} bytes)", good.len());
                    cut += 1;
                }
            }
        }
        assert!(found > 1_000 && cut > 0, "{found} found, {harmless} harmless, {cut} cut");
    }

    /// A power cut while records are moved tears any of them, and all are where they came from. Once they are synced and
    /// marked, a damaged one is a loss, and found.
    #[test]
    fn what_was_moved_may_be_torn_until_it_is_marked() {
        // Several records in one file, and one in the second of two.
        check_moved(20, 0);
        check_moved(30, 1);
    }

    fn check_moved(quiet_entries: u64, closed_files: usize) {
        let [folder, before, work] = [(); 3].map(|()| tempfile::tempdir().expect("folder"));
        let bytes = 1 << 22;
        let log = SharedLog::open(folder.path(), bytes).expect("opens");
        let mut seed = 5;
        for index in 1..=90 {
            // The first group is quiet; the second one's entries go.
            let write = |group| {
                let data: Vec<u8> = (0..3_000).flat_map(|_| splitmix64(&mut seed).to_le_bytes()).collect();
                let record =
                    Some(GroupRecord { cut_index: if group == 2 { index - 1 } else { 0 }, ..Default::default() });
                let entry = Entry { index, term: 1, data: data.into(), ..Default::default() };
                let cut = (group == 2 && index > 1).then(|| index - 1);
                (GroupId(group), GroupWrite { record, entries: vec![entry], cut, ..Default::default() })
            };
            let first = if index <= quiet_entries { 1 } else { 2 };
            log.write(&(first..=2).map(write).collect::<Vec<_>>()).expect("writes");
        }
        let all = content(&log).expect("reads");
        copy(folder.path(), before.path());
        log.purge().expect("purges");
        assert_eq!(content(&log).expect("reads"), all);
        drop(log);
        let mut moved_files = files(folder.path(), MOVED).expect("lists");
        let (number, moved) = moved_files.pop_last().expect("a file");
        let good = fs::read(&moved).expect("reads");
        let (start, signature) = header(&good, number).expect("a header");
        let end = whole_bytes(&good, number);
        let first_end = start + whole(&good[start..], signature).expect("a record");
        assert_eq!((moved_files.len(), first_end < end), (closed_files, closed_files == 0));
        let mut found = 0;
        for round in 0..200 {
            let at = start + usize::try_from(splitmix64(&mut seed)).unwrap_or(0) % (end - start);
            let mut bad = good.clone();
            bad[at] ^= 1 << (round % 8);
            // The purge has not come to its end.
            copy(before.path(), work.path());
            for (_, path) in files(folder.path(), MOVED).expect("lists") {
                fs::copy(&path, work.path().join(path.file_name().expect("a name"))).expect("copies");
            }
            let torn = work.path().join(moved.file_name().expect("a name"));
            fs::write(&torn, &bad).expect("writes");
            let said = SharedLog::open(work.path(), bytes).and_then(|log| content(&log));
            assert_eq!(said.expect("opens"), all, "byte {at} of {}", good.len());
            // It has.
            copy(folder.path(), work.path());
            fs::write(&torn, &bad).expect("writes");
            match SharedLog::open(work.path(), bytes).and_then(|log| content(&log)) {
                // How a record is packed is in no CRC.
                Ok(said) => assert_eq!(said, all, "byte {at} of {}", good.len()),
                Err(_) => found += 1,
            }
        }
        assert!(found > 195, "{found} found");
        // A file is synced when the next one is begun: what is damaged in one before the last was not torn.
        let mut harmless = 0;
        for (closed, path) in &moved_files {
            let good = fs::read(path).expect("reads");
            let (start, _) = header(&good, *closed).expect("a header");
            for round in 0..60 {
                let at = start + usize::try_from(splitmix64(&mut seed)).unwrap_or(0) % (good.len() - start);
                let mut bad = good.clone();
                if round % 6 == 0 {
                    bad.truncate(at);
                } else {
                    bad[at] ^= 1 << (round % 8);
                }
                copy(folder.path(), work.path());
                fs::write(work.path().join(path.file_name().expect("a name")), &bad).expect("writes");
                if let Ok(said) = SharedLog::open(work.path(), bytes).and_then(|log| content(&log)) {
                    assert_eq!(said, all, "byte {at} of {path:?}");
                    harmless += 1;
                }
            }
        }
        assert!(harmless < 3, "{harmless} harmless");
        copy(folder.path(), work.path());
        let torn = work.path().join(moved.file_name().expect("a name"));
        for bytes in [0, start, first_end.min(end - 1), end - 1] {
            fs::write(&torn, &good[..bytes]).expect("writes");
            SharedLog::open(work.path(), bytes as u64 + LOG_BYTES).map(drop).expect_err("it was longer");
        }
        fs::remove_file(&torn).expect("removes");
        SharedLog::open(work.path(), LOG_BYTES).map(drop).expect_err("it was there");
    }
}
