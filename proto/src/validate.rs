//! The one check of each public limit, for clients and servers alike.
//!
//! Every refusal names the field, the value and the limit. What passes here is trusted further in: the state machine
//! checks these limits no more.

use std::collections::HashSet;

use prost::Message;

use crate::{
    data::{self, EventFilter, GetManyRequest, GetRequest, MutateRequest, Projection},
    limits::*,
    value::{self, mutation::Change},
};

/// A field of a request that is outside its limits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// A text that may not be empty is.
    #[error("{field} is empty; it has 1 to {bytes_max} bytes")]
    Empty {
        /// The field's name.
        field: &'static str,
        /// Its limit.
        bytes_max: usize,
    },
    /// A field has too many bytes.
    #[error("{field} has {bytes} bytes; the limit is {bytes_max}")]
    TooLong {
        /// The field's name.
        field: &'static str,
        /// What it has.
        bytes: usize,
        /// Its limit.
        bytes_max: usize,
    },
    /// A list has too many or no elements.
    #[error("{field} has {count} elements; it must have {min} to {max}")]
    Count {
        /// The field's name.
        field: &'static str,
        /// What it has.
        count: usize,
        /// The least.
        min: usize,
        /// The most.
        max: usize,
    },
    /// A time is out of range.
    #[error(
        "event_time_ms is {value}; it must be at least {EVENT_TIME_MS_MIN} and below {EVENT_TIME_MS_END} (1970 to 2200, in milliseconds)"
    )]
    Time {
        /// The time given.
        value: i64,
    },
    /// A name has characters that it may not have.
    #[error("{field} is {value:?}; it must match {pattern}")]
    Pattern {
        /// The field's name.
        field: &'static str,
        /// What was given.
        value: String,
        /// What it must be.
        pattern: &'static str,
    },
    /// Fields exclude each other.
    #[error("{fields} are given; only one of them may be")]
    Together {
        /// Their names.
        fields: &'static str,
    },
    /// A bound is on the wrong side of another.
    #[error("{field} is {low} to {high}: it is empty")]
    Bounds {
        /// The field's name.
        field: &'static str,
        /// The lower bound.
        low: i64,
        /// The upper bound.
        high: i64,
    },
    /// A number is too large.
    #[error("{field} is {value}; the limit is {max}")]
    TooLarge {
        /// The field's name.
        field: &'static str,
        /// What was given.
        value: u64,
        /// Its limit.
        max: u64,
    },
    /// A required field is missing.
    #[error("{field} is missing")]
    Missing {
        /// The field's name.
        field: &'static str,
    },
    /// A JSON text is not what it must be.
    #[error("{field} is not valid: {reason} (got {value:?})")]
    Json {
        /// The field's name.
        field: &'static str,
        /// The text, cut.
        value: String,
        /// What is wrong.
        reason: String,
    },
}

fn text(field: &'static str, value: &str, bytes_max: usize) -> Result<(), Invalid> {
    match value.len() {
        0 => Err(Invalid::Empty { field, bytes_max }),
        bytes if bytes > bytes_max => Err(Invalid::TooLong { field, bytes, bytes_max }),
        _ => Ok(()),
    }
}

/// Checks a player id.
pub fn player_id(value: &str) -> Result<(), Invalid> {
    text("player_id", value, PLAYER_ID_BYTES_MAX)
}

/// Checks a producer id.
pub fn producer_id(value: &str) -> Result<(), Invalid> {
    text("producer_id", value, PRODUCER_ID_BYTES_MAX)
}

/// Checks a game's name: `[a-z][a-z0-9_]*`, at most 64 bytes.
pub fn game_name(value: &str) -> Result<(), Invalid> {
    text("game", value, GAME_NAME_BYTES_MAX)?;
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if !value.as_bytes()[0].is_ascii_lowercase() || !value.bytes().all(plain) {
        return Err(Invalid::Pattern { field: "game", value: value.to_owned(), pattern: "[a-z][a-z0-9_]*" });
    }
    Ok(())
}

/// Checks for how long a game's events are kept, in milliseconds; 0 is for ever.
pub fn events_retention(retention_ms: u64) -> Result<(), Invalid> {
    if (1..RETENTION_MS_MIN).contains(&retention_ms) {
        let value = retention_ms.to_string();
        return Err(Invalid::Pattern { field: "events_retention_ms", value, pattern: "0 or at least 1000" });
    }
    ttl("events_retention_ms", retention_ms)
}

/// Checks for how long an event's id is known, in milliseconds; 0 is for the default.
pub fn event_id_window(window_ms: u64) -> Result<(), Invalid> {
    if (1..EVENT_ID_WINDOW_MS_MIN).contains(&window_ms) {
        let value = window_ms.to_string();
        return Err(Invalid::Pattern { field: "event_id_window_ms", value, pattern: "0 or at least 1000" });
    }
    if window_ms > EVENT_ID_WINDOW_MS_MAX {
        return Err(Invalid::TooLarge { field: "event_id_window_ms", value: window_ms, max: EVENT_ID_WINDOW_MS_MAX });
    }
    Ok(())
}

/// Checks an event's ids, time and sizes. Its properties' JSON is checked where it is parsed.
pub fn event(event: &value::Event) -> Result<(), Invalid> {
    player_id(&event.player_id)?;
    text("event_type", &event.event_type, EVENT_TYPE_BYTES_MAX)?;
    if !(EVENT_TIME_MS_MIN..EVENT_TIME_MS_END).contains(&event.event_time_ms) {
        return Err(Invalid::Time { value: event.event_time_ms });
    }
    if event.event_id.len() > EVENT_ID_BYTES_MAX {
        let (bytes, bytes_max) = (event.event_id.len(), EVENT_ID_BYTES_MAX);
        return Err(Invalid::TooLong { field: "event_id", bytes, bytes_max });
    }
    let bytes = event.event_type.len() + event.properties.len();
    if bytes > EVENT_BYTES_MAX {
        return Err(Invalid::TooLong { field: "event", bytes, bytes_max: EVENT_BYTES_MAX });
    }
    Ok(())
}

/// Returns the bytes of an event that count towards a batch's limit.
pub fn event_bytes(event: &value::Event) -> usize {
    event.player_id.len() + event.event_type.len() + event.properties.len() + event.event_id.len()
}

/// Checks the size of a batch; its events are checked one by one.
pub fn batch(events: &[value::Event]) -> Result<(), Invalid> {
    if events.len() > BATCH_EVENTS_MAX {
        return Err(Invalid::Count { field: "events", count: events.len(), min: 0, max: BATCH_EVENTS_MAX });
    }
    let bytes: usize = events.iter().map(event_bytes).sum();
    if bytes > BATCH_BYTES_MAX {
        return Err(Invalid::TooLong { field: "events", bytes, bytes_max: BATCH_BYTES_MAX });
    }
    Ok(())
}

/// Checks a cell's address.
pub fn cell(family: &str, qualifier: &str) -> Result<(), Invalid> {
    text("family", family, FAMILY_BYTES_MAX)?;
    text("qualifier", qualifier, QUALIFIER_BYTES_MAX)
}

/// Checks a cell's value.
pub fn cell_value(value: &value::Value) -> Result<(), Invalid> {
    use value::value::Kind;
    let bytes = match &value.kind {
        None => return Err(Invalid::Missing { field: "value" }),
        Some(Kind::String(text) | Kind::Json(text)) => text.len(),
        Some(Kind::Bytes(bytes)) => bytes.len(),
        Some(Kind::Null(_) | Kind::Bool(_) | Kind::Int(_) | Kind::Float(_)) => 8,
    };
    if bytes > CELL_BYTES_MAX {
        return Err(Invalid::TooLong { field: "value", bytes, bytes_max: CELL_BYTES_MAX });
    }
    Ok(())
}

/// Checks the shape of a player's change; its events are checked like a batch's.
pub fn change(request: &MutateRequest) -> Result<(), Invalid> {
    player_id(&request.player_id)?;
    let count = |field, count, min| {
        let fits = (min..=MUTATIONS_MAX).contains(&count);
        if fits { Ok(()) } else { Err(Invalid::Count { field, count, min, max: MUTATIONS_MAX }) }
    };
    count("mutations", request.mutations.len(), usize::from(request.events.is_empty()))?;
    count("preconditions", request.preconditions.len(), 0)?;
    request.preconditions.iter().try_for_each(precondition)?;
    request.mutations.iter().try_for_each(mutation)?;
    let mut whole = HashSet::new();
    for mutation in &request.mutations {
        let deletes = matches!(mutation.change, Some(Change::DeleteFamily(_) | Change::DeleteRow(_)));
        if deletes && !whole.insert(mutation.family.as_str()) {
            return Err(Invalid::Together { fields: "two delete_row, or two delete_family of one family," });
        }
    }
    let bytes = request.encoded_len();
    if bytes > BATCH_BYTES_MAX {
        return Err(Invalid::TooLong { field: "the change", bytes, bytes_max: BATCH_BYTES_MAX });
    }
    for event in &request.events {
        if event.player_id != request.player_id {
            let (value, pattern) = (event.player_id.clone(), "the player_id of the request");
            return Err(Invalid::Pattern { field: "events.player_id", value, pattern });
        }
        if !event.event_id.is_empty() {
            // Part of a change cannot be left out: it is told from its repeat by its producer's number.
            let (value, pattern) = (event.event_id.clone(), "nothing in a change; it has its producer's number");
            return Err(Invalid::Pattern { field: "events.event_id", value, pattern });
        }
    }
    Ok(())
}

fn precondition(condition: &value::Precondition) -> Result<(), Invalid> {
    use value::precondition::Test;
    let is_of_row = condition.family.is_empty() && condition.qualifier.is_empty();
    if !is_of_row || matches!(condition.test, Some(Test::Equals(_) | Test::Within(_))) {
        cell(&condition.family, &condition.qualifier)?;
    }
    match &condition.test {
        None => Err(Invalid::Missing { field: "preconditions.test" }),
        Some(Test::Equals(value)) => cell_value(value),
        Some(Test::Within(range)) => bounds("preconditions.within", range.min, range.max),
        Some(Test::Absent(_) | Test::Exists(_) | Test::Version(_)) => Ok(()),
    }
}

fn bounds(field: &'static str, low: Option<i64>, high: Option<i64>) -> Result<(), Invalid> {
    match (low, high) {
        (Some(low), Some(high)) if low > high => Err(Invalid::Bounds { field, low, high }),
        _ => Ok(()),
    }
}

fn mutation(mutation: &value::Mutation) -> Result<(), Invalid> {
    let unnamed = |field, value: &str| match value.is_empty() {
        true => Ok(()),
        false => Err(Invalid::Pattern { field, value: value.to_owned(), pattern: "nothing, with what is deleted" }),
    };
    match &mutation.change {
        Some(Change::DeleteRow(_)) => {
            unnamed("mutations.family", &mutation.family)?;
            unnamed("mutations.qualifier", &mutation.qualifier)?;
        }
        Some(Change::DeleteFamily(_)) => {
            text("family", &mutation.family, FAMILY_BYTES_MAX)?;
            unnamed("mutations.qualifier", &mutation.qualifier)?;
        }
        _ => cell(&mutation.family, &mutation.qualifier)?,
    }
    match &mutation.change {
        None => Err(Invalid::Missing { field: "mutations.change" }),
        Some(Change::Put(value) | Change::SetAdd(value) | Change::SetRemove(value)) => cell_value(value),
        Some(Change::Append(append)) => match &append.value {
            Some(value) => cell_value(value),
            None => Err(Invalid::Missing { field: "mutations.append.value" }),
        },
        Some(Change::Increment(_)) => bounds("mutations.floor to ceiling", mutation.floor, mutation.ceiling),
        Some(Change::Delete(_) | Change::DeleteFamily(_) | Change::DeleteRow(_)) => Ok(()),
    }?;
    let deletes = matches!(mutation.change, Some(Change::Delete(_) | Change::DeleteFamily(_) | Change::DeleteRow(_)));
    let only_with = |given: Option<String>, field, pattern| match given {
        Some(value) => Err(Invalid::Pattern { field, value, pattern }),
        None => Ok(()),
    };
    if !matches!(mutation.change, Some(Change::Increment(_))) {
        only_with(mutation.floor.map(|floor| floor.to_string()), "mutations.floor", "nothing without increment")?;
        only_with(mutation.ceiling.map(|max| max.to_string()), "mutations.ceiling", "nothing without increment")?;
    }
    if deletes {
        only_with(mutation.ttl_ms.map(|ttl_ms| ttl_ms.to_string()), "mutations.ttl_ms", "nothing where it deletes")?;
    }
    ttl("mutations.ttl_ms", mutation.ttl_ms.unwrap_or(0))
}

fn ttl(field: &'static str, ttl_ms: u64) -> Result<(), Invalid> {
    if ttl_ms > TTL_MS_MAX {
        return Err(Invalid::TooLarge { field, value: ttl_ms, max: TTL_MS_MAX });
    }
    Ok(())
}

/// Checks a family's declaration.
pub fn family(family: &value::FamilyDefinition) -> Result<(), Invalid> {
    text("family.name", &family.name, FAMILY_BYTES_MAX)?;
    if !(1..=CELL_VERSIONS_MAX).contains(&family.versions_max) {
        let value = family.versions_max.to_string();
        return Err(Invalid::Pattern { field: "family.versions_max", value, pattern: "1 to 100" });
    }
    if value::ValueKind::try_from(family.kind).is_err() {
        let value = family.kind.to_string();
        return Err(Invalid::Pattern { field: "family.kind", value, pattern: "a value of ValueKind" });
    }
    ttl("family.ttl_ms", family.ttl_ms)
}

/// Checks a property's declaration.
pub fn property(property: &value::PropertyDefinition) -> Result<(), Invalid> {
    use value::ValueKind::{Any, Bool, Float, Int, String};
    text("property.name", &property.name, PROPERTY_NAME_BYTES_MAX)?;
    match value::ValueKind::try_from(property.kind) {
        Ok(Any | Bool | Int | Float | String) => Ok(()),
        known => {
            let value = known.map_or_else(|_| property.kind.to_string(), |kind| kind.as_str_name().to_owned());
            Err(Invalid::Pattern { field: "property.kind", value, pattern: "ANY, BOOL, INT, FLOAT or STRING" })
        }
    }
}

/// Checks what a scan lets through.
pub fn event_filter(filter: &EventFilter) -> Result<(), Invalid> {
    use data::property_condition::Test;
    let count = |field, count: usize, min, max| {
        let fits = (min..=max).contains(&count);
        if fits { Ok(()) } else { Err(Invalid::Count { field, count, min, max }) }
    };
    count("filter.properties", filter.properties.len(), 0, CONDITIONS_MAX)?;
    for condition in &filter.properties {
        text("filter.properties.name", &condition.name, PROPERTY_NAME_BYTES_MAX)?;
        match &condition.test {
            None => return Err(Invalid::Missing { field: "filter.properties.test" }),
            Some(Test::Exists(_) | Test::Absent(_)) => {}
            Some(Test::AnyOf(any)) => {
                count("filter.properties.any_of", any.values.len(), 1, CONDITION_VALUES_MAX)?;
                any.values.iter().try_for_each(comparable)?;
            }
            Some(
                Test::Equals(value)
                | Test::NotEquals(value)
                | Test::Less(value)
                | Test::AtMost(value)
                | Test::Greater(value)
                | Test::AtLeast(value),
            ) => comparable(value)?,
        }
    }
    Ok(())
}

/// Checks a value that properties are compared with.
fn comparable(value: &value::Value) -> Result<(), Invalid> {
    use value::value::Kind;
    let (field, pattern) = ("filter.properties.value", "null, a bool, an int, a float that is a number, or a string");
    let refused = |value: &str| Err(Invalid::Pattern { field, value: value.to_owned(), pattern });
    match &value.kind {
        None => Err(Invalid::Missing { field }),
        Some(Kind::Float(float)) if float.is_nan() => refused("NaN"),
        Some(Kind::Bytes(_)) => refused("bytes"),
        Some(Kind::Json(_)) => refused("JSON"),
        Some(Kind::Null(_) | Kind::Bool(_) | Kind::Int(_) | Kind::Float(_) | Kind::String(_)) => Ok(()),
    }
}

/// Checks which properties a scan answers with.
pub fn projection(projection: &Projection) -> Result<(), Invalid> {
    let count = projection.properties.len();
    if count > EVENT_PROPERTIES_MAX {
        return Err(Invalid::Count { field: "projection.properties", count, min: 0, max: EVENT_PROPERTIES_MAX });
    }
    projection.properties.iter().try_for_each(|name| text("projection.properties", name, PROPERTY_NAME_BYTES_MAX))
}

/// Checks a read of one player.
pub fn get(request: &GetRequest) -> Result<(), Invalid> {
    player_id(&request.player_id)?;
    selection(request)
}

/// Checks a read of many players, and returns what is read of each.
pub fn get_many(request: &GetManyRequest) -> Result<&GetRequest, Invalid> {
    let count = request.player_ids.len();
    if !(1..=PLAYERS_READ_MAX).contains(&count) {
        return Err(Invalid::Count { field: "player_ids", count, min: 1, max: PLAYERS_READ_MAX });
    }
    request.player_ids.iter().try_for_each(|player| player_id(player))?;
    let of_each = request.of_each.as_ref().ok_or(Invalid::Missing { field: "of_each" })?;
    if !of_each.player_id.is_empty() {
        return Err(Invalid::Together { fields: "of_each.player_id and player_ids" });
    }
    selection(of_each).map(|()| of_each)
}

/// Checks which cells a read asks for.
fn selection(request: &GetRequest) -> Result<(), Invalid> {
    if request.versions > CELL_VERSIONS_MAX {
        let (value, max) = (request.versions.into(), CELL_VERSIONS_MAX.into());
        return Err(Invalid::TooLarge { field: "versions", value, max });
    }
    let given = [!request.qualifier.is_empty(), !request.qualifier_prefix.is_empty(), request.qualifiers.is_some()];
    match given.iter().filter(|given| **given).count() {
        0 => Ok(()),
        1 if request.family.is_empty() => Err(Invalid::Missing { field: "family" }),
        1 => Ok(()),
        _ => Err(Invalid::Together { fields: "several of qualifier, qualifier_prefix and qualifiers" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> value::Event {
        value::Event { player_id: "p".into(), event_type: "t".into(), ..Default::default() }
    }

    #[test]
    fn limits_hold_at_their_edges() {
        let with = |change: fn(&mut value::Event)| {
            let mut changed = sample();
            change(&mut changed);
            event(&changed)
        };
        assert_eq!(with(|_| ()), Ok(()));
        assert_eq!(with(|e| e.player_id = "é".repeat(128)), Ok(()));
        let too_long = Invalid::TooLong { field: "player_id", bytes: 257, bytes_max: 256 };
        assert_eq!(with(|e| e.player_id = "x".repeat(257)), Err(too_long));
        assert_eq!(with(|e| e.player_id.clear()), Err(Invalid::Empty { field: "player_id", bytes_max: 256 }));
        assert_eq!(with(|e| e.event_time_ms = EVENT_TIME_MS_END - 1), Ok(()));
        assert!(with(|e| e.event_time_ms = EVENT_TIME_MS_END).is_err());
        assert!(with(|e| e.event_time_ms = -1).is_err());
        assert_eq!(with(|e| e.properties = " ".repeat(EVENT_BYTES_MAX - 1)), Ok(()));
        assert!(with(|e| e.properties = " ".repeat(EVENT_BYTES_MAX)).is_err());
    }

    #[test]
    fn a_message_names_field_value_and_limit() {
        let mut wrong = sample();
        wrong.event_time_ms = -5;
        let message = event(&wrong).expect_err("out of range").to_string();
        assert!(message.contains("event_time_ms is -5") && message.contains("7258118400000"), "{message}");
    }

    #[test]
    fn conditions_compare_with_scalars() {
        use data::{PropertyCondition, Values, property_condition::Test};
        use value::{Value, value::Kind};
        let of = |name: &str, test| EventFilter {
            properties: vec![PropertyCondition { name: name.into(), test }],
            ..EventFilter::default()
        };
        let value = |kind| Value { kind: Some(kind) };
        let any = |count| Some(Test::AnyOf(Values { values: vec![value(Kind::Int(1)); count] }));
        assert_eq!(event_filter(&of("x", Some(Test::Equals(value(Kind::Float(1.5)))))), Ok(()));
        assert_eq!(event_filter(&of("x", any(1_000))), Ok(()));
        for invalid in [
            of("", any(1)),
            of("x", None),
            of("x", any(0)),
            of("x", any(1_001)),
            of("x", Some(Test::Less(value(Kind::Float(f64::NAN))))),
            of("x", Some(Test::Equals(value(Kind::Json("[]".into()))))),
            of("x", Some(Test::Greater(Value::default()))),
            EventFilter { properties: vec![PropertyCondition::default(); 101], ..EventFilter::default() },
        ] {
            assert!(event_filter(&invalid).is_err(), "{invalid:?}");
        }
        assert!(projection(&Projection { properties: vec!["x".into(); 257] }).is_err());
    }

    #[test]
    fn changes_name_what_they_change_and_no_more() {
        use value::{IntRange, Mutation, Null, Precondition, Value, mutation::Change, precondition::Test, value::Kind};
        let int = Value { kind: Some(Kind::Int(1)) };
        let null = i32::from(Null::Null);
        let one = |family: &str, qualifier: &str, change| Mutation {
            family: family.to_owned(),
            qualifier: qualifier.to_owned(),
            change: Some(change),
            ..Mutation::default()
        };
        let of =
            |mutation| MutateRequest { player_id: "p".into(), mutations: vec![mutation], ..MutateRequest::default() };
        let put = || of(one("s", "x", Change::Put(int.clone())));
        for valid in [
            put(),
            of(one("", "", Change::DeleteRow(null))),
            of(one("s", "", Change::DeleteFamily(null))),
            of(Mutation { ttl_ms: Some(TTL_MS_MAX), ..one("s", "x", Change::Put(int.clone())) }),
            MutateRequest { mutations: vec![], events: vec![sample()], ..put() },
        ] {
            assert_eq!(change(&valid), Ok(()), "{valid:?}");
        }
        let test = |family: &str, test| {
            let qualifier = family.to_owned();
            let condition = Precondition { family: family.to_owned(), qualifier, test };
            MutateRequest { preconditions: vec![condition], ..put() }
        };
        assert_eq!(change(&test("", Some(Test::Version(3)))), Ok(()));
        let range = |min, max| Some(Test::Within(IntRange { min: Some(min), max: Some(max) }));
        assert_eq!(change(&test("s", range(3, 3))), Ok(()));
        let bounded = Mutation { floor: Some(1), ceiling: Some(0), ..one("s", "x", Change::Increment(1)) };
        let other = value::Event { player_id: "q".into(), ..sample() };
        for invalid in [
            of(one("s", "", Change::Put(int.clone()))),
            of(one("s", "x", Change::DeleteFamily(null))),
            of(one("s", "", Change::DeleteRow(null))),
            of(Mutation { change: None, ..one("s", "x", Change::Delete(null)) }),
            of(one("s", "x", Change::Append(value::ListAppend::default()))),
            of(bounded),
            of(Mutation { floor: Some(0), ..one("s", "x", Change::Put(int.clone())) }),
            of(Mutation { ceiling: Some(0), ..one("s", "x", Change::Delete(null)) }),
            of(Mutation { ttl_ms: Some(1), ..one("s", "x", Change::Delete(null)) }),
            of(Mutation { ttl_ms: Some(TTL_MS_MAX + 1), ..one("s", "x", Change::Put(int.clone())) }),
            MutateRequest { mutations: vec![], ..put() },
            MutateRequest { events: vec![other], ..put() },
            test("", Some(Test::Equals(int.clone()))),
            test("", range(0, 1)),
            test("s", range(1, 0)),
            test("s", None),
        ] {
            assert!(change(&invalid).is_err(), "{invalid:?}");
        }
    }

    #[test]
    fn events_are_kept_for_a_second_at_least() {
        assert!([0, 1_000, TTL_MS_MAX].into_iter().all(|ms| events_retention(ms).is_ok()));
        assert!([1, 999, TTL_MS_MAX + 1].into_iter().all(|ms| events_retention(ms).is_err()));
        assert!([0, 1_000, EVENT_ID_WINDOW_MS_MAX].into_iter().all(|ms| event_id_window(ms).is_ok()));
        assert!([1, 999, EVENT_ID_WINDOW_MS_MAX + 1].into_iter().all(|ms| event_id_window(ms).is_err()));
    }

    #[test]
    fn game_names_are_plain() {
        assert_eq!(game_name("sc2"), Ok(()));
        for wrong in ["", "2sc", "Sc2", "a-b", "a b", "é"] {
            assert!(game_name(wrong).is_err(), "{wrong:?} passed");
        }
    }
}
