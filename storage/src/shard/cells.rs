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

use super::{change, rejected, turn::Turn};
use crate::{
    Result,
    cell::{Header, Newest, Past},
    engine::{Direction, Family},
    key::{self, Selection},
};

/// A cell while a command is worked out.
struct Draft {
    /// As the commands before this one left it; `None` where it is not there.
    stored: Option<(Hlc, Value)>,
    value: Option<Value>,
    touched: bool,
}

impl Draft {
    fn new(row: Option<&[u8]>) -> Result<Self> {
        let newest = row.map(Newest::decode).transpose()?;
        let stored = newest.and_then(|newest| Some((newest.version, newest.value?)));
        Ok(Self { value: stored.as_ref().map(|(_, value)| value.clone()), stored, touched: false })
    }

    /// When it was last changed; 0 where it is not there.
    fn version(&self) -> u64 {
        self.stored.as_ref().map_or(0, |(version, _)| version.0)
    }

    fn set(&mut self, value: Option<Value>) {
        self.value = value;
        self.touched = true;
    }

    /// Whether it leaves something else: what is not there and is deleted stays as it is.
    fn changes(&self) -> bool {
        self.touched && (self.stored.is_some() || self.value.is_some())
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
        let header = self.get(Family::Cells, &row_key)?.map_or(Ok(Header::default()), |row| Header::decode(&row))?;
        let mut drafts = Drafts::new();
        for (index, condition) in mutate.preconditions.iter().enumerate() {
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
        let grown = match grown(header, &drafts, self.hlc) {
            Ok(grown) => grown,
            Err(too_large) => return Ok(too_large),
        };
        for mutation in &mutate.mutations {
            let cell = key::cell(self.shard.keyspace, &mutate.player_id, &mutation.family, &mutation.qualifier);
            if let Some(value) = drafts.get(&cell).and_then(|draft| draft.value.as_ref()) {
                self.learn_qualifier(&mutation.family, &mutation.qualifier, value)?;
            }
        }
        if drafts.values().any(Draft::changes) {
            self.set(Family::Cells, row_key, grown.encode());
            self.state.state_hlc = self.hlc.0;
        }
        for (cell, draft) in drafts.into_iter().filter(|(_, draft)| draft.changes()) {
            self.store_cell(cell, draft);
        }
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
        let is_row = condition.family.is_empty() && condition.qualifier.is_empty();
        let (name, version, value) = if is_row {
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
        let selection = match &mutation.change {
            Some(Change::DeleteRow(_)) => Selection::Row,
            Some(Change::DeleteFamily(_)) => Selection::Family(&mutation.family),
            _ => {
                let draft = self.draft(drafts, player, &mutation.family, &mutation.qualifier)?;
                return Ok(match change::changed(draft.value.as_ref(), mutation) {
                    Ok(value) => {
                        draft.set(value.clone());
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
            let draft = Draft::new(Some(&row))?;
            if let (Entry::Vacant(place), Some(_)) = (drafts.entry(cell), &draft.stored) {
                place.insert(draft);
            }
        }
        drafts.range_mut(range).for_each(|(_, draft)| draft.set(None));
        Ok(Ok(None))
    }

    fn draft<'d>(&self, drafts: &'d mut Drafts, player: &str, family: &str, qualifier: &str) -> Result<&'d mut Draft> {
        let cell = key::cell(self.shard.keyspace, player, family, qualifier);
        Ok(match drafts.entry(cell) {
            Entry::Occupied(draft) => draft.into_mut(),
            Entry::Vacant(place) => {
                let row = self.get(Family::Cells, place.key())?;
                place.insert(Draft::new(row.as_deref())?)
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

    /// Writes a cell that was changed, and what it was.
    fn store_cell(&mut self, cell: Vec<u8>, Draft { stored, value, .. }: Draft) {
        if let Some((version, value)) = stored {
            self.put(Family::History, key::past(&cell, version), Past { until: self.hlc, value }.encode());
        }
        self.set(Family::Cells, cell, Newest { version: self.hlc, value }.encode());
    }

    /// Adds a qualifier and its value's kind to the catalog.
    fn learn_qualifier(&mut self, family: &str, qualifier: &str, value: &Value) -> Result<()> {
        let catalog = key::qualifier(self.shard.keyspace, family, qualifier);
        let known = self.get(Family::Meta, &catalog)?.and_then(|kinds| kinds.first().copied()).unwrap_or(0);
        let all = known | value_kind(value);
        if all != known {
            self.set(Family::Meta, catalog, vec![all]);
        }
        Ok(())
    }
}

/// Returns a row's header after a change, or the refusal of one that makes a row too large; one that makes a row smaller
/// is never refused.
fn grown(header: Header, drafts: &Drafts, now: Hlc) -> Result<Header, Outcome> {
    let (mut cells, mut bytes) = (i128::from(header.cells), i128::from(header.bytes));
    for (cell, draft) in drafts.iter().filter(|(_, draft)| draft.touched) {
        let bytes_of = |value: &Value| (cell.len() + Newest::row_bytes(value)) as i128;
        let (before, after) =
            (draft.stored.as_ref().map(|(_, value)| bytes_of(value)), draft.value.as_ref().map(bytes_of));
        cells += i128::from(after.is_some()) - i128::from(before.is_some());
        bytes += after.unwrap_or(0) - before.unwrap_or(0);
    }
    for (what, before, after, limit) in [
        ("cells", i128::from(header.cells), cells, ROW_CELLS_MAX),
        ("bytes", i128::from(header.bytes), bytes, ROW_BYTES_MAX),
    ] {
        if after > before && after > i128::from(limit) {
            let detail = format!("the row would have {after} {what}; the limit is {limit}");
            return Err(rejected(Reason::RowTooLarge, limit, detail));
        }
    }
    let cells = u32::try_from(cells).unwrap_or_default();
    Ok(Header { version: now, cells, bytes: u64::try_from(bytes).unwrap_or_default() })
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
