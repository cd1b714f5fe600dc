//! The Postgres front: any Postgres client can read a game with SQL.
//!
//! It speaks protocol 3.0 (simple and extended, text and binary) over TCP without authentication and without TLS. A
//! *database* is a game. Every statement gets a DataFusion context of its own from the [`SqlBackend`], that is one
//! consistent cut; rows are streamed from it to the socket as they come, so that memory stays bounded by a few batches.
//!
//! Promises:
//! * Nothing a client sends stops the server: a broken frame ends its own connection, a panic in a statement is its error.
//! * Tables are read-only here. What would write is refused with a message that names the API that writes.
//! * A statement ends when its client cancels it, when `statement_timeout` passes, when the server stops, or when the client
//!   goes away.
//! * A value is never sent wrapped or cut: what has no Postgres type is sent as text.
//!
//! What it does not know: how tables are stored and which cut a context shows. It does not write, and it keeps nothing
//! between connections but the object ids of the catalog and the keys for cancel requests.
//!
//! | file | its one idea |
//! |---|---|
//! | `wire` | bytes of the protocol, in and out |
//! | `startup` | from the first byte to the first `ReadyForQuery` |
//! | `connection` | the loop over messages; the simple protocol |
//! | `extended` | prepared statements and portals |
//! | `link` | waiting: for a message, or for work under cancel, timeout and hang-up |
//! | `cancel` | keys of cancel requests |
//! | `statement` | cutting text into statements and telling their kinds apart |
//! | `session` | settings and the transaction block of one connection |
//! | `plan` | from text to a DataFusion plan |
//! | `pace` | running a plan so that it can be stopped |
//! | `names` | what Postgres calls a column that has no name |
//! | `params` | types and values of `$1` |
//! | `rows` | from record batches to rows on the wire |
//! | `text` | the commonest values as text |
//! | `numeric` | the type `numeric` on the wire |
//! | `catalog`, `pg_views`, `functions`, `information_schema` | what tools ask about the database itself |
//! | `rewrite` | forms that tools send and DataFusion cannot plan |
//! | `single_value` | the aggregate that the rewrites put around a subquery's one value |
//! | `to_char`, `json` | functions that have more to do than one answer |
//! | `relation` | small relations written down as text |
//! | `error` | SQLSTATEs |

mod cancel;
mod catalog;
mod connection;
mod error;
mod extended;
mod functions;
mod information_schema;
mod json;
mod link;
mod names;
mod numeric;
mod pace;
mod params;
mod pg_views;
mod plan;
mod relation;
mod rewrite;
mod rows;
mod session;
mod single_value;
mod startup;
mod statement;
mod text;
mod to_char;
mod wire;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// Clients over `connections_max` that are still being told so. Over it, a connection is closed without a word.
const REFUSALS_MAX: usize = 64;

/// The wait after a failed `accept` (out of file descriptors, mostly), so that the loop does not spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What the Postgres front needs of the SQL engine.
#[async_trait]
pub trait SqlBackend: Send + Sync + 'static {
    /// Returns the names of the games, which are the databases.
    fn games(&self) -> Vec<String>;

    /// Returns a DataFusion context over one consistent cut of the game.
    ///
    /// Its catalog has the game's name and a schema `public` with the tables `events`, `state`, `players` and one a rollup.
    /// Called at most twice a statement (once to describe it, once to run it); a context that is dropped must free its cut.
    async fn context(&self, game: &str) -> Result<datafusion::prelude::SessionContext, SqlError>;

    /// Carries out a statement that defines something (`CREATE ROLLUP`, `DROP ROLLUP`) and returns its command tag.
    ///
    /// Called for every statement that begins with `CREATE`, `ALTER` or `DROP`, with its text without the closing `;`.
    /// `None` means that it is not one of the backend's; the client then gets a refusal.
    async fn define(&self, game: &str, sql: &str) -> Result<Option<String>, SqlError>;
}

/// An error with its SQLSTATE and message, as the client gets it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SqlError {
    /// The SQLSTATE, five characters.
    pub code: &'static str,
    /// The message: lower case, no full stop.
    pub message: String,
    /// What to do about it, if there is something to do.
    pub hint: Option<String>,
}

impl SqlError {
    /// Makes an error without a hint.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// Adds a hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// The limits of the front.
#[derive(Debug, Clone)]
pub struct PgLimits {
    /// Connections at once. One more is told SQLSTATE 53300 and closed; cancel requests are served all the same.
    pub connections_max: usize,
    /// Bytes of one message, so of one statement or of the parameters of one `Bind`. Over it the connection ends with 54000.
    pub statement_bytes_max: usize,
    /// Prepared statements of one connection. One more is refused with 54000.
    pub prepared_statements_max: usize,
    /// Open portals of one connection; each may hold a cut. One more is refused with 54000.
    pub portals_max: usize,
    /// Time for connections to end at shutdown, and for their clients to read why. What is left then is closed.
    pub shutdown_grace: Duration,
}

impl Default for PgLimits {
    fn default() -> Self {
        Self {
            connections_max: 200,
            statement_bytes_max: 16 << 20,
            prepared_statements_max: 1_000,
            portals_max: 64,
            shutdown_grace: Duration::from_secs(10),
        }
    }
}

/// What all connections of one front share.
struct Shared {
    backend: Arc<dyn SqlBackend>,
    limits: PgLimits,
    cancels: cancel::Cancels,
    catalogs: catalog::Catalogs,
}

/// Serves Postgres clients until `shutdown` is ready, then ends all connections with SQLSTATE 57P01, also those whose
/// statement runs.
///
/// Returns after the last connection has ended, or after [`PgLimits::shutdown_grace`]. A failure to accept one client
/// is logged and not an error.
pub async fn serve(
    listener: TcpListener,
    backend: Arc<dyn SqlBackend>,
    shutdown: impl Future<Output = ()> + Send,
    limits: PgLimits,
) -> std::io::Result<()> {
    let grace = limits.shutdown_grace;
    let seats = Arc::new(Semaphore::new(limits.connections_max));
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    let shared = Arc::new(Shared {
        backend,
        limits,
        cancels: cancel::Cancels::default(),
        catalogs: catalog::Catalogs::default(),
    });
    let (stop, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(ended) = tasks.join_next(), if !tasks.is_empty() => log_end(ended),
            accepted = listener.accept() => match accepted {
                Ok((socket, peer)) => {
                    let shared = shared.clone();
                    let stopped = stopped.clone();
                    if let Ok(seat) = seats.clone().try_acquire_owned() {
                        tasks.spawn(async move {
                            let _seat = seat;
                            connection::run(socket, peer, shared, stopped).await;
                        });
                    } else if let Ok(place) = refusals.clone().try_acquire_owned() {
                        tasks.spawn(async move {
                            let _place = place;
                            startup::refuse(socket, &shared).await;
                        });
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a postgres client could not be accepted");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }
    drop(listener);
    let _ = stop.send(true);
    let ended = tokio::time::timeout(grace, async {
        while let Some(ended) = tasks.join_next().await {
            log_end(ended);
        }
    })
    .await;
    if ended.is_err() {
        tracing::warn!(connections = tasks.len(), "postgres connections did not end in time and were closed");
        tasks.shutdown().await;
    }
    Ok(())
}

/// Logs a connection that ended by a panic; all other ends are silent.
fn log_end(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a postgres connection panicked");
    }
}
