//! The fields of a line that an event is made of: who, when and what, and which one if it has an id.
//!
//! A field is named by its key at the top level, or by a dotted path into nested objects (`user.id`). A top-level key
//! that is called exactly like the path comes first, line by line. A field at the top level is taken out of the
//! properties; one inside an object stays in its place, and so does the id: the store does not give it back.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::instant::TimeUnit;
use crate::json::{Members, Value};

/// Bytes of a field's name or path; an empty or longer one is refused.
pub const FIELD_NAME_BYTES_MAX: usize = 1 << 10;

/// What a field is used as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Who: the player id.
    Player,
    /// When: the event time.
    Time,
    /// What: the event type.
    Type,
    /// Which: the event's id. It is never guessed.
    EventId,
}

impl Role {
    /// The roles that every input has, in the order in which fields are chosen.
    pub const ALL: [Role; 3] = [Role::Player, Role::Time, Role::Type];

    /// The option that names the field.
    pub fn option(self) -> &'static str {
        match self {
            Role::Player => "--player-field",
            Role::Time => "--time-field",
            Role::Type => "--type-field",
            Role::EventId => "--id-field",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Player => "player",
            Role::Time => "time",
            Role::Type => "type",
            Role::EventId => "id",
        })
    }
}

/// Which fields an import uses, all of them decided.
///
/// With other fields the same lines are other events, which the store refuses under the numbers that it knows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fields {
    /// Name or path of the player field.
    pub player: String,
    /// Name or path of the time field.
    pub time: String,
    /// How the time field is written.
    pub time_unit: TimeUnit,
    /// Name or path of the type field.
    pub event_type: String,
    /// Name or path of the field that holds events' ids, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
}

/// The fields in one line, the same for the same fields and for no others.
impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fields { player, time, time_unit, event_type, event_id } = self;
        write!(f, "player={player:?} time={time:?} unit={time_unit} type={event_type:?}")?;
        event_id.as_ref().map_or(Ok(()), |event_id| write!(f, " id={event_id:?}"))
    }
}

/// A field's name has no legal length. Name another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("name of the {role} field has {bytes} bytes, {} takes 1 to {max}", role.option())]
pub struct FieldNameError {
    /// What the field is for.
    pub role: Role,
    /// Length of the name.
    pub bytes: usize,
    /// The longest legal one.
    pub max: usize,
}

/// A field's value in a line.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    /// The value.
    pub value: Value<'a>,
    /// The place of its top-level member when it is a member itself, and not inside one.
    pub member: Option<usize>,
}

/// A field's name, taken apart.
#[derive(Debug, Clone)]
pub struct FieldPath {
    name: String,
    /// The parts between the dots when there is a dot.
    parts: Vec<String>,
}

impl FieldPath {
    /// Takes a name apart.
    ///
    /// # Errors
    /// When it is empty or above [`FIELD_NAME_BYTES_MAX`].
    pub fn new(role: Role, name: &str) -> Result<FieldPath, FieldNameError> {
        if !(1..=FIELD_NAME_BYTES_MAX).contains(&name.len()) {
            return Err(FieldNameError { role, bytes: name.len(), max: FIELD_NAME_BYTES_MAX });
        }
        Ok(FieldPath::known(name))
    }

    /// Takes apart a name that has a legal length.
    pub(super) fn known(name: &str) -> FieldPath {
        let parts = if name.contains('.') { name.split('.').map(str::to_owned).collect() } else { Vec::new() };
        FieldPath { name: name.to_owned(), parts }
    }

    /// The name as it was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the field's value in a line whose members are known.
    pub fn find<'a>(&self, line: &'a str, members: &Members) -> Option<Found<'a>> {
        if let Some(place) = members.position(line, &self.name) {
            return Some(Found { value: members.list()[place].value(line), member: Some(place) });
        }
        let (first, inner) = self.parts.split_first()?;
        let place = members.position(line, first)?;
        let outer = members.list()[place].value(line);
        let value = inner.iter().try_fold(outer, |value, part| value.member(part))?;
        Some(Found { value, member: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_leads_into_objects_and_a_key_of_that_very_name_comes_first() {
        let table = [
            ("a", r#"{"a":1}"#, Some(("1", Some(0)))),
            ("a", r#"{"b":1}"#, None),
            ("a.b", r#"{"x":0,"a":{"b":{"c":2}}}"#, Some((r#"{"c":2}"#, None))),
            ("a.b.c", r#"{"a":{"b": { "c" : 2 }}}"#, Some(("2", None))),
            ("a.b", r#"{"a":{"b":1},"a.b":2}"#, Some(("2", Some(1)))),
            ("a.b", r#"{"a":{"b":1,"\u0062":3}}"#, Some(("3", None))),
            ("a.b", r#"{"a":[{"b":1}]}"#, None),
            ("a.b", r#"{"a":"{\"b\":1}"}"#, None),
            ("a.", r#"{"a":{"":4}}"#, Some(("4", None))),
        ];
        for (name, line, expected) in table {
            let mut members = Members::default();
            members.read(line).unwrap();
            let found = FieldPath::new(Role::Player, name).unwrap().find(line, &members);
            assert_eq!(found.map(|found| (found.value.text, found.member)), expected, "{name} in {line}");
        }
        let error = FieldPath::new(Role::Time, "").unwrap_err().to_string();
        assert_eq!(error, "name of the time field has 0 bytes, --time-field takes 1 to 1024");
    }

    #[test]
    fn fields_read_back_from_what_is_kept_of_them() {
        let fields = Fields {
            player: "user.id".to_owned(),
            time: "at".to_owned(),
            time_unit: TimeUnit::Rfc3339,
            event_type: "a \"b\"".to_owned(),
            event_id: None,
        };
        assert_eq!(fields.to_string(), r#"player="user.id" time="at" unit=rfc3339 type="a \"b\"""#);
        let kept = serde_json::to_string(&fields).unwrap();
        assert_eq!(kept, r#"{"player":"user.id","time":"at","time_unit":"rfc3339","event_type":"a \"b\""}"#);
        assert_eq!(serde_json::from_str::<Fields>(&kept).unwrap(), fields);
        let fields = Fields { event_id: Some("uuid".to_owned()), ..fields };
        assert!(fields.to_string().ends_with(r#" type="a \"b\"" id="uuid""#));
        assert_eq!(serde_json::from_str::<Fields>(&serde_json::to_string(&fields).unwrap()).unwrap(), fields);
    }
}
