//! One player's state: an atomic change under preconditions.

use std::{
    collections::{HashMap, hash_map::Entry},
    ops::Range,
};

use galoo_proto::{
    Hlc, Token,
    command::{MutatePlayer, Mutated, Outcome, Rejection, outcome, rejection::Reason},
    limits::ROW_CELLS_MAX,
    record,
    value::{Null, Value, mutation::Change, value::Kind},
};
use prost::Message;
use xxhash_rust::xxh3::xxh3_64;

use super::{rejected, turn::Turn};
use crate::{
    Error, Result,
    engine::{Direction, Family, Reader},
    key,
};

/// A cell as it stands while a command is worked out: the version in the engine, and the value that it will have.
struct Draft {
    stored_version: Option<Hlc>,
    value: Option<Value>,
    touched: bool,
}

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
        let outcome = self.change(&mutate)?;
        if let Some(batch) = &batch {
            self.remember(batch, content_hash, 0, &outcome)?;
        }
        Ok(outcome)
    }

    fn change(&mut self, mutate: &MutatePlayer) -> Result<Outcome> {
        let keyspace = self.shard.keyspace;
        let player = mutate.player_id.as_str();
        let mut drafts: HashMap<(&str, &str), Draft> = HashMap::new();
        for (index, condition) in mutate.preconditions.iter().enumerate() {
            let draft = self.draft(&mut drafts, player, &condition.family, &condition.qualifier)?;
            if draft.value != condition.equals {
                let rejection = Rejection {
                    reason: Reason::PreconditionFailed.into(),
                    index: u32::try_from(index).unwrap_or(u32::MAX),
                    found: draft.value.clone(),
                    detail: format!("{}:{} is not as expected", condition.family, condition.qualifier),
                    ..Default::default()
                };
                return Ok(Outcome { result: Some(outcome::Result::Rejected(rejection)) });
            }
        }
        let mut values = Vec::with_capacity(mutate.mutations.len());
        for (index, mutation) in mutate.mutations.iter().enumerate() {
            let draft = self.draft(&mut drafts, player, &mutation.family, &mutation.qualifier)?;
            let value = match &mutation.change {
                Some(Change::Put(value)) => Some(value.clone()),
                Some(Change::Delete(_)) | None => None,
                Some(Change::Increment(by)) => match added(draft.value.as_ref(), *by) {
                    Ok(value) => Some(value),
                    Err(detail) => {
                        let rejection = Rejection {
                            reason: Reason::CellConflict.into(),
                            index: u32::try_from(index).unwrap_or(u32::MAX),
                            found: draft.value.clone(),
                            detail: format!("{}:{} {detail}", mutation.family, mutation.qualifier),
                            ..Default::default()
                        };
                        return Ok(Outcome { result: Some(outcome::Result::Rejected(rejection)) });
                    }
                },
            };
            values.push(value.clone().unwrap_or(Value { kind: Some(Kind::Null(Null::Null.into())) }));
            draft.value = value;
            draft.touched = true;
        }
        let row_key = key::row(keyspace, player);
        let mut row = match self.get(Family::Cells, &row_key)? {
            Some(bytes) => record::Row::decode(bytes.as_slice()).map_err(|error| Error::row("row", error))?,
            None => record::Row::default(),
        };
        let touched = || drafts.iter().filter(|(_, draft)| draft.touched);
        let removed = touched().filter(|(_, draft)| draft.stored_version.is_some()).count() as u64;
        let written = touched().filter(|(_, draft)| draft.value.is_some()).count() as u64;
        let cells = row.cells + written - removed;
        if cells > ROW_CELLS_MAX && written > removed {
            let detail = format!("the row would have {cells} cells; the limit is {ROW_CELLS_MAX}");
            return Ok(rejected(Reason::RowTooLarge, ROW_CELLS_MAX, detail));
        }
        for ((family, qualifier), draft) in drafts.into_iter().filter(|(_, draft)| draft.touched) {
            if let Some(version) = draft.stored_version {
                self.delete(Family::Cells, key::cell(keyspace, player, family, qualifier, version));
            }
            if let Some(value) = &draft.value {
                let cell = key::cell(keyspace, player, family, qualifier, self.hlc);
                self.put(Family::Cells, cell, value.encode_to_vec());
                let catalog = key::qualifier(keyspace, family, qualifier);
                let kinds = value_kind(value);
                let known = self.get(Family::Meta, &catalog)?.and_then(|kinds| kinds.first().copied());
                if known.unwrap_or(0) | kinds != known.unwrap_or(0) {
                    self.set(Family::Meta, catalog, vec![known.unwrap_or(0) | kinds]);
                }
            }
            let versions = key::cells(keyspace, player, Some(family), Some(qualifier)).start;
            self.cells.insert(versions, draft.value.map(|value| (self.hlc, value)));
        }
        row.cells = cells;
        row.version = self.hlc.0;
        self.set(Family::Cells, row_key, row.encode_to_vec());
        let mutated = Mutated { version: self.hlc.0, values, duplicate: false };
        Ok(Outcome { result: Some(outcome::Result::Mutated(mutated)) })
    }

    fn draft<'d, 'n>(
        &self,
        drafts: &'d mut HashMap<(&'n str, &'n str), Draft>,
        player: &str,
        family: &'n str,
        qualifier: &'n str,
    ) -> Result<&'d mut Draft> {
        Ok(match drafts.entry((family, qualifier)) {
            Entry::Occupied(draft) => draft.into_mut(),
            Entry::Vacant(place) => {
                let versions = key::cells(self.shard.keyspace, player, Some(family), Some(qualifier));
                let found = match self.cells.get(&versions.start) {
                    Some(changed) => changed.clone(),
                    None => newest(self.shard.engine.as_ref(), versions)?,
                };
                let (stored_version, value) = found.unzip();
                place.insert(Draft { stored_version, value, touched: false })
            }
        })
    }
}

/// Reads the newest of a cell's versions.
fn newest(reader: &dyn Reader, versions: Range<Vec<u8>>) -> Result<Option<(Hlc, Value)>> {
    let mut rows = reader.rows(Family::Cells, &versions.start..&versions.end, Direction::Forward)?;
    let Some((key, value)) = rows.next()? else { return Ok(None) };
    let key::CellKey::Cell { version, .. } = key::parse_cell(key)? else {
        return Err(Error::row("cell key", "a row's header among cells"));
    };
    Ok(Some((version, Value::decode(value).map_err(|error| Error::row("cell", error))?)))
}

fn added(value: Option<&Value>, by: i64) -> Result<Value, String> {
    let old = match value.and_then(|value| value.kind.as_ref()) {
        None => 0,
        Some(Kind::Int(int)) => *int,
        Some(_) => return Err("is no integer".to_owned()),
    };
    let new = old.checked_add(by).ok_or_else(|| format!("is {old}; adding {by} overflows 64 bits"))?;
    Ok(Value { kind: Some(Kind::Int(new)) })
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
