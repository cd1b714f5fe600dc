//! Players' state: one row, and all rows page by page.

use std::ops::Range;

use galoo_proto::{Hlc, value::Cell};

use super::{View, sparse::SPARSE_ROWS_MIN};
use crate::{
    Error, Result,
    cell::{Current, NEVER, Past, Version, is_readable},
    engine::{Direction, Family},
    key::{self, CellKey, Selection},
};

/// Cells of one player, by (family, qualifier).
#[derive(Clone, Debug, PartialEq)]
pub struct RowCells {
    /// The player.
    pub player: String,
    /// Its cells as they are.
    pub cells: Vec<Cell>,
}

/// Rows and cells that one page of a [`StateScan`] holds at most, but for the last player's.
const PAGE_CELLS_MAX: usize = 8_192;

/// Which values of which cells are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CellQuery<'a> {
    /// The cells.
    pub selection: Selection<'a>,
    /// As they were at this time; a time that is still to come shows them as they are.
    pub as_of: Option<Hlc>,
    /// So many values of each cell at most, the newest.
    pub versions: usize,
}

impl<'a> From<Selection<'a>> for CellQuery<'a> {
    /// The newest value of each cell, as it is.
    fn from(selection: Selection<'a>) -> Self {
        Self { selection, as_of: None, versions: 1 }
    }
}

/// A [`CellQuery`] at work.
#[derive(Clone, Copy)]
struct When {
    time: Hlc,
    versions: usize,
}

impl View {
    /// Returns what is asked for of a player's cells; of a cell with several values the newest comes first.
    ///
    /// # Errors
    /// [`Error::HistoryGone`] for a time before the shard's garbage collection time.
    pub fn cells(&self, player: &str, query: &CellQuery<'_>) -> Result<Vec<Cell>> {
        let when = self.when(query)?;
        match &query.selection {
            Selection::Cell(family, qualifier) => {
                let key = key::cell(self.keyspace, player, family, qualifier);
                let row = self.reader.get(Family::Cells, &key)?;
                self.one(family, qualifier, &key, row, when)
            }
            selection => self.several(player, selection, when),
        }
    }

    /// Returns what is asked for of each of some players' cells: one cell of each costs one look for all.
    ///
    /// # Errors
    /// As [`View::cells`].
    pub fn cells_of_many(&self, players: &[&str], query: &CellQuery<'_>) -> Result<Vec<Vec<Cell>>> {
        let when = self.when(query)?;
        let Selection::Cell(family, qualifier) = &query.selection else {
            return players.iter().map(|player| self.several(player, &query.selection, when)).collect();
        };
        let keys: Vec<_> = players.iter().map(|player| key::cell(self.keyspace, player, family, qualifier)).collect();
        let rows = self.reader.get_many(Family::Cells, &keys)?;
        keys.iter().zip(rows).map(|(key, row)| self.one(family, qualifier, key, row, when)).collect()
    }

    fn when(&self, query: &CellQuery<'_>) -> Result<When> {
        let oldest = Hlc(self.state.gc_hlc);
        match query.as_of.filter(|as_of| *as_of < oldest) {
            Some(as_of) => Err(Error::HistoryGone { as_of, oldest }),
            None => Ok(When { time: query.as_of.unwrap_or(self.now).min(self.now), versions: query.versions }),
        }
    }

    fn one(&self, family: &str, qualifier: &str, key: &[u8], row: Option<Vec<u8>>, when: When) -> Result<Vec<Cell>> {
        let found = row.map_or(Ok(Vec::new()), |row| self.values(key, &row, when))?;
        Ok(found.into_iter().map(|value| cell(family.to_owned(), qualifier.to_owned(), value)).collect())
    }

    fn several(&self, player: &str, selection: &Selection<'_>, when: When) -> Result<Vec<Cell>> {
        let range = key::cells(self.keyspace, player, selection);
        let mut rows = self.reader.rows(Family::Cells, &range.start..&range.end, Direction::Forward)?;
        let mut cells = Vec::new();
        let mut dead = 0;
        while let Some((key, row)) = rows.next()? {
            let found = self.values(key, row, when)?;
            if found.is_empty() {
                dead += usize::from(!is_readable(Family::Cells, row, Hlc(self.state.gc_hlc)));
            } else if let CellKey::Cell { family, qualifier, .. } = key::parse_cell(key)? {
                cells.extend(found.into_iter().map(|value| cell(family.clone(), qualifier.clone(), value)));
            }
        }
        if dead >= SPARSE_ROWS_MIN {
            self.sparse.add(key::player(self.keyspace, player));
        }
        Ok(cells)
    }

    /// Returns the values that a cell had at a time, the newest first.
    fn values(&self, cell: &[u8], row: &[u8], When { time, versions }: When) -> Result<Vec<Version>> {
        let Current { version, values } = Current::decode(row)?;
        let mut left = values.into_iter().skip_while(|value| value.at > time).peekable();
        let mut found = Vec::new();
        while let Some(value) = left.next_if(|value| found.len() < versions && value.expires > time) {
            found.push(value);
        }
        // What fell off the row since then is behind what is in it.
        if time < version && left.peek().is_none() && found.len() < versions {
            let range = key::pasts(cell, time);
            let mut pasts = self.reader.rows(Family::History, &range.start..&range.end, Direction::Forward)?;
            while let Some((key, row)) = pasts.next()? {
                let past = Past::decode(row)?;
                // None that is older was there longer.
                if past.until <= time || found.len() == versions {
                    break;
                }
                found.push(Version { at: key::past_version(key)?, expires: NEVER, value: past.value });
            }
        }
        Ok(found)
    }

    /// Returns players' rows in order of (token, player), page by page: all, or those of some players.
    pub fn state_rows(&self, players: Option<&[String]>) -> StateScan {
        let mut ranges: Vec<_> = match players {
            None => vec![key::keyspace_range(self.keyspace)],
            Some(players) => players.iter().map(|player| key::player(self.keyspace, player)).collect(),
        };
        ranges.sort_unstable_by(|one, other| other.start.cmp(&one.start));
        ranges.dedup();
        StateScan { view: self.clone(), ranges }
    }

    /// Returns the families, qualifiers and kinds of all cells that were ever written.
    pub fn qualifiers(&self) -> Result<Vec<(String, String, crate::properties::Kinds)>> {
        let range = key::qualifiers(self.keyspace);
        let mut rows = self.reader.rows(Family::Meta, &range.start..&range.end, Direction::Forward)?;
        let mut qualifiers = Vec::new();
        while let Some((key, value)) = rows.next()? {
            let (family, qualifier) = key::qualifier_names(key)?;
            let kinds = value.first().copied().ok_or_else(|| Error::row("qualifier", "empty"))?;
            qualifiers.push((family, qualifier, crate::properties::Kinds(kinds)));
        }
        Ok(qualifiers)
    }
}

fn cell(family: String, qualifier: String, Version { at, expires, value }: Version) -> Cell {
    let expires_ms = if expires == NEVER { 0 } else { expires.millis() };
    Cell { family, qualifier, value: Some(value), version: at.0, expires_ms }
}

/// Players' rows, a page of whole rows at a time.
pub struct StateScan {
    view: View,
    /// What is to be read, the last one first.
    ranges: Vec<Range<Vec<u8>>>,
}

impl StateScan {
    fn page(&mut self) -> Result<Option<Vec<RowCells>>> {
        let mut page: Vec<RowCells> = Vec::new();
        let mut count = 0;
        while count < PAGE_CELLS_MAX
            && let Some(range) = self.ranges.pop()
        {
            let mut rows = self.view.reader.rows(Family::Cells, &range.start..&range.end, Direction::Forward)?;
            while let Some((key, value)) = rows.next()? {
                match key::parse_cell(key)? {
                    CellKey::Row { player } => {
                        if count >= PAGE_CELLS_MAX {
                            self.ranges.push(key.to_vec()..range.end.clone());
                            break;
                        }
                        page.push(RowCells { player, cells: Vec::new() });
                    }
                    CellKey::Cell { player, family, qualifier } => {
                        let current = Current::decode(value)?;
                        let living = |newest: &Version| newest.expires > self.view.now;
                        let Some(newest) = current.values.into_iter().next().filter(living) else { continue };
                        let row = page.last_mut().filter(|row| row.player == player);
                        let row = row.ok_or_else(|| Error::row("cell", format!("{player:?} has cells and no row")))?;
                        row.cells.push(cell(family, qualifier, newest));
                    }
                }
                count += 1;
            }
        }
        Ok(Some(page).filter(|page| !page.is_empty()))
    }
}

impl Iterator for StateScan {
    type Item = Result<Vec<RowCells>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.page().transpose()
    }
}
