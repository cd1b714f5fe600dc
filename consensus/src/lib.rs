//! Galoo's consensus: many Raft groups of one node over one shared log.
//!
//! [`raft_loop::RaftLoop`] is the driver's heart and takes time, messages and chance as values. A *turn* has two halves:
//! [`RaftLoop::turn`](raft_loop::RaftLoop::turn) gathers what all groups with work want to send and to write; the caller
//! sends the messages that need no disk, writes everything with **one** sync ([`log_store::LogStore::write`]), and calls
//! [`RaftLoop::written`](raft_loop::RaftLoop::written), which gives the messages that had to wait, the committed entries
//! and the reads that may be served. What must be durable before what:
//!
//! - a vote and a term, before any message that speaks of them (raft-rs puts those into the second half);
//! - an entry, before this node counts it as its own; a leader's appends to others go out *before* its own write returns;
//! - a commit index, before nothing: it is written along with what must be, and learned again after a crash;
//! - a group's record (it exists, or is destroyed), before anything else of the group;
//! - a pulled state, in a place of its own, before the one write that switches the group to it ([`raft_loop::Fetch`]).
//!
//! The shared log is the authority on which groups exist on the node. Consensus names no game, no player, no engine and
//! no network: it replicates opaque bytes for whoever implements [`StateMachine`].

pub mod entry;
mod group_log;
mod lag;
pub mod log_store;
pub mod raft_loop;
mod replica;
mod snapshot;
pub mod wire;

use std::fmt;

/// A Raft group, by the number that all its members use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u64);

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group {}", self.0)
    }
}

/// Names a proposal or a read from the time it is asked until it is answered. The caller gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// An entry that a majority holds, to be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its place in the log.
    pub index: u64,
    /// The commands that were proposed together ([`entry::commands`]); empty for a new leader's first entry.
    pub data: bytes::Bytes,
    /// The commands' tickets in order, where they were proposed on this node.
    pub tickets: Vec<Ticket>,
}

/// An entry to be applied.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// Its place in the log.
    pub index: u64,
    /// Its commands.
    pub commands: Vec<&'a [u8]>,
}

/// What is replicated: applies entries in order and says how far that survives a crash.
///
/// Runs on a thread of its own and owns its state. Entries are *staged*: their effects are worked out and put into a
/// batch, which the caller writes, for several machines at once. All of a batch survives a crash or none. An error, and a
/// batch that could not be written, stop the group on this node.
pub trait StateMachine: Send {
    /// What a command answers.
    type Answer: Send;
    /// Changes that are written together.
    type Batch;
    /// What stops the machine.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Index of the last staged entry.
    fn applied(&self) -> u64;

    /// Works out the entries behind the last one, and returns an answer for each of their commands, in order.
    /// Deterministic in (state, entries), however many come together. After an error the batch is as it was.
    fn stage(&mut self, entries: &[Entry<'_>], batch: &mut Self::Batch) -> Result<Vec<Self::Answer>, Self::Error>;

    /// Shows what was staged to those who watch, once the batch is written.
    fn publish(&mut self);

    /// Index up to which entries need not be applied again after a crash.
    fn persisted(&self) -> Result<u64, Self::Error>;
}

/// A failure of consensus on this node.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The shared log failed: nothing more can be promised by this node.
    #[error("shared log: {0}")]
    Log(String),
    /// What the shared log holds of a group contradicts itself or the state machine.
    #[error("{group} is damaged: {reason}")]
    Damaged {
        /// The group.
        group: GroupId,
        /// What is wrong.
        reason: String,
    },
    /// The Raft library refused a call: a message or record that no healthy member makes.
    #[error("{group}: {source}")]
    Raft {
        /// The group.
        group: GroupId,
        /// What it said.
        source: raft::Error,
    },
    /// The group is not on this node.
    #[error("{0} is not on this node")]
    UnknownGroup(GroupId),
    /// The group was destroyed on this node and does not come back.
    #[error("{0} was destroyed on this node")]
    Destroyed(GroupId),
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
