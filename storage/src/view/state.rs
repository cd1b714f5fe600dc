//! Players' state: one row, and all rows page by page.

use std::ops::Range;

use galoo_proto::{
    Hlc,
    value::{Cell, Value},
};
use prost::Message;

use super::View;
use crate::{
    Error, Result,
    engine::{Direction, Family},
    key::{self, CellKey},
};

/// Cells of one player, by (family, qualifier).
#[derive(Clone, Debug, PartialEq)]
pub struct RowCells {
    /// The player.
    pub player: String,
    /// Its cells, newest version only.
    pub cells: Vec<Cell>,
}

/// Rows and cells that one page of a [`StateScan`] holds at most, but for the last player's.
const PAGE_CELLS_MAX: usize = 8_192;

impl View {
    /// Returns a player's cells: all, of one family, or one.
    pub fn cells(&self, player: &str, family: Option<&str>, qualifier: Option<&str>) -> Result<Vec<Cell>> {
        let range = key::cells(self.keyspace, player, family, qualifier);
        let mut rows = self.reader.rows(Family::Cells, &range.start..&range.end, Direction::Forward)?;
        let mut cells: Vec<Cell> = Vec::new();
        while let Some((key, value)) = rows.next()? {
            let CellKey::Cell { family, qualifier, version, .. } = key::parse_cell(key)? else { continue };
            push_newest(&mut cells, family, qualifier, version, value)?;
        }
        Ok(cells)
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

fn push_newest(cells: &mut Vec<Cell>, family: String, qualifier: String, version: Hlc, value: &[u8]) -> Result<()> {
    if cells.last().is_some_and(|last| last.family == family && last.qualifier == qualifier) {
        return Ok(());
    }
    let value = Some(Value::decode(value).map_err(|error| Error::row("cell", error))?);
    cells.push(Cell { family, qualifier, value, version: version.0 });
    Ok(())
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
                    CellKey::Cell { player, family, qualifier, version } => {
                        let row = page.last_mut().filter(|row| row.player == player);
                        let row = row.ok_or_else(|| Error::row("cell", format!("{player:?} has cells and no row")))?;
                        push_newest(&mut row.cells, family, qualifier, version, value)?;
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
