//! A line becomes an event, or a reason why it cannot.
//!
//! The player, time and type fields are taken out; everything else (an id too) is the event's properties, as the text that came:
//! members in their order, numbers with their digits, nested objects untouched; only white space around top-level
//! members goes. Every limit that the store has on an event is checked here, so that one bad line costs itself and not
//! its batch.
//!
//! Mapping is a pure function of the line and the [`Fields`]. A [`Mapping`] also keeps room between lines and the range
//! of the times that it mapped, so each thread has its own clone; ranges merge in any order. It costs well below a
//! microsecond for a line of 150 bytes on one core.

use std::borrow::Cow;

use crate::fields::{FieldNameError, FieldPath, Fields, Found, Role};
use crate::instant::{EVENT_TIME_MS, TimeUnit};
use crate::json::{Flaw, Kind, Members, Value};
use crate::source::{LINE_BYTES_MAX, Line};

/// The store's limits: a line beyond one is bad. Player id, event type and properties count towards an event's bytes.
pub use galoo_proto::limits::{
    EVENT_BYTES_MAX, EVENT_ID_BYTES_MAX, EVENT_PROPERTIES_MAX as PROPERTIES_MAX, EVENT_TYPE_BYTES_MAX,
    PLAYER_ID_BYTES_MAX, PROPERTY_NAME_BYTES_MAX,
};

/// Characters of a value that a reason shows.
const SHOWN_CHARS_MAX: usize = 80;

/// An event that a batch can carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedEvent {
    /// Who: 1 to [`PLAYER_ID_BYTES_MAX`] bytes.
    pub player_id: String,
    /// When: milliseconds since 1970 UTC, within [`EVENT_TIME_MS`].
    pub event_time_ms: i64,
    /// What: 1 to [`EVENT_TYPE_BYTES_MAX`] bytes.
    pub event_type: String,
    /// The rest: the text of a JSON object.
    pub properties: String,
    /// Which: at most [`EVENT_ID_BYTES_MAX`] bytes; empty where the line has none.
    pub event_id: String,
}

/// Why a line is no event. The line goes to the dead letters; the import goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadLine {
    /// Longer than any line that is read.
    #[error("line has {bytes} bytes, the limit is {max}")]
    LineBytes {
        /// Its length.
        bytes: u64,
        /// The limit.
        max: usize,
    },
    /// Not UTF-8.
    #[error("not UTF-8 at byte {at}")]
    NotUtf8 {
        /// Offset of the first byte that is not.
        at: usize,
    },
    /// Not a JSON object.
    #[error(transparent)]
    Json(Flaw),
    /// A field is absent.
    #[error("no {role} field {field}")]
    Missing {
        /// What it is for.
        role: Role,
        /// Its name.
        field: String,
    },
    /// A field has a value of the wrong kind.
    #[error("{role} field {field} is the {kind} {shown}, expected {expected}")]
    WrongKind {
        /// What it is for.
        role: Role,
        /// Its name.
        field: String,
        /// The kind that it has.
        kind: Kind,
        /// Its value, cut.
        shown: String,
        /// The kinds that it may have.
        expected: &'static str,
    },
    /// A player id or an event type of no legal length.
    #[error("{role} field {field} has {bytes} bytes, it must have 1 to {max}: {shown}")]
    Length {
        /// What it is for.
        role: Role,
        /// Its name.
        field: String,
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
        /// Its value, cut.
        shown: String,
    },
    /// A time that is none in its unit.
    #[error("time field {field} is {shown}, which is no time in {unit}")]
    NoTime {
        /// The field's name.
        field: String,
        /// Its value, cut.
        shown: String,
        /// How it should be written.
        unit: TimeUnit,
    },
    /// A time that the store does not take.
    #[error("time field {field} is {shown} in {unit}, outside 1970-01-01 to 2200-01-01")]
    TimeRange {
        /// The field's name.
        field: String,
        /// Its value, cut.
        shown: String,
        /// How it is written.
        unit: TimeUnit,
    },
    /// Too many properties.
    #[error("more than {max} properties")]
    Properties {
        /// The limit.
        max: usize,
    },
    /// Too long a property's name.
    #[error("a property's name has {bytes} bytes, the limit is {max}: {shown}")]
    PropertyName {
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
        /// The name, cut.
        shown: String,
    },
    /// Too large an event.
    #[error("event has {bytes} bytes, the limit is {max}")]
    EventBytes {
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
}

/// The earliest and the latest time of some events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventTimes {
    /// The earliest, in milliseconds since 1970.
    pub min_ms: i64,
    /// The latest, in milliseconds since 1970.
    pub max_ms: i64,
}

impl EventTimes {
    /// The times of both.
    pub fn merge(self, other: EventTimes) -> EventTimes {
        EventTimes { min_ms: self.min_ms.min(other.min_ms), max_ms: self.max_ms.max(other.max_ms) }
    }
}

/// Makes events of lines.
#[derive(Debug, Clone)]
pub struct Mapping {
    fields: Fields,
    player: FieldPath,
    time: FieldPath,
    event_type: FieldPath,
    event_id: Option<FieldPath>,
    times: Option<EventTimes>,
    members: Members,
}

impl Mapping {
    /// Prepares to map lines with these fields.
    ///
    /// # Errors
    /// When a field's name has no legal length.
    pub fn new(fields: Fields) -> Result<Mapping, FieldNameError> {
        Ok(Mapping {
            player: FieldPath::new(Role::Player, &fields.player)?,
            time: FieldPath::new(Role::Time, &fields.time)?,
            event_type: FieldPath::new(Role::Type, &fields.event_type)?,
            event_id: fields.event_id.as_ref().map(|name| FieldPath::new(Role::EventId, name)).transpose()?,
            fields,
            times: None,
            members: Members::default(),
        })
    }

    /// The fields that it uses.
    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// The times of the events that it mapped; `None` before the first.
    pub fn times(&self) -> Option<EventTimes> {
        self.times
    }

    /// Maps a line of a run; `None` for a blank one, which is neither good nor bad.
    pub fn map_line(&mut self, line: Line<'_>) -> Option<Result<MappedEvent, BadLine>> {
        match line {
            Line::Text(text) => Some(self.map(text)),
            Line::Blank { .. } => None,
            Line::TooLong { bytes, .. } => Some(Err(BadLine::LineBytes { bytes, max: LINE_BYTES_MAX })),
        }
    }

    /// Maps a line, given without its line end.
    ///
    /// # Errors
    /// See [`BadLine`]: the first thing that is wrong, in the order of its kinds.
    pub fn map(&mut self, line: &[u8]) -> Result<MappedEvent, BadLine> {
        if line.len() > LINE_BYTES_MAX {
            return Err(BadLine::LineBytes { bytes: line.len() as u64, max: LINE_BYTES_MAX });
        }
        let line = std::str::from_utf8(line).map_err(|error| BadLine::NotUtf8 { at: error.valid_up_to() })?;
        self.members.read(line).map_err(|flaw| match flaw {
            Flaw::Members { .. } => BadLine::Properties { max: PROPERTIES_MAX },
            other => BadLine::Json(other),
        })?;
        let player = find(Role::Player, &self.player, line, &self.members)?;
        let time = find(Role::Time, &self.time, line, &self.members)?;
        let event_type = find(Role::Type, &self.event_type, line, &self.members)?;

        let player_id = text_of(Role::Player, &self.player, player.value)?;
        let event_time_ms = self.time_of(time.value)?;
        let type_text = text_of(Role::Type, &self.event_type, event_type.value)?;
        let id = self.event_id.as_ref().and_then(|path| Some((path, path.find(line, &self.members)?.value)));
        let id = id.filter(|(_, value)| value.kind != Kind::Null);
        let event_id = id.map(|(path, value)| text_of(Role::EventId, path, value)).transpose()?;

        let taken = [player.member, time.member, event_type.member];
        let properties = self.properties(line, taken)?;
        let bytes = player_id.len() + type_text.len() + properties.len();
        if bytes > EVENT_BYTES_MAX {
            return Err(BadLine::EventBytes { bytes, max: EVENT_BYTES_MAX });
        }
        let time = EventTimes { min_ms: event_time_ms, max_ms: event_time_ms };
        self.times = Some(self.times.map_or(time, |times| times.merge(time)));
        Ok(MappedEvent {
            player_id: player_id.into_owned(),
            event_time_ms,
            event_type: type_text.into_owned(),
            properties,
            event_id: event_id.unwrap_or_default().into_owned(),
        })
    }

    /// Reads the time field.
    fn time_of(&self, value: Value<'_>) -> Result<i64, BadLine> {
        let unit = self.fields.time_unit;
        let field = || self.time.name().to_owned();
        let wrong_kind = |expected| BadLine::WrongKind {
            role: Role::Time,
            field: field(),
            kind: value.kind,
            shown: shown(value.text),
            expected,
        };
        let text = match (time_text(value), unit) {
            (None, TimeUnit::Rfc3339) => return Err(wrong_kind("an RFC 3339 string")),
            (None, _) => return Err(wrong_kind("a number")),
            (Some(_), TimeUnit::Rfc3339) if matches!(value.kind, Kind::Integer | Kind::Decimal) => {
                return Err(wrong_kind("an RFC 3339 string"));
            }
            (Some(text), _) => text,
        };
        let Some(milliseconds) = unit.milliseconds(&text) else {
            return Err(BadLine::NoTime { field: field(), shown: shown(value.text), unit });
        };
        if !EVENT_TIME_MS.contains(&milliseconds) {
            return Err(BadLine::TimeRange { field: field(), shown: shown(value.text), unit });
        }
        Ok(milliseconds)
    }

    /// Writes the members that are not taken as an object.
    fn properties(&self, line: &str, taken: [Option<usize>; 3]) -> Result<String, BadLine> {
        let mut properties = String::with_capacity(line.len());
        properties.push('{');
        let mut count = 0;
        for (place, member) in self.members.list().iter().enumerate() {
            if taken.contains(&Some(place)) {
                continue;
            }
            if count > 0 {
                properties.push(',');
            }
            count += 1;
            let key = member.key_text(line);
            // With its quotes and escapes the text is never shorter than the name.
            if key.len() > PROPERTY_NAME_BYTES_MAX {
                let bytes = serde_json::from_str::<String>(key).map_or(key.len(), |name| name.len());
                if bytes > PROPERTY_NAME_BYTES_MAX {
                    return Err(BadLine::PropertyName { bytes, max: PROPERTY_NAME_BYTES_MAX, shown: shown(key) });
                }
            }
            properties.push_str(key);
            properties.push(':');
            properties.push_str(member.value(line).text);
        }
        if count > PROPERTIES_MAX {
            return Err(BadLine::Properties { max: PROPERTIES_MAX });
        }
        properties.push('}');
        Ok(properties)
    }
}

/// The text to read a time from: a number's own, or what a string says; `None` for other kinds.
pub(super) fn time_text(value: Value<'_>) -> Option<Cow<'_, str>> {
    match value.kind {
        Kind::Integer | Kind::Decimal => Some(Cow::Borrowed(value.text)),
        _ => value.string(),
    }
}

/// Finds a field that must be there.
fn find<'a>(role: Role, path: &FieldPath, line: &'a str, members: &Members) -> Result<Found<'a>, BadLine> {
    path.find(line, members).ok_or_else(|| BadLine::Missing { role, field: path.name().to_owned() })
}

/// Reads a player's or an event's id (a string, or an integer as its text) or an event type (a string).
fn text_of<'a>(role: Role, path: &FieldPath, value: Value<'a>) -> Result<Cow<'a, str>, BadLine> {
    let (text, max, expected) = match (role, value.kind) {
        (Role::Player, Kind::Integer) => (Some(Cow::Borrowed(value.text)), PLAYER_ID_BYTES_MAX, ""),
        (Role::Player, _) => (value.string(), PLAYER_ID_BYTES_MAX, "a string or an integer"),
        (Role::EventId, Kind::Integer) => (Some(Cow::Borrowed(value.text)), EVENT_ID_BYTES_MAX, ""),
        (Role::EventId, _) => (value.string(), EVENT_ID_BYTES_MAX, "a string or an integer"),
        _ => (value.string(), EVENT_TYPE_BYTES_MAX, "a string"),
    };
    let field = || path.name().to_owned();
    let Some(text) = text else {
        return Err(BadLine::WrongKind { role, field: field(), kind: value.kind, shown: shown(value.text), expected });
    };
    if !(1..=max).contains(&text.len()) {
        let shown = shown(value.text);
        return Err(BadLine::Length { role, field: field(), bytes: text.len(), max, shown });
    }
    Ok(text)
}

/// Cuts a text that a person reads.
pub(super) fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
#[path = "mapping_tests.rs"]
mod tests;
