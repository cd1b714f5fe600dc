//! A scan's filter and projection, checked and in storage's words.

use std::sync::Arc;

use galoo_proto::{
    data::{EventFilter, Projection, PropertyCondition, property_condition::Test as Asked},
    validate,
    value::{Value, value::Kind},
};
use galoo_storage::view::{self, Column, Condition, Scalar, Test};

use crate::node::NodeError;

/// What a scan lets through, and the columns that it answers with.
pub(super) fn scanned(
    filter: Option<EventFilter>,
    projection: Option<&Projection>,
) -> Result<(view::EventFilter, Arc<[Column]>), NodeError> {
    let filter = filter.unwrap_or_default();
    validate::event_filter(&filter)?;
    projection.map_or(Ok(()), validate::projection)?;
    let filter = view::EventFilter {
        time_ms: filter.from_ms.unwrap_or(i64::MIN)..filter.to_ms.unwrap_or(i64::MAX),
        event_types: Some(filter.event_types).filter(|types| !types.is_empty()),
        conditions: filter.properties.into_iter().filter_map(condition).collect(),
        ..view::EventFilter::default()
    };
    Ok((filter, Column::event(projection.map(|projection| projection.properties.as_slice()))))
}

/// A condition that was checked.
fn condition(PropertyCondition { name: property, test }: PropertyCondition) -> Option<Condition> {
    let test = match test? {
        Asked::Equals(value) => Test::Is(vec![scalar(value)?]),
        Asked::NotEquals(value) => Test::IsNot(scalar(value)?),
        Asked::Less(value) => Test::Less(scalar(value)?),
        Asked::AtMost(value) => Test::AtMost(scalar(value)?),
        Asked::Greater(value) => Test::Greater(scalar(value)?),
        Asked::AtLeast(value) => Test::AtLeast(scalar(value)?),
        Asked::Exists(_) => Test::Exists,
        Asked::Absent(_) => Test::Absent,
        Asked::AnyOf(any) => Test::Is(any.values.into_iter().filter_map(scalar).collect()),
    };
    Some(Condition { property, test })
}

fn scalar(value: Value) -> Option<Scalar> {
    Some(match value.kind? {
        Kind::Null(_) => Scalar::Null,
        Kind::Bool(value) => Scalar::Bool(value),
        Kind::Int(value) => Scalar::Int(value),
        Kind::Float(value) => Scalar::Float(value),
        Kind::String(value) => Scalar::String(value),
        Kind::Bytes(_) | Kind::Json(_) => return None,
    })
}
