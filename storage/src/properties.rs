//! Properties without a schema: what kinds a JSON object's members have, and what column a set of kinds makes.
//!
//! A property's *kinds* are the union over all its values of what each value is. They decide, where values are stored,
//! which typed columns a segment gives the property, and at query time the one SQL type that holds every value exactly:
//! integers widen to floats where every integer is exact as one, and anything else widens to text.

mod members;

use std::{borrow::Cow, collections::HashSet, fmt::Write as _};

use galoo_proto::{
    limits::{EVENT_PROPERTIES_MAX, JSON_DEPTH_MAX, PROPERTY_NAME_BYTES_MAX},
    value::ValueKind,
};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

pub use members::{Members, members};

/// A union of kinds of values, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Kinds(pub u8);

impl Kinds {
    /// JSON null.
    pub const NULL: Self = Self(1);
    /// true or false.
    pub const BOOL: Self = Self(2);
    /// An integer within ±2^53: exact as a float.
    pub const INT: Self = Self(4);
    /// Another 64-bit signed integer.
    pub const WIDE_INT: Self = Self(8);
    /// A number that a 64-bit float holds exactly as written (its shortest form names the same decimal).
    pub const FLOAT: Self = Self(16);
    /// A string.
    pub const STRING: Self = Self(32);
    /// An object or array.
    pub const NESTED: Self = Self(64);
    /// Kept as JSON text: numbers that no other kind holds exactly.
    pub const NUMBER: Self = Self(128);

    /// Returns the union.
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns whether every kind here is in `other`.
    pub fn within(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    /// Returns the type of the one column that holds every value exactly.
    pub fn column_type(self) -> ColumnType {
        let kinds = Self(self.0 & !Self::NULL.0);
        if kinds == Self(0) {
            ColumnType::Text
        } else if kinds.within(Self::BOOL) {
            ColumnType::Bool
        } else if kinds.within(Self::INT.with(Self::WIDE_INT)) {
            ColumnType::Int
        } else if kinds.within(Self::INT.with(Self::FLOAT)) {
            ColumnType::Float
        } else {
            ColumnType::Text
        }
    }
}

/// The type of a property's column in SQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ColumnType {
    /// true or false.
    Bool,
    /// 64-bit signed integer.
    Int,
    /// 64-bit float.
    Float,
    /// Text; what is no string is its JSON.
    Text,
}

impl ColumnType {
    /// The type of a declared kind; `None` where nothing is declared of it.
    pub fn of_kind(kind: ValueKind) -> Option<Self> {
        match kind {
            ValueKind::Bool => Some(Self::Bool),
            ValueKind::Int => Some(Self::Int),
            ValueKind::Float => Some(Self::Float),
            ValueKind::String => Some(Self::Text),
            ValueKind::Any | ValueKind::Bytes | ValueKind::Json => None,
        }
    }

    /// The kinds of values that fit where this type is declared. Null is no value.
    pub fn kinds(self) -> Kinds {
        let kinds = match self {
            Self::Bool => Kinds::BOOL,
            Self::Int => Kinds::INT.with(Kinds::WIDE_INT),
            Self::Float => Kinds::INT.with(Kinds::FLOAT),
            Self::Text => Kinds::STRING,
        };
        kinds.with(Kinds::NULL)
    }
}

/// Returns an integer as a float, if there is one that is exactly it, and no other integer is the same float.
#[expect(clippy::cast_precision_loss, reason = "it is within 2^53")]
pub fn exact_float(int: i64) -> Option<f64> {
    (int.unsigned_abs() <= 1 << 53).then_some(int as f64)
}

/// A property's value.
#[derive(Clone, Debug, PartialEq)]
pub enum Property<'a> {
    /// JSON null.
    Null,
    /// true or false.
    Bool(bool),
    /// A 64-bit signed integer.
    Int(i64),
    /// A number whose shortest decimal names the value as written.
    Float(f64),
    /// A string.
    String(Cow<'a, str>),
    /// An object, an array, or a number that nothing else holds exactly, as JSON text.
    Json(&'a str),
}

/// Why a text is not an event's properties.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidProperties {
    /// It is no JSON object.
    #[error("not a JSON object: {0}")]
    Json(String),
    /// It has too many members.
    #[error("{0} properties; the limit is {EVENT_PROPERTIES_MAX}")]
    TooMany(usize),
    /// A member is given twice.
    #[error("property {0:?} is given twice")]
    Twice(String),
    /// A member's name is too long.
    #[error("a property's name has {0} bytes; the limit is {PROPERTY_NAME_BYTES_MAX}")]
    NameTooLong(usize),
    /// It nests too deep.
    #[error("property {0:?} nests deeper than {JSON_DEPTH_MAX}")]
    TooDeep(String),
}

/// Calls `visit` with the name and the JSON text of each member of an object, in order. Empty text is an empty object.
///
/// # Errors
/// Returns what serde_json says of a text that is no JSON object.
fn checked_members<'a>(json: &'a str, visit: &mut dyn FnMut(Cow<'a, str>, &'a str)) -> serde_json::Result<()> {
    struct Checked<'v, 'a>(&'v mut dyn FnMut(Cow<'a, str>, &'a str));
    impl<'a> Visitor<'a> for Checked<'_, 'a> {
        type Value = ();
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
            while let Some(name) = map.next_key_seed(Name)? {
                (self.0)(name, map.next_value::<&RawValue>()?.get());
            }
            Ok(())
        }
    }
    if json.is_empty() {
        return Ok(());
    }
    let mut reader = serde_json::Deserializer::from_str(json);
    reader.deserialize_map(Checked(visit))?;
    reader.end()
}

/// A member's name, borrowed where it has no escapes.
struct Name;

impl<'a> DeserializeSeed<'a> for Name {
    type Value = Cow<'a, str>;
    fn deserialize<D: Deserializer<'a>>(self, reader: D) -> Result<Cow<'a, str>, D::Error> {
        reader.deserialize_str(self)
    }
}

impl<'a> Visitor<'a> for Name {
    type Value = Cow<'a, str>;
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a name")
    }
    fn visit_borrowed_str<E>(self, text: &'a str) -> Result<Cow<'a, str>, E> {
        Ok(Cow::Borrowed(text))
    }
    fn visit_str<E>(self, text: &str) -> Result<Cow<'a, str>, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

/// Checks an event's properties and returns the name and the kind of each.
pub fn check(json: &str) -> Result<Vec<(Cow<'_, str>, Kinds)>, InvalidProperties> {
    let mut found: Vec<(Cow<'_, str>, Kinds)> = Vec::new();
    let mut bad = None;
    let read = checked_members(json, &mut |name, raw| {
        if name.len() > PROPERTY_NAME_BYTES_MAX {
            bad.get_or_insert(InvalidProperties::NameTooLong(name.len()));
        } else if matches!(raw.as_bytes().first(), Some(b'{' | b'[')) && depth(raw) > JSON_DEPTH_MAX {
            bad.get_or_insert(InvalidProperties::TooDeep(name.clone().into_owned()));
        }
        match Property::parse(raw) {
            Some(property) => found.push((name, property.kind())),
            None => {
                bad.get_or_insert(InvalidProperties::Json(format!("string with a lone surrogate in {name:?}")));
            }
        }
    });
    read.map_err(|error| InvalidProperties::Json(error.to_string()))?;
    if let Some(bad) = bad {
        return Err(bad);
    }
    if found.len() > EVENT_PROPERTIES_MAX {
        return Err(InvalidProperties::TooMany(found.len()));
    }
    if found.len() <= 16 {
        let twice = (1..found.len()).find(|&i| found[..i].iter().any(|(name, _)| *name == found[i].0));
        return twice.map_or(Ok(()), |i| Err(InvalidProperties::Twice(found[i].0.to_string()))).map(|()| found);
    }
    let mut names = HashSet::new();
    match found.iter().find(|(name, _)| !names.insert(name.as_ref())) {
        Some((name, _)) => Err(InvalidProperties::Twice(name.to_string())),
        None => Ok(found),
    }
}

/// Returns how deep the arrays and objects of a JSON text nest.
pub fn depth(raw: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0usize, 0, false, false);
    for byte in raw.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

impl<'a> Property<'a> {
    /// Reads the JSON text of one value, as [`members()`] gives it.
    ///
    /// Returns `None` for a string that is no Unicode (a lone surrogate escape).
    pub fn parse(raw: &'a str) -> Option<Self> {
        Some(match raw.as_bytes().first()? {
            b'n' => Self::Null,
            b't' => Self::Bool(true),
            b'f' => Self::Bool(false),
            b'"' => {
                let plain = raw.get(1..raw.len() - 1)?;
                if plain.contains('\\') {
                    Self::String(Cow::Owned(serde_json::from_str(raw).ok()?))
                } else {
                    Self::String(Cow::Borrowed(plain))
                }
            }
            b'{' | b'[' => Self::Json(raw),
            _ => Self::number(raw),
        })
    }

    fn number(raw: &'a str) -> Self {
        if let Ok(int) = raw.parse::<i64>()
            && raw != "-0"
        {
            return Self::Int(int);
        }
        match raw.parse::<f64>() {
            Ok(float) if float.is_finite() && (is_short(raw, float) || decimal(raw) == decimal(&float_text(float))) => {
                Self::Float(float)
            }
            _ => Self::Json(raw),
        }
    }

    /// Returns the value's kind.
    pub fn kind(&self) -> Kinds {
        match self {
            Self::Null => Kinds::NULL,
            Self::Bool(_) => Kinds::BOOL,
            Self::Int(int) if exact_float(*int).is_some() => Kinds::INT,
            Self::Int(_) => Kinds::WIDE_INT,
            Self::Float(_) => Kinds::FLOAT,
            Self::String(_) => Kinds::STRING,
            Self::Json(raw) if raw.starts_with(['{', '[']) => Kinds::NESTED,
            Self::Json(_) => Kinds::NUMBER,
        }
    }

    /// Appends the value as JSON.
    pub fn write_json(&self, out: &mut String) {
        match self {
            Self::String(text) if is_plain(text) => {
                out.push('"');
                out.push_str(text);
                out.push('"');
            }
            Self::String(text) => out.push_str(&json_string(text)),
            Self::Null => out.push_str("null"),
            Self::Int(int) => drop(write!(out, "{int}")),
            _ => out.push_str(&self.text()),
        }
    }

    /// Returns the value as text: a string is itself, anything else its JSON.
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Null => "null".into(),
            Self::Bool(true) => "true".into(),
            Self::Bool(false) => "false".into(),
            Self::Int(int) => int.to_string().into(),
            Self::Float(float) => float_text(*float).into(),
            Self::String(text) => text.as_ref().into(),
            Self::Json(raw) => (*raw).into(),
        }
    }
}

/// Whether a string is the same in JSON, but for the quotes.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\')
}

/// Returns a string as JSON, quoted and escaped.
pub fn json_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Returns the shortest JSON number that reads back as this finite float; it always has a point or an exponent.
pub fn float_text(float: f64) -> String {
    serde_json::Number::from_f64(float).map_or_else(|| "null".to_owned(), |number| number.to_string())
}

/// Whether a decimal has so few digits that it always survives the way through a normal 64-bit float (IEEE 754: 15).
fn is_short(raw: &str, float: f64) -> bool {
    raw.bytes().filter(u8::is_ascii_digit).count() <= 15
        && (float == 0.0 || float.abs() > 1e-290)
        && !raw.contains(['e', 'E'])
}

/// The digits of a decimal without leading and trailing zeros, and its exponent: equal for equal numbers.
fn decimal(text: &str) -> (bool, String, i64) {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let negative = mantissa.starts_with('-');
    let mantissa = mantissa.trim_start_matches('-');
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let leading = digits.len() - digits.trim_start_matches('0').len();
    let point = exponent.parse::<i64>().unwrap_or(i64::MAX / 2).saturating_add(whole.len() as i64 - leading as i64);
    let digits = digits.trim_matches('0').to_owned();
    let point = if digits.is_empty() { 0 } else { point };
    (negative, digits, point)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kind(raw: &str) -> Kinds {
        Property::parse(raw).expect("a value").kind()
    }

    #[test]
    fn values_have_the_kind_that_holds_them_exactly() {
        for (raw, expected) in [
            ("null", Kinds::NULL),
            ("true", Kinds::BOOL),
            ("9007199254740992", Kinds::INT),
            ("9007199254740993", Kinds::WIDE_INT),
            ("-9223372036854775808", Kinds::WIDE_INT),
            ("9223372036854775808", Kinds::NUMBER),
            ("9223372036854775809", Kinds::NUMBER),
            ("99.0", Kinds::FLOAT),
            ("-0", Kinds::FLOAT),
            ("134.76", Kinds::FLOAT),
            ("1e3", Kinds::FLOAT),
            ("0.1234567890123456789", Kinds::NUMBER),
            ("0.30000000000000004", Kinds::FLOAT),
            ("1e999", Kinds::NUMBER),
            ("1e-999", Kinds::NUMBER),
            ("0e5", Kinds::FLOAT),
            (r#""x""#, Kinds::STRING),
            ("[1]", Kinds::NESTED),
        ] {
            // 2^63 is a power of two, but its shortest float text is not its decimal.
            assert_eq!(kind(raw), expected, "{raw}");
        }
    }

    #[test]
    fn kinds_widen_to_the_type_that_is_exact_for_all() {
        let of = |kinds: &[Kinds]| kinds.iter().fold(Kinds::NULL, |all, kind| all.with(*kind)).column_type();
        assert_eq!(of(&[]), ColumnType::Text);
        assert_eq!(of(&[Kinds::BOOL]), ColumnType::Bool);
        assert_eq!(of(&[Kinds::INT, Kinds::WIDE_INT]), ColumnType::Int);
        assert_eq!(of(&[Kinds::INT, Kinds::FLOAT]), ColumnType::Float);
        assert_eq!(of(&[Kinds::WIDE_INT, Kinds::FLOAT]), ColumnType::Text);
        assert_eq!(of(&[Kinds::INT, Kinds::STRING]), ColumnType::Text);
        assert_eq!(of(&[Kinds::BOOL, Kinds::INT]), ColumnType::Text);
    }

    #[test]
    fn rubbish_is_refused_with_a_reason() {
        let refused = |json: &str| check(json).expect_err(json);
        assert!(matches!(refused("[1]"), InvalidProperties::Json(_)));
        assert!(matches!(refused("{"), InvalidProperties::Json(_)));
        assert!(matches!(refused(r#"{"a":1} x"#), InvalidProperties::Json(_)));
        assert!(matches!(refused(r#"{"a":"\ud800"}"#), InvalidProperties::Json(_)));
        assert_eq!(refused(r#"{"a":1,"b":2,"a":3}"#), InvalidProperties::Twice("a".into()));
        let deep = format!(r#"{{"a":{}1{}}}"#, "[".repeat(129), "]".repeat(129));
        assert_eq!(refused(&deep), InvalidProperties::TooDeep("a".into()));
        let many: Vec<_> = (0..257).map(|i| format!(r#""p{i}":1"#)).collect();
        assert_eq!(refused(&format!("{{{}}}", many.join(","))), InvalidProperties::TooMany(257));
        assert_eq!(check("").expect("empty"), vec![]);
    }

    proptest! {
        #[test]
        fn floats_and_integers_survive(float in prop::num::f64::NORMAL | prop::num::f64::ZERO, int: i64) {
            let text = float_text(float);
            prop_assert_eq!(Property::parse(&text), Some(Property::Float(float)), "{}", text);
            let text = int.to_string();
            prop_assert_eq!(Property::parse(&text), Some(Property::Int(int)));
        }

        #[test]
        fn decimals_are_kept_as_text_exactly_when_a_float_would_change_them(text in "-?[1-9][0-9]{0,20}\\.[0-9]{1,20}") {
            let property = Property::parse(&text).expect("a number");
            prop_assert_eq!(decimal(&property.text()), decimal(&text));
        }

        #[test]
        fn strings_survive(text in ".{0,20}") {
            let json = json_string(&text);
            let property = Property::parse(&json).expect("a string");
            let mut back = String::new();
            property.write_json(&mut back);
            prop_assert_eq!(property.text(), text);
            prop_assert_eq!(back, json);
        }
    }
}
