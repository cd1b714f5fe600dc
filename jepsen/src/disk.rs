//! What a disk may hold after a power cut: the journal of a process's writes, replayed up to any point, without what was
//! not synced by then.
//!
//! `disk/recorder.rs` writes the journal. [`Journal::leave`] makes a folder of its beginning, as a kill leaves it (the
//! system has all writes) or as a power cut may: of each file's sectors, each has what was synced and the writes behind
//! that up to some moment of its own, so that later writes may be there and earlier ones not; of each folder's names,
//! unsynced changes are there up to some point. That is less than ext4 or XFS promise (there a synced file is found under its
//! name, and changes of names survive in the order in which they were made over all folders), and what POSIX does: whoever
//! survives it needs no luck.

mod journal;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use galoo_workload::Rng;

pub use journal::{FOLDER_VARIABLE, HANG_VARIABLE, JOURNAL_VARIABLE, Kind, Record};

/// By the byte that a record has.
const KINDS: [Kind; 8] =
    [Kind::Create, Kind::MakeFolder, Kind::Write, Kind::Resize, Kind::Sync, Kind::Rename, Kind::Link, Kind::Remove];

/// Takes the first record off; none when it is not there to its end.
fn decode(bytes: &mut &[u8]) -> Option<Record> {
    let mut rest = *bytes;
    let kind = *KINDS.get(usize::from(*rest.split_off_first()?))?;
    let mut integer = || Some(u64::from_le_bytes(rest.split_off(..8)?.try_into().ok()?));
    let (number, path_bytes, data_bytes) = (integer()?, integer()?, integer()?);
    let path = rest.split_off(..usize::try_from(path_bytes).ok()?)?;
    let data = rest.split_off(..usize::try_from(data_bytes).ok()?)?;
    *bytes = rest;
    Some(Record { kind, number, path: String::from_utf8(path.to_vec()).ok()?, data: data.to_vec() })
}

/// Disks write so many bytes whole or not at all.
const SECTOR_BYTES: usize = 512;

/// What is not there after the end of a process.
#[derive(Clone, Debug)]
pub enum Loss {
    /// Nothing: it was killed.
    Nothing,
    /// All that was not synced.
    Unsynced,
    /// Some of what was not synced, as chance has it.
    Some(Rng),
}

impl Loss {
    /// How much of `count` unsynced things, or bytes, is there.
    fn kept(&mut self, count: usize) -> usize {
        match self {
            Self::Nothing => count,
            Self::Unsynced => 0,
            Self::Some(rng) => match rng.below(3) {
                0 => 0,
                1 => count,
                _ => usize::try_from(rng.below(count as u64 + 1)).expect("at most the count"),
            },
        }
    }
}

/// What a process did to a folder, from the empty folder on.
pub struct Journal {
    records: Vec<Record>,
    /// Where each record begins; the last one is the journal's length.
    positions: Vec<u64>,
}

impl Journal {
    /// Reads a journal; a last record that is not whole was not written when the process was killed.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("the journal {}", path.display()))?;
        let (mut records, mut positions, mut rest) = (Vec::new(), vec![0], &bytes[..]);
        while let Some(record) = decode(&mut rest) {
            records.push(record);
            positions.push((bytes.len() - rest.len()) as u64);
        }
        Ok(Self { records, positions })
    }

    /// All records.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// The journal's length when so many records were in it.
    pub fn position(&self, count: usize) -> u64 {
        self.positions[count]
    }

    /// The same on a disk that says that files whose paths begin so are synced, and does not sync them.
    pub fn with_lies_of(&self, path: &str) -> Self {
        let true_ones = |(record, _): &(&Record, &u64)| record.kind != Kind::Sync || !record.path.starts_with(path);
        let kept = self.records.iter().zip(&self.positions).filter(true_ones);
        let (records, mut positions): (Vec<_>, Vec<_>) =
            kept.map(|(record, position)| (record.clone(), *position)).unzip();
        positions.extend(self.positions.last());
        Self { records, positions }
    }

    /// Makes an empty folder what the first `count` records left of it.
    ///
    /// # Errors
    /// When a record does not fit to those before it, or the folder cannot be written.
    pub fn leave(&self, count: usize, mut loss: Loss, folder: &Path) -> Result<()> {
        let mut disk = Disk::default();
        for (record, position) in self.records[..count].iter().zip(&self.positions) {
            disk.take(record, *position)
                .with_context(|| format!("record at {position}: {:?} {}", record.kind, record.path))?;
        }
        disk.write(&mut loss, folder)
    }
}

/// All files below a folder, by their paths in it, with what is in them.
///
/// # Errors
/// When one cannot be read.
pub fn files(folder: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let (mut found, mut waiting) = (BTreeMap::new(), vec![folder.to_owned()]);
    while let Some(path) = waiting.pop() {
        for entry in fs::read_dir(&path).with_context(|| format!("the folder {}", path.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                waiting.push(path);
            } else {
                let name = path.strip_prefix(folder)?.to_str().context("a name that is UTF-8")?.to_owned();
                found.insert(name, fs::read(&path)?);
            }
        }
    }
    Ok(found)
}

/// The place of a node in [`Disk::nodes`].
type Id = usize;

const ROOT: Id = 0;

enum Content {
    File(Vec<(u64, Piece)>),
    Folder(Vec<(u64, Change)>),
}

/// A file or a folder, whatever its name.
struct Node {
    /// All that was done to it, and when.
    content: Content,
    /// What was done to it before that is on the disk.
    synced: u64,
}

enum Piece {
    Bytes { offset: usize, bytes: Vec<u8> },
    Length(usize),
}

#[derive(Clone)]
enum Change {
    Add {
        name: String,
        node: Id,
    },
    Remove {
        name: String,
    },
    /// In the folder of the new name: both take effect together.
    Move {
        from: (Id, String),
        name: String,
        node: Id,
    },
}

struct Disk {
    nodes: Vec<Node>,
    /// As the process sees it.
    names: BTreeMap<String, Id>,
}

impl Default for Disk {
    fn default() -> Self {
        let root = Node { content: Content::Folder(Vec::new()), synced: 0 };
        Self { nodes: vec![root], names: BTreeMap::from([(String::new(), ROOT)]) }
    }
}

fn parent(path: &str) -> (&str, String) {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    (folder, name.to_owned())
}

impl Disk {
    fn find(&self, path: &str) -> Result<Id> {
        self.names.get(path).copied().with_context(|| format!("there is no {path}"))
    }

    fn change(&mut self, path: &str, position: u64, change: impl FnOnce(String) -> Change) -> Result<()> {
        let (folder, name) = parent(path);
        let folder = self.find(folder)?;
        let Content::Folder(changes) = &mut self.nodes[folder].content else { bail!("{path} is in a file") };
        changes.push((position, change(name)));
        Ok(())
    }

    fn make(&mut self, path: &str, position: u64, content: Content) -> Result<()> {
        let node = self.nodes.len();
        self.nodes.push(Node { content, synced: 0 });
        self.names.insert(path.to_owned(), node);
        self.change(path, position, |name| Change::Add { name, node })
    }

    fn take(&mut self, record: &Record, position: u64) -> Result<()> {
        let path = record.path.as_str();
        let other = || String::from_utf8(record.data.clone()).context("a path");
        let number = usize::try_from(record.number)?;
        match record.kind {
            Kind::Create => self.make(path, position, Content::File(Vec::new())),
            Kind::MakeFolder => self.make(path, position, Content::Folder(Vec::new())),
            Kind::Write | Kind::Resize | Kind::Sync if !self.names.contains_key(path) => {
                // It goes on after its name is gone, and goes with whoever has it open.
                if path.ends_with(" (deleted)") { Ok(()) } else { bail!("nobody made it") }
            }
            Kind::Write => self.piece(path, position, Piece::Bytes { offset: number, bytes: record.data.clone() }),
            Kind::Resize => self.piece(path, position, Piece::Length(number)),
            Kind::Sync => {
                let node = self.find(path)?;
                self.nodes[node].synced = self.nodes[node].synced.max(record.number);
                Ok(())
            }
            Kind::Rename => {
                let (to, node) = (other()?, self.find(path)?);
                let (folder, name) = parent(path);
                let from = (self.find(folder)?, name);
                let inside = format!("{path}/");
                let moved: Vec<_> =
                    self.names.keys().filter(|name| *name == path || name.starts_with(&inside)).cloned().collect();
                for name in moved {
                    let node = self.names.remove(&name).expect("it was just there");
                    self.names.insert(format!("{to}{}", &name[path.len()..]), node);
                }
                self.change(&to, position, |name| Change::Move { from, name, node })
            }
            Kind::Link => {
                let (to, node) = (other()?, self.find(path)?);
                self.names.insert(to.clone(), node);
                self.change(&to, position, |name| Change::Add { name, node })
            }
            Kind::Remove => {
                self.names.remove(path).context("there is none")?;
                self.change(path, position, |name| Change::Remove { name })
            }
        }
    }

    fn piece(&mut self, path: &str, position: u64, piece: Piece) -> Result<()> {
        let node = self.find(path)?;
        let Content::File(pieces) = &mut self.nodes[node].content else { bail!("{path} is a folder") };
        pieces.push((position, piece));
        Ok(())
    }

    /// Writes what is left of it.
    fn write(&self, loss: &mut Loss, folder: &Path) -> Result<()> {
        let mut changes = Vec::new();
        for (id, node) in self.nodes.iter().enumerate() {
            if let Content::Folder(all) = &node.content {
                let synced = all.partition_point(|(position, _)| *position < node.synced);
                let kept = synced + loss.kept(all.len() - synced);
                changes.extend(all[..kept].iter().map(|(position, change)| (*position, id, change)));
            }
        }
        changes.sort_by_key(|(position, ..)| *position);
        let mut folders: Vec<BTreeMap<&str, Id>> = self.nodes.iter().map(|_| BTreeMap::new()).collect();
        for (_, id, change) in changes {
            match change {
                Change::Add { name, node } => _ = folders[id].insert(name, *node),
                Change::Remove { name } => _ = folders[id].remove(name.as_str()),
                Change::Move { from, name, node } => {
                    // Where the old name's own folder never had it, the new one is there by itself.
                    if folders[from.0].get(from.1.as_str()) == Some(node) {
                        folders[from.0].remove(from.1.as_str());
                    }
                    folders[id].insert(name, *node);
                }
            }
        }
        let mut written: BTreeMap<Id, PathBuf> = BTreeMap::new();
        let mut waiting = vec![(ROOT, folder.to_owned())];
        while let Some((id, path)) = waiting.pop() {
            match &self.nodes[id].content {
                Content::Folder(_) => {
                    fs::create_dir_all(&path)?;
                    waiting.extend(folders[id].iter().map(|(name, node)| (*node, path.join(name))));
                }
                Content::File(pieces) => match written.get(&id) {
                    Some(other) => fs::hard_link(other, &path)?,
                    None => {
                        fs::write(&path, content(pieces, self.nodes[id].synced, loss))?;
                        written.insert(id, path);
                    }
                },
            }
        }
        Ok(())
    }
}

/// What is left of a file.
fn content(pieces: &[(u64, Piece)], synced: u64, loss: &mut Loss) -> Vec<u8> {
    let unsynced = pieces.iter().filter(|(position, _)| *position >= synced).count();
    // How many of the unsynced changes each sector has seen: the system writes a sector as it is at some moment.
    let mut seen: HashMap<usize, usize> = HashMap::new();
    let mut content = Vec::new();
    let mut place = 0;
    for (position, piece) in pieces {
        let is_synced = *position < synced;
        place += usize::from(!is_synced);
        match piece {
            Piece::Length(length) if is_synced || loss.kept(1) == 1 => content.resize(*length, 0),
            Piece::Length(_) => {}
            Piece::Bytes { offset, bytes } => {
                let end = offset + bytes.len();
                for sector in offset / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES) {
                    let has_it = is_synced || place <= *seen.entry(sector).or_insert_with(|| loss.kept(unsynced));
                    let range = (sector * SECTOR_BYTES).max(*offset)..((sector + 1) * SECTOR_BYTES).min(end);
                    if has_it {
                        overwrite(&mut content, range.clone(), &bytes[range.start - offset..range.end - offset]);
                    }
                }
            }
        }
    }
    content
}

fn overwrite(content: &mut Vec<u8>, range: Range<usize>, bytes: &[u8]) {
    if content.len() < range.end {
        content.resize(range.end, 0);
    }
    content[range].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A journal of records, which begin at 0, 1, 2…
    fn journal(records: &[(Kind, &str, u64, &[u8])]) -> Journal {
        let record = |(kind, path, number, data): &(Kind, &str, u64, &[u8])| Record {
            kind: *kind,
            number: *number,
            path: (*path).to_owned(),
            data: data.to_vec(),
        };
        let positions = (0..=records.len() as u64).collect();
        Journal { records: records.iter().map(record).collect(), positions }
    }

    /// The files that are left, with what is in them.
    fn left(journal: &Journal, count: usize, loss: Loss) -> BTreeMap<String, Vec<u8>> {
        let folder = tempfile::tempdir().expect("a folder");
        journal.leave(count, loss, folder.path()).expect("leaves something");
        files(folder.path()).expect("reads")
    }

    fn of(files: &[(&str, &[u8])]) -> BTreeMap<String, Vec<u8>> {
        files.iter().map(|(path, content)| ((*path).to_owned(), content.to_vec())).collect()
    }

    #[test]
    fn what_was_synced_is_there_and_what_was_not_may_be() {
        let journal = journal(&[
            (Kind::Create, "a", 0, b""),
            (Kind::Write, "a", 0, b"one"),
            (Kind::Sync, "a", 2, b""),
            (Kind::Write, "a", 3, b"two"),
            // It began before the last write.
            (Kind::Sync, "a", 3, b""),
            (Kind::Sync, "", 5, b""),
        ]);
        assert_eq!(left(&journal, 6, Loss::Nothing), of(&[("a", b"onetwo")]));
        assert_eq!(left(&journal, 6, Loss::Unsynced), of(&[("a", b"one")]));
        assert_eq!(left(&journal, 2, Loss::Nothing), of(&[("a", b"one")]));
        // Its name is not on the disk yet.
        assert_eq!(left(&journal, 5, Loss::Unsynced), of(&[]));
    }

    #[test]
    fn names_change_with_their_folder() {
        let journal = journal(&[
            (Kind::MakeFolder, "d", 0, b""),
            (Kind::Create, "d/new", 0, b""),
            (Kind::Write, "d/new", 0, b"x"),
            (Kind::Sync, "d/new", 3, b""),
            (Kind::Sync, "d", 4, b""),
            (Kind::Sync, "", 5, b""),
            (Kind::Rename, "d/new", 0, b"d/old"),
            (Kind::Link, "d/old", 0, b"same"),
            (Kind::Write, "same", 1, b"y"),
            (Kind::Remove, "d/old", 0, b""),
            (Kind::Write, "d/old (deleted)", 0, b"z"),
        ]);
        assert_eq!(left(&journal, 11, Loss::Nothing), of(&[("same", b"xy")]));
        assert_eq!(left(&journal, 11, Loss::Unsynced), of(&[("d/new", b"x")]));
        assert_eq!(left(&journal, 9, Loss::Nothing), of(&[("d/old", b"xy"), ("same", b"xy")]));
        let unknown = self::journal(&[(Kind::Write, "nowhere", 0, b"x")]);
        assert!(unknown.leave(1, Loss::Nothing, Path::new("/nowhere")).is_err());
    }

    #[test]
    fn each_sector_is_as_it_was_at_some_moment() {
        let journal = journal(&[
            (Kind::Create, "a", 0, b""),
            (Kind::Sync, "", 1, b""),
            (Kind::Write, "a", 0, &[1; 600]),
            (Kind::Write, "a", 600, &[2; 600]),
        ]);
        let mut seen = BTreeSet::new();
        for seed in 0..500 {
            let content = &left(&journal, 4, Loss::Some(Rng::new(seed)))["a"];
            let at = |place: usize| content.get(place).copied();
            // Of the second sector either nothing, the end of the first write, or the second one's begin behind it.
            assert!(matches!((at(599), at(600)), (None | Some(0), None | Some(0)) | (Some(1), _)));
            seen.insert((at(0), at(599), at(600), at(1_199)));
        }
        let none_of_first = seen.iter().filter(|sectors| sectors.0 == Some(0)).count();
        assert!(seen.len() >= 9 && none_of_first >= 3, "{seen:?}");
    }
}
