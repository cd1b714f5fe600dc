//! State for a follower that needs what was cut off the log: offered by the leader, pulled by the follower.
//!
//! ```text
//!  leader's caller            leader                      follower                  follower's caller
//!                     <- wanted (to)
//!  freezes its state,
//!  offer(index, data) ->
//!                               MsgSnapshot(index, data) ->
//!                                                          holds it, fetch ->
//!                     <........................ pulls the frozen state .....................
//!  renew() with each part                                                             makes it durable in a
//!                                                                                     fresh place,
//!                                                          <- install(index, place)
//!                                                          one synced write: place, cut, clear, commit
//!                               <- MsgAppendResponse       installed ->               swaps the state machine
//!  <- released
//! ```
//!
//! Consensus carries no state itself: `data` names the frozen state for whoever pulls it. What is offered is committed,
//! so it may be installed whoever leads by then. An offer ends when all that were sent it have it, when nobody pulls for
//! a while, or when its caller withdraws it; a follower that still waits is then probed again, and a new offer is made.

use std::{cell::RefCell, collections::BTreeSet};

use bytes::Bytes;
use raft::eraftpb::{ConfState, Message, Snapshot};

/// How much log is kept for those that lag, and how long an offer stands.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A voter that is more entries behind is not waited for: the log is cut, and it gets a snapshot.
    pub lag_entries_max: u64,
    /// The same in bytes of entries, counted from the start of the process.
    pub lag_bytes_max: u64,
    /// An offer from which nobody pulls for so many ticks is given up. A voter that has just installed a snapshot, and
    /// every voter of a new leader, is waited for until it has made no progress for as long.
    pub idle_ticks_max: u64,
    /// An offer is given up after so many ticks however busy it is, and a voter that catches up is not waited for any
    /// longer: the log does not grow for ever.
    pub offer_ticks_max: u64,
    /// A follower that was sent a snapshot is asked again after so many ticks: the message or the answer may be lost.
    pub resend_ticks: u64,
}

impl Default for Limits {
    fn default() -> Self {
        let (lag_entries_max, lag_bytes_max) = (100_000, 128 << 20);
        Self { lag_entries_max, lag_bytes_max, idle_ticks_max: 600, offer_ticks_max: 36_000, resend_ticks: 20 }
    }
}

/// A frozen state that followers may pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The index that the state has applied.
    pub index: u64,
    /// Names the frozen state; opaque to consensus.
    pub data: Bytes,
}

/// A state that this node's member needs and is to pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// The node that offers it.
    pub from: u64,
    /// The index that the state has applied.
    pub index: u64,
    /// The term of that entry.
    pub term: u64,
    /// The offer's data.
    pub data: Bytes,
}

/// The offer was not taken: the group is not led here, or its log does not reach from what is offered onwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the snapshot is not offered: the group is not led here, or its log was cut above it")]
pub struct NotOffered;

/// An offer while it stands.
pub(crate) struct Standing {
    pub(crate) offer: Offer,
    term: u64,
    made_at: u64,
    used_at: u64,
    /// Nodes that were sent it and are not known to have it.
    sent: RefCell<BTreeSet<u64>>,
}

impl Standing {
    pub(crate) fn new(offer: Offer, term: u64, now: u64) -> Self {
        Self { offer, term, made_at: now, used_at: now, sent: RefCell::default() }
    }

    pub(crate) fn used(&mut self, now: u64) {
        self.used_at = now;
    }

    pub(crate) fn expired(&self, now: u64, limits: &Limits) -> bool {
        now - self.used_at > limits.idle_ticks_max || now - self.made_at > limits.offer_ticks_max
    }

    /// What raft-rs sends to a follower.
    pub(crate) fn send(&self, to: u64, voters: &[u64]) -> Snapshot {
        self.sent.borrow_mut().insert(to);
        let mut snapshot = Snapshot { data: self.offer.data.clone(), ..Default::default() };
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = (self.offer.index, self.term);
        metadata.set_conf_state(ConfState::from((voters.to_vec(), Vec::new())));
        snapshot
    }

    /// Takes the nodes among `has`, who hold the offered index, off those that wait; tells whether that was the last.
    pub(crate) fn served(&mut self, has: &[u64]) -> (Vec<u64>, bool) {
        let sent = self.sent.get_mut();
        let served: Vec<u64> = has.iter().copied().filter(|node| sent.remove(node)).collect();
        let last = !served.is_empty() && sent.is_empty();
        (served, last)
    }
}

/// A snapshot message that waits for its state to be pulled.
pub(crate) struct Held {
    pub(crate) message: Message,
    /// The caller was told to pull.
    pub(crate) told: bool,
    /// Where the state is, once it is durable there.
    pub(crate) place: Option<u64>,
}

impl Held {
    pub(crate) fn new(message: Message) -> Self {
        Self { message, told: false, place: None }
    }

    pub(crate) fn index(&self) -> u64 {
        self.message.get_snapshot().get_metadata().index
    }

    pub(crate) fn fetch(&self) -> Fetch {
        let snapshot = self.message.get_snapshot();
        let metadata = snapshot.get_metadata();
        Fetch { from: self.message.from, index: metadata.index, term: metadata.term, data: snapshot.data.clone() }
    }
}
