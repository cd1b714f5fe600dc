//! Prepared statements and portals: the extended protocol.
//!
//! `Parse` only parses. A statement is planned when something of the plan is asked for: its parameters' types at `Bind` or
//! `Describe`, its columns at `Describe`, or its rows. A plan made for a portal is kept and run, so that the usual
//! `Parse Bind Describe Execute Sync` costs one context; a prepared statement keeps types only, never a cut, and each
//! execution reads a fresh one. Portals live until their transaction ends, each with the cut that it reads.

use std::sync::{Arc, Mutex, PoisonError};

use datafusion::common::ParamValues;
use datafusion::sql::sqlparser::tokenizer::Token;
use pgwire::api::results::FieldInfo;

use super::SqlError;
use super::connection::{Answer, Connection, no_statement, tag_of};
use super::link::Failure;
use super::params::{self, Parameter};
use super::plan::{self, Parsed, Planned};
use super::rows::{Columns, Cursor, Progress};
use super::session::Block;
use super::statement::{self, Kind};
use super::wire::{Bind, violation};

/// A prepared statement.
pub(super) struct Prepared {
    what: What,
    /// The types of parameters that the client named; 0 is none.
    oids: Vec<u32>,
    /// The highest `$n` in its text.
    parameter_count: usize,
    /// What a `Describe` has told the client, and what later rows must therefore be.
    described: Mutex<Option<(Vec<Parameter>, Columns)>>,
}

enum What {
    Empty,
    Other(Kind, String),
    Query(Box<Parsed>),
}

/// A prepared statement with its values, ready to run or running.
pub(super) struct Portal {
    prepared: Arc<Prepared>,
    values: Option<ParamValues>,
    formats: Vec<i16>,
    state: State,
}

enum State {
    Bound,
    Planned(Box<Planned>, Columns, Arc<Vec<FieldInfo>>),
    Running(Box<Cursor>),
    Done,
}

impl Prepared {
    fn described(&self) -> Option<(Vec<Parameter>, Columns)> {
        self.described.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn kind(&self) -> Kind {
        match &self.what {
            What::Other(kind, _) => kind.clone(),
            What::Empty | What::Query(_) => Kind::Query,
        }
    }
}

impl Connection {
    pub(super) fn parse(&mut self, name: String, sql: &str, oids: Vec<u32>) -> Result<(), Failure> {
        let mut pieces = statement::split(sql)?;
        let piece = pieces.pop();
        if !pieces.is_empty() {
            return Err(SqlError::new("42601", "cannot insert multiple commands into a prepared statement").into());
        }
        let mut parameter_count = 0;
        let what = match piece {
            None => What::Empty,
            Some(piece) => {
                let numbers = piece.tokens.iter().filter_map(|token| match token {
                    Token::Placeholder(name) => name.strip_prefix('$')?.parse::<u16>().ok(),
                    _ => None,
                });
                parameter_count = usize::from(numbers.max().unwrap_or(0));
                let kind = statement::classify(&piece);
                self.begin_statement(&kind)?;
                match kind {
                    Kind::Query => What::Query(Box::new(plan::parse(&piece)?)),
                    kind => What::Other(kind, piece.text),
                }
            }
        };
        if !name.is_empty() {
            if self.statements.contains_key(&name) {
                return Err(SqlError::new("42P05", format!("prepared statement \"{name}\" already exists")).into());
            }
            let max = self.shared.limits.prepared_statements_max;
            if self.statements.len() >= max {
                return Err(SqlError::new("54000", format!("a connection may prepare at most {max} statements"))
                    .with_hint("close those that are not used any more with DEALLOCATE")
                    .into());
            }
        }
        let prepared = Prepared { what, oids, parameter_count, described: Mutex::new(None) };
        self.statements.insert(name, Arc::new(prepared));
        self.sender.outbox.parse_complete();
        Ok(())
    }

    pub(super) async fn bind(&mut self, bind: Bind) -> Result<(), Failure> {
        let prepared = self.statements.get(&bind.statement).cloned().ok_or_else(|| no_statement(&bind.statement))?;
        self.begin_statement(&prepared.kind())?;
        self.portals.retain(|name, _| !name.is_empty() || !bind.portal.is_empty());
        if self.portals.contains_key(&bind.portal) {
            return Err(SqlError::new("42P03", format!("cursor \"{}\" already exists", bind.portal)).into());
        }
        let max = self.shared.limits.portals_max;
        if self.portals.len() >= max {
            return Err(SqlError::new("54000", format!("a connection may open at most {max} portals")).into());
        }
        let mut portal = Portal {
            prepared: prepared.clone(),
            values: None,
            formats: bind.result_formats.clone(),
            state: State::Bound,
        };
        let mut planned = None;
        let parameters = if prepared.parameter_count == 0 && prepared.oids.is_empty() {
            Vec::new()
        } else if params::are_named(&prepared.oids, prepared.parameter_count) {
            params::named(&prepared.oids)
        } else if let Some((parameters, _)) = prepared.described() {
            parameters
        } else if let What::Query(parsed) = &prepared.what {
            let fresh = self.plan(parsed).await?;
            let parameters = params::of_plan(&fresh.plan, &prepared.oids, &parsed.oid_lists)?;
            planned = Some(fresh);
            parameters
        } else {
            Vec::new()
        };
        let values = params::decode(&bind, &parameters)?;
        if !parameters.is_empty() {
            portal.values = Some(values);
        }
        if let (Some(planned), What::Query(parsed)) = (planned, &prepared.what) {
            portal.ready(planned, parsed)?;
        }
        self.portals.insert(bind.portal, portal);
        self.sender.outbox.bind_complete();
        Ok(())
    }

    pub(super) async fn describe_statement(&mut self, name: &str) -> Result<(), Failure> {
        let prepared = self.statements.get(name).cloned().ok_or_else(|| no_statement(name))?;
        self.begin_statement(&prepared.kind())?;
        match &prepared.what {
            What::Empty => {
                self.sender.outbox.parameter_description(&[]);
                self.sender.outbox.no_data();
            }
            What::Other(kind, _) => {
                self.sender.outbox.parameter_description(&[]);
                self.describe_other(kind, &[])?;
            }
            What::Query(parsed) => {
                let planned = self.plan(parsed).await?;
                let parameters = params::of_plan(&planned.plan, &prepared.oids, &parsed.oid_lists)?;
                let columns = Columns::of_query(&planned.plan, parsed);
                let oids: Vec<u32> = parameters.iter().map(|parameter| parameter.kind.oid()).collect();
                self.sender.outbox.parameter_description(&oids);
                self.sender.outbox.row_description(&columns.describe(&[])?);
                *prepared.described.lock().unwrap_or_else(PoisonError::into_inner) = Some((parameters, columns));
            }
        }
        Ok(())
    }

    pub(super) async fn describe_portal(&mut self, name: &str) -> Result<(), Failure> {
        let mut portal = self.portals.remove(name).ok_or_else(|| no_portal(name))?;
        let prepared = portal.prepared.clone();
        self.begin_statement(&prepared.kind())?;
        match &prepared.what {
            What::Empty => self.sender.outbox.no_data(),
            What::Other(kind, _) => self.describe_other(kind, &portal.formats)?,
            What::Query(parsed) => {
                if matches!(portal.state, State::Bound) {
                    let planned = self.plan(parsed).await?;
                    portal.ready(planned, parsed)?;
                }
                match &portal.state {
                    State::Planned(_, _, fields) => self.sender.outbox.row_description(fields),
                    State::Running(cursor) => self.sender.outbox.row_description(cursor.fields()),
                    State::Bound | State::Done => self.sender.outbox.no_data(),
                }
            }
        }
        self.portals.insert(name.to_owned(), portal);
        Ok(())
    }

    /// Describes a statement that is no query: `SHOW` has a column, the others have nothing.
    fn describe_other(&mut self, kind: &Kind, formats: &[i16]) -> Result<(), SqlError> {
        let names: &[&str] = match kind {
            Kind::Show(name) => &[name.as_str()],
            Kind::ShowAll => &["name", "setting", "description"],
            _ => {
                self.sender.outbox.no_data();
                return Ok(());
            }
        };
        let columns: Vec<(&str, Vec<String>)> = names.iter().map(|name| (*name, Vec::new())).collect();
        let cursor = self.cursor_of(*super::connection::table(&columns)?, formats)?;
        self.sender.outbox.row_description(cursor.fields());
        Ok(())
    }

    pub(super) async fn execute(&mut self, name: &str, rows_max: usize) -> Result<(), Failure> {
        // Out of the map while it runs: its own COMMIT may clear the map, and an error ends it.
        let mut portal = self.portals.remove(name).ok_or_else(|| no_portal(name))?;
        let prepared = portal.prepared.clone();
        let kind = prepared.kind();
        self.begin_statement(&kind)?;
        match &prepared.what {
            What::Empty => self.sender.outbox.empty_query(),
            What::Other(kind, text) => match self.run_other(kind, text).await? {
                Answer::Tag(tag) => self.sender.outbox.command_complete(&tag),
                Answer::Rows(batch, tag) => {
                    let mut cursor = self.cursor_of(*batch, &portal.formats)?;
                    cursor.send(&mut self.link, &mut self.sender, usize::MAX).await?;
                    self.sender.outbox.command_complete(tag);
                }
            },
            What::Query(parsed) => self.execute_query(&mut portal, parsed, rows_max).await?,
        }
        if self.block != Block::None || !matches!(kind, Kind::Commit | Kind::Rollback) {
            self.portals.insert(name.to_owned(), portal);
        }
        Ok(())
    }

    async fn execute_query(&mut self, portal: &mut Portal, parsed: &Parsed, rows_max: usize) -> Result<(), Failure> {
        if matches!(portal.state, State::Bound) {
            let planned = self.plan(parsed).await?;
            portal.ready(planned, parsed)?;
        }
        let mut cursor = match std::mem::replace(&mut portal.state, State::Done) {
            State::Planned(planned, columns, fields) => {
                let stream = self.link.guard(async { Ok(plan::execute(*planned).await?) }).await?;
                Box::new(Cursor::new(columns, fields, stream))
            }
            State::Running(cursor) => cursor,
            State::Bound | State::Done => {
                self.sender.outbox.command_complete(&tag_of(parsed.tag, 0));
                return Ok(());
            }
        };
        match cursor.send(&mut self.link, &mut self.sender, rows_max).await? {
            Progress::Done(rows) => self.sender.outbox.command_complete(&tag_of(parsed.tag, rows)),
            Progress::Suspended => {
                self.sender.outbox.portal_suspended();
                portal.state = State::Running(cursor);
            }
        }
        Ok(())
    }

    async fn plan(&mut self, parsed: &Parsed) -> Result<Planned, Failure> {
        let work = plan::plan(&self.shared, &self.identity, &self.settings, parsed);
        self.link.guard(async { Ok(work.await?) }).await
    }
}

impl Portal {
    /// Takes a plan for the portal: puts the values in, and fixes the columns.
    fn ready(&mut self, planned: Planned, parsed: &Parsed) -> Result<(), SqlError> {
        let Planned { context, mut plan } = planned;
        if let Some(values) = &self.values {
            plan = plan.replace_params_with_values(values)?;
        }
        let own = Columns::of_query(&plan, parsed);
        let columns = match self.prepared.described() {
            Some((_, told)) if told.fields.len() == own.fields.len() => told,
            Some((_, told)) => {
                return Err(violation(format!(
                    "cached plan must not change result type: {} columns were described, there are {}",
                    told.fields.len(),
                    own.fields.len()
                )));
            }
            None => own,
        };
        let fields = columns.describe(&self.formats)?;
        self.state = State::Planned(Box::new(Planned { context, plan }), columns, fields);
        Ok(())
    }
}

fn no_portal(name: &str) -> SqlError {
    SqlError::new("34000", format!("portal \"{name}\" does not exist"))
}
