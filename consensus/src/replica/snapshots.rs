//! A member's part in snapshots: what a leader offers, what a follower needs.

use raft::{
    INVALID_INDEX, ProgressState, SnapshotStatus, StateRole,
    eraftpb::{Message, MessageType},
    storage::Storage,
};

use super::Replica;
use crate::snapshot::{NotOffered, Offer, Standing};

/// Snapshots: what a leader offers.
impl Replica {
    pub(crate) fn offer(&mut self, offer: Offer) -> Result<(), NotOffered> {
        let log = self.node.store();
        if self.node.raft.state != StateRole::Leader || offer.index < log.record.cut_index {
            return Err(NotOffered);
        }
        let term = log.term(offer.index).map_err(|_| NotOffered)?;
        self.withdraw();
        self.node.mut_store().standing = Some(Standing::new(offer, term, self.now));
        self.node.mut_store().wanted.get_mut().clear();
        Ok(())
    }

    pub(crate) fn renew(&mut self) {
        if let Some(standing) = &mut self.node.mut_store().standing {
            standing.used(self.now);
        }
    }

    pub(crate) fn withdraw(&mut self) {
        if let Some(standing) = self.node.mut_store().standing.take() {
            self.released.push(standing.offer);
            self.probe_again(0);
        }
    }

    /// Looks after the offer and those who wait for it, once a tick.
    pub(super) fn tend_offer(&mut self) {
        let (now, limits) = (self.now, self.limits);
        let leads = self.node.raft.state == StateRole::Leader;
        if leads {
            let voters = self.voters();
            self.lag.observe(&voters, self.node.raft.raft_log.last_index(), now, &limits);
            if let Some(standing) = &mut self.node.mut_store().standing {
                let index = standing.offer.index;
                let has: Vec<u64> = voters.iter().filter(|(_, at)| *at >= index).map(|(voter, _)| *voter).collect();
                let (served, last) = standing.served(&has);
                for voter in served {
                    self.lag.wait_for(voter, index, now);
                }
                if last {
                    self.withdraw();
                }
            }
            self.probe_again(limits.resend_ticks);
        } else {
            self.lag.forget();
            self.sent_at.clear();
        }
        if self.node.store().standing.as_ref().is_some_and(|standing| standing.expired(now, &limits)) {
            self.withdraw();
        }
    }

    /// Probes those who were sent a snapshot `after` ticks ago from its index onwards: who has it goes on, who has not
    /// is sent one again. raft-rs would wait for their answer for ever.
    fn probe_again(&mut self, after: u64) {
        let mut waiting = Vec::new();
        for (voter, progress) in self.node.raft.prs().iter() {
            if progress.state == ProgressState::Snapshot {
                waiting.push(*voter);
            }
        }
        self.sent_at.retain(|voter, _| waiting.contains(voter));
        for voter in waiting {
            if self.now - *self.sent_at.entry(voter).or_insert(self.now) >= after {
                self.sent_at.remove(&voter);
                self.node.report_snapshot(voter, SnapshotStatus::Finish);
            }
        }
    }

    /// A rejection by a follower of what it is known to hold comes late. raft-rs, while it probes, would fall back below
    /// what matched, and wait for ever for the answer to what it sends then (raft-rs #555).
    pub(super) fn is_stale_rejection(&self, message: &Message) -> bool {
        let raft = &self.node.raft;
        message.get_msg_type() == MessageType::MsgAppendResponse
            && message.reject
            && message.request_snapshot == INVALID_INDEX
            && raft.state == StateRole::Leader
            && message.term == raft.term
            && raft
                .prs()
                .get(message.from)
                .is_some_and(|progress| message.index <= progress.matched || message.reject_hint < progress.matched)
    }
}

/// Snapshots: what a follower needs.
impl Replica {
    /// Whether a snapshot's state must be pulled; raft-rs answers all others at once.
    pub(super) fn needs(&self, message: &Message) -> bool {
        let (raft, metadata) = (&self.node.raft, message.get_snapshot().get_metadata());
        message.term >= raft.term
            && metadata.index > raft.raft_log.committed
            && !raft.raft_log.match_term(metadata.index, metadata.term)
    }

    pub(crate) fn install(&mut self, index: u64, place: u64) {
        match &mut self.held {
            Some(held) if held.index() == index && held.place.is_none() => held.place = Some(place),
            _ => self.discarded.push(place),
        }
        self.try_install();
    }

    pub(crate) fn abandon(&mut self) {
        if self.held.as_ref().is_some_and(|held| held.place.is_none()) {
            self.held = None;
        }
    }

    /// Hands a snapshot whose state is durable to raft-rs, unless the group is between two leaders.
    pub(crate) fn try_install(&mut self) {
        let raft = &self.node.raft;
        let Some(place) = self.held.as_ref().and_then(|held| held.place) else { return };
        let Some(mut held) = self.held.take_if(|held| held.message.term >= raft.term || raft.leader_id != 0) else {
            return;
        };
        if held.message.term < raft.term {
            // What it holds is committed, and so it is what the leader of a later term would send.
            (held.message.term, held.message.from) = (raft.term, raft.leader_id);
        }
        let taken = raft.leader_id != raft.id && self.node.step(held.message).is_ok();
        self.draw_timeout();
        if taken && self.node.snap().is_some() {
            self.installing = Some(place);
        } else {
            self.discarded.push(place);
        }
    }
}

#[cfg(test)]
impl Replica {
    /// What a leader knows of a follower: the index that matched, and the next one to send.
    pub(crate) fn progress(&self, node: u64) -> (u64, u64) {
        let progress = self.node.raft.prs().get(node).expect("a member");
        (progress.matched, progress.next_idx)
    }
}
