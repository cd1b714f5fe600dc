//! What the simulation remembers of a player and of a match.

use crate::{changes::Changes, world::ITEMS};

/// A player, online or not.
pub(crate) struct Player {
    pub(crate) id: String,
    /// Place in the list of regions.
    pub(crate) region: u8,
    /// Place in the list of platforms.
    pub(crate) platform: u8,
    /// Place in the region's languages.
    pub(crate) language: u8,
    pub(crate) level: u32,
    pub(crate) xp: i64,
    pub(crate) gold: i64,
    pub(crate) rating: i64,
    pub(crate) guild: Option<u32>,
    pub(crate) inventory: [u32; ITEMS.len()],
    /// Has logged in before.
    pub(crate) known: bool,
    pub(crate) session: Option<Box<Session>>,
}

/// From a login to a logout.
pub(crate) struct Session {
    /// Its number, unique in the run.
    pub(crate) id: u64,
    /// When the login happens; until then the player only waits in the queue.
    pub(crate) started_ms: i64,
    pub(crate) events: u32,
    pub(crate) matches: u32,
    /// The match that the player is in.
    pub(crate) playing: Option<Playing>,
    /// What the backend has to save.
    pub(crate) changes: Changes,
}

/// A player's part in a match.
pub(crate) struct Playing {
    pub(crate) id: u64,
    pub(crate) started_ms: i64,
    pub(crate) team: u8,
    pub(crate) kills: u32,
    pub(crate) deaths: u32,
}

/// A match that somebody plays.
pub(crate) struct Match {
    /// Place in the list of maps.
    pub(crate) map: u8,
    /// Place in the list of modes.
    pub(crate) mode: u8,
    pub(crate) opened_ms: i64,
    /// Decided when it opens; teams are 0 and 1.
    pub(crate) winner: u8,
    /// Players, in the order in which they came.
    pub(crate) joined: Vec<u32>,
    /// How many of them have left.
    pub(crate) left: usize,
}
