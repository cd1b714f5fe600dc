//! A process that writes the log is killed at any moment, again and again: what it was told to be durable is there.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::{
        RwLock,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
};

use raft::eraftpb::{Entry, HardState};

use super::SharedLog;
use crate::{
    GroupId,
    log_store::{GroupRecord, GroupWrite, LogStore},
    raft_loop::splitmix64,
};

const FOLDER: &str = "GALOO_TEST_LOG_FOLDER";
const SEED: &str = "GALOO_TEST_LOG_SEED";
/// Small, so that files are closed, rewritten and removed all the time.
const LOG_BYTES: u64 = 1 << 20;
const GROUPS: u64 = 5;
const KILLS: u64 = 30;
/// Writes between two purges.
const PURGE_WRITES: u64 = 5;

/// A group as its log says: the last index, where it was cut, and the commit index of its hard state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Held {
    last: u64,
    cut: u64,
    commit: u64,
}

fn held(log: &SharedLog, group: u64) -> Held {
    let group = GroupId(group);
    let cut = log.record(group).expect("a record").map_or(0, |record| record.cut_index);
    let commit = log.hard_state(group).expect("a hard state").map_or(0, |hard| hard.commit);
    let last = match log.bounds(group).expect("bounds") {
        None => cut,
        Some((first, last)) => {
            let entries = log.entries(group, first, last + 1, None).expect("entries");
            assert!(
                entries.iter().zip(first..).all(|(entry, index)| *entry == self::entry(index)),
                "{group}: {first}..={last}"
            );
            assert!(first == cut + 1, "{group} begins at {first}, and was cut at {cut}");
            last
        }
    };
    Held { last, cut, commit }
}

fn entry(index: u64) -> Entry {
    let mut seed = index;
    // Now and then one that is larger than a file of the log.
    let words = if random(&mut seed, 8) == 0 { 20_000 } else { 100 };
    let data: Vec<u8> = (0..words).flat_map(|_| random(&mut seed, u64::MAX).to_le_bytes()).collect();
    Entry { index, term: 1 + index / 7, data: data.into(), ..Default::default() }
}

fn random(state: &mut u64, below: u64) -> u64 {
    splitmix64(state) % below
}

/// A purge moves entries and removes the files that they were in, also of entries that are being read.
#[test]
fn entries_are_read_while_they_are_moved() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = SharedLog::open(folder.path(), LOG_BYTES).expect("opens");
    // What of each group is not cut; who reads keeps it from being cut, and not from being moved.
    let kept = RwLock::new([(1, 0); GROUPS as usize]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                log.purge().expect("purges");
            }
        });
        scope.spawn(|| {
            let mut seed = 1;
            for index in 1..=500 {
                let mut kept = kept.write().expect("nobody panicked");
                let writes = (1..).zip(kept.iter_mut()).map(|(group, (first, last))| {
                    *last = index;
                    let cut = (random(&mut seed, 40) == 0).then_some(index - 1);
                    *first = cut.map_or(*first, |cut| cut + 1);
                    let record = cut.map(|cut_index| GroupRecord { cut_index, ..Default::default() });
                    (GroupId(group), GroupWrite { record, entries: vec![entry(index)], cut, ..Default::default() })
                });
                log.write(&writes.collect::<Vec<_>>()).expect("writes");
            }
            done.store(true, Ordering::Relaxed);
        });
        let mut seed = 2;
        while !done.load(Ordering::Relaxed) {
            let group = random(&mut seed, GROUPS);
            let kept = kept.read().expect("nobody panicked");
            let (first, last) = kept[usize::try_from(group).expect("small")];
            let entries = log.entries(GroupId(group + 1), first, last + 1, None).expect("entries");
            assert!(entries.len() as u64 == last + 1 - first, "{first}..={last}");
        }
    });
}

/// The process that is killed: group 1 is written rarely, the others all the time; each is cut now and then.
#[test]
fn writer() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let mut seed = std::env::var(SEED).expect("a seed").parse().expect("a number");
    let log = SharedLog::open(Path::new(&folder), LOG_BYTES).expect("opens");
    let mut groups: BTreeMap<u64, Held> = (1..=GROUPS).map(|group| (group, held(&log, group))).collect();
    std::thread::scope(|scope| {
        let (purge, wanted) = mpsc::sync_channel(1);
        let log = &log;
        scope.spawn(move || wanted.iter().for_each(|()| drop(log.purge().expect("purges"))));
        let mut said = std::io::stdout();
        for round in 1.. {
            if round % PURGE_WRITES == 0 {
                // Not if one is under way.
                let _ = purge.try_send(());
            }
            let mut writes = Vec::new();
            for (group, held) in &mut groups {
                if random(&mut seed, if *group == 1 { 100 } else { 3 }) > 0 {
                    continue;
                }
                let mut write = GroupWrite::default();
                if held.last == 0 {
                    write.record = Some(GroupRecord::default());
                }
                let more = 1 + random(&mut seed, 3);
                write.entries = (held.last + 1..=held.last + more).map(entry).collect();
                if random(&mut seed, 8) == 0 {
                    held.commit = held.last;
                    write.hard_state = Some(HardState { term: 1, commit: held.commit, ..Default::default() });
                }
                held.last += more;
                if random(&mut seed, 20) == 0 && held.last > held.cut + 10 {
                    held.cut = held.last - random(&mut seed, 10);
                    write.record = Some(GroupRecord { cut_index: held.cut, ..Default::default() });
                    write.cut = Some(held.cut);
                }
                writes.push((GroupId(*group), write));
            }
            log.write(&writes).expect("writes");
            let lines: String = writes
                .iter()
                .map(|(GroupId(group), _)| (group, groups[group]))
                .map(|(group, Held { last, cut, commit })| format!("held {group} {last} {cut} {commit}\n"))
                .collect();
            // Who listened is gone: so is the test.
            if said.write_all(lines.as_bytes()).and_then(|()| said.flush()).is_err() {
                break;
            }
        }
    });
}

#[test]
fn what_was_written_survives_the_death_of_its_process() {
    let folder = tempfile::tempdir().expect("folder");
    let mut told: BTreeMap<u64, Held> = BTreeMap::new();
    let mut seed = 7;
    for kill in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "log_store::shared::crash::writer", "--nocapture", "--test-threads", "1"])
            .env(FOLDER, folder.path())
            .env(SEED, kill.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let until = 1 + random(&mut seed, 1_000);
        let mut take = |line: String| {
            let Some(line) = line.strip_prefix("held ") else { return };
            let numbers: Vec<u64> = line.split(' ').filter_map(|number| number.parse().ok()).collect();
            if let [group, last, cut, commit] = numbers[..] {
                told.insert(group, Held { last, cut, commit });
            }
        };
        (&mut lines).take(usize::try_from(until).expect("small")).for_each(|line| take(line.expect("a line")));
        child.kill().expect("killed");
        lines.map_while(Result::ok).for_each(take);
        let ended = child.wait_with_output().expect("ends");
        assert!(ended.stderr.is_empty(), "{}", String::from_utf8_lossy(&ended.stderr));
        let log = SharedLog::open(folder.path(), LOG_BYTES).expect("opens again");
        for (group, told) in &told {
            let found = held(&log, *group);
            let holds = found.last >= told.last && found.cut >= told.cut && found.commit >= told.commit;
            assert!(holds, "kill {kill}: group {group} was told {told:?}, and has {found:?}");
        }
    }
}

/// The engine moves a quiet group's entries to another file, they are cut, and the file that says so goes: they stay cut.
#[test]
fn cut_entries_stay_gone() {
    let folder = tempfile::tempdir().expect("folder");
    let (quiet, busy) = (GroupId(1), GroupId(2));
    let log = SharedLog::open(folder.path(), LOG_BYTES).expect("opens");
    let made = |entries| GroupWrite { record: Some(GroupRecord::default()), entries, ..Default::default() };
    let cut = |at| {
        let record = Some(GroupRecord { cut_index: at, ..Default::default() });
        GroupWrite { record, cut: Some(at), ..Default::default() }
    };
    log.write(&[(quiet, made((1..=3).map(entry).collect())), (busy, made(vec![]))]).expect("writes");
    let mut last = 0;
    let mut fill = || {
        for _ in 0..20 {
            let entries: Vec<_> = (last + 1..=last + 50).map(entry).collect();
            last += 50;
            log.write(&[(busy, GroupWrite { entries, ..Default::default() })]).expect("writes");
            log.write(&[(busy, cut(last))]).expect("cuts");
        }
        log.purge().expect("purges");
    };
    fill();
    log.write(&[(quiet, cut(3))]).expect("cuts");
    fill();
    drop(log);
    let log = SharedLog::open(folder.path(), LOG_BYTES).expect("opens again");
    assert_eq!(held(&log, 1), Held { last: 3, cut: 3, commit: 0 });
    assert_eq!(log.bounds(quiet).expect("bounds"), None);
    log.write(&[(quiet, GroupWrite { entries: vec![entry(4)], ..Default::default() })]).expect("goes on");
    assert_eq!(log.bounds(quiet).expect("bounds"), Some((4, 4)));
}
