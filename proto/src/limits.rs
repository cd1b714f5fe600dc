//! Every public limit of Galoo, in one place. [`crate::validate`] checks them; what happens beyond one is said there.

/// A player id has 1 to this many bytes of UTF-8.
pub const PLAYER_ID_BYTES_MAX: usize = 256;
/// An event type has 1 to this many bytes.
pub const EVENT_TYPE_BYTES_MAX: usize = 256;
/// An event's type and properties together have at most this many bytes.
pub const EVENT_BYTES_MAX: usize = 1 << 20;
/// An event's id, which is its client's, has at most this many bytes.
pub const EVENT_ID_BYTES_MAX: usize = 128;
/// An event's id is known for so long after it was stored, where the game does not say otherwise: a day, in milliseconds.
pub const EVENT_ID_WINDOW_MS_DEFAULT: u64 = 86_400_000;
/// An event's id is known for at least this long, in milliseconds.
pub const EVENT_ID_WINDOW_MS_MIN: u64 = 1_000;
/// An event's id is known for at most this long: 31 days, in milliseconds.
pub const EVENT_ID_WINDOW_MS_MAX: u64 = 31 * 86_400_000;
/// An event has at most this many properties.
pub const EVENT_PROPERTIES_MAX: usize = 256;
/// A scan has at most this many conditions of properties.
pub const CONDITIONS_MAX: usize = 100;
/// A condition names at most this many values.
pub const CONDITION_VALUES_MAX: usize = 1_000;
/// A property's name has at most this many bytes.
pub const PROPERTY_NAME_BYTES_MAX: usize = 256;
/// JSON in events and cells nests at most this deep.
pub const JSON_DEPTH_MAX: usize = 128;
/// Event times are at or after 1970-01-01, in Unix milliseconds.
pub const EVENT_TIME_MS_MIN: i64 = 0;
/// Event times are before 2200-01-01, in Unix milliseconds.
pub const EVENT_TIME_MS_END: i64 = 7_258_118_400_000;
/// An append batch holds at most this many events.
pub const BATCH_EVENTS_MAX: usize = 10_000;
/// An append batch holds at most this many bytes (player ids, types and properties).
pub const BATCH_BYTES_MAX: usize = 4 << 20;
/// A gRPC message: a full batch and its envelope.
pub const GRPC_MESSAGE_BYTES_MAX: usize = 8 << 20;
/// A family's name has 1 to this many bytes.
pub const FAMILY_BYTES_MAX: usize = 64;
/// A game declares at most this many families.
pub const FAMILIES_MAX: usize = 100;
/// A family keeps 1 to this many values of a cell.
pub const CELL_VERSIONS_MAX: u32 = 100;
/// What is written expires after at most this long: 100 years of 365 days, in milliseconds.
pub const TTL_MS_MAX: u64 = 100 * 365 * 86_400_000;
/// Events are kept for at least this long after their time, in milliseconds, and at most for [`TTL_MS_MAX`].
pub const RETENTION_MS_MIN: u64 = 1_000;
/// A shard takes no further player to forget while it still removes the events of so many.
pub const ERASURES_MAX: usize = 10_000;
/// A node forgets a player again at most so many times while it still removes events of earlier times.
pub const ERASURE_TIMES_MAX: usize = 64;
/// A qualifier has 1 to this many bytes.
pub const QUALIFIER_BYTES_MAX: usize = 1 << 10;
/// A cell's value has at most this many bytes.
pub const CELL_BYTES_MAX: usize = 1 << 20;
/// A list or set has at most this many bytes of JSON: each change of it writes it anew.
pub const LIST_BYTES_MAX: usize = 64 << 10;
/// A player's state has at most this many cells.
pub const ROW_CELLS_MAX: u64 = 100_000;
/// A player's state has at most this many bytes, keys and values as they are stored: it is deleted in one command.
pub const ROW_BYTES_MAX: u64 = 16 << 20;
/// One call reads at most this many players.
pub const PLAYERS_READ_MAX: usize = 1_000;
/// A read of players' state answers at most this many bytes of cells.
pub const CELLS_READ_BYTES_MAX: usize = 4 << 20;
/// One mutation of a player changes at most this many cells and has at most this many preconditions.
pub const MUTATIONS_MAX: usize = 1_000;
/// A game's name has 1 to this many bytes.
pub const GAME_NAME_BYTES_MAX: usize = 64;
/// A cluster has at most this many games.
pub const GAMES_MAX: usize = 1_000;
/// A node holds at most this many shards.
pub const SHARDS_MAX: usize = 10_000;
/// A game is created with at most this many shards.
pub const GAME_SHARDS_MAX: u32 = 1_024;
/// A game has at most this many rollups.
pub const ROLLUPS_MAX: usize = 64;
/// A rollup has at most this many groups and aggregates.
pub const ROLLUP_COLUMNS_MAX: usize = 64;
/// A rollup has buckets of at most this many widths.
pub const ROLLUP_TIERS_MAX: usize = 4;
/// A rollup has at most this many predicates, with this many literals each.
pub const ROLLUP_PREDICATES_MAX: usize = 64;
/// A rollup that bounds its groups keeps at most this many of a bucket.
pub const ROLLUP_GROUPS_MAX: u64 = 1_000_000;
/// A rollup's name has 1 to this many bytes.
pub const ROLLUP_NAME_BYTES_MAX: usize = 63;
/// Property names of a game that get a column of their own, kept per shard.
pub const PROPERTIES_MAX: u64 = 2_000;
/// A game declares the kinds of at most this many properties.
pub const DECLARED_PROPERTIES_MAX: usize = 1_000;
/// A producer id has 1 to this many bytes.
pub const PRODUCER_ID_BYTES_MAX: usize = 512;
/// A producer's numbers reach at most this far above its floor.
pub const PRODUCER_WINDOW: u64 = 4_096;
/// A shard remembers at most this many producers; a further one evicts the one that was used longest ago.
pub const PRODUCERS_MAX: u64 = 65_536;
/// A producer takes no further batch while the answers that it may ask for again have so many bytes.
pub const PRODUCER_OUTCOME_BYTES_MAX: u64 = 16 << 20;
/// A shard that keeps so many bytes of answers for all producers evicts those that were used longest ago, up to
/// [`EVICTIONS_MAX`] for a batch, until it keeps less: where many that hold next to nothing come first, it keeps up to twice
/// as much for a while.
pub const OUTCOME_BYTES_MAX: u64 = 1 << 30;
/// Producers that one batch evicts at most.
pub const EVICTIONS_MAX: usize = 256;
/// A shard keeps the registrations of at most this many named sources; a further one is refused.
pub const SOURCES_MAX: u64 = 1_000_000;

/// A full batch fits into a gRPC message with room for its envelope.
const _: () = assert!(BATCH_BYTES_MAX + BATCH_EVENTS_MAX * 32 < GRPC_MESSAGE_BYTES_MAX);
