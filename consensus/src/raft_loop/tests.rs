mod snapshots;

use super::*;
use crate::log_store::memory::MemoryLog;

const GROUP: GroupId = GroupId(1);

/// Nodes without a network between them but the test's hands.
struct Nodes {
    loops: Vec<RaftLoop>,
    applied: Vec<Vec<(u64, Vec<u8>)>>,
    reads: Vec<(usize, Ticket, u64)>,
    lost: Vec<Ticket>,
    cut_off: BTreeSet<u64>,
    told: Told,
}

/// What the callers were told of snapshots: where, and what.
#[derive(Default)]
struct Told {
    wanted: Vec<(usize, u64)>,
    released: Vec<(usize, Offer)>,
    fetch: Vec<(usize, Fetch)>,
    installed: Vec<(usize, u64, u64)>,
    discarded: Vec<(usize, u64)>,
    unknown: Vec<Ticket>,
}

impl Told {
    fn take(&mut self, at: usize, effects: &mut Effects) {
        self.wanted.extend(effects.snapshots_wanted.drain(..).map(|(_, to)| (at, to)));
        self.released.extend(effects.released.drain(..).map(|(_, offer)| (at, offer)));
        self.fetch.extend(effects.fetch.drain(..).map(|(_, fetch)| (at, fetch)));
        self.installed.extend(effects.installed.drain(..).map(|(_, place, index)| (at, place, index)));
        self.discarded.extend(effects.discarded.drain(..).map(|(_, place)| (at, place)));
        self.unknown.append(&mut effects.unknown);
    }
}

impl Nodes {
    fn new(count: u64) -> Self {
        Self::with_limits(count, Limits::default())
    }

    fn with_limits(count: u64, limits: Limits) -> Self {
        let voters: Vec<u64> = (1..=count).collect();
        let open = |node: &u64| {
            let log = Arc::new(MemoryLog::default());
            let raft = RaftLoop::new(*node, log, Timing { seed: 7, ..Timing::default() }).expect("new");
            let mut raft = raft.with_limits(limits);
            let record = GroupRecord { voters: voters.clone(), ..Default::default() };
            raft.open(GROUP, record, 0).expect("open");
            raft
        };
        let loops: Vec<_> = voters.iter().map(open).collect();
        let applied = vec![Vec::new(); loops.len()];
        Self { loops, applied, reads: vec![], lost: vec![], cut_off: BTreeSet::new(), told: Told::default() }
    }

    /// Runs turns and carries messages until nothing moves.
    fn settle(&mut self) {
        loop {
            let mut messages = Vec::new();
            let mut moved = false;
            for (at, raft) in self.loops.iter_mut().enumerate() {
                let turn = raft.turn();
                moved |= !turn.writes.is_empty();
                messages.extend(turn.messages);
                raft.log.write(&turn.writes).expect("write");
                let mut effects = raft.written();
                self.told.take(at, &mut effects);
                messages.extend(effects.messages);
                self.lost.extend(effects.lost);
                self.reads.extend(effects.reads.into_iter().map(|(_, ticket, index)| (at, ticket, index)));
                for (group, entries) in effects.committed {
                    raft.applied(group, entries.last().map_or(0, |entry| entry.index));
                    for entry in entries {
                        let commands = crate::entry::commands(&entry.data).expect("an entry");
                        self.applied[at].extend(commands.into_iter().map(|command| (entry.index, command.to_vec())));
                    }
                }
            }
            for (group, message) in messages {
                if !self.cut_off.contains(&message.from) && !self.cut_off.contains(&message.to) {
                    let to = usize::try_from(message.to - 1).expect("small");
                    self.loops[to].step(group, message).expect("step");
                    moved = true;
                }
            }
            if !moved {
                return;
            }
        }
    }

    fn leader(&mut self) -> usize {
        for _ in 0..200 {
            let leads =
                |raft: &RaftLoop| !self.cut_off.contains(&raft.node) && raft.role(GROUP).is_some_and(|role| role.leads);
            if let Some(leader) = self.loops.iter().position(leads) {
                return leader;
            }
            self.loops.iter_mut().for_each(RaftLoop::tick);
            self.settle();
        }
        panic!("no leader after 200 ticks");
    }
}

#[test]
fn a_sole_voter_leads_at_once_and_serves_reads() {
    let mut nodes = Nodes::new(1);
    nodes.settle();
    assert!(nodes.loops[0].role(GROUP).expect("here").leads);
    nodes.loops[0].propose(GROUP, Ticket(1), b"a").expect("proposed");
    nodes.settle();
    assert_eq!(nodes.applied[0], vec![(2, b"a".to_vec())]);
    nodes.loops[0].read(GROUP, Ticket(2)).expect("read");
    nodes.settle();
    assert_eq!(nodes.reads, vec![(0, Ticket(2), 2)]);
}

#[test]
fn a_leader_cut_off_commits_nothing_and_its_proposal_is_lost_after_healing() {
    let mut nodes = Nodes::new(3);
    let old = nodes.leader();
    nodes.loops[old].propose(GROUP, Ticket(1), b"kept").expect("proposed");
    nodes.settle();
    nodes.cut_off.insert(old as u64 + 1);
    nodes.loops[old].propose(GROUP, Ticket(2), b"lost").expect("proposed");
    nodes.settle();
    let new = nodes.leader();
    assert_ne!(new, old);
    nodes.loops[new].propose(GROUP, Ticket(3), b"new").expect("proposed");
    nodes.settle();
    nodes.cut_off.clear();
    for _ in 0..5 {
        nodes.loops.iter_mut().for_each(RaftLoop::tick);
        nodes.settle();
    }
    let words = |at: usize| nodes.applied[at].iter().map(|(_, data)| data.clone()).collect::<Vec<_>>();
    assert_eq!(words(old), vec![b"kept".to_vec(), b"new".to_vec()]);
    assert_eq!(words(old), words(new));
    assert_eq!(nodes.lost, vec![Ticket(2)]);
}

#[test]
fn followers_are_told_of_commits_once_a_tick() {
    let mut nodes = Nodes::new(3);
    let leader = nodes.leader();
    let follower = (leader + 1) % 3;
    // Twice, an odd number of ticks apart: in every other one a heartbeat tells it too.
    for round in 1..=2 {
        for _ in 0..round {
            nodes.loops.iter_mut().for_each(RaftLoop::tick);
            nodes.settle();
        }
        let mut seen = Vec::new();
        for place in 0..3 {
            nodes.loops[leader].propose(GROUP, Ticket(10 * round + place), b"word").expect("proposed");
            nodes.settle();
            seen.push((nodes.applied[leader].len(), nodes.applied[follower].len()));
        }
        let before = nodes.applied[leader].len() - 3;
        // The first is told at once, the second by the entry after it, the third not yet.
        assert_eq!(seen, [(before + 1, before + 1), (before + 2, before + 1), (before + 3, before + 2)]);
        nodes.loops.iter_mut().for_each(RaftLoop::tick);
        nodes.settle();
        assert_eq!(nodes.applied[follower], nodes.applied[leader], "round {round}");
    }
}

#[test]
fn a_destroyed_group_does_not_come_back() {
    let mut nodes = Nodes::new(1);
    nodes.settle();
    nodes.loops[0].destroy(GROUP).expect("destroyed");
    let again = GroupRecord { voters: vec![1], ..Default::default() };
    assert!(matches!(nodes.loops[0].open(GROUP, again, 0), Err(Error::Destroyed(GROUP))));
}

#[test]
fn a_log_that_ends_below_what_was_applied_is_damage() {
    let log = Arc::new(MemoryLog::default());
    let mut raft = RaftLoop::new(1, log, Timing::default()).expect("new");
    let record = GroupRecord { voters: vec![1], ..Default::default() };
    assert!(matches!(raft.open(GROUP, record, 5), Err(Error::Damaged { .. })));
}

#[test]
fn a_cut_log_opens_again_behind_the_cut() {
    let log = Arc::new(MemoryLog::default());
    let record = GroupRecord { voters: vec![1], ..Default::default() };
    let mut raft = RaftLoop::new(1, log.clone(), Timing::default()).expect("new");
    raft.open(GROUP, record.clone(), 0).expect("open");
    let run = |raft: &mut RaftLoop| loop {
        let turn = raft.turn();
        if turn.writes.is_empty() {
            break;
        }
        log.write(&turn.writes).expect("write");
        for (group, entries) in raft.written().committed {
            raft.applied(group, entries.last().map_or(0, |entry| entry.index));
        }
    };
    run(&mut raft);
    for i in 0..10 {
        raft.propose(GROUP, Ticket(i), &[1]).expect("proposed");
        run(&mut raft);
    }
    raft.cut(GROUP, 8, 1).expect("cut");
    run(&mut raft);
    assert_eq!(log.bounds(GROUP).expect("bounds"), Some((9, 11)));
    let mut raft = RaftLoop::new(1, log.clone(), Timing::default()).expect("new");
    assert!(matches!(raft.open(GROUP, record.clone(), 7), Err(Error::Damaged { .. })), "entry 8 is gone");
    raft.open(GROUP, record, 8).expect("open");
    run(&mut raft);
    assert!(raft.role(GROUP).expect("here").leads);
}
