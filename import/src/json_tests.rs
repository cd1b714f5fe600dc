//! Tests of [`super`]: what is accepted is what `serde_json` accepts, and members stand where it finds them.

use super::*;
use proptest::prelude::*;

fn read(line: &str) -> Result<Members, Flaw> {
    let mut members = Members::default();
    members.read(line).map(|()| members)
}

/// Holds the scanner against `serde_json` on one line.
fn agrees(line: &str) -> Result<(), TestCaseError> {
    let parsed: Result<serde_json::Value, _> = serde_json::from_str(line);
    match (read(line), parsed) {
        (Ok(members), Ok(serde_json::Value::Object(object))) => {
            prop_assert_eq!(members.list().len(), object.len());
            for member in members.list() {
                let value = member.value(line);
                let expected = &object[member.name(line).as_ref()];
                prop_assert_eq!(&serde_json::from_str::<serde_json::Value>(value.text).unwrap(), expected);
                let said = value.string();
                prop_assert_eq!(said.as_deref(), expected.as_str());
                prop_assert_eq!(members.position(line, &member.name(line)).is_some(), true);
            }
        }
        (Err(Flaw::NotAnObject { .. }), Ok(other)) => prop_assert!(!other.is_object()),
        (Err(Flaw::Nesting { .. } | Flaw::Syntax { .. }), Err(_)) => {}
        (ours, theirs) => prop_assert!(false, "{line:?}: {ours:?} and {theirs:?}"),
    }
    Ok(())
}

#[test]
fn flaws_are_named_with_their_byte() {
    let table = [
        ("", "not JSON at byte 0: the line ends early"),
        ("{", "not JSON at byte 1: the line ends early"),
        ("{\"a\"", "not JSON at byte 4: the line ends early"),
        ("{\"a\":", "not JSON at byte 5: the line ends early"),
        ("{\"a\":1", "not JSON at byte 6: the line ends early"),
        ("{\"a\":\"x", "not JSON at byte 7: the line ends early"),
        ("{a:1}", "not JSON at byte 1: expected a key in quotes"),
        ("{\"a\":1,}", "not JSON at byte 7: expected a key in quotes"),
        ("{\"a\" 1}", "not JSON at byte 5: expected a colon"),
        ("{\"a\":1 \"b\":2}", "not JSON at byte 7: expected a comma or the closing bracket"),
        ("{\"a\":[1 2]}", "not JSON at byte 8: expected a comma or the closing bracket"),
        ("{\"a\":[1,]}", "not JSON at byte 8: expected a value"),
        ("{\"a\":tru}", "not JSON at byte 5: expected a value"),
        ("{\"a\":NaN}", "not JSON at byte 5: expected a value"),
        ("{\"a\":1}x", "not JSON at byte 7: text behind the value"),
        ("{\"a\":01}", "not JSON at byte 6: malformed number"),
        ("{\"a\":1.}", "not JSON at byte 7: malformed number"),
        ("{\"a\":-}", "not JSON at byte 6: malformed number"),
        ("{\"a\":1e999}", "not JSON at byte 5: number out of range"),
        ("{\"a\":\"\t\"}", "not JSON at byte 6: control character in a string"),
        ("{\"a\":\"\\x\"}", "not JSON at byte 7: malformed escape"),
        ("{\"a\":\"\\ud800\"}", "not JSON at byte 12: malformed escape"),
        ("[1]", "a JSON array, not an object"),
        ("null", "a JSON null, not an object"),
        ("[1", "not JSON at byte 2: the line ends early"),
    ];
    for (line, expected) in table {
        assert_eq!(read(line).unwrap_err().to_string(), expected, "{line}");
        agrees(line).unwrap();
    }
}

#[test]
fn the_border_cases_of_the_grammar_agree_with_serde_json() {
    for value in [
        "0",
        "-0",
        "-0.0",
        "0e0",
        "0e99999",
        "1E+2",
        "1e308",
        "1e309",
        "-1e309",
        "1e-999",
        "1.5e+",
        "+1",
        ".5",
        "0x1",
        "1_0",
        "\"\\u0000\"",
        "\"\\uD83D\\uDE00\"",
        "\"\\uD83D\\uD83D\"",
        "\"\\uDE00\"",
        "\"\\uD83Dx\"",
        "\"\\uD83D\\n\"",
        "\"\\u12g4\"",
        "\"\\u123\"",
        "\"\u{7f}\"",
        "\"\u{1f}\"",
        "\"ß\u{2028}\"",
        "\"\\/\"",
        "'a'",
        "{}",
        "[]",
        "[ ]",
        "{ }",
        "[,]",
        "{,}",
        "[[]",
        "[]]",
        "{\"a\":{\"a\":1,\"a\":2}}",
        "true1",
        "nul",
        "TRUE",
        "\u{a0}1",
        "//x",
        "1 /**/",
        "\u{feff}1",
    ] {
        agrees(&format!("{{\"a\":{value}}}")).unwrap();
        agrees(&format!(" {{ \"a\" : {value} , \"b\" : [ {value} ] }} ")).unwrap();
        agrees(value).unwrap();
    }
    for digits in [308, 309, 310, 400] {
        agrees(&format!("{{\"a\":{}}}", "9".repeat(digits))).unwrap();
        agrees(&format!("{{\"a\":0.{}}}", "9".repeat(digits))).unwrap();
    }
}

#[test]
fn nesting_is_bounded_where_serde_json_bounds_it() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}"), ("[{\"a\":", "}]")] {
        for depth in 50..200 {
            let line = format!("{{\"a\":{}1{}}}", open.repeat(depth), close.repeat(depth));
            agrees(&line).unwrap();
        }
    }
    let line = "{\"a\":".to_owned() + &"[".repeat(1 << 20);
    assert_eq!(read(&line).unwrap_err(), Flaw::Nesting { at: 131, max: 127 });
}

#[test]
fn a_key_that_stands_twice_counts_once_at_its_first_place_with_its_last_value() {
    let line = r#"{"a":1,"b":2,"\u0061":3,"c":{"x":1,"x":2}}"#;
    let members = read(line).unwrap();
    let found: Vec<_> = members.list().iter().map(|member| (member.name(line), member.value(line).text)).collect();
    assert_eq!(found, [("a".into(), "3"), ("b".into(), "2"), ("c".into(), r#"{"x":1,"x":2}"#)]);
    let nested = members.list()[2].value(line);
    assert_eq!(nested.member("x").map(|value| value.text), Some("2"));
    assert_eq!(nested.member("y"), None);
}

#[test]
fn a_line_of_too_many_keys_is_refused_at_once() {
    let line = |count: usize| {
        let members: Vec<String> = (0..count).map(|n| format!("\"k{n}\":{n}")).collect();
        format!("{{{}}}", members.join(","))
    };
    assert_eq!(read(&line(MEMBERS_MAX)).unwrap().list().len(), MEMBERS_MAX);
    assert_eq!(read(&line(MEMBERS_MAX + 1)).unwrap_err(), Flaw::Members { max: MEMBERS_MAX });
    let repeated = format!("{{{}\"a\":1}}", "\"a\":0,".repeat(100_000));
    assert_eq!(read(&repeated).unwrap().list().len(), 1);
}

/// A JSON value as text, with white space where it may stand.
fn json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|value| value.to_string()),
        any::<i64>().prop_map(|value| value.to_string()),
        any::<f64>()
            .prop_filter("JSON has finite numbers", |value| value.is_finite())
            .prop_map(|value| format!("{value:e}")),
        ".{0,8}".prop_map(|text| serde_json::to_string(&text).unwrap()),
        Just(r#""\u00e9\n\ud83d\ude00""#.to_owned()),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        let key = prop_oneof!["[a-c]", ".{0,4}", Just("\\u0061".to_owned())]
            .prop_map(|key| if key == "\\u0061" { format!("\"{key}\"") } else { serde_json::to_string(&key).unwrap() });
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(|items| format!("[ {}]", items.join(" ,\t"))),
            proptest::collection::vec((key, inner), 0..6).prop_map(|members| {
                let members: Vec<_> = members.into_iter().map(|(key, value)| format!("{key} :{value}")).collect();
                format!("{{{} }}", members.join(", "))
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn whole_values_agree_with_serde_json(line in json()) {
        agrees(&line)?;
    }

    #[test]
    fn damaged_values_agree_with_serde_json(line in json(), place in any::<prop::sample::Index>(), with in "[\\[\\]{},:\"\\\\0-9eE.a-u \u{1}-]{0,2}") {
        // Cut out a character, or put something in its place.
        let places: Vec<usize> = line.char_indices().map(|(at, _)| at).collect();
        let at = places[place.index(places.len())];
        let next = line[at..].chars().next().map_or(at, |c| at + c.len_utf8());
        agrees(&format!("{}{}{}", &line[..at], with, &line[next..]))?;
        agrees(&line[..at])?;
    }

    #[test]
    fn texts_out_of_the_alphabet_of_json_agree_with_serde_json(line in "[\\[\\]{},:\"\\\\0-2eE.+u truefalsn-]{0,12}") {
        agrees(&line)?;
        agrees(&format!("{{\"a\":{line}}}"))?;
    }
}
