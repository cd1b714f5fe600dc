//! Names of the tables that a rollup has in SQL: one a tier.

use crate::rollup::Rollup;

/// A bucket's width as it stands in a table's name: in the largest unit of which it is a multiple, as `15m` or `1d`.
pub fn width_name(bucket_ms: i64) -> String {
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    let unit = units.iter().find(|(unit, _)| bucket_ms % unit == 0);
    unit.map_or_else(|| format!("{bucket_ms}ms"), |(unit, name)| format!("{}{name}", bucket_ms / unit))
}

/// Returns the name of a tier's table: the rollup's own for the first, the narrowest, and with the width behind it for the
/// others, as `matches_1h`.
pub fn table_name(rollup: &str, tier: usize, bucket_ms: i64) -> String {
    if tier == 0 { rollup.to_owned() } else { format!("{rollup}_{}", width_name(bucket_ms)) }
}

impl Rollup {
    /// Names of its tables.
    pub fn tables(&self) -> impl Iterator<Item = String> {
        let wider = self.tiers.iter().enumerate().skip(1);
        let wider = wider.map(|(tier, one)| table_name(&self.name, tier, one.bucket_ms));
        std::iter::once(self.name.clone()).chain(wider)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollup::Tier;

    #[test]
    fn tables_are_named_by_their_width() {
        let tiers =
            [250, 1_500, 900_000, 7 * 86_400_000].map(|bucket_ms| Tier { bucket_ms, ..Tier::default() }).to_vec();
        let rollup = Rollup { name: "r".into(), tiers, ..Default::default() };
        assert_eq!(rollup.tables().collect::<Vec<_>>(), ["r", "r_1500ms", "r_15m", "r_7d"]);
    }
}
