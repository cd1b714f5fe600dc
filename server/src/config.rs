//! How a node is configured: defaults, then the file, then the environment and flags (clap reads both).

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use galoo_storage::{compaction::Policy, engine::rocks};
use serde::Deserialize;

/// A node's configuration, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The data folder.
    pub data_dir: PathBuf,
    /// Where gRPC is served.
    pub grpc: SocketAddr,
    /// Where the Postgres protocol is served.
    pub pg: SocketAddr,
    /// Where metrics are served.
    pub http: SocketAddr,
    /// The node's failure zone.
    pub zone: String,
    /// Addresses of the nodes to form a cluster with, this one among them; empty for a cluster of one.
    pub join: Vec<String>,
    /// Threads that apply commands.
    pub apply_threads: usize,
    /// Bytes of memory for what the engine holds before it is flushed.
    pub memtable_bytes: usize,
    /// Bytes of memory for blocks of the engine's files.
    pub block_cache_bytes: usize,
    /// Bytes of memory for running queries.
    pub query_memory_bytes: usize,
    /// When chunks are sealed and segments built.
    pub compaction: Policy,
    /// Bytes a second at which everything that is stored is read again, to find what is damaged; 0: never.
    pub scrub_bytes_per_second: u64,
    /// Bytes that are kept free on the data folder's file system: below, writes are refused.
    pub disk_reserve_bytes: u64,
    /// Log bytes above which the engine is flushed, so that the log can be cut.
    pub log_bytes: u64,
}

/// The configuration file (TOML): every field may be missing; unknown ones are refused.
///
/// ```toml
/// zone = "a"
/// [storage]
/// seal_bytes = 16777216
/// ```
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct File {
    data_dir: Option<PathBuf>,
    grpc: Option<SocketAddr>,
    pg: Option<SocketAddr>,
    http: Option<SocketAddr>,
    zone: Option<String>,
    join: Option<Vec<String>>,
    storage: StorageFile,
    query: QueryFile,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct StorageFile {
    apply_threads: Option<u64>,
    memtable_bytes: Option<u64>,
    block_cache_bytes: Option<u64>,
    seal_bytes: Option<u64>,
    seal_age_ms: Option<u64>,
    segment_bytes_min: Option<u64>,
    segment_age_ms: Option<u64>,
    segment_bytes_max: Option<u64>,
    merged_bytes_max: Option<u64>,
    history_ms: Option<u64>,
    log_bytes: Option<u64>,
    scrub_bytes_per_second: Option<u64>,
    disk_reserve_bytes: Option<u64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct QueryFile {
    memory_bytes: Option<u64>,
}

/// What the command line or the environment gave; it wins over the file.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// `--data-dir`.
    pub data_dir: Option<PathBuf>,
    /// `--grpc`.
    pub grpc: Option<SocketAddr>,
    /// `--pg`.
    pub pg: Option<SocketAddr>,
    /// `--http`.
    pub http: Option<SocketAddr>,
    /// `--zone`.
    pub zone: Option<String>,
    /// `--join`.
    pub join: Option<Vec<String>>,
    /// `--insecure`: binds beyond loopback are allowed.
    pub insecure: bool,
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("config {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file does not parse.
    #[error("config {path}: {reason}", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, with its line.
        reason: String,
    },
    /// A required value is missing.
    #[error("{0} is missing: give it as a flag, in the environment or in the config file")]
    Missing(&'static str),
    /// A value is outside its limits.
    #[error("{field} is {value}; it must be {min} to {max}")]
    Range {
        /// The value's name.
        field: &'static str,
        /// What was given.
        value: u64,
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// The addresses to form a cluster of do not make one.
    #[error("--join names {value:?}: {reason}")]
    Join {
        /// What was given.
        value: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The zone is no name.
    #[error("--zone is {value:?} ({bytes} bytes); it must be at most {ZONE_BYTES_MAX} printable ASCII bytes, no space")]
    Zone {
        /// Its beginning.
        value: String,
        /// All its bytes.
        bytes: usize,
    },
    /// Two values do not fit each other.
    #[error("{low} is {low_value}; it must be at most {high}, which is {high_value}")]
    Order {
        /// The value that must not be more.
        low: &'static str,
        /// What it is.
        low_value: u64,
        /// The value that must not be less.
        high: &'static str,
        /// What it is.
        high_value: u64,
    },
    /// The node could never join the others: none of them is it.
    #[error("--join names {join}, and none of them is this node, whose --grpc is {grpc}")]
    NotAmong {
        /// The addresses.
        join: String,
        /// This node's own.
        grpc: SocketAddr,
    },
    /// An address would be open to others.
    #[error("{field} is {addr}: without authentication only loopback is served; give --insecure to open it to anybody")]
    NotLoopback {
        /// The flag.
        field: &'static str,
        /// The address.
        addr: SocketAddr,
    },
}

impl File {
    /// Reads a configuration file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let parsed = toml::from_str(&text);
        parsed.map_err(|error| ConfigError::Parse { path: path.to_owned(), reason: error.to_string() })
    }
}

fn within(field: &'static str, value: Option<u64>, default: u64, min: u64, max: u64) -> Result<u64, ConfigError> {
    match value.unwrap_or(default) {
        value if (min..=max).contains(&value) => Ok(value),
        value => Err(ConfigError::Range { field, value, min, max }),
    }
}

/// A cluster is formed of at most so many nodes: each is a voter of the meta group.
const JOIN_MAX: usize = 9;

fn join(addrs: Vec<String>) -> Result<Vec<String>, ConfigError> {
    let wrong = |value: &str, reason| Err(ConfigError::Join { value: value.to_owned(), reason });
    for (place, addr) in addrs.iter().enumerate() {
        let port = addr.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse().ok());
        match port {
            None => return wrong(addr, "it must be HOST:PORT"),
            Some(0u16) => return wrong(addr, "the port must be the one that the node serves"),
            Some(_) if addrs[..place].contains(addr) => return wrong(addr, "it is given twice"),
            Some(_) => {}
        }
    }
    if addrs.len() > JOIN_MAX {
        return wrong(&addrs.join(","), "a cluster is formed of at most 9 nodes");
    }
    Ok(addrs)
}

/// Longest name of a failure zone.
const ZONE_BYTES_MAX: usize = 64;

fn zone(zone: String) -> Result<String, ConfigError> {
    if zone.len() <= ZONE_BYTES_MAX && zone.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(zone);
    }
    Err(ConfigError::Zone { value: zone.chars().take(ZONE_BYTES_MAX).collect(), bytes: zone.len() })
}

/// Refuses sizes of which one makes another meaningless.
fn ordered(policy: &Policy) -> Result<(), ConfigError> {
    let high_value = policy.segment_bytes_max;
    // A chunk is a part of one segment, and what is built at once is held in memory.
    for (low, low_value) in
        [("storage.segment_bytes_min", policy.segment_bytes_min), ("storage.seal_bytes", policy.seal_bytes)]
    {
        if low_value > high_value {
            return Err(ConfigError::Order { low, low_value, high: "storage.segment_bytes_max", high_value });
        }
    }
    Ok(())
}

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

impl Config {
    /// Puts file, environment and flags together and checks every value.
    pub fn new(file: File, given: Given) -> Result<Self, ConfigError> {
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let storage = &file.storage;
        let policy = Policy::default();
        let size = |field, value, default| within(field, value, default, 1_024, 1 << 40);
        let usize_of = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        let memtable = within("storage.memtable_bytes", storage.memtable_bytes, 256 * MIB, 8 * MIB, 64 * GIB)?;
        let cache = within("storage.block_cache_bytes", storage.block_cache_bytes, 128 * MIB, MIB, 1_024 * GIB)?;
        let memory = within("query.memory_bytes", file.query.memory_bytes, 384 * MIB, 16 * MIB, 1_024 * GIB)?;
        let config = Self {
            data_dir: given.data_dir.or(file.data_dir.clone()).ok_or(ConfigError::Missing("--data-dir"))?,
            grpc: given.grpc.or(file.grpc).unwrap_or(loopback(7400)),
            pg: given.pg.or(file.pg).unwrap_or(loopback(5433)),
            http: given.http.or(file.http).unwrap_or(loopback(7480)),
            zone: zone(given.zone.or(file.zone.clone()).unwrap_or_default())?,
            join: join(given.join.or(file.join.clone()).unwrap_or_default())?,
            apply_threads: usize_of(within("storage.apply_threads", storage.apply_threads, 2, 1, 64)?),
            memtable_bytes: usize_of(memtable),
            block_cache_bytes: usize_of(cache),
            query_memory_bytes: usize_of(memory),
            compaction: Policy {
                seal_bytes: size("storage.seal_bytes", storage.seal_bytes, policy.seal_bytes)?,
                seal_age_ms: within("storage.seal_age_ms", storage.seal_age_ms, policy.seal_age_ms, 1, 1 << 40)?,
                segment_bytes_min: size(
                    "storage.segment_bytes_min",
                    storage.segment_bytes_min,
                    policy.segment_bytes_min,
                )?,
                segment_age_ms: within(
                    "storage.segment_age_ms",
                    storage.segment_age_ms,
                    policy.segment_age_ms,
                    1,
                    1 << 40,
                )?,
                segment_bytes_max: within(
                    "storage.segment_bytes_max",
                    storage.segment_bytes_max,
                    policy.segment_bytes_max,
                    1_024,
                    256 * MIB,
                )?,
                merged_bytes_max: within(
                    "storage.merged_bytes_max",
                    storage.merged_bytes_max,
                    policy.merged_bytes_max,
                    0,
                    GIB,
                )?,
                backlog_bytes_max: policy.backlog_bytes_max,
                history_ms: within("storage.history_ms", storage.history_ms, policy.history_ms, 0, 1 << 40)?,
            },
            scrub_bytes_per_second: within(
                "storage.scrub_bytes_per_second",
                storage.scrub_bytes_per_second,
                8 * MIB,
                0,
                1_024 * GIB,
            )?,
            disk_reserve_bytes: within("storage.disk_reserve_bytes", storage.disk_reserve_bytes, GIB, 0, 1_024 * GIB)?,
            log_bytes: within("storage.log_bytes", storage.log_bytes, 256 * MIB, MIB, 1_024 * GIB)?,
        };
        ordered(&config.compaction)?;
        if !given.insecure {
            for (field, addr) in [("--grpc", config.grpc), ("--pg", config.pg), ("--http", config.http)] {
                if !addr.ip().is_loopback() {
                    return Err(ConfigError::NotLoopback { field, addr });
                }
            }
        }
        Ok(config)
    }

    /// Whether this node is one of those that it is to join: `None` where the addresses do not tell.
    ///
    /// A name may mean any address, and a node that serves all of its addresses has some that nobody knows here.
    /// Addresses that are all of others are an error: such a node would wait forever.
    pub fn is_among_joined(&self) -> Result<Option<bool>, ConfigError> {
        let addrs: Vec<Option<SocketAddr>> = self.join.iter().map(|addr| addr.parse().ok()).collect();
        if addrs.is_empty() {
            return Ok(Some(false));
        }
        if addrs.contains(&Some(self.grpc)) {
            return Ok(Some(true));
        }
        if self.grpc.ip().is_unspecified() || addrs.contains(&None) {
            return Ok(None);
        }
        Err(ConfigError::NotAmong { join: self.join.join(","), grpc: self.grpc })
    }

    /// The engine's share of the configuration.
    pub fn engine_options(&self) -> rocks::Options {
        rocks::Options {
            memtable_bytes_max: self.memtable_bytes,
            block_cache_bytes_max: self.block_cache_bytes,
            ..rocks::Options::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given() -> Given {
        Given { data_dir: Some("d".into()), ..Given::default() }
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let file: File = toml::from_str("grpc = \"127.0.0.1:1\"\npg = \"127.0.0.1:2\"\n[storage]\nseal_bytes = 2048")
            .expect("parses");
        let flags = Given { pg: Some(([127, 0, 0, 1], 9).into()), ..given() };
        let config = Config::new(file, flags).expect("valid");
        assert_eq!((config.grpc.port(), config.pg.port(), config.http.port()), (1, 9, 7480));
        assert_eq!(config.compaction.seal_bytes, 2048);
    }

    #[test]
    fn addresses_to_join_are_checked() {
        let with = |addrs: &[&str]| {
            let join = Some(addrs.iter().map(|addr| (*addr).to_owned()).collect());
            Config::new(File::default(), Given { join, ..given() }).map(|config| config.join)
        };
        assert_eq!(with(&["127.0.0.1:1", "node2:7400"]).expect("valid").len(), 2);
        for wrong in [&["127.0.0.1"][..], &["127.0.0.1:0"], &[":1"], &["a:1", "a:1"], &["a:70000"]] {
            let error = with(wrong).expect_err("refused").to_string();
            assert!(error.contains("--join names"), "{error}");
        }
        let many: Vec<_> = (1..=10).map(|port| format!("a:{port}")).collect();
        assert!(with(&many.iter().map(String::as_str).collect::<Vec<_>>()).is_err());
    }

    #[test]
    fn a_node_that_is_certainly_not_among_those_it_joins_is_refused() {
        let among = |grpc: &str, join: &[&str]| {
            let join = Some(join.iter().map(|addr| (*addr).to_owned()).collect());
            let grpc = Some(grpc.parse().expect("an address"));
            let given = Given { grpc, join, insecure: true, ..given() };
            Config::new(File::default(), given).expect("valid").is_among_joined()
        };
        assert_eq!(among("127.0.0.1:1", &["127.0.0.1:1", "127.0.0.1:2"]).expect("known"), Some(true));
        assert_eq!(among("127.0.0.1:1", &["node1:1", "127.0.0.1:1"]).expect("known"), Some(true));
        assert_eq!(among("127.0.0.1:1", &["node1:1", "node2:1"]).expect("uncertain"), None);
        assert_eq!(among("0.0.0.0:1", &["10.0.0.1:1", "10.0.0.2:1"]).expect("uncertain"), None);
        for (grpc, join) in [("127.0.0.1:1", "127.0.0.1:2"), ("10.0.0.3:1", "10.0.0.2:1"), ("[::1]:1", "127.0.0.1:1")] {
            let error = among(grpc, &[join]).expect_err("refused").to_string();
            assert!(error.contains(grpc) && error.contains(join), "{error}");
        }
    }

    #[test]
    fn a_zone_is_a_short_name() {
        let with = |zone: String| Config::new(File::default(), Given { zone: Some(zone), ..given() });
        for right in [String::new(), "eu-west-1a".to_owned(), "z".repeat(ZONE_BYTES_MAX)] {
            assert_eq!(with(right.clone()).expect("valid").zone, right);
        }
        for wrong in ["a b".to_owned(), "a\n".to_owned(), "é".to_owned(), "z".repeat(5_000)] {
            let bytes = wrong.len();
            let error = with(wrong).expect_err("refused").to_string();
            assert!(error.contains("--zone is") && error.contains(&format!("{bytes} bytes")), "{error}");
            assert!(error.contains("at most 64 printable ASCII bytes") && error.len() < 200, "{error}");
        }
    }

    #[test]
    fn sizes_that_do_not_fit_each_other_are_refused() {
        for (text, low) in [
            ("segment_bytes_min = 4096\nsegment_bytes_max = 2048\nseal_bytes = 1024", "segment_bytes_min is 4096"),
            ("segment_bytes_min = 1024\nsegment_bytes_max = 2048\nseal_bytes = 4096", "seal_bytes is 4096"),
        ] {
            let file: File = toml::from_str(&format!("[storage]\n{text}")).expect("parses");
            let error = Config::new(file, given()).expect_err("refused").to_string();
            assert!(error.contains(low) && error.contains("segment_bytes_max, which is 2048"), "{error}");
        }
    }

    #[test]
    fn wrong_values_are_named() {
        let file = |text: &str| toml::from_str::<File>(text);
        assert!(file("unknown = 1").is_err());
        let low = file("[storage]\nseal_bytes = 1").expect("parses");
        let error = Config::new(low, given()).expect_err("too low").to_string();
        assert!(error.contains("storage.seal_bytes is 1; it must be 1024"), "{error}");
        assert!(matches!(Config::new(File::default(), Given::default()), Err(ConfigError::Missing("--data-dir"))));
        let open = Given { grpc: Some(([0, 0, 0, 0], 7400).into()), ..given() };
        assert!(matches!(
            Config::new(File::default(), open.clone()),
            Err(ConfigError::NotLoopback { field: "--grpc", .. })
        ));
        assert!(Config::new(File::default(), Given { insecure: true, ..open }).is_ok());
    }
}
