//! The loop over a connection's messages; the simple protocol.
//!
//! A text of the simple protocol is parsed whole before its first statement runs, and an error stops the rest. What
//! Postgres' sessions know (`SET`, `BEGIN`, ...) is carried out here, for both protocols.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use datafusion::arrow::array::{ArrayRef, RecordBatch, StringArray};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::extended::{Portal, Prepared};
use super::link::{self, Failure, Link, Sender};
use super::names::OutputNames;
use super::plan::{self, Parsed};
use super::rows::{Columns, Cursor, Progress};
use super::session::{Block, Identity, Settings};
use super::statement::{self, Kind};
use super::wire::{self, Frontend};
use super::{Shared, SqlError, startup};

/// Time for the last words to a client whose connection ends.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);

/// One client's connection.
pub(super) struct Connection {
    pub(super) shared: Arc<Shared>,
    pub(super) identity: Identity,
    pub(super) settings: Arc<Mutex<Settings>>,
    pub(super) block: Block,
    pub(super) link: Link,
    pub(super) sender: Sender,
    pub(super) statements: HashMap<String, Arc<Prepared>>,
    pub(super) portals: HashMap<String, Portal>,
    /// After an error in the extended protocol all messages up to `Sync` are passed over.
    skips_to_sync: bool,
}

/// What a statement that is no query answers.
pub(super) enum Answer {
    Tag(String),
    Rows(Box<RecordBatch>, &'static str),
}

/// Serves one client from its first byte to its last.
pub(super) async fn run(mut socket: TcpStream, peer: SocketAddr, shared: Arc<Shared>, stopped: watch::Receiver<bool>) {
    // Answers are written whole, so waiting for more to send only delays them.
    let _ = socket.set_nodelay(true);
    let mut shutdown = stopped.clone();
    let greeted = tokio::select! {
        client = startup::greet(&mut socket, &shared) => client,
        _ = shutdown.wait_for(|stop| *stop) => None,
    };
    let Some(client) = greeted else { return };
    let (key, cancels) = shared.cancels.register();
    let bytes_max = shared.limits.statement_bytes_max;
    let (link, mut sender) = link::split(socket, client.inbox, bytes_max, cancels, stopped);
    sender.outbox = client.outbox;
    sender.outbox.backend_key(key.pid, key.secret);
    sender.outbox.ready(Block::None);
    tracing::debug!(%peer, user = client.user, database = client.database, "postgres client connected");
    let mut connection = Connection {
        shared,
        identity: Identity { user: client.user, database: client.database, is_game: client.is_game, pid: key.pid },
        settings: Arc::new(Mutex::new(client.settings)),
        block: Block::None,
        link,
        sender,
        statements: HashMap::new(),
        portals: HashMap::new(),
        skips_to_sync: false,
    };
    if let Err(Failure::Fatal(error)) = connection.serve().await {
        connection.sender.outbox.error("FATAL", &error);
        let _ = tokio::time::timeout(FAREWELL_TIMEOUT, connection.sender.flush()).await;
    }
}

impl Connection {
    async fn serve(&mut self) -> Result<(), Failure> {
        loop {
            if !self.link.is_ahead() {
                self.sender.flush().await?;
            }
            let (tag, body) = self.link.next_frame().await?;
            let message = match wire::parse(tag, body) {
                Ok(message) => message,
                // The frame is whole, only its text is not; the next frame can be read.
                Err(error) if error.code == "22021" => {
                    self.fail(&error);
                    if tag == b'Q' {
                        self.sender.outbox.ready(self.block);
                    } else {
                        self.skips_to_sync = true;
                    }
                    continue;
                }
                Err(error) => return Err(Failure::Fatal(error)),
            };
            match message {
                Frontend::Terminate => return Ok(()),
                Frontend::Sync => {
                    self.skips_to_sync = false;
                    self.end_of_request();
                }
                _ if self.skips_to_sync => {}
                Frontend::Query(sql) => self.simple(&sql).await?,
                message => match self.extended(message).await {
                    Err(Failure::Statement(error)) => {
                        self.fail(&error);
                        self.skips_to_sync = true;
                    }
                    other => other?,
                },
            }
        }
    }

    async fn extended(&mut self, message: Frontend) -> Result<(), Failure> {
        match message {
            Frontend::Parse { name, sql, oids } => self.parse(name, &sql, oids),
            Frontend::Bind(bind) => self.bind(bind).await,
            Frontend::Describe(wire::Target::Statement, name) => self.describe_statement(&name).await,
            Frontend::Describe(wire::Target::Portal, name) => self.describe_portal(&name).await,
            Frontend::Execute { portal, rows_max } => self.execute(&portal, rows_max).await,
            Frontend::Close(target, name) => {
                match target {
                    wire::Target::Statement => drop(self.statements.remove(&name)),
                    wire::Target::Portal => drop(self.portals.remove(&name)),
                }
                self.sender.outbox.close_complete();
                Ok(())
            }
            Frontend::Flush => self.sender.flush().await,
            Frontend::Query(_) | Frontend::Sync | Frontend::Terminate | Frontend::Stray => Ok(()),
        }
    }

    /// Tells the client of an error; in a transaction block, the block has failed.
    fn fail(&mut self, error: &SqlError) {
        self.sender.outbox.error("ERROR", error);
        if self.block == Block::Open {
            self.block = Block::Failed;
        }
    }

    /// Ends a query of the simple protocol or a `Sync`. Outside a block that ends a transaction, and so all portals.
    fn end_of_request(&mut self) {
        if self.block == Block::None {
            self.portals.clear();
            self.settings().end_block();
        }
        self.sender.outbox.ready(self.block);
    }

    async fn simple(&mut self, sql: &str) -> Result<(), Failure> {
        self.portals.remove("");
        self.statements.remove("");
        match self.run_text(sql).await {
            Err(Failure::Statement(error)) => self.fail(&error),
            other => other?,
        }
        self.end_of_request();
        Ok(())
    }

    async fn run_text(&mut self, sql: &str) -> Result<(), Failure> {
        let pieces = statement::split(sql)?;
        if pieces.is_empty() {
            self.sender.outbox.empty_query();
            return Ok(());
        }
        let mut statements = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let kind = statement::classify(&piece);
            let parsed = if kind == Kind::Query { Some(plan::parse(&piece)?) } else { None };
            statements.push((kind, piece.text, parsed));
        }
        for (kind, text, parsed) in statements {
            self.begin_statement(&kind)?;
            match parsed {
                Some(parsed) => self.run_query(&parsed).await?,
                None => match self.run_other(&kind, &text).await? {
                    Answer::Tag(tag) => self.sender.outbox.command_complete(&tag),
                    Answer::Rows(batch, tag) => {
                        let mut cursor = self.cursor_of(*batch, &[])?;
                        self.sender.outbox.row_description(cursor.fields());
                        cursor.send(&mut self.link, &mut self.sender, usize::MAX).await?;
                        self.sender.outbox.command_complete(tag);
                    }
                },
            }
        }
        Ok(())
    }

    async fn run_query(&mut self, parsed: &Parsed) -> Result<(), Failure> {
        let work = plan::plan(&self.shared, &self.identity, &self.settings, parsed);
        let planned = self.link.guard(async { Ok(work.await?) }).await?;
        let columns = Columns::of_query(&planned.plan, parsed);
        let fields = columns.describe(&[])?;
        let stream = self.link.guard(async { Ok(plan::execute(planned).await?) }).await?;
        self.sender.outbox.row_description(&fields);
        let mut cursor = Cursor::new(columns, fields, stream);
        if let Progress::Done(rows) = cursor.send(&mut self.link, &mut self.sender, usize::MAX).await? {
            self.sender.outbox.command_complete(&tag_of(parsed.tag, rows));
        }
        Ok(())
    }

    /// Starts the clock of a statement, and refuses it if the transaction block has failed.
    pub(super) fn begin_statement(&mut self, kind: &Kind) -> Result<(), SqlError> {
        let timeout = self.settings().statement_timeout();
        self.link.begin_statement(timeout);
        if self.block == Block::Failed && !kind.ends_failed_block() {
            return Err(SqlError::new(
                "25P02",
                "current transaction is aborted, commands ignored until end of transaction block",
            ));
        }
        Ok(())
    }

    /// Carries out a statement that is no query.
    pub(super) async fn run_other(&mut self, kind: &Kind, text: &str) -> Result<Answer, Failure> {
        let tag = match kind {
            Kind::Begin(tag) => {
                if self.block != Block::None {
                    self.warn("25001", "there is already a transaction in progress");
                }
                self.block = Block::Open;
                (*tag).to_owned()
            }
            Kind::Commit | Kind::Rollback => {
                let tag = if *kind == Kind::Commit && self.block != Block::Failed { "COMMIT" } else { "ROLLBACK" };
                if self.block == Block::None {
                    self.warn("25P01", "there is no transaction in progress");
                }
                self.block = Block::None;
                self.portals.clear();
                self.settings().end_block();
                tag.to_owned()
            }
            Kind::Savepoint | Kind::Release | Kind::RollbackTo => {
                let tag = match kind {
                    Kind::Savepoint => "SAVEPOINT",
                    Kind::Release => "RELEASE",
                    _ => "ROLLBACK",
                };
                if self.block == Block::None {
                    let what = if tag == "RELEASE" { "RELEASE SAVEPOINT" } else { "a savepoint" };
                    return Err(SqlError::new("25P01", format!("{what} can only be used in transaction blocks")).into());
                }
                self.block = Block::Open;
                tag.to_owned()
            }
            Kind::Nothing(tag) => (*tag).to_owned(),
            Kind::Set { scope, name, value } => {
                let report = match value {
                    Some(value) => self.settings().set(*scope, name, value)?,
                    None => self.settings().reset(name)?,
                };
                self.report(report);
                "SET".to_owned()
            }
            Kind::Reset(Some(name)) => {
                let report = self.settings().reset(name)?;
                self.report(report);
                "RESET".to_owned()
            }
            Kind::Reset(None) => {
                self.reset_all();
                "RESET".to_owned()
            }
            Kind::Show(name) if name == "session_authorization" => {
                return Ok(Answer::Rows(table(&[(name, vec![self.identity.user.clone()])])?, "SHOW"));
            }
            Kind::Show(name) => {
                let value = self.settings().show(name)?;
                return Ok(Answer::Rows(table(&[(name, vec![value])])?, "SHOW"));
            }
            Kind::ShowAll => {
                let (names, values): (Vec<_>, Vec<_>) = self.settings().all().into_iter().unzip();
                let empty = vec![String::new(); names.len()];
                let columns = [("name", names), ("setting", values), ("description", empty)];
                return Ok(Answer::Rows(table(&columns)?, "SHOW"));
            }
            Kind::DiscardAll => {
                if self.block != Block::None {
                    let message = "DISCARD ALL cannot run inside a transaction block";
                    return Err(SqlError::new("25001", message).into());
                }
                self.reset_all();
                self.statements.clear();
                self.portals.clear();
                "DISCARD ALL".to_owned()
            }
            Kind::Deallocate(Some(name)) => {
                self.statements.remove(name).ok_or_else(|| no_statement(name))?;
                "DEALLOCATE".to_owned()
            }
            Kind::Deallocate(None) => {
                self.statements.clear();
                "DEALLOCATE ALL".to_owned()
            }
            Kind::CloseAll => {
                self.portals.clear();
                "CLOSE CURSOR ALL".to_owned()
            }
            Kind::Define(refusal) => {
                if !self.identity.is_game {
                    return Err(refusal.clone().into());
                }
                let work = self.shared.backend.define(&self.identity.database, text);
                let done = self.link.guard(async { Ok(work.await?) }).await?;
                done.ok_or_else(|| refusal.clone())?
            }
            Kind::Refused(error) => return Err(error.clone().into()),
            Kind::Query => return Err(SqlError::new("XX000", "a query was taken for something else").into()),
        };
        Ok(Answer::Tag(tag))
    }

    /// A cursor over rows that are already here.
    pub(super) fn cursor_of(&self, batch: RecordBatch, formats: &[i16]) -> Result<Cursor, SqlError> {
        let columns = Columns::new(&batch.schema(), &OutputNames::default());
        let fields = columns.describe(formats)?;
        let rows = futures::stream::iter([Ok(batch.clone())]);
        Ok(Cursor::new(columns, fields, Box::pin(RecordBatchStreamAdapter::new(batch.schema(), rows))))
    }

    pub(super) fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reset_all(&mut self) {
        self.settings().reset_all();
        for name in ["application_name", "client_encoding", "DateStyle", "IntervalStyle", "TimeZone"] {
            let value = self.settings().get(name).unwrap_or_default();
            self.sender.outbox.parameter_status(name, &value);
        }
    }

    fn report(&mut self, report: super::session::Report) {
        if let Some((name, value)) = report {
            self.sender.outbox.parameter_status(name, &value);
        }
    }

    fn warn(&mut self, code: &'static str, message: &str) {
        self.sender.outbox.warning(&SqlError::new(code, message));
    }
}

/// The tag of a query.
pub(super) fn tag_of(word: &str, rows: usize) -> String {
    if word == "SELECT" { format!("SELECT {rows}") } else { word.to_owned() }
}

/// The error of a prepared statement that is not there.
pub(super) fn no_statement(name: &str) -> SqlError {
    SqlError::new("26000", format!("prepared statement \"{name}\" does not exist"))
}

/// A small table of texts.
pub(super) fn table(columns: &[(&str, Vec<String>)]) -> Result<Box<RecordBatch>, SqlError> {
    let arrays =
        columns.iter().map(|(name, values)| (*name, Arc::new(StringArray::from_iter_values(values)) as ArrayRef));
    Ok(Box::new(RecordBatch::try_from_iter(arrays)?))
}
