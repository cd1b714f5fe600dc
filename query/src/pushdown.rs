//! Which filters on `events` a shard can use: conjunctions over player, time and type.
//!
//! What is pushed down only narrows what is read; DataFusion applies every filter again, so that an approximation here
//! costs time and never a wrong answer.

use std::ops::Range;

use datafusion::{
    common::ScalarValue,
    logical_expr::{BinaryExpr, Expr, Operator, TableProviderFilterPushDown, expr::InList},
};
use galoo_storage::view::EventFilter;

const EVENT_TIME: &str = "event_time";

/// Returns whether a filter narrows what is read.
pub(crate) fn is_useful(filter: &Expr) -> bool {
    let mut narrowed = EventFilter::default();
    narrow(&mut narrowed, filter, EVENT_TIME);
    narrowed != EventFilter::default()
}

/// Answers DataFusion for each filter: one that narrows what is read is taken, and checked again by DataFusion.
pub(crate) fn decide(filters: &[&Expr], narrows: impl Fn(&Expr) -> bool) -> Vec<TableProviderFilterPushDown> {
    let decide = |filter: &&Expr| match narrows(filter) {
        true => TableProviderFilterPushDown::Inexact,
        false => TableProviderFilterPushDown::Unsupported,
    };
    filters.iter().map(decide).collect()
}

/// Returns what the conjunction of the filters lets a shard skip.
pub(crate) fn event_filter(filters: &[Expr]) -> EventFilter {
    let mut all = EventFilter::default();
    filters.iter().for_each(|filter| narrow(&mut all, filter, EVENT_TIME));
    all
}

/// Returns the times of a column, in milliseconds, that the conjunction of the filters lets through.
pub(crate) fn time_range(filters: &[Expr], column: &str) -> Range<i64> {
    let mut all = EventFilter::default();
    filters.iter().for_each(|filter| narrow(&mut all, filter, column));
    all.time_ms
}

fn narrow(all: &mut EventFilter, filter: &Expr, time: &str) {
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
            narrow(all, left, time);
            narrow(all, right, time);
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            if let (Some(column), Some(value)) = (column(left), literal(right)) {
                compare(all, column, *op, value, time);
            } else if let (Some(value), Some(column)) = (literal(left), column(right))
                && let Some(swapped) = op.swap()
            {
                compare(all, column, swapped, value, time);
            }
        }
        Expr::Between(between) if !between.negated => {
            if let (Some(column), Some(low), Some(high)) =
                (column(&between.expr), literal(&between.low), literal(&between.high))
            {
                compare(all, column, Operator::GtEq, low, time);
                compare(all, column, Operator::LtEq, high, time);
            }
        }
        Expr::InList(InList { expr, list, negated: false }) => {
            let texts: Option<Vec<_>> = list.iter().map(|one| literal(one).and_then(text)).collect();
            if let (Some(column), Some(texts)) = (column(expr), texts) {
                one_of(all, column, texts);
            }
        }
        _ => {}
    }
}

fn column(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Column(column) => Some(&column.name),
        // A cast of a column between representations of the same text keeps its values.
        Expr::Cast(cast) if cast.field.data_type().is_string() => column(&cast.expr),
        _ => None,
    }
}

fn literal(expr: &Expr) -> Option<&ScalarValue> {
    match expr {
        Expr::Literal(value, _) => Some(value),
        _ => None,
    }
}

fn text(value: &ScalarValue) -> Option<String> {
    value.try_as_str().flatten().map(str::to_owned)
}

/// Milliseconds of a timestamp, and whether it lies behind their start.
fn millis(value: &ScalarValue) -> Option<(i64, bool)> {
    let divided = |value: i64, by: i64| (value.div_euclid(by), value.rem_euclid(by) != 0);
    match value {
        ScalarValue::TimestampSecond(Some(value), None) => Some((value.checked_mul(1_000)?, false)),
        ScalarValue::TimestampMillisecond(Some(value), None) => Some((*value, false)),
        ScalarValue::TimestampMicrosecond(Some(value), None) => Some(divided(*value, 1_000)),
        ScalarValue::TimestampNanosecond(Some(value), None) => Some(divided(*value, 1_000_000)),
        _ => None,
    }
}

fn compare(all: &mut EventFilter, column: &str, op: Operator, value: &ScalarValue, time: &str) {
    if op == Operator::Eq
        && let Some(text) = text(value)
    {
        one_of(all, column, vec![text]);
    } else if column == time
        && let Some((millis, behind)) = millis(value)
    {
        let next = millis.saturating_add(1);
        let range = &mut all.time_ms;
        match op {
            Operator::Gt => range.start = range.start.max(next),
            Operator::GtEq => range.start = range.start.max(if behind { next } else { millis }),
            Operator::Lt => range.end = range.end.min(if behind { next } else { millis }),
            Operator::LtEq => range.end = range.end.min(next),
            Operator::Eq => {
                range.start = range.start.max(millis);
                range.end = range.end.min(next);
            }
            _ => {}
        }
    }
}

/// Keeps to texts of a list, and to those of an earlier list.
fn one_of(all: &mut EventFilter, column: &str, texts: Vec<String>) {
    let kept = match column {
        "player_id" => &mut all.players,
        "event_type" => &mut all.event_types,
        _ => return,
    };
    let both = match kept.take() {
        None => texts,
        Some(before) => before.into_iter().filter(|text| texts.contains(text)).collect(),
    };
    *kept = Some(both);
}

#[cfg(test)]
mod tests {
    use datafusion::prelude::{col, lit};

    use super::*;

    fn at(millis: i64) -> Expr {
        lit(ScalarValue::TimestampMillisecond(Some(millis), None))
    }

    #[test]
    fn conjunctions_narrow_and_anything_else_does_not() {
        let filter = event_filter(&[
            col("player_id").eq(lit("a")).and(col("event_time").gt_eq(at(5))),
            lit("login").eq(col("event_type")),
            at(9).gt(col("event_time")),
            col("minerals").gt(lit(3)),
        ]);
        assert_eq!(filter.players, Some(vec!["a".to_owned()]));
        assert_eq!(filter.event_types, Some(vec!["login".to_owned()]));
        assert_eq!(filter.time_ms, 5..9);
        assert!(!is_useful(&col("player_id").eq(lit("a")).or(col("event_type").eq(lit("b")))));
        assert!(!is_useful(&col("player_id").not_eq(lit("a"))));
    }

    #[test]
    fn lists_meet_and_finer_times_round_outwards() {
        let players = event_filter(&[
            col("player_id").in_list(vec![lit("a"), lit("b")], false),
            col("player_id").in_list(vec![lit("b"), lit("c")], false),
        ]);
        assert_eq!(players.players, Some(vec!["b".to_owned()]));
        let nanos = |nanos| lit(ScalarValue::TimestampNanosecond(Some(nanos), None));
        let filter = event_filter(&[col("event_time").gt_eq(nanos(5_000_001)), col("event_time").lt(nanos(9_000_001))]);
        assert_eq!(filter.time_ms, 6..10);
        let between = event_filter(&[col("event_time").between(at(1), at(2))]);
        assert_eq!(between.time_ms, 1..3);
    }
}
