//! What a change makes of a cell's value, and whether a test holds of it: pure functions.
//!
//! Lists and sets are JSON arrays. Two elements are the same when they say the same, however it is spelled; objects and
//! arrays only when their text is the same, and 1 and 1.0 are not.

use std::borrow::Cow;

use galoo_proto::{
    limits::LIST_BYTES_MAX,
    value::{IntRange, ListAppend, Mutation, Value, mutation::Change, value::Kind},
};
use serde_json::value::RawValue;

use crate::properties::{Property, float_text, json_string};

/// Returns the value that a change leaves, `None` when it deletes; or why it does not fit, as what follows the cell's name.
pub(super) fn changed(value: Option<&Value>, mutation: &Mutation) -> Result<Option<Value>, String> {
    Ok(match &mutation.change {
        Some(Change::Put(new)) => Some(new.clone()),
        Some(Change::Increment(by)) => Some(added(value, *by, mutation.floor, mutation.ceiling)?),
        Some(Change::Append(ListAppend { value: new, elements_max })) => {
            let new = element(new.as_ref())?;
            let mut list = elements(value)?;
            list.push(&new);
            let kept = usize::try_from(*elements_max).ok().filter(|max| *max > 0).unwrap_or(usize::MAX);
            Some(array(&list[list.len().saturating_sub(kept)..])?)
        }
        Some(Change::SetAdd(new)) => {
            let new = element(Some(new))?;
            let (mut set, said) = (elements(value)?, Property::parse(&new));
            if !set.iter().any(|one| is_same(one, &new, said.as_ref())) {
                set.push(&new);
            }
            Some(array(&set)?)
        }
        Some(Change::SetRemove(gone)) => {
            let gone = element(Some(gone))?;
            let (mut set, said) = (elements(value)?, Property::parse(&gone));
            set.retain(|one| !is_same(one, &gone, said.as_ref()));
            Some(array(&set)?)
        }
        Some(Change::Delete(_) | Change::DeleteFamily(_) | Change::DeleteRow(_)) | None => None,
    })
}

fn added(value: Option<&Value>, by: i64, floor: Option<i64>, ceiling: Option<i64>) -> Result<Value, String> {
    let old = match value.and_then(|value| value.kind.as_ref()) {
        None => 0,
        Some(Kind::Int(int)) => *int,
        Some(_) => return Err("is no integer".to_owned()),
    };
    let new = old.checked_add(by).ok_or_else(|| format!("is {old}; adding {by} overflows 64 bits"))?;
    if let Some(floor) = floor.filter(|floor| new < *floor) {
        return Err(format!("is {old}; adding {by} goes below the floor {floor}"));
    }
    if let Some(ceiling) = ceiling.filter(|ceiling| new > *ceiling) {
        return Err(format!("is {old}; adding {by} goes above the ceiling {ceiling}"));
    }
    Ok(Value { kind: Some(Kind::Int(new)) })
}

/// The elements of a list or set, each as its JSON text: so no number loses a digit.
fn elements(value: Option<&Value>) -> Result<Vec<&str>, String> {
    let text = match value.and_then(|value| value.kind.as_ref()) {
        None => return Ok(Vec::new()),
        Some(Kind::Json(text)) => text,
        Some(_) => return Err("is no JSON array".to_owned()),
    };
    let elements: Vec<&RawValue> = serde_json::from_str(text).map_err(|_| "is no JSON array".to_owned())?;
    Ok(elements.into_iter().map(RawValue::get).collect())
}

fn element(value: Option<&Value>) -> Result<Cow<'_, str>, String> {
    Ok(match value.and_then(|value| value.kind.as_ref()) {
        Some(Kind::Null(_)) => "null".into(),
        Some(Kind::Bool(value)) => value.to_string().into(),
        Some(Kind::Int(value)) => value.to_string().into(),
        Some(Kind::Float(value)) if value.is_finite() => float_text(*value).into(),
        Some(Kind::String(text)) => json_string(text).into(),
        Some(Kind::Json(text)) => {
            let element: &RawValue = serde_json::from_str(text).map_err(|error| format!("takes JSON: {error}"))?;
            element.get().into()
        }
        Some(Kind::Float(_) | Kind::Bytes(_)) | None => return Err("takes what JSON can say".to_owned()),
    })
}

/// Whether an element is another one, which says `said`, if it is Unicode at all.
fn is_same(one: &str, other: &str, said: Option<&Property<'_>>) -> bool {
    one == other || (said.is_some() && Property::parse(one).as_ref() == said)
}

fn array(elements: &[&str]) -> Result<Value, String> {
    let text = format!("[{}]", elements.join(","));
    if text.len() > LIST_BYTES_MAX {
        return Err(format!("would have {} bytes; the limit of a list or set is {LIST_BYTES_MAX}", text.len()));
    }
    Ok(Value { kind: Some(Kind::Json(text)) })
}

/// Whether a value is an integer of a range.
pub(super) fn is_within(value: Option<&Value>, range: &IntRange) -> bool {
    match value.and_then(|value| value.kind.as_ref()) {
        Some(Kind::Int(int)) => range.min.is_none_or(|min| min <= *int) && range.max.is_none_or(|max| *int <= max),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use galoo_proto::value::Null;

    use super::*;

    fn int(value: i64) -> Value {
        Value { kind: Some(Kind::Int(value)) }
    }

    fn json_of(text: &str) -> Value {
        Value { kind: Some(Kind::Json(text.to_owned())) }
    }

    fn text(text: &str) -> Value {
        Value { kind: Some(Kind::String(text.to_owned())) }
    }

    fn mutation(change: Change) -> Mutation {
        Mutation { change: Some(change), ..Mutation::default() }
    }

    #[test]
    fn integers_stay_between_floor_and_ceiling() {
        let add = |value: Option<Value>, by, floor, ceiling| {
            let change = Mutation { floor, ceiling, ..mutation(Change::Increment(by)) };
            changed(value.as_ref(), &change).map(|value| value.expect("an integer"))
        };
        assert_eq!(add(None, 3, None, None), Ok(int(3)));
        assert_eq!(add(Some(int(5)), -5, Some(0), Some(9)), Ok(int(0)));
        assert_eq!(add(Some(int(5)), 4, Some(0), Some(9)), Ok(int(9)));
        for (value, by, floor, ceiling, said) in [
            (int(5), -6, Some(0), None, "below the floor 0"),
            (int(5), 5, None, Some(9), "above the ceiling 9"),
            (int(i64::MAX), 1, None, None, "overflows 64 bits"),
            (text("5"), 1, None, None, "is no integer"),
        ] {
            let error = add(Some(value), by, floor, ceiling).expect_err("refused");
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn lists_keep_the_newest_and_sets_hold_nothing_twice() {
        let append = |value: &str, element, elements_max| {
            let change = mutation(Change::Append(ListAppend { value: Some(element), elements_max }));
            changed(Some(json_of(value)).filter(|_| !value.is_empty()).as_ref(), &change)
                .expect("fits")
                .expect("a list")
        };
        assert_eq!(append("", text("a"), 0), json_of(r#"["a"]"#));
        assert_eq!(append(r#"["a", 2]"#, json_of(r#"{"b":[1.5]}"#), 2), json_of(r#"[2,{"b":[1.5]}]"#));
        let of = |change: fn(Value) -> Change, value: &str, element| {
            changed(Some(&json_of(value)), &mutation(change(element))).expect("fits").expect("a set")
        };
        assert_eq!(of(Change::SetAdd, "[1]", int(2)), json_of("[1,2]"));
        assert_eq!(of(Change::SetAdd, "[1,2]", int(1)), json_of("[1,2]"));
        assert_eq!(of(Change::SetRemove, r#"["a",1,null]"#, int(1)), json_of(r#"["a",null]"#));
        assert_eq!(of(Change::SetRemove, r#"["a"]"#, text("b")), json_of(r#"["a"]"#));
        let null = Value { kind: Some(Kind::Null(Null::Null.into())) };
        assert_eq!(of(Change::SetRemove, "[null]", null), json_of("[]"));
        let (large, near) = ("[123456789012345678901234567890]", json_of("123456789012345678901234567891"));
        assert_eq!(of(Change::SetRemove, large, near), json_of(large), "no digit is lost");
        assert_eq!(of(Change::SetAdd, r#"["\u0061",1e1]"#, text("a")), json_of(r#"["\u0061",1e1]"#));
        assert_eq!(of(Change::SetAdd, "[10.0]", json_of("1e1")), json_of("[10.0]"));
        assert_eq!(of(Change::SetAdd, "[10]", json_of("10.0")), json_of("[10,10.0]"));
    }

    #[test]
    fn what_is_no_list_and_what_json_cannot_say_is_refused() {
        let add = |value: Value, element: Value| changed(Some(&value), &mutation(Change::SetAdd(element)));
        let bytes = Value { kind: Some(Kind::Bytes(vec![1])) };
        let nan = Value { kind: Some(Kind::Float(f64::NAN)) };
        let large = text(&"x".repeat(LIST_BYTES_MAX));
        for (value, element, said) in [
            (text("[]"), int(1), "is no JSON array"),
            (json_of("{}"), int(1), "is no JSON array"),
            (json_of("[]"), bytes, "what JSON can say"),
            (json_of("[]"), nan, "what JSON can say"),
            (json_of("[]"), json_of("["), "takes JSON"),
            (json_of("[]"), large, "the limit of a list or set is 65536"),
        ] {
            let error = add(value, element).expect_err("refused");
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn ranges_hold_both_their_ends() {
        let range = |min, max| IntRange { min, max };
        assert!(is_within(Some(&int(3)), &range(Some(3), Some(3))));
        assert!(is_within(Some(&int(3)), &range(None, None)));
        assert!(!is_within(Some(&int(2)), &range(Some(3), None)));
        assert!(!is_within(Some(&int(4)), &range(None, Some(3))));
        assert!(!is_within(Some(&text("3")), &range(None, None)) && !is_within(None, &range(None, None)));
    }
}
