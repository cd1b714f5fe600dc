//! Who acts when: sessions are opened minute by minute, their actions wait in a ring of minutes, and each action is
//! carried out in the order of time.
//!
//! How many sessions a minute opens follows from how many events there should be by its end: its share of the span's
//! liveliness, less what came already and what open sessions still have to do. So the number of events is exact without a
//! second pass, and memory holds players, what the open sessions still do, and nothing else.

use std::collections::{HashMap, VecDeque};

use galoo_proto::value::Event;

use crate::{
    Config, ConfigError, Rng, StateChange, Step,
    changes::Changes,
    player::{Match, Player, Session},
    rhythm::{MINUTE_MS, REGIONS, liveliness, session_ms},
    world::{ITEMS, PLATFORMS, player_id},
};

/// Minutes ahead that actions wait for: more than the longest session with a match at its end.
const RING_MINUTES: usize = 512;
/// A player who is online already is drawn again so often before the next free one is taken.
const DRAWS_MAX: u32 = 8;

/// What a player is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Deed {
    Login,
    Logout,
    MatchStart,
    Kill,
    MatchEnd,
    Purchase,
    Loot,
    Chat,
    Latency,
    Trade,
    Guild,
}

/// A deed at a time; the order of scheduling decides between equal times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Action {
    at_ms: i64,
    order: u64,
    player: u32,
    deed: Deed,
}

/// A region's players, the most active ones first.
struct Crowd {
    players: Vec<u32>,
    /// Sums of the weights up to each.
    weights: Vec<u64>,
}

/// The events and changes of state of a simulated game: see [`crate`].
pub struct Simulation {
    pub(crate) config: Config,
    pub(crate) rng: Rng,
    pub(crate) players: Vec<Player>,
    pub(crate) matches: HashMap<u64, Match>,
    /// The match of each region that one may still join.
    pub(crate) lobbies: [Option<u64>; REGIONS.len()],
    pub(crate) matches_opened: u64,
    /// Who is logged in.
    pub(crate) online: Vec<u32>,
    /// What happened and was not taken yet.
    out: VecDeque<Step>,
    /// Events that may still come.
    pub(crate) room: u64,
    crowds: [Crowd; REGIONS.len()],
    /// The current minute since 1970, and its actions in order of time, the next one last.
    minute: i64,
    current: Vec<Action>,
    /// Actions of the minutes from the current one on.
    ring: VecDeque<Vec<Action>>,
    waiting: u64,
    scheduled: u64,
    sessions: u64,
    /// Liveliness up to and with the current minute, and of the whole span.
    lively: u128,
    lively_total: u128,
    saved: bool,
}

impl Simulation {
    /// Prepares a run.
    ///
    /// # Errors
    /// A field of `config` that is out of range.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        config.validate()?;
        let mut rng = Rng::new(config.seed);
        let shares = REGIONS.map(|region| region.share);
        let mut crowds: [Crowd; REGIONS.len()] =
            std::array::from_fn(|_| Crowd { players: Vec::new(), weights: Vec::new() });
        // Zipf's law with a shift, so that the most active player is a person and no machine.
        let shift = u64::from(config.players / 1_000).max(10);
        let mut players = Vec::new();
        for index in 0..config.players {
            let region = rng.weighted(&shares);
            let weight = (1 << 40) / (u64::from(index) + shift);
            let crowd = &mut crowds[region];
            crowd.players.push(index);
            crowd.weights.push(crowd.weights.last().unwrap_or(&0) + weight);
            let small = |value: u64| u8::try_from(value).unwrap_or(0);
            players.push(Player {
                id: player_id(index),
                region: small(region as u64),
                platform: small(rng.below(PLATFORMS.len() as u64)),
                language: small(rng.below(REGIONS[region].languages.len() as u64)),
                level: 1,
                xp: 0,
                gold: 0,
                rating: 1_000,
                guild: None,
                inventory: [0; ITEMS.len()],
                known: false,
                session: None,
            });
        }
        let mut simulation = Self {
            rng,
            players,
            matches: HashMap::new(),
            lobbies: [None; REGIONS.len()],
            matches_opened: 0,
            online: Vec::new(),
            out: VecDeque::new(),
            room: config.events,
            crowds,
            minute: config.start_ms().div_euclid(MINUTE_MS),
            current: Vec::new(),
            ring: std::iter::repeat_with(Vec::new).take(RING_MINUTES).collect(),
            waiting: 0,
            scheduled: 0,
            sessions: 0,
            lively: 0,
            lively_total: 0,
            saved: false,
            config,
        };
        let minutes = simulation.minute..=simulation.last_minute();
        simulation.lively_total = minutes.map(|minute| simulation.liveliness(minute).1).sum();
        simulation.fill_minute();
        Ok(simulation)
    }

    fn last_minute(&self) -> i64 {
        (self.config.end_ms - 1).div_euclid(MINUTE_MS)
    }

    /// How lively each region that has players is, and all of them together.
    fn liveliness(&self, minute: i64) -> ([u32; REGIONS.len()], u128) {
        let mut regions = liveliness(minute);
        for (level, crowd) in regions.iter_mut().zip(&self.crowds) {
            if crowd.players.is_empty() {
                *level = 0;
            }
        }
        (regions, regions.iter().map(|level| u128::from(*level)).sum())
    }

    /// Records that `player` did something; there is room for it.
    pub(crate) fn emit(&mut self, player: u32, at_ms: i64, event_type: &str, properties: String) {
        assert!(self.room > 0, "an event above the {} asked for", self.config.events);
        self.room -= 1;
        let player = &mut self.players[player as usize];
        if let Some(session) = &mut player.session {
            session.events += 1;
        }
        let event = Event {
            player_id: player.id.clone(),
            event_time_ms: at_ms,
            event_type: event_type.to_owned(),
            properties,
            ..Default::default()
        };
        self.out.push_back(Step::Event(event));
    }

    /// Gives out what a player's session changed and did not save yet.
    pub(crate) fn save(&mut self, player: u32) {
        let player = &mut self.players[player as usize];
        let mutations = player.session.as_mut().map(|session| session.changes.take()).unwrap_or_default();
        if !mutations.is_empty() {
            self.out.push_back(Step::State(StateChange { player_id: player.id.clone(), mutations }));
        }
    }

    fn schedule(&mut self, at_ms: i64, player: u32, deed: Deed) {
        if at_ms >= self.config.end_ms {
            return;
        }
        let ahead = usize::try_from(at_ms.div_euclid(MINUTE_MS) - self.minute).unwrap_or(usize::MAX);
        assert!(ahead < RING_MINUTES, "an action {ahead} minutes ahead; the ring holds {RING_MINUTES}");
        self.ring[ahead].push(Action { at_ms, order: self.scheduled, player, deed });
        self.scheduled += 1;
        self.waiting += 1;
    }

    /// Opens sessions until enough will have happened by the end of the current minute, and puts it in order.
    fn fill_minute(&mut self) {
        let (regions, all) = self.liveliness(self.minute);
        self.lively = (self.lively + all).min(self.lively_total);
        let target = u128::from(self.config.events) * self.lively / self.lively_total;
        let came = self.config.events - self.room;
        while u128::from(came + self.waiting) < target {
            let region = self.rng.weighted(&regions);
            let start = (self.minute * MINUTE_MS).max(self.config.start_ms());
            let end = ((self.minute + 1) * MINUTE_MS).min(self.config.end_ms);
            let at_ms = self.rng.within(start, end);
            match self.free_player(region) {
                Some(player) => self.open_session(at_ms, player),
                // Everybody plays: somebody does one thing more.
                None => {
                    let player = *self.rng.pick(&self.crowds[region].players);
                    let since = self.players[player as usize].session.as_ref().map_or(0, |session| session.started_ms);
                    self.schedule(at_ms.max(since + 1), player, Deed::Latency);
                }
            }
        }
        self.current = std::mem::take(&mut self.ring[0]);
        self.current.sort_unstable_by(|one, other| other.cmp(one));
    }

    /// Draws somebody of a region who is not online, the active ones more often.
    fn free_player(&mut self, region: usize) -> Option<u32> {
        let crowd = &self.crowds[region];
        let all = *crowd.weights.last()?;
        let free = |rank: usize| {
            let player = crowd.players[rank];
            self.players[player as usize].session.is_none().then_some(player)
        };
        let mut rank = 0;
        for _ in 0..DRAWS_MAX {
            let drawn = self.rng.below(all);
            rank = crowd.weights.partition_point(|sum| *sum <= drawn);
            if let Some(player) = free(rank) {
                return Some(player);
            }
        }
        (rank..crowd.players.len()).chain(0..rank).find_map(free)
    }

    /// Writes a session's script: when it does what; what comes of it shows when it happens.
    fn open_session(&mut self, at_ms: i64, player: u32) {
        self.sessions += 1;
        let session = Session {
            id: self.sessions,
            started_ms: at_ms,
            events: 0,
            matches: 0,
            playing: None,
            changes: Changes::default(),
        };
        self.players[player as usize].session = Some(Box::new(session));
        let until = at_ms + session_ms(&mut self.rng);
        self.schedule(at_ms, player, Deed::Login);
        let mut at_ms = at_ms + self.rng.within(2_000, 20_000);
        /// What a player does next, with how likely it is.
        const NEXT: [(Deed, u32); 7] = [
            (Deed::MatchStart, 14),
            (Deed::Loot, 30),
            (Deed::Chat, 26),
            (Deed::Latency, 16),
            (Deed::Purchase, 5),
            (Deed::Trade, 7),
            (Deed::Guild, 2),
        ];
        while at_ms < until {
            let deed = NEXT[self.rng.weighted(&NEXT.map(|(_, weight)| weight))].0;
            self.schedule(at_ms, player, deed);
            if deed == Deed::MatchStart {
                let over = at_ms + self.rng.within(150_000, 720_000);
                for _ in 0..self.rng.below(9) {
                    let kill_ms = self.rng.within(at_ms + 1, over);
                    self.schedule(kill_ms, player, Deed::Kill);
                }
                self.schedule(over, player, Deed::MatchEnd);
                at_ms = over;
            }
            at_ms += self.rng.within(3_000, 50_000);
        }
        self.schedule(at_ms, player, Deed::Logout);
    }

    /// Does the next thing: an action, the next minute, or the last saves.
    fn go_on(&mut self) {
        if self.room == 0 {
            self.saved = true;
            let mut online = std::mem::take(&mut self.online);
            online.sort_unstable();
            online.into_iter().for_each(|player| self.save(player));
        } else if let Some(action) = self.current.pop() {
            self.waiting -= 1;
            self.act(action.player, action.at_ms, action.deed);
        } else {
            if self.minute < self.last_minute() {
                self.minute += 1;
                self.ring.pop_front();
                self.ring.push_back(Vec::new());
            }
            self.fill_minute();
        }
    }
}

impl Iterator for Simulation {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        loop {
            if let Some(step) = self.out.pop_front() {
                return Some(step);
            }
            if self.saved {
                return None;
            }
            self.go_on();
        }
    }
}
