//! Chooses the player, time and type fields of an input, from options where they are given and from lines where not.
//!
//! A field is chosen by the first line that has one of the names that game logs commonly use, with a value that fits:
//! so `time: 35`, the second of a match, does not win over a `timestamp` that is one. Of several in that line the first
//! in a fixed order wins. A time's unit is told by the suffix of the field's name, else by the magnitude of its number
//! in that line, else it is RFC 3339 text.
//!
//! The first lines that are JSON objects, at most [`SAMPLE_LINES_MAX`], must agree: what was chosen has to fit in
//! nearly all of them. So lines that are appended to a short file can refuse a choice but never change it, and what was
//! imported under it stays what it is.
//!
//! Nothing is guessed silently: the [`Detection`] prints what was chosen and why, and what cannot be told is an error
//! that lists the fields seen and the option to give.

use std::fmt;

use crate::fields::{FieldNameError, FieldPath, Fields, Role};
use crate::instant::{EVENT_TIME_MS, TimeUnit, TimeUnitOption};
use crate::json::{Kind, Members, Value};
use crate::mapping::{EVENT_TYPE_BYTES_MAX, PLAYER_ID_BYTES_MAX, shown, time_text};

/// Lines that are looked at.
pub const SAMPLE_LINES_MAX: usize = 1_000;

/// Names of fields that an error lists; more are left out.
pub const FIELDS_SEEN_MAX: usize = 40;

/// Percent of the sampled lines in which a chosen field must fit.
const NEARLY_ALL_PERCENT: usize = 95;

/// Names of player fields, the best first.
const PLAYER_NAMES: &[&str] = &[
    "player_id",
    "playerId",
    "player",
    "user_id",
    "userId",
    "user",
    "uid",
    "account_id",
    "accountId",
    "account",
    "actor",
    "actor_id",
    "player.id",
    "user.id",
    "account.id",
    "actor.id",
    "name",
    "username",
];

/// Names of time fields, the best first.
const TIME_NAMES: &[&str] = &[
    "ts_ms",
    "ts",
    "time",
    "timestamp",
    "timestamp_ms",
    "time_ms",
    "event_time",
    "eventTime",
    "event_time_ms",
    "created_at",
    "createdAt",
    "occurred_at",
    "at",
    "date",
    "datetime",
    "@timestamp",
];

/// Names of type fields, the best first.
const TYPE_NAMES: &[&str] =
    &["event_type", "type", "event", "eventType", "event_name", "eventName", "action", "kind", "name"];

/// What the options say about the fields.
#[derive(Debug, Clone, Default)]
pub struct MappingOptions {
    /// `--player-field`.
    pub player_field: Option<String>,
    /// `--time-field`.
    pub time_field: Option<String>,
    /// `--time-unit`.
    pub time_unit: TimeUnitOption,
    /// `--type-field`.
    pub type_field: Option<String>,
    /// `--id-field`; no id is looked for without it.
    pub id_field: Option<String>,
}

impl MappingOptions {
    fn given(&self, role: Role) -> Option<&str> {
        match role {
            Role::Player => self.player_field.as_deref(),
            Role::Time => self.time_field.as_deref(),
            Role::Type => self.type_field.as_deref(),
            Role::EventId => self.id_field.as_deref(),
        }
    }
}

/// Why fields cannot be chosen. Give the option that the message names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DetectError {
    /// An option holds a name of no legal length.
    #[error(transparent)]
    FieldName(#[from] FieldNameError),
    /// No line is a JSON object, so there is nothing to tell by.
    #[error("no JSON object among the first lines to tell the {role} field by: give {}", role.option())]
    NoLines {
        /// The first role that is not given.
        role: Role,
    },
    /// None of the known names fits in any line.
    #[error("no known {role} field in any of {sampled} lines; top-level fields are {seen}: give {}", role.option())]
    Unknown {
        /// The role that no field fits.
        role: Role,
        /// Lines looked at.
        sampled: usize,
        /// The fields of these lines.
        seen: FieldsSeen,
    },
    /// The field that the first line with any has does not fit in nearly all lines.
    #[error(
        "{role} field {field}, the first that is known, fits in only {lines} of {sampled} lines; top-level fields are \
         {seen}: give {}",
        role.option()
    )]
    Rare {
        /// The role that the field is for.
        role: Role,
        /// The field.
        field: String,
        /// Lines in which it fits.
        lines: usize,
        /// Lines looked at.
        sampled: usize,
        /// The fields of these lines.
        seen: FieldsSeen,
    },
    /// The field that an option names stands in none of the lines.
    #[error("{} {field} is in none of {sampled} lines; top-level fields are {seen}", role.option())]
    Absent {
        /// The role that the option is for.
        role: Role,
        /// The name given.
        field: String,
        /// Lines looked at.
        sampled: usize,
        /// The fields of these lines.
        seen: FieldsSeen,
    },
    /// The values of the time field are not of one unit.
    #[error("unit of time field {field} cannot be told by values like {shown}: give --time-unit")]
    TimeUnit {
        /// The field.
        field: String,
        /// One of its values, cut.
        shown: String,
    },
}

/// Names of top-level fields in the order in which they were met, at most [`FIELDS_SEEN_MAX`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldsSeen(pub Vec<String>);

impl fmt::Display for FieldsSeen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            0 => f.write_str("none"),
            FIELDS_SEEN_MAX => write!(f, "{} and perhaps more", self.0.join(", ")),
            _ => f.write_str(&self.0.join(", ")),
        }
    }
}

/// Why a field was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// An option names it.
    Given,
    /// The first line that has a known name with a value that fits has it.
    Fits {
        /// Lines in which it does.
        lines: usize,
        /// Lines looked at.
        sampled: usize,
    },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Given => f.write_str("given"),
            Why::Fits { lines, sampled } => write!(f, "fits in {lines} of the first {sampled} lines"),
        }
    }
}

/// Why a unit was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhyUnit {
    /// An option names it.
    Given,
    /// The field's name ends with it.
    Suffix,
    /// The first number is an instant of our days in it.
    Magnitude,
    /// The values are texts.
    Text,
}

impl fmt::Display for WhyUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WhyUnit::Given => "given",
            WhyUnit::Suffix => "by the suffix of its name",
            WhyUnit::Magnitude => "by the magnitude of its numbers",
            WhyUnit::Text => "by its texts",
        })
    }
}

/// What was chosen, and why; prints as a line a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detection {
    /// The fields.
    pub fields: Fields,
    /// Why each, in the order of [`Role::ALL`].
    pub why: [Why; 3],
    /// Why the time unit.
    pub why_unit: WhyUnit,
}

impl fmt::Display for Detection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fields { player, time, time_unit, event_type, event_id } = &self.fields;
        let [why_player, why_time, why_type] = self.why;
        writeln!(f, "player field: {player} ({why_player})")?;
        writeln!(f, "time field: {time} ({why_time}), unit {time_unit} ({})", self.why_unit)?;
        write!(f, "type field: {event_type} ({why_type})")?;
        event_id.as_ref().map_or(Ok(()), |event_id| write!(f, "\nid field: {event_id} (given)"))
    }
}

/// How often a name was met in the sample.
#[derive(Debug)]
struct Tally {
    path: FieldPath,
    present: usize,
    /// Lines in which the value fits the role; for a time, those in the unit of the first of them.
    fits: usize,
    /// The first of these lines.
    first_fit: Option<usize>,
    /// For a time: its unit in that line.
    unit: Option<TimeUnit>,
    /// The first value that was met.
    example: Option<String>,
}

/// Looks at lines, and chooses.
#[derive(Debug)]
pub struct Detector {
    options: MappingOptions,
    tallies: [Vec<Tally>; 3],
    sampled: usize,
    seen: Vec<String>,
    members: Members,
}

impl Detector {
    /// Begins with an empty sample.
    ///
    /// # Errors
    /// When an option holds a name of no legal length.
    pub fn new(options: MappingOptions) -> Result<Detector, DetectError> {
        let tallies = [
            tallies(Role::Player, &options, PLAYER_NAMES)?,
            tallies(Role::Time, &options, TIME_NAMES)?,
            tallies(Role::Type, &options, TYPE_NAMES)?,
        ];
        options.id_field.as_ref().map(|name| FieldPath::new(Role::EventId, name)).transpose()?;
        Ok(Detector { options, tallies, sampled: 0, seen: Vec::new(), members: Members::default() })
    }

    /// Says whether further lines would change nothing.
    pub fn is_full(&self) -> bool {
        self.sampled == SAMPLE_LINES_MAX
    }

    /// Looks at a line; one that is no JSON object is passed over.
    pub fn observe(&mut self, line: &[u8]) {
        let Ok(line) = std::str::from_utf8(line) else { return };
        if self.is_full() || self.members.read(line).is_err() {
            return;
        }
        self.sampled += 1;
        for member in self.members.list() {
            let name = member.name(line);
            if self.seen.len() < FIELDS_SEEN_MAX && !self.seen.iter().any(|seen| *seen == shown(&name)) {
                self.seen.push(shown(&name));
            }
        }
        for (role, tallies) in Role::ALL.into_iter().zip(&mut self.tallies) {
            for tally in tallies {
                let Some(found) = tally.path.find(line, &self.members) else { continue };
                tally.present += 1;
                tally.example.get_or_insert_with(|| shown(found.value.text));
                let fits = match role {
                    Role::Time => {
                        let unit = unit_of(tally.path.name(), found.value, self.options.time_unit);
                        tally.unit = tally.unit.or(unit);
                        unit.is_some() && unit == tally.unit
                    }
                    Role::Player | Role::Type | Role::EventId => text_fits(role, found.value),
                };
                if fits {
                    tally.fits += 1;
                    tally.first_fit = tally.first_fit.or(Some(self.sampled));
                }
            }
        }
    }

    /// Chooses.
    ///
    /// # Errors
    /// See [`DetectError`].
    pub fn decide(self) -> Result<Detection, DetectError> {
        let (player, why_player) = self.choose(Role::Player, &[])?;
        let (time, why_time) = self.choose(Role::Time, &[player])?;
        let (time_unit, why_unit) = self.choose_unit(time)?;
        let (event_type, why_type) = self.choose(Role::Type, &[player, time])?;
        let name = |tally: &Tally| tally.path.name().to_owned();
        let (player, time, event_type) = (name(player), name(time), name(event_type));
        let fields = Fields { player, time, time_unit, event_type, event_id: self.options.id_field.clone() };
        Ok(Detection { fields, why: [why_player, why_time, why_type], why_unit })
    }

    /// Chooses a role's field among those that no other role has.
    fn choose(&self, role: Role, chosen: &[&Tally]) -> Result<(&Tally, Why), DetectError> {
        let tallies = &self.tallies[role as usize];
        let (sampled, seen) = (self.sampled, || FieldsSeen(self.seen.clone()));
        if let Some(given) = self.options.given(role) {
            let tally = &tallies[0];
            if sampled > 0 && tally.present == 0 {
                return Err(DetectError::Absent { role, field: given.to_owned(), sampled, seen: seen() });
            }
            return Ok((tally, Why::Given));
        }
        if sampled == 0 {
            return Err(DetectError::NoLines { role });
        }
        let free = |tally: &&Tally| {
            let name = tally.path.name();
            chosen.iter().all(|other| other.path.name() != name)
                && Role::ALL.into_iter().all(|role| self.options.given(role) != Some(name))
        };
        // The first name of those that fit first.
        let first = tallies.iter().filter(free).filter(|tally| tally.fits > 0).min_by_key(|tally| tally.first_fit);
        let Some(tally) = first else {
            return Err(DetectError::Unknown { role, sampled, seen: seen() });
        };
        let lines = tally.fits;
        if !nearly_all(lines, sampled) {
            let field = tally.path.name().to_owned();
            return Err(DetectError::Rare { role, field, lines, sampled, seen: seen() });
        }
        Ok((tally, Why::Fits { lines, sampled }))
    }

    /// Chooses the unit of the time field.
    fn choose_unit(&self, time: &Tally) -> Result<(TimeUnit, WhyUnit), DetectError> {
        if let TimeUnitOption::Given(unit) = self.options.time_unit {
            return Ok((unit, WhyUnit::Given));
        }
        match time.unit {
            Some(unit) if nearly_all(time.fits, time.present) => {
                let why = match unit {
                    TimeUnit::Rfc3339 => WhyUnit::Text,
                    _ if TimeUnit::of_suffix(time.path.name()).is_some() => WhyUnit::Suffix,
                    _ => WhyUnit::Magnitude,
                };
                Ok((unit, why))
            }
            _ => Err(DetectError::TimeUnit {
                field: time.path.name().to_owned(),
                shown: time.example.clone().unwrap_or_else(|| "none".to_owned()),
            }),
        }
    }
}

/// Chooses the fields by these lines.
///
/// # Errors
/// See [`DetectError`].
pub fn detect<'a>(
    options: MappingOptions,
    lines: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Detection, DetectError> {
    let mut detector = Detector::new(options)?;
    for line in lines {
        if detector.is_full() {
            break;
        }
        detector.observe(line);
    }
    detector.decide()
}

/// The names to count for a role: the one given, or all that are known.
fn tallies(role: Role, options: &MappingOptions, known: &[&str]) -> Result<Vec<Tally>, DetectError> {
    let tally = |path| Tally { path, present: 0, fits: 0, first_fit: None, unit: None, example: None };
    match options.given(role) {
        Some(name) => Ok(vec![tally(FieldPath::new(role, name)?)]),
        None => Ok(known.iter().map(|name| tally(FieldPath::known(name))).collect()),
    }
}

fn nearly_all(lines: usize, of: usize) -> bool {
    lines * 100 >= of * NEARLY_ALL_PERCENT
}

/// Says whether a value can be a player id or an event type.
fn text_fits(role: Role, value: Value<'_>) -> bool {
    let max = if role == Role::Player { PLAYER_ID_BYTES_MAX } else { EVENT_TYPE_BYTES_MAX };
    match value.kind {
        Kind::Integer => role == Role::Player && value.text.len() <= max,
        _ => value.string().is_some_and(|text| (1..=max).contains(&text.len())),
    }
}

/// Returns the unit in which a value of `field` is an instant that the store takes.
fn unit_of(field: &str, value: Value<'_>, option: TimeUnitOption) -> Option<TimeUnit> {
    let text = time_text(value)?;
    let number = matches!(value.kind, Kind::Integer | Kind::Decimal);
    let unit = match option {
        TimeUnitOption::Given(TimeUnit::Rfc3339) if number => return None,
        TimeUnitOption::Given(unit) => unit,
        TimeUnitOption::Auto if !number && TimeUnit::Rfc3339.milliseconds(&text).is_some() => TimeUnit::Rfc3339,
        TimeUnitOption::Auto => match TimeUnit::of_suffix(field) {
            Some(unit) => unit,
            // Read as milliseconds a number keeps its whole part.
            None => TimeUnit::of_magnitude(TimeUnit::Milliseconds.milliseconds(&text)?)?,
        },
    };
    EVENT_TIME_MS.contains(&unit.milliseconds(&text)?).then_some(unit)
}

#[cfg(test)]
#[path = "detect_tests.rs"]
mod tests;
