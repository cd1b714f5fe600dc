//! The network between nodes and clients: it loses, delays, doubles and reorders, and parts come off.

use std::collections::BTreeMap;

use bytes::Bytes;
use galoo_consensus::GroupId;
use raft::eraftpb::Message;

use super::{NODES, chance::Chance, clients::Request, node::Answer};

/// Who sends or receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Place {
    Node(u64),
    Client(u64),
}

/// What is on its way.
#[derive(Clone)]
pub(crate) enum Packet {
    Raft(GroupId, Box<Message>),
    Request(Request),
    Answer {
        number: u64,
        answer: Answer,
    },
    /// Asks for a block of an offered state.
    Pull {
        group: GroupId,
        offer: u64,
        cursor: Vec<u8>,
    },
    /// The block, or nothing when the offer has ended.
    Pulled {
        group: GroupId,
        offer: u64,
        cursor: Vec<u8>,
        block: Option<Bytes>,
    },
}

pub(crate) struct Network {
    /// By time of arrival and order of sending.
    packets: BTreeMap<(u64, u64), (Place, Place, Packet)>,
    sent: u64,
    /// One packet in so many is lost, and doubled.
    loss: u64,
    double: u64,
    delay_ms_max: u64,
    /// Cut links, from and to, and until when.
    cuts: Vec<(u64, u64, u64)>,
}

impl Network {
    pub(crate) fn new(chance: &mut Chance) -> Self {
        let (loss, double, delay_ms_max) = (10 + chance.below(400), 10 + chance.below(400), 5 + chance.below(100));
        Self { packets: BTreeMap::new(), sent: 0, loss, double, delay_ms_max, cuts: Vec::new() }
    }

    /// Cuts links between nodes, both ways or one, for a while.
    pub(crate) fn weather(&mut self, now: u64, chance: &mut Chance) {
        self.cuts.retain(|(_, _, until)| *until > now);
        if chance.one_in(500) {
            let alone = 1 + chance.below(NODES);
            let until = now + chance.below(6_000);
            let (hears, is_heard) = (chance.one_in(4), chance.one_in(4));
            for other in (1..=NODES).filter(|other| *other != alone) {
                if !hears {
                    self.cuts.push((other, alone, until));
                }
                if !is_heard {
                    self.cuts.push((alone, other, until));
                }
            }
        }
    }

    pub(crate) fn calm(&mut self) {
        (self.loss, self.double, self.delay_ms_max) = (u64::MAX, u64::MAX, 5);
        self.cuts.clear();
    }

    pub(crate) fn send(&mut self, now: u64, from: Place, to: Place, packet: Packet, chance: &mut Chance) {
        if let (Place::Node(from), Place::Node(to)) = (from, to)
            && self.cuts.iter().any(|(cut_from, cut_to, _)| (*cut_from, *cut_to) == (from, to))
        {
            return;
        }
        let copies = u64::from(!chance.one_in(self.loss)) + u64::from(chance.one_in(self.double));
        for _ in 0..copies {
            // Most arrive soon; a few are late by seconds.
            let late = if chance.one_in(500) { chance.below(5_000) } else { 0 };
            let at = now + 1 + chance.below(self.delay_ms_max) + if self.loss == u64::MAX { 0 } else { late };
            self.sent += 1;
            self.packets.insert((at, self.sent), (from, to, packet.clone()));
        }
    }

    /// Lets a packet wait for a process that does not run.
    pub(crate) fn hold(&mut self, until: u64, from: Place, to: Place, packet: Packet) {
        self.sent += 1;
        self.packets.insert((until, self.sent), (from, to, packet));
    }

    /// Takes the next packet that has arrived.
    pub(crate) fn arrived(&mut self, now: u64) -> Option<(Place, Place, Packet)> {
        let first = self.packets.first_entry().filter(|first| first.key().0 <= now)?;
        Some(first.remove())
    }
}
