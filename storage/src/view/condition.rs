//! What a scan asks of an event's properties.

use std::cmp::Ordering;

use crate::{
    Result,
    properties::{self, Property},
};

/// A value that properties are compared with.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar {
    /// JSON null.
    Null,
    /// true or false.
    Bool(bool),
    /// An integer; equal to a float of the same number.
    Int(i64),
    /// A float that is a number.
    Float(f64),
    /// A string.
    String(String),
}

/// A test of a property's value.
///
/// Numbers are compared with numbers, exactly, and strings with strings, by their bytes; no value of another kind passes a
/// comparison. A number that neither 64-bit integer nor float holds is taken as the nearest float.
#[derive(Clone, Debug, PartialEq)]
pub enum Test {
    /// It is one of these.
    Is(Vec<Scalar>),
    /// It is there, and is not this.
    IsNot(Scalar),
    /// It is less.
    Less(Scalar),
    /// It is less or equal.
    AtMost(Scalar),
    /// It is greater.
    Greater(Scalar),
    /// It is greater or equal.
    AtLeast(Scalar),
    /// It is there; null counts.
    Exists,
    /// It is not there.
    Absent,
}

/// What must hold of a property.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    /// The property.
    pub property: String,
    /// What its value must pass.
    pub test: Test,
}

impl Condition {
    /// Whether it holds of an event with this value; `None`: without the property.
    pub fn holds(&self, value: Option<&Property<'_>>) -> bool {
        let Some(value) = value else { return self.test == Test::Absent };
        let is = |scalar: &Scalar, takes: fn(Ordering) -> bool| compared(value, scalar).is_some_and(takes);
        match &self.test {
            Test::Is(any) => any.iter().any(|scalar| is(scalar, Ordering::is_eq)),
            Test::IsNot(scalar) => !is(scalar, Ordering::is_eq),
            Test::Less(scalar) => is(scalar, Ordering::is_lt),
            Test::AtMost(scalar) => is(scalar, Ordering::is_le),
            Test::Greater(scalar) => is(scalar, Ordering::is_gt),
            Test::AtLeast(scalar) => is(scalar, Ordering::is_ge),
            Test::Exists => true,
            Test::Absent => false,
        }
    }
}

/// Whether all conditions hold of an event's properties.
pub(crate) fn all_hold(conditions: &[Condition], json: &str) -> Result<bool> {
    let mut values: Vec<Option<Property<'_>>> = vec![None; conditions.len()];
    for member in properties::members(json) {
        let (name, raw) = member?;
        for (condition, value) in conditions.iter().zip(&mut values) {
            if condition.property == name {
                *value = Property::parse(raw);
            }
        }
    }
    Ok(conditions.iter().zip(&values).all(|(condition, value)| condition.holds(value.as_ref())))
}

/// How a value stands to another of its kind.
fn compared(value: &Property<'_>, scalar: &Scalar) -> Option<Ordering> {
    let of_float = |value: f64| match scalar {
        Scalar::Int(int) => Some(int_to_float(*int, value)?.reverse()),
        Scalar::Float(float) => value.partial_cmp(float),
        _ => None,
    };
    match (value, scalar) {
        (Property::Null, Scalar::Null) => Some(Ordering::Equal),
        (Property::Bool(value), Scalar::Bool(bool)) => Some(value.cmp(bool)),
        (Property::String(value), Scalar::String(text)) => Some(value.as_ref().cmp(text)),
        (Property::Int(value), Scalar::Int(int)) => Some(value.cmp(int)),
        (Property::Int(value), Scalar::Float(float)) => int_to_float(*value, *float),
        (Property::Float(value), _) => of_float(*value),
        (Property::Json(text), _) => of_float(text.parse().ok()?),
        _ => None,
    }
}

/// Compares an integer with a float as the numbers that they are.
#[expect(clippy::cast_possible_truncation, reason = "the whole part is within 64 bits there")]
fn int_to_float(int: i64, float: f64) -> Option<Ordering> {
    const END: f64 = 9_223_372_036_854_775_808.0;
    if float.is_nan() {
        None
    } else if float >= END {
        Some(Ordering::Less)
    } else if float < -END {
        Some(Ordering::Greater)
    } else {
        let whole = float.trunc();
        Some(int.cmp(&(whole as i64)).then(0.0.partial_cmp(&(float - whole))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(json: &str, test: Test) -> bool {
        all_hold(&[Condition { property: "x".into(), test }], json).expect("parses")
    }

    #[test]
    fn values_are_compared_with_their_kind() {
        let text = |text: &str| Scalar::String(text.to_owned());
        for (value, test, expected) in [
            ("5", Test::Is(vec![Scalar::Int(5)]), true),
            ("5.0", Test::Is(vec![Scalar::Int(5)]), true),
            ("5", Test::Is(vec![text("5"), Scalar::Float(5.0)]), true),
            ("\"5\"", Test::Is(vec![Scalar::Int(5)]), false),
            ("null", Test::Is(vec![Scalar::Null]), true),
            ("null", Test::Less(Scalar::Int(9)), false),
            ("\"b\"", Test::Greater(text("a")), true),
            ("\"a\"", Test::AtLeast(text("a")), true),
            ("true", Test::IsNot(Scalar::Bool(true)), false),
            ("true", Test::IsNot(Scalar::Int(1)), true),
            ("9007199254740993", Test::Greater(Scalar::Float(9_007_199_254_740_992.0)), true),
            ("-7", Test::AtMost(Scalar::Float(-6.5)), true),
            ("-6", Test::AtMost(Scalar::Float(-6.5)), false),
            ("9223372036854775807", Test::Less(Scalar::Float(9_223_372_036_854_775_808.0)), true),
            ("123456789012345678901234567890", Test::Greater(Scalar::Int(i64::MAX)), true),
            ("[1]", Test::Is(vec![Scalar::Int(1)]), false),
            ("[1]", Test::Exists, true),
            ("null", Test::Exists, true),
            ("1", Test::Absent, false),
        ] {
            let json = format!(r#"{{"y":0,"x":{value}}}"#);
            assert_eq!(holds(&json, test.clone()), expected, "{value} {test:?}");
        }
        for (test, expected) in [
            (Test::Absent, true),
            (Test::Exists, false),
            (Test::IsNot(Scalar::Int(1)), false),
            (Test::Is(vec![]), false),
        ] {
            assert_eq!(holds(r#"{"y":0}"#, test.clone()), expected, "{test:?}");
            assert_eq!(holds("", test), expected);
        }
    }
}
