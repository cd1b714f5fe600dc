//! The one check of each public limit, for clients and servers alike.
//!
//! Every refusal names the field, the value and the limit. What passes here is trusted further in: the state machine
//! checks these limits no more.

use crate::{limits::*, value};

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

/// Checks an event's ids, time and sizes. Its properties' JSON is checked where it is parsed.
pub fn event(event: &value::Event) -> Result<(), Invalid> {
    player_id(&event.player_id)?;
    text("event_type", &event.event_type, EVENT_TYPE_BYTES_MAX)?;
    if !(EVENT_TIME_MS_MIN..EVENT_TIME_MS_END).contains(&event.event_time_ms) {
        return Err(Invalid::Time { value: event.event_time_ms });
    }
    let bytes = event.event_type.len() + event.properties.len();
    if bytes > EVENT_BYTES_MAX {
        return Err(Invalid::TooLong { field: "event", bytes, bytes_max: EVENT_BYTES_MAX });
    }
    Ok(())
}

/// Returns the bytes of an event that count towards a batch's limit.
pub fn event_bytes(event: &value::Event) -> usize {
    event.player_id.len() + event.event_type.len() + event.properties.len()
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

/// Checks the shape of a player's mutation.
pub fn mutation(
    player: &str,
    preconditions: &[value::Precondition],
    mutations: &[value::Mutation],
) -> Result<(), Invalid> {
    player_id(player)?;
    let count = |field, count, min| {
        let fits = (min..=MUTATIONS_MAX).contains(&count);
        if fits { Ok(()) } else { Err(Invalid::Count { field, count, min, max: MUTATIONS_MAX }) }
    };
    count("mutations", mutations.len(), 1)?;
    count("preconditions", preconditions.len(), 0)?;
    for condition in preconditions {
        cell(&condition.family, &condition.qualifier)?;
        condition.equals.as_ref().map_or(Ok(()), cell_value)?;
    }
    for mutation in mutations {
        cell(&mutation.family, &mutation.qualifier)?;
        match &mutation.change {
            None => return Err(Invalid::Missing { field: "mutations.change" }),
            Some(value::mutation::Change::Put(value)) => cell_value(value)?,
            Some(value::mutation::Change::Delete(_) | value::mutation::Change::Increment(_)) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> value::Event {
        value::Event { player_id: "p".into(), event_time_ms: 0, event_type: "t".into(), properties: String::new() }
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
    fn game_names_are_plain() {
        assert_eq!(game_name("sc2"), Ok(()));
        for wrong in ["", "2sc", "Sc2", "a-b", "a b", "é"] {
            assert!(game_name(wrong).is_err(), "{wrong:?} passed");
        }
    }
}
