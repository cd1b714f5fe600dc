//! What the demo says: short lines and tables for people as they come, or one JSON object in the end.

use std::time::Duration;

use indicatif::ProgressBar;
use serde_json::{Map, Value, json};

use crate::cli::{Failure, output};

/// Columns that hold counts.
const COUNTS: [&str; 2] = ["events", "players"];

/// The demo's voice.
pub(in crate::cli) struct Tell {
    /// With `--json`: what is printed in the end.
    object: Option<Map<String, Value>>,
    bar: ProgressBar,
    proofs: Vec<(&'static str, bool)>,
}

impl Tell {
    pub(super) fn new(json: bool) -> Self {
        Self { object: json.then(Map::new), bar: ProgressBar::hidden(), proofs: Vec::new() }
    }

    /// Shows this bar below everything that is said, until [`Tell::end`].
    pub(super) fn show(&mut self, bar: &ProgressBar) {
        self.bar = bar.clone();
    }

    /// Takes the bar away.
    pub(super) fn end(&mut self) {
        self.bar.finish_and_clear();
        self.bar = ProgressBar::hidden();
    }

    /// Whether people read along.
    pub(super) fn to_people(&self) -> bool {
        self.object.is_none()
    }

    /// Says a line to people. Fails with [`Failure::Unread`] when nobody reads any more, as all that follows does.
    pub(super) fn line(&self, text: &str) -> Result<(), Failure> {
        if self.to_people() { self.bar.suspend(|| output::line(text)) } else { Ok(()) }
    }

    pub(super) fn heading(&self, text: &str) -> Result<(), Failure> {
        self.line(&format!("\n{text}\n"))
    }

    /// A line for people, a member for programs.
    pub(super) fn fact(&mut self, name: &str, value: Value, text: &str) -> Result<(), Failure> {
        self.line(text)?;
        if let Some(object) = &mut self.object {
            object.insert(name.to_owned(), value);
        }
        Ok(())
    }

    /// A table under its title, with the columns of counts to the right; a member for programs.
    pub(super) fn table(
        &mut self,
        name: &str,
        title: &str,
        header: &[&str],
        mut rows: Vec<Vec<String>>,
    ) -> Result<(), Failure> {
        let Some(object) = &mut self.object else {
            let counted = header.iter().enumerate().filter(|(_, name)| COUNTS.contains(name));
            counted.for_each(|(column, _)| align(&mut rows, column));
            self.line(title)?;
            self.bar.suspend(|| output::table(header, rows))?;
            return self.line("");
        };
        let row = |row: Vec<String>| {
            let names = header.iter().map(|name| (*name).to_owned());
            Value::from(names.zip(row.into_iter().map(Value::from)).collect::<Map<_, _>>())
        };
        object.insert(name.to_owned(), rows.into_iter().map(row).collect());
        Ok(())
    }

    /// A proof, and what it found.
    pub(super) fn proof(&mut self, name: &'static str, holds: bool, found: &str) -> Result<(), Failure> {
        self.proofs.push((name, holds));
        let mark = if holds { "holds " } else { "FAILED" };
        self.fact(name, json!({"holds": holds, "found": found}), &format!("  {mark}  {name}: {found}"))
    }

    /// Prints the object, and fails when a proof did.
    pub(super) fn verdict(&mut self) -> Result<(), Failure> {
        if let Some(object) = &self.object {
            output::line(Value::from(object.clone()))?;
        }
        let failed = self.failed();
        if failed.is_empty() { Ok(()) } else { Err(anyhow::anyhow!("not proved: {}", failed.join(", ")).into()) }
    }

    /// The proofs that failed.
    pub(super) fn failed(&self) -> Vec<&'static str> {
        self.proofs.iter().filter(|(_, holds)| !holds).map(|(name, _)| *name).collect()
    }
}

/// Groups the digits of a column's numbers and makes them end below each other.
fn align(rows: &mut [Vec<String>], column: usize) {
    let cells = || rows.iter().filter_map(|row| row.get(column));
    let shown: Vec<_> = cells().map(|cell| cell.parse().map_or_else(|_| cell.clone(), grouped)).collect();
    let width = shown.iter().map(String::len).max().unwrap_or(0);
    let cells = rows.iter_mut().filter_map(|row| row.get_mut(column));
    cells.zip(shown).for_each(|(cell, shown)| *cell = format!("{shown:>width$}"));
}

/// Writes a number with its digits in groups.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Writes a duration in the unit that suits it.
pub(super) fn seconds(duration: Duration) -> String {
    match duration.as_millis() {
        millis @ 0..1_000 => format!("{millis} ms"),
        _ => format!("{:.1} s", duration.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_stand_in_groups_of_three() {
        let all = [0, 12, 999, 1_000, 12_345, 1_000_000].map(grouped);
        assert_eq!(all, ["0", "12", "999", "1,000", "12,345", "1,000,000"]);
    }
}
