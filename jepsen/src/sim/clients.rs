//! Clients: each sends one command at a time under its producer's next number, and repeats it until it has an answer.

use galoo_cluster::{machine, meta};
use galoo_proto::{
    Hlc, TokenRange,
    command::{AppendEvents, BatchId, Command, MoveGcTime, MutatePlayer, Seal, command::Body, outcome},
    meta::{CreateGame, MetaCommand, UpdateNode, meta_command},
    value::{Event, Mutation, mutation::Change},
};
use prost::Message;

use super::{
    NODES, Violation, World,
    network::{Packet, Place},
    node::{Answer, GAME_SHARDS, PLAYERS, game_name, game_of, node_record, player},
    oracle::Seen,
};

/// Players of a further game come each time so much has passed.
const GAME_EVERY_MS: u64 = 10_000;

/// What a client asks of a node.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Names the attempt; the answer carries it.
    pub(crate) number: u64,
    pub(crate) operation: Operation,
}

/// An operation of a client. It stays the same over all attempts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    /// Events of one player; their identities are unique in the run.
    Append { producer: u64, number: u64, acked_below: u64, player: usize, events: Vec<u64> },
    /// Adds one to a player's counter.
    Increment { producer: u64, number: u64, acked_below: u64, player: usize },
    /// Closes a chunk of a player's shard.
    Seal { player: usize, chunk: u64 },
    /// Gives up reading a player's shard as it was before a time.
    MoveGcTime { player: usize, to_ms: u64 },
    /// A player's counter and events, linearizable.
    Read { player: usize },
    /// Makes a game, which others may ask for as well.
    CreateGame { game: usize },
    /// Tells the cluster where a node is.
    UpdateNode { node: u64, port: u64 },
}

impl Operation {
    /// Whose shard it is for; `None` for what the meta group does.
    pub(crate) fn player(&self) -> Option<usize> {
        match self {
            Self::Append { player, .. }
            | Self::Increment { player, .. }
            | Self::Seal { player, .. }
            | Self::MoveGcTime { player, .. }
            | Self::Read { player } => Some(*player),
            Self::CreateGame { .. } | Self::UpdateNode { .. } => None,
        }
    }

    /// The command, stamped, for a shard of this range; `None` for a read.
    pub(crate) fn command(&self, hlc: Hlc, range: TokenRange) -> Option<Vec<u8>> {
        let range = Some(range.into());
        let batch = |producer: &u64, number: &u64, acked_below: &u64| {
            let producer_id = format!("c{producer}");
            Some(BatchId {
                producer_id,
                number: *number,
                acked_below: *acked_below,
                registered_at: 1,
                ..Default::default()
            })
        };
        let body = match self {
            Self::Append { producer, number, acked_below, player: of, events } => {
                let event = |id: &u64| Event {
                    player_id: player(*of),
                    event_time_ms: i64::try_from(id % 10_000).unwrap_or_default(),
                    event_type: "e".to_owned(),
                    properties: format!(r#"{{"id":{id}}}"#),
                    ..Default::default()
                };
                let events = events.iter().map(event).collect();
                let batch = batch(producer, number, acked_below);
                Body::Append(AppendEvents { range, batch, events, properties: Vec::new() })
            }
            Self::Increment { producer, number, acked_below, player: of } => {
                let change = Some(Change::Increment(1));
                let (family, qualifier) = ("s".to_owned(), "n".to_owned());
                let mutations = vec![Mutation { family, qualifier, change, ..Mutation::default() }];
                let batch = batch(producer, number, acked_below);
                Body::Mutate(MutatePlayer {
                    range,
                    batch,
                    player_id: player(*of),
                    mutations,
                    ..MutatePlayer::default()
                })
            }
            Self::Seal { chunk, .. } => Body::Seal(Seal { chunk: *chunk }),
            Self::MoveGcTime { to_ms, .. } => Body::MoveGcTime(MoveGcTime { to: Hlc::from_millis(*to_ms).0 }),
            Self::Read { .. } => return None,
            Self::CreateGame { game } => {
                let replicas = u32::try_from(NODES).unwrap_or(u32::MAX);
                let create = CreateGame { name: game_name(*game), shards: GAME_SHARDS[*game], replicas };
                return Some(for_meta(hlc, meta_command::Body::CreateGame(create)));
            }
            Self::UpdateNode { node, port } => {
                let update = UpdateNode { node: Some(node_record(*node, *port)) };
                return Some(for_meta(hlc, meta_command::Body::UpdateNode(update)));
            }
        };
        Some(Command { version: 1, hlc: hlc.0, body: Some(body) }.encode_to_vec())
    }
}

fn for_meta(hlc: Hlc, body: meta_command::Body) -> Vec<u8> {
    MetaCommand { version: meta::FORMAT_VERSION, hlc: hlc.0, body: Some(body) }.encode_to_vec()
}

pub(crate) struct Client {
    id: u64,
    /// The node that answered last.
    node: u64,
    next_number: u64,
    next_event: u64,
    current: Option<Current>,
    attempts: u64,
    finishing: bool,
}

struct Current {
    operation: Operation,
    /// What a read that begins when this began must see.
    floor: Seen,
    attempt: u64,
    retry_at: u64,
}

impl Client {
    pub(crate) fn new(id: u64) -> Self {
        Self { id, node: 1 + id % NODES, next_number: 1, next_event: 0, current: None, attempts: 0, finishing: false }
    }

    /// Ends what is begun and begins nothing more.
    pub(crate) fn finish(&mut self) {
        self.finishing = true;
    }

    pub(crate) fn is_done(&self) -> bool {
        self.current.is_none()
    }
}

impl World {
    pub(crate) fn clients_act(&mut self) {
        for place in 0..self.clients.len() {
            if self.clients[place].current.is_none() {
                if self.clients[place].finishing || !self.chance.one_in(4) {
                    continue;
                }
                self.begin(place);
            }
            let client = &mut self.clients[place];
            let Some(current) = &mut client.current else { continue };
            if current.retry_at > self.now {
                continue;
            }
            if current.attempt > 0 {
                client.node = 1 + self.chance.below(NODES);
            }
            client.attempts += 1;
            current.attempt = client.attempts;
            current.retry_at = self.now + 300 + self.chance.below(700);
            let request = Request { number: current.attempt, operation: current.operation.clone() };
            let (from, to) = (Place::Client(client.id), Place::Node(client.node));
            self.network.send(self.now, from, to, Packet::Request(request), &mut self.chance);
        }
    }

    fn begin(&mut self, place: usize) {
        let player = usize::try_from(self.chance.below(PLAYERS as u64)).unwrap_or_default();
        let game = game_of(player);
        if self.now < game as u64 * GAME_EVERY_MS {
            return;
        }
        let kind = self.chance.below(10);
        let client = &mut self.clients[place];
        // One is in flight at a time: all lower numbers are answered.
        let (producer, number) = (client.id, client.next_number);
        let operation = match kind {
            _ if !self.oracle.is_made(game) => Operation::CreateGame { game },
            0..=3 => {
                let first = client.id * 1_000_000 + client.next_event;
                let count = 1 + self.chance.below(4);
                client.next_event += count;
                let events = (first..first + count).collect();
                Operation::Append { producer, number, acked_below: number, player, events }
            }
            4..=6 => Operation::Increment { producer, number, acked_below: number, player },
            7 if self.chance.one_in(4) => Operation::Seal { player, chunk: self.oracle.chunks_sealed(player) + 1 },
            7 if self.chance.one_in(4) => Operation::MoveGcTime { player, to_ms: self.now },
            8 if self.chance.one_in(4) => Operation::UpdateNode { node: 1 + self.chance.below(NODES), port: self.now },
            _ => Operation::Read { player },
        };
        if matches!(operation, Operation::Append { .. } | Operation::Increment { .. }) {
            client.next_number += 1;
        }
        self.oracle.began(&operation);
        self.trace.note(self.now, ("begin", client.id, &operation));
        let floor = self.oracle.floor(player);
        client.current = Some(Current { operation, floor, attempt: 0, retry_at: 0 });
    }

    pub(crate) fn answered(&mut self, client: u64, number: u64, answer: Answer) -> Result<(), Violation> {
        let place = usize::try_from(client).unwrap_or(usize::MAX);
        let waiting = &mut self.clients[place];
        let Some(current) = waiting.current.take_if(|current| current.attempt == number) else { return Ok(()) };
        match answer {
            Answer::Refused { leader } => {
                let retry_at = self.now + 20 + self.chance.below(100);
                if leader != 0 {
                    waiting.node = leader;
                }
                // The hint is followed at once: an attempt of 0 keeps the node.
                let attempt = if leader != 0 { 0 } else { current.attempt };
                waiting.current = Some(Current { attempt, retry_at, ..current });
                Ok(())
            }
            Answer::Done(answer) => {
                self.trace.report.acknowledged += 1;
                match *answer {
                    machine::Answer::Shard(outcome) => {
                        if let Some(outcome::Result::Rejected(rejection)) = &outcome.result {
                            return Err(Violation(format!("{:?} was rejected: {rejection:?}", current.operation)));
                        }
                        self.trace.note(self.now, ("done", client, number, outcome.encode_to_vec()));
                        self.oracle.acknowledged(&current.operation, current.floor, &outcome)
                    }
                    machine::Answer::Meta(outcome) => {
                        self.trace.note(self.now, ("meta", client, number, outcome.encode_to_vec()));
                        self.oracle.decided(&current.operation, outcome)
                    }
                }
            }
            Answer::Read(seen) => {
                self.trace.report.reads += 1;
                self.trace.note(self.now, ("read", client, seen.counter, seen.events));
                let Operation::Read { player } = current.operation else { return Ok(()) };
                self.oracle.read(player, current.floor, seen)
            }
        }
    }
}
