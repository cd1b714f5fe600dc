//! What the players of an invented online game do: a seeded simulation that gives events and changes of state, with
//! an oracle that knows the answers.
//!
//! ```text
//! rng -> rhythm, world -> simulation (who acts when) -> actions (what it does) -> Step -> tally, ndjson
//! ```
//!
//! Promises:
//! - The same [`Config`] gives the same bytes on every machine: integers and exact fractions only, no library of
//!   mathematics, no map's order, no clock.
//! - Memory is bounded by the number of players, not of events: [`Simulation`] is an iterator.
//! - Exactly `events` events come, all of them valid (`galoo_proto::validate`), in the order in which a backend would
//!   get them: by time, but for the few that arrive late.
//! - What the [`Step::State`]s say, put together, is exactly what the players own in the end: no gold is made or lost by
//!   a trade.
//!
//! Players live in five regions with hours of their own; few play much and many a little (Zipf); a session is a login,
//! a walk of matches, purchases, trades, chat and so on, and a logout, at which the backend saves what changed.
//! This room knows no store, no network and no file: its users carry the steps where they want them.

mod actions;
mod changes;
mod config;
mod json;
pub mod ndjson;
mod player;
mod rhythm;
mod rng;
mod simulation;
mod tally;
mod world;

use galoo_proto::value::{Event, Mutation};

pub use self::{
    config::{Config, ConfigError, END_MS_DEFAULT},
    rng::Rng,
    simulation::Simulation,
    tally::{Cells, StateTally, Tally},
    world::EVENT_TYPES,
};

/// What a simulation gives: one thing that a game's backend writes.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Something that a player did.
    Event(Event),
    /// A change of one player's state, to be made atomically and in the order of that player's steps.
    State(StateChange),
}

/// The changes of one player's state since it was saved last.
#[derive(Clone, Debug, PartialEq)]
pub struct StateChange {
    /// The player.
    pub player_id: String,
    /// Puts, increments and deletions; each cell at most once.
    pub mutations: Vec<Mutation>,
}
