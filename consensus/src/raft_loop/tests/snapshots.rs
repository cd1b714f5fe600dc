//! Stories of a follower that needs what was cut off the log.

use bytes::Bytes;
use raft::eraftpb::MessageType;

use super::*;

const LIMITS: Limits =
    Limits { lag_entries_max: 10, lag_bytes_max: 1 << 20, idle_ticks_max: 15, offer_ticks_max: 100, resend_ticks: 5 };

struct Story {
    nodes: Nodes,
    leader: usize,
    behind: usize,
}

impl Story {
    /// A follower is cut off, `count` commands are committed without it, and the leader's log is cut.
    fn without_a_follower(count: u64) -> Self {
        let mut nodes = Nodes::with_limits(3, LIMITS);
        let leader = nodes.leader();
        let behind = (leader + 1) % 3;
        let mut story = Self { nodes, leader, behind };
        story.ticks(20);
        story.nodes.cut_off.insert(behind as u64 + 1);
        (0..count).for_each(|number| story.propose(number));
        // A new leader waits for all, for a while.
        story.ticks(20);
        let last = story.last();
        story.nodes.loops[leader].cut(GROUP, last, 1).expect("cut");
        story.nodes.settle();
        story
    }

    fn propose(&mut self, number: u64) {
        let data = number.to_string().into_bytes();
        self.nodes.loops[self.leader].propose(GROUP, Ticket(number), &data).expect("proposed");
        self.nodes.settle();
    }

    fn ticks(&mut self, count: usize) {
        for _ in 0..count {
            self.nodes.loops.iter_mut().for_each(RaftLoop::tick);
            self.nodes.settle();
        }
    }

    fn last(&self) -> u64 {
        self.nodes.applied[self.leader].last().map_or(0, |(index, _)| *index)
    }

    fn heal(&mut self) {
        self.nodes.cut_off.clear();
        self.ticks(6);
    }

    fn offer(&mut self, data: &'static [u8]) -> u64 {
        let index = self.last();
        let offer = Offer { index, data: Bytes::from_static(data) };
        self.nodes.loops[self.leader].offer(GROUP, offer).expect("offered");
        self.ticks(4);
        index
    }

    fn fetched(&mut self) -> Fetch {
        let (at, fetch) = self.nodes.told.fetch.pop().expect("a state is to be pulled");
        assert_eq!(at, self.behind);
        fetch
    }

    fn install(&mut self, index: u64, place: u64) {
        self.nodes.loops[self.behind].install(GROUP, index, place).expect("here");
        self.nodes.settle();
    }

    fn record(&self, at: usize) -> GroupRecord {
        self.nodes.loops[at].log.record(GROUP).expect("record").expect("here")
    }

    /// Ends the process of the node that is behind; a new one opens what the log holds.
    fn restart(&mut self, applied: u64) {
        let log = self.nodes.loops[self.behind].log.clone();
        let raft = RaftLoop::new(self.behind as u64 + 1, log, Timing { seed: 8, ..Timing::default() }).expect("new");
        let mut raft = raft.with_limits(LIMITS);
        raft.open(GROUP, GroupRecord::default(), applied).expect("open");
        self.nodes.loops[self.behind] = raft;
    }
}

#[test]
fn a_follower_behind_the_cut_pulls_a_state_and_goes_on_with_entries() {
    let mut story = Story::without_a_follower(30);
    assert!(story.record(story.leader).cut_index > 20, "the log was cut");
    story.heal();
    assert!(story.nodes.told.wanted.contains(&(story.leader, story.behind as u64 + 1)));
    let index = story.offer(b"frozen");
    let fetch = story.fetched();
    assert_eq!((fetch.from, fetch.index, &fetch.data[..]), (story.leader as u64 + 1, index, b"frozen".as_slice()));
    assert_eq!(story.nodes.told.fetch, vec![], "it is asked for once");
    story.propose(100);
    let before = story.nodes.applied[story.behind].len();
    story.install(index, 42);
    assert_eq!(story.nodes.told.installed, vec![(story.behind, 42, index)]);
    let record = story.record(story.behind);
    assert_eq!((record.place, record.cut_index, record.voters), (42, index, vec![1, 2, 3]));
    story.ticks(10);
    story.propose(101);
    let rest: Vec<_> = story.nodes.applied[story.behind][before..].iter().map(|(_, data)| data.clone()).collect();
    assert_eq!(rest, vec![b"100".to_vec(), b"101".to_vec()]);
    assert_eq!(story.nodes.told.released.len(), 1, "what was frozen can go");
}

#[test]
fn a_pull_that_fails_is_asked_for_again_with_a_new_offer() {
    let mut story = Story::without_a_follower(30);
    story.heal();
    story.offer(b"first");
    let first = story.fetched();
    story.nodes.loops[story.behind].abandon(GROUP);
    story.nodes.loops[story.leader].withdraw(GROUP);
    story.nodes.told.wanted.clear();
    story.ticks(8);
    assert_eq!(story.nodes.told.released.len(), 1);
    assert!(!story.nodes.told.wanted.is_empty(), "it is wanted again");
    story.propose(100);
    let index = story.offer(b"second");
    story.ticks(8);
    let second = story.fetched();
    assert_eq!((second.index, &second.data[..]), (index, b"second".as_slice()));
    assert!(second.index > first.index);
    story.install(index, 43);
    assert_eq!(story.nodes.told.installed, vec![(story.behind, 43, index)]);
}

#[test]
fn a_state_that_nobody_pulls_is_not_offered_for_ever_and_one_that_is_pulled_stays() {
    let mut story = Story::without_a_follower(30);
    story.heal();
    let index = story.offer(b"frozen");
    for _ in 0..30 {
        story.ticks(1);
        story.nodes.loops[story.leader].renew(GROUP);
    }
    assert_eq!(story.nodes.told.released, vec![], "somebody pulls");
    (200..240).for_each(|number| story.propose(number));
    let last = story.last();
    story.nodes.loops[story.leader].cut(GROUP, last, 1).expect("cut");
    story.nodes.settle();
    assert!(story.record(story.leader).cut_index <= index, "the log stays above an offer");
    story.ticks(20);
    assert_eq!(story.nodes.told.released.len(), 1, "nobody pulls");
    story.nodes.loops[story.leader].cut(GROUP, last, 1).expect("cut");
    story.nodes.settle();
    assert!(story.record(story.leader).cut_index > index);
}

#[test]
fn a_crash_leaves_the_old_state_or_the_new_whole() {
    let mut story = Story::without_a_follower(30);
    story.heal();
    let index = story.offer(b"frozen");
    story.fetched();
    let old = story.record(story.behind);
    let applied = story.nodes.applied[story.behind].last().map_or(1, |(index, _)| *index);
    let behind = story.behind;
    let hard_state = |story: &Story| story.nodes.loops[behind].log.hard_state(GROUP).expect("reads").expect("is kept");
    let term = hard_state(&story).term;
    // The turn is not written.
    story.nodes.loops[behind].install(GROUP, index, 42).expect("here");
    assert!(story.nodes.loops[behind].turn().writes.iter().any(|(_, write)| write.clear));
    story.restart(applied);
    assert_eq!(story.record(behind), old);
    story.ticks(10);
    let fetch = story.fetched();
    // The turn is written, and nobody is told.
    story.nodes.loops[behind].install(GROUP, fetch.index, 43).expect("here");
    let turn = story.nodes.loops[behind].turn();
    story.nodes.loops[behind].log.write(&turn.writes).expect("write");
    story.restart(index);
    assert_eq!((story.record(behind).place, story.record(behind).cut_index), (43, index));
    assert_eq!((hard_state(&story).term, hard_state(&story).commit), (term, index), "the term survives the switch");
    story.nodes.applied[behind].clear();
    story.ticks(10);
    story.propose(100);
    assert_eq!(story.nodes.applied[behind].last().map(|(_, data)| data.clone()), Some(b"100".to_vec()));
    assert!(story.nodes.applied[behind][0].0 > index);
}

#[test]
fn the_log_is_kept_for_a_dead_follower_up_to_the_limit() {
    let story = Story::without_a_follower(9);
    let first = story.last() - 9;
    assert!(story.record(story.leader).cut_index <= first, "it can catch up from the log");
    let story = Story::without_a_follower(30);
    assert_eq!(story.record(story.leader).cut_index, story.last());
}

#[test]
fn a_place_that_is_not_needed_is_handed_back() {
    let mut story = Story::without_a_follower(30);
    story.heal();
    let index = story.offer(b"frozen");
    story.fetched();
    story.install(index - 1, 41);
    assert_eq!(story.nodes.told.discarded, vec![(story.behind, 41)], "it is not what was asked for");
    story.install(index, 42);
    story.install(index, 43);
    assert_eq!(story.nodes.told.installed, vec![(story.behind, 42, index)]);
    assert_eq!(story.nodes.told.discarded, vec![(story.behind, 41), (story.behind, 43)]);
}

#[test]
fn a_state_from_a_leader_that_is_gone_is_installed_all_the_same() {
    let mut story = Story::without_a_follower(30);
    // The next leader cannot help with entries either.
    let (next, last) = ((story.leader + 2) % 3, story.last());
    story.nodes.loops[next].cut(GROUP, last, 1).expect("cut");
    story.heal();
    let index = story.offer(b"frozen");
    story.fetched();
    story.nodes.cut_off.insert(story.leader as u64 + 1);
    let old = story.leader;
    story.leader = story.nodes.leader();
    assert!(story.leader != old && story.leader != story.behind, "who is behind cannot lead");
    story.ticks(3);
    story.install(index, 42);
    assert_eq!(story.nodes.told.installed, vec![(story.behind, 42, index)]);
    story.propose(100);
    story.ticks(5);
    assert_eq!(story.nodes.applied[story.behind].last().map(|(_, data)| data.clone()), Some(b"100".to_vec()));
}

#[test]
fn what_a_snapshot_jumps_over_has_an_unknown_outcome() {
    let mut nodes = Nodes::with_limits(3, LIMITS);
    let old = nodes.leader();
    nodes.cut_off.insert(old as u64 + 1);
    nodes.loops[old].propose(GROUP, Ticket(7), b"cut off").expect("proposed");
    nodes.settle();
    let leader = nodes.leader();
    let mut story = Story { nodes, leader, behind: old };
    (20..60).for_each(|number| story.propose(number));
    story.ticks(20);
    let last = story.last();
    story.nodes.loops[leader].cut(GROUP, last, 1).expect("cut");
    story.nodes.settle();
    story.heal();
    let index = story.offer(b"frozen");
    story.fetched();
    story.install(index, 42);
    assert_eq!(story.nodes.told.unknown, vec![Ticket(7)]);
    assert!(!story.nodes.lost.contains(&Ticket(7)), "it is not known to be lost");
}

impl Story {
    /// All is well, and `count` commands are applied everywhere.
    fn with_commands(count: u64) -> Self {
        let mut nodes = Nodes::with_limits(3, LIMITS);
        let leader = nodes.leader();
        let mut story = Self { behind: (leader + 1) % 3, nodes, leader };
        (0..count).for_each(|number| story.propose(number));
        story.ticks(3);
        story
    }

    fn relocate(&mut self, at: usize, index: u64, place: u64) -> Option<Vec<Ticket>> {
        self.nodes.loops[at].relocate(GROUP, index, place).expect("writes").expect("the log reaches back")
    }

    /// Goes on from a state with `index` applied.
    fn reopen(&mut self, at: usize, index: u64) {
        self.nodes.applied[at].retain(|(applied, _)| *applied <= index);
        self.nodes.loops[at].open(GROUP, GroupRecord::default(), index).expect("opens");
        self.ticks(5);
    }
}

/// A member's state is damaged: it goes on from another's, which is older, and misses and repeats nothing.
#[test]
fn a_state_is_replaced_by_an_older_one_and_the_log_leads_on() {
    let mut story = Story::with_commands(9);
    let (at, index) = (story.behind, story.last() - 4);
    story.nodes.loops[at].keep_from(GROUP, Some(index));
    let last = story.last();
    story.nodes.loops[at].cut(GROUP, last, 1).expect("cut");
    story.nodes.settle();
    assert_eq!(story.record(at).cut_index, index, "what comes behind is kept");
    assert_eq!(story.relocate(at, last + 1, 42), None, "it is not committed yet");
    assert_eq!(story.relocate(at, index, 42), Some(vec![]));
    assert_eq!((story.record(at).place, story.record(at).cut_index), (42, index));
    // The others go on meanwhile, and what they send is lost here.
    story.propose(100);
    story.reopen(at, index);
    story.propose(101);
    story.ticks(3);
    assert_eq!(story.nodes.applied[at], story.nodes.applied[story.leader]);
    // As after a crash.
    let refused = story.nodes.loops[at].relocate(GROUP, index - 1, 43).expect("reads");
    assert_eq!(refused, Err(CutAbove { index: index - 1, cut_index: index }));
    assert_eq!(story.record(at).place, 42);
}

#[test]
fn a_leader_whose_state_is_replaced_does_not_know_what_became_of_proposals() {
    let mut story = Story::with_commands(9);
    let (old, last) = (story.leader, story.last());
    story.nodes.cut_off.insert(old as u64 + 1);
    story.propose(100);
    assert_eq!(story.relocate(old, last, 42), Some(vec![Ticket(100)]));
    story.nodes.cut_off.clear();
    story.reopen(old, last);
    story.leader = story.nodes.leader();
    story.propose(101);
    story.ticks(5);
    assert_eq!(story.nodes.applied[old], story.nodes.applied[(old + 1) % 3]);
    assert_eq!(story.nodes.applied[old].last().map(|(_, data)| data.clone()), Some(b"101".to_vec()));
}

/// raft-rs #555: the leader would send entries below what matched and never hear of it again.
#[test]
fn a_late_rejection_of_what_matched_changes_nothing() {
    let mut nodes = Nodes::new(3);
    let leader = nodes.leader();
    let follower = (leader as u64 + 1) % 3 + 1;
    for number in 0..5 {
        nodes.loops[leader].propose(GROUP, Ticket(number), b"a").expect("proposed");
        nodes.settle();
    }
    let progress = |nodes: &Nodes| nodes.loops[leader].replicas[&GROUP].progress(follower);
    let (matched, next) = progress(&nodes);
    assert!(matched > 4 && next == matched + 1);
    let role = nodes.loops[leader].role(GROUP).expect("here");
    // The follower is unreachable for a moment, so that the leader probes.
    nodes.loops[leader].report_unreachable(GROUP, follower);
    let mut late = Message { from: follower, to: leader as u64 + 1, term: role.term, ..Default::default() };
    late.set_msg_type(MessageType::MsgAppendResponse);
    (late.index, late.reject, late.reject_hint) = (matched, true, 1);
    nodes.loops[leader].step(GROUP, late).expect("step");
    assert_eq!(progress(&nodes), (matched, next));
}
