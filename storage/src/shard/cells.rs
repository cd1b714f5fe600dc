//! One player's state: an atomic change under preconditions, with the events that tell of it.
//!
//! A change is worked out on drafts of the cells that it meets; when everything fits, the drafts become rows. What a cell
//! was goes to the history, so that state can be read as it was until the shard's garbage collection time passes.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    ops::Range,
};

use galoo_proto::{
    Hlc, Token,
    command::{MutatePlayer, Mutated, Outcome, Rejection, outcome, rejection::Reason},
    limits::{CELLS_READ_BYTES_MAX, ROW_BYTES_MAX, ROW_CELLS_MAX},
    value::{Mutation, Null, Precondition, Value, mutation::Change, precondition::Test, value::Kind},
};
use prost::Message;
use xxhash_rust::xxh3::xxh3_64;

use super::{change, families::Keeping, rejected, turn::Turn};
use crate::{
    Result,
    cell::{Current, Header, NEVER, Past, Version},
    engine::{Direction, Family},
    key::{self, Selection},
};

/// A cell while a command is worked out.
#[derive(Default)]
struct Draft {
    /// Its values as the commands before this one left them, the newest first.
    stored: Vec<Version>,
    /// Bytes of its key and row. 0 where it is not there: deleted, or expired; whether the row of one that expired is still
    /// there is each replica's own.
    stored_bytes: u64,
    /// What the command makes of it.
    value: Option<Value>,
    /// How; `None` while the command has not touched it.
    keeping: Option<Keeping>,
    /// The command has deleted it, whatever it wrote behind that.
    deleted: bool,
}

/// A cell that a command changed.
struct Changed {
    cell: Vec<u8>,
    row: Vec<u8>,
    /// When it expires; `None` where it was deleted.
    expires: Option<Hlc>,
    /// Bytes that it counted for before; 0 where it was not there.
    stored_bytes: u64,
    /// Versions that are not in the row any more.
    fallen: Vec<(Hlc, Past)>,
}

impl Draft {
    fn new(cell: &[u8], row: Option<&[u8]>, now: Hlc) -> Result<Self> {
        let Some(row) = row else { return Ok(Self::default()) };
        let Current { values: stored, .. } = Current::decode(row)?;
        let newest = stored.first().filter(|newest| newest.expires > now);
        let stored_bytes = newest.map_or(0, |_| (cell.len() + row.len()) as u64);
        let value = newest.map(|newest| newest.value.clone());
        Ok(Self { stored, stored_bytes, value, ..Self::default() })
    }

    fn is_there(&self) -> bool {
        self.stored_bytes > 0
    }

    /// When it was last changed; 0 where it is not there.
    fn version(&self) -> u64 {
        self.stored.first().filter(|_| self.is_there()).map_or(0, |newest| newest.at.0)
    }

    fn set(&mut self, value: Option<Value>, keeping: Keeping) {
        self.deleted |= value.is_none();
        self.value = value;
        self.keeping = Some(keeping);
    }

    /// Returns what to write, if anything: what is not there and is deleted stays as it is.
    fn changed(self, cell: Vec<u8>, now: Hlc) -> Option<Changed> {
        let Keeping { versions_max, expires } = self.keeping?;
        if self.value.is_none() && !self.is_there() {
            return None;
        }
        let mut row = Current { version: now, values: Vec::new() };
        row.values.extend(self.value.map(|value| Version { at: now, expires, value }));
        let mut fallen = Vec::new();
        let mut ends = NEVER;
        for older in self.stored {
            ends = ends.min(older.expires);
            if !self.deleted && row.values.len() < versions_max && ends > now {
                row.values.push(older);
            } else {
                fallen.push((older.at, Past { until: ends.min(now), value: older.value }));
            }
        }
        let expires = row.values.first().map(|newest| newest.expires);
        Some(Changed { cell, row: row.encode(), expires, stored_bytes: self.stored_bytes, fallen })
    }
}

/// The cells that a command meets, by key.
type Drafts = BTreeMap<Vec<u8>, Draft>;

impl Turn<'_> {
    pub(super) fn mutate(&mut self, mut mutate: MutatePlayer) -> Result<Outcome> {
        if !self.owns(Token::of(&mutate.player_id)) {
            let detail = format!("player {:?} is not in the shard's range", mutate.player_id);
            return Ok(rejected(Reason::Reroute, 0, detail));
        }
        let batch = mutate.batch.take();
        let content_hash = xxh3_64(&mutate.encode_to_vec());
        if let Some(batch) = &batch
            && let Some(outcome) = self.repeat_of_mutation(batch, content_hash)?
        {
            return Ok(outcome);
        }
        let outcome = self.change(mutate)?;
        if let Some(batch) = &batch {
            self.remember(batch, content_hash, 0, &outcome)?;
        }
        Ok(outcome)
    }

    fn change(&mut self, mutate: MutatePlayer) -> Result<Outcome> {
        let row_key = key::row(self.shard.keyspace, &mutate.player_id);
        let mut header = self.header(&row_key)?;
        let mut drafts = Drafts::new();
        for (index, condition) in mutate.preconditions.iter().enumerate() {
            if is_of_row(condition) {
                let counted = self.counted(&mutate.player_id, header)?;
                if counted != header {
                    // Kept whatever becomes of the command: the next one need not count again.
                    self.set(Family::Cells, row_key.clone(), counted.encode());
                    header = counted;
                }
            }
            if let Some(failed) = self.failed(&mut drafts, &mutate.player_id, header, condition)? {
                return Ok(refused(Reason::PreconditionFailed, index, failed));
            }
        }
        let (mut values, mut answer_bytes) = (Vec::with_capacity(mutate.mutations.len()), 0);
        for (index, mutation) in mutate.mutations.iter().enumerate() {
            match self.draft_change(&mut drafts, &mutate.player_id, mutation)? {
                Ok(value) => {
                    let value = value.unwrap_or(Value { kind: Some(Kind::Null(Null::Null.into())) });
                    answer_bytes += value.encoded_len();
                    values.push(value);
                }
                Err(misfit) => return Ok(refused(Reason::CellConflict, index, misfit)),
            }
        }
        // Lists and sets weigh more than what is added to them.
        if answer_bytes > CELLS_READ_BYTES_MAX {
            let limit = CELLS_READ_BYTES_MAX as u64;
            let detail = format!("the new values have {answer_bytes} bytes; an answer takes {limit}");
            return Ok(rejected(Reason::CellConflict, limit, detail));
        }
        let mut learned = Vec::new();
        for mutation in &mutate.mutations {
            let cell = key::cell(self.shard.keyspace, &mutate.player_id, &mutation.family, &mutation.qualifier);
            if let Some(value) = drafts.get(&cell).and_then(|draft| draft.value.as_ref()) {
                learned.push((&mutation.family, &mutation.qualifier, value_kind(value)));
            }
        }
        let now = self.hlc;
        let changed: Vec<_> = drafts.into_iter().filter_map(|(cell, draft)| draft.changed(cell, now)).collect();
        let mut counted = grown(header, &changed, now);
        if counted.is_err() {
            // Perhaps only with cells that expired since they were counted.
            counted = grown(self.counted(&mutate.player_id, header)?, &changed, now);
        }
        let header = match counted {
            Ok(grown) => grown,
            Err(too_large) => return Ok(too_large),
        };
        for (family, qualifier, kind) in learned {
            self.learn_qualifier(family, qualifier, kind)?;
        }
        if !changed.is_empty() {
            self.set(Family::Cells, row_key, header.encode());
            self.state.state_hlc = now.0;
        }
        changed.into_iter().for_each(|changed| self.store_cell(changed));
        let first_seq = if mutate.events.is_empty() { 0 } else { self.state.last_seq + 1 };
        self.learn_properties(mutate.properties);
        for event in &mutate.events {
            self.store(event);
        }
        let mutated = Mutated { version: self.hlc.0, values, duplicate: false, first_seq };
        Ok(Outcome { result: Some(outcome::Result::Mutated(mutated)) })
    }

    /// Returns what a failed precondition found.
    fn failed(
        &self,
        drafts: &mut Drafts,
        player: &str,
        header: Header,
        condition: &Precondition,
    ) -> Result<Option<Misfit>> {
        let (name, version, value) = if is_of_row(condition) {
            // A row without cells is as good as none: whether its header is still there is each replica's own.
            ("the row".to_owned(), if header.cells == 0 { 0 } else { header.version.0 }, None)
        } else {
            let draft = self.draft(drafts, player, &condition.family, &condition.qualifier)?;
            (format!("{}:{}", condition.family, condition.qualifier), draft.version(), draft.value.clone())
        };
        let (holds, said) = match &condition.test {
            Some(Test::Equals(equals)) => (value.as_ref() == Some(equals), "is not as expected".to_owned()),
            None | Some(Test::Absent(_)) => (version == 0, "is there".to_owned()),
            Some(Test::Exists(_)) => (version != 0, "is not there".to_owned()),
            Some(Test::Version(expected)) => {
                (version == *expected, format!("has version {}, not {}", Hlc(version), Hlc(*expected)))
            }
            Some(Test::Within(range)) => {
                (change::is_within(value.as_ref(), range), "is no integer in the range".to_owned())
            }
        };
        Ok((!holds).then(|| Misfit { found: value, version, detail: format!("{name} {said}") }))
    }

    /// Drafts a change, and returns the value that it leaves; or how it does not fit.
    fn draft_change(
        &self,
        drafts: &mut Drafts,
        player: &str,
        mutation: &Mutation,
    ) -> Result<Result<Option<Value>, Misfit>> {
        let keeping = self.keeping(&mutation.family, mutation.ttl_ms);
        let selection = match &mutation.change {
            Some(Change::DeleteRow(_)) => Selection::Row,
            Some(Change::DeleteFamily(_)) => Selection::Family(&mutation.family),
            _ => {
                let draft = self.draft(drafts, player, &mutation.family, &mutation.qualifier)?;
                return Ok(match change::changed(draft.value.as_ref(), mutation) {
                    Ok(value) => {
                        draft.set(value.clone(), keeping);
                        Ok(value)
                    }
                    Err(said) => Err(Misfit {
                        found: draft.value.clone(),
                        version: draft.version(),
                        detail: format!("{}:{} {said}", mutation.family, mutation.qualifier),
                    }),
                });
            }
        };
        let range = key::cells(self.shard.keyspace, player, &selection);
        for (cell, row) in self.cell_rows(&range)? {
            let draft = Draft::new(&cell, Some(&row), self.hlc)?;
            if let (Entry::Vacant(place), true) = (drafts.entry(cell), draft.is_there()) {
                place.insert(draft);
            }
        }
        drafts.range_mut(range).for_each(|(_, draft)| draft.set(None, keeping));
        Ok(Ok(None))
    }

    fn draft<'d>(&self, drafts: &'d mut Drafts, player: &str, family: &str, qualifier: &str) -> Result<&'d mut Draft> {
        let cell = key::cell(self.shard.keyspace, player, family, qualifier);
        Ok(match drafts.entry(cell) {
            Entry::Occupied(draft) => draft.into_mut(),
            Entry::Vacant(place) => {
                let row = self.get(Family::Cells, place.key())?;
                let draft = Draft::new(place.key(), row.as_deref(), self.hlc)?;
                place.insert(draft)
            }
        })
    }

    /// Rows of cells as the commands before this one left them.
    fn cell_rows(&self, range: &Range<Vec<u8>>) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        let mut found = BTreeMap::new();
        let mut rows = self.shard.engine.rows(Family::Cells, &range.start..&range.end, Direction::Forward)?;
        while let Some((cell, row)) = rows.next()? {
            found.insert(cell.to_vec(), row.to_vec());
        }
        found.extend(self.set_rows(Family::Cells, range).map(|(cell, row)| (cell.clone(), row.clone())));
        Ok(found)
    }

    /// A row's header; one whose cells have all expired is as good as none.
    fn header(&self, row_key: &[u8]) -> Result<Header> {
        let header = self.get(Family::Cells, row_key)?.map_or(Ok(Header::default()), |row| Header::decode(&row))?;
        Ok(if header.expires_last <= self.hlc { Header::default() } else { header })
    }

    /// Returns a row's header that counts no cell that has expired; reads the row if there may be one.
    fn counted(&self, player: &str, header: Header) -> Result<Header> {
        if header.expires_first > self.hlc {
            return Ok(header);
        }
        let mut counted = Header { version: header.version, ..Header::default() };
        for (cell, row) in self.cell_rows(&key::cells(self.shard.keyspace, player, &Selection::Row))? {
            let expires = Current::decode(&row)?.expires();
            if expires > self.hlc {
                counted.add((cell.len() + row.len()) as u64, expires);
            }
        }
        Ok(counted)
    }

    /// Writes a cell that was changed, and what it was.
    fn store_cell(&mut self, Changed { cell, row, expires, fallen, .. }: Changed) {
        for (version, past) in fallen {
            self.put(Family::History, key::past(&cell, version), past.encode());
        }
        if let Some(expires) = expires.filter(|expires| *expires != NEVER) {
            self.state.expires_hlc = self.state.expires_hlc.max(expires.0);
        }
        self.set(Family::Cells, cell, row);
    }

    /// Adds a qualifier and its value's kind to the catalog.
    fn learn_qualifier(&mut self, family: &str, qualifier: &str, kind: u8) -> Result<()> {
        let catalog = key::qualifier(self.shard.keyspace, family, qualifier);
        let known = self.get(Family::Meta, &catalog)?.and_then(|kinds| kinds.first().copied()).unwrap_or(0);
        let all = known | kind;
        if all != known {
            self.set(Family::Meta, catalog, vec![all]);
        }
        Ok(())
    }
}

/// Returns a row's header after a change, or the refusal of one that makes a row too large; one that makes a row smaller
/// is never refused.
fn grown(header: Header, changed: &[Changed], now: Hlc) -> Result<Header, Outcome> {
    let mut grown = header;
    for gone in changed.iter().filter(|changed| changed.stored_bytes > 0) {
        grown.remove(gone.stored_bytes);
    }
    for Changed { cell, row, expires, .. } in changed {
        if let Some(expires) = expires {
            grown.add((cell.len() + row.len()) as u64, *expires);
        }
    }
    for (what, before, after, limit) in [
        ("cells", u64::from(header.cells), u64::from(grown.cells), ROW_CELLS_MAX),
        ("bytes", header.bytes, grown.bytes, ROW_BYTES_MAX),
    ] {
        if after > before && after > limit {
            let detail = format!("the row would have {after} {what}; the limit is {limit}");
            return Err(rejected(Reason::RowTooLarge, limit, detail));
        }
    }
    Ok(Header { version: now, ..grown })
}

/// Whether a test is of the whole row.
fn is_of_row(condition: &Precondition) -> bool {
    condition.family.is_empty() && condition.qualifier.is_empty()
}

/// What a refused command met.
struct Misfit {
    found: Option<Value>,
    version: u64,
    detail: String,
}

fn refused(reason: Reason, index: usize, misfit: Misfit) -> Outcome {
    let rejection = Rejection {
        reason: reason.into(),
        index: u32::try_from(index).unwrap_or(u32::MAX),
        found: misfit.found,
        found_version: misfit.version,
        detail: misfit.detail,
        ..Default::default()
    };
    Outcome { result: Some(outcome::Result::Rejected(rejection)) }
}

/// The kind of a cell's value, as in [`crate::properties::Kinds`]; bytes and JSON count as nested (shown as text).
fn value_kind(value: &Value) -> u8 {
    use crate::properties::{Kinds, Property};
    match &value.kind {
        None | Some(Kind::Null(_)) => Kinds::NULL,
        Some(Kind::Bool(_)) => Kinds::BOOL,
        Some(Kind::Int(int)) => Property::Int(*int).kind(),
        Some(Kind::Float(_)) => Kinds::FLOAT,
        Some(Kind::String(_)) => Kinds::STRING,
        Some(Kind::Bytes(_) | Kind::Json(_)) => Kinds::NESTED,
    }
    .0
}
