//! Players' state: one row, and all rows page by page.

use std::ops::Range;

use galoo_proto::{
    Hlc,
    value::{Cell, Value},
};

use super::View;
use crate::{
    Error, Result,
    cell::{Newest, Past},
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

impl View {
    /// Returns the selected cells of a player that are not deleted: as they are, or as they were at a time.
    ///
    /// A time that is still to come shows them as they are.
    ///
    /// # Errors
    /// [`Error::HistoryGone`] for a time before the shard's garbage collection time.
    pub fn cells(&self, player: &str, selection: &Selection<'_>, as_of: Option<Hlc>) -> Result<Vec<Cell>> {
        self.check_kept(as_of)?;
        match selection {
            Selection::Cell(family, qualifier) => {
                let key = key::cell(self.keyspace, player, family, qualifier);
                let row = self.reader.get(Family::Cells, &key)?;
                self.one(family, qualifier, &key, row, as_of)
            }
            _ => self.several(player, selection, as_of),
        }
    }

    /// Returns the selected cells of each of some players, as [`View::cells`] does: one cell of each costs one look for all.
    pub fn cells_of_many(
        &self,
        players: &[&str],
        selection: &Selection<'_>,
        as_of: Option<Hlc>,
    ) -> Result<Vec<Vec<Cell>>> {
        self.check_kept(as_of)?;
        let Selection::Cell(family, qualifier) = selection else {
            return players.iter().map(|player| self.several(player, selection, as_of)).collect();
        };
        let keys: Vec<_> = players.iter().map(|player| key::cell(self.keyspace, player, family, qualifier)).collect();
        let rows = self.reader.get_many(Family::Cells, &keys)?;
        keys.iter().zip(rows).map(|(key, row)| self.one(family, qualifier, key, row, as_of)).collect()
    }

    fn check_kept(&self, as_of: Option<Hlc>) -> Result<()> {
        let oldest = Hlc(self.state.gc_hlc);
        match as_of.filter(|as_of| *as_of < oldest) {
            Some(as_of) => Err(Error::HistoryGone { as_of, oldest }),
            None => Ok(()),
        }
    }

    fn one(
        &self,
        family: &str,
        qualifier: &str,
        key: &[u8],
        row: Option<Vec<u8>>,
        as_of: Option<Hlc>,
    ) -> Result<Vec<Cell>> {
        let found = row.map(|row| self.at(key, &row, as_of)).transpose()?.flatten();
        let cell = |(version, value)| cell(family.to_owned(), qualifier.to_owned(), version, value);
        Ok(found.map(cell).into_iter().collect())
    }

    fn several(&self, player: &str, selection: &Selection<'_>, as_of: Option<Hlc>) -> Result<Vec<Cell>> {
        let range = key::cells(self.keyspace, player, selection);
        let mut rows = self.reader.rows(Family::Cells, &range.start..&range.end, Direction::Forward)?;
        let mut cells = Vec::new();
        while let Some((key, row)) = rows.next()? {
            if let Some((version, value)) = self.at(key, row, as_of)?
                && let CellKey::Cell { family, qualifier, .. } = key::parse_cell(key)?
            {
                cells.push(cell(family, qualifier, version, value));
            }
        }
        Ok(cells)
    }

    /// Returns a cell's value at a time, or its newest, with its version.
    fn at(&self, cell: &[u8], row: &[u8], as_of: Option<Hlc>) -> Result<Option<(Hlc, Value)>> {
        let newest = Newest::decode(row)?;
        let Some(as_of) = as_of.filter(|as_of| *as_of < newest.version) else {
            return Ok(newest.value.map(|value| (newest.version, value)));
        };
        let range = key::pasts(cell, as_of);
        let mut pasts = self.reader.rows(Family::History, &range.start..&range.end, Direction::Forward)?;
        let Some((key, row)) = pasts.next()? else { return Ok(None) };
        let (version, past) = (key::past_version(key)?, Past::decode(row)?);
        // Between that time and the value that came next the cell was deleted.
        Ok((as_of < past.until).then_some((version, past.value)))
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

fn cell(family: String, qualifier: String, version: Hlc, value: Value) -> Cell {
    Cell { family, qualifier, value: Some(value), version: version.0 }
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
                        let newest = Newest::decode(value)?;
                        let Some(value) = newest.value else { continue };
                        let row = page.last_mut().filter(|row| row.player == player);
                        let row = row.ok_or_else(|| Error::row("cell", format!("{player:?} has cells and no row")))?;
                        row.cells.push(cell(family, qualifier, newest.version, value));
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
