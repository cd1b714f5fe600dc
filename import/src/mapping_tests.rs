//! Tests of [`super`]: what is taken out, what stays as it came, and what is refused with which reason.

use super::*;
use crate::detect::{MappingOptions, detect};
use crate::runs::RunReader;
use crate::source::Source;
use proptest::prelude::*;

fn mapping(player: &str, time: &str, time_unit: TimeUnit, event_type: &str) -> Mapping {
    let (player, time, event_type) = (player.to_owned(), time.to_owned(), event_type.to_owned());
    Mapping::new(Fields { player, time, time_unit, event_type, event_id: None }).unwrap()
}

#[test]
fn an_id_stays_among_the_properties_and_a_line_may_lack_it() {
    let fields = Fields { event_id: Some("i".to_owned()), ..plain().fields().clone() };
    let mut mapping = Mapping::new(fields).unwrap();
    let mut id = |member: &str| mapping.map(format!(r#"{{"p":"a","t":5,"e":"x"{member}}}"#).as_bytes());
    assert_eq!(id("").unwrap().event_id, "");
    assert_eq!(id(r#","i":null"#).unwrap().event_id, "");
    let mapped = id(r#","i":"a-1""#).unwrap();
    assert_eq!((mapped.event_id.as_str(), mapped.properties.as_str()), ("a-1", r#"{"i":"a-1"}"#));
    assert_eq!(id(r#","i":17"#).unwrap().event_id, "17");
    let long = "x".repeat(EVENT_ID_BYTES_MAX + 1);
    for (member, reason) in [
        (r#","i":"""#.to_owned(), "id field i has 0 bytes, it must have 1 to 128"),
        (format!(r#","i":"{long}""#), "id field i has 129 bytes"),
        (r#","i":1.5"#.to_owned(), "expected a string or an integer"),
    ] {
        let error = id(&member).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

fn plain() -> Mapping {
    mapping("p", "t", TimeUnit::Milliseconds, "e")
}

#[test]
fn three_fields_are_taken_out_and_the_rest_stays_as_it_came() {
    let table = [
        (r#"{"p":"a","t":5,"e":"x"}"#, "a", 5, "x", "{}"),
        (
            r#" { "p" : "a" , "z" : 1.50e+00 , "t" : 5 , "e" : "x" , "a" : { "q" : [ 1 ,2 ] } } "#,
            "a",
            5,
            "x",
            r#"{"z":1.50e+00,"a":{ "q" : [ 1 ,2 ] }}"#,
        ),
        (
            r#"{"n":12345678901234567890123,"p":-7,"t":5.9,"e":"x","s":"\u00e9\n€"}"#,
            "-7",
            5,
            "x",
            r#"{"n":12345678901234567890123,"s":"\u00e9\n€"}"#,
        ),
        (r#"{"p":"\u0061\"","t":"5","e":"\ud83d\ude00","o":null}"#, "a\"", 5, "😀", r#"{"o":null}"#),
        (r#"{"p":"old","k":1,"t":5,"e":"x","k":2,"p":"new","l":0}"#, "new", 5, "x", r#"{"k":2,"l":0}"#),
        (r#"{"\u0070":"a","t":5,"e":"x","p2":{"p":1}}"#, "a", 5, "x", r#"{"p2":{"p":1}}"#),
    ];
    for (line, player_id, event_time_ms, event_type, properties) in table {
        let event = plain().map(line.as_bytes()).unwrap();
        let expected = MappedEvent {
            player_id: player_id.to_owned(),
            event_time_ms,
            event_type: event_type.to_owned(),
            properties: properties.to_owned(),
            event_id: String::new(),
        };
        assert_eq!(event, expected, "{line}");
    }
}

#[test]
fn a_field_inside_an_object_stays_in_its_place() {
    let mut mapping = mapping("user.id", "meta.at", TimeUnit::Rfc3339, "e");
    let line = br#"{"user":{"id":7,"vip":true},"e":"x","meta":{"at":"1970-01-01T00:00:01Z"}}"#;
    let event = mapping.map(line).unwrap();
    assert_eq!((event.player_id.as_str(), event.event_time_ms), ("7", 1000));
    assert_eq!(event.properties, r#"{"user":{"id":7,"vip":true},"meta":{"at":"1970-01-01T00:00:01Z"}}"#);
    let event = mapping.map(br#"{"user.id":"top","user":{"id":7},"e":"x","meta.at":"1970-01-02"}"#).unwrap();
    assert_eq!((event.player_id.as_str(), event.event_time_ms), ("top", 86_400_000));
    assert_eq!(event.properties, r#"{"user":{"id":7}}"#);
}

#[test]
fn one_field_may_have_two_roles() {
    let event = mapping("p", "t", TimeUnit::Seconds, "p").map(br#"{"p":"a","t":1,"b":2}"#).unwrap();
    assert_eq!(
        (event.player_id.as_str(), event.event_type.as_str(), event.properties.as_str()),
        ("a", "a", r#"{"b":2}"#)
    );
}

#[test]
fn a_bad_line_has_a_reason_that_shows_value_and_limit() {
    let long = "y".repeat(257);
    let table = [
        ("", "not JSON at byte 0: the line ends early"),
        ("{\"p\":1", "not JSON at byte 6: the line ends early"),
        ("[1]", "a JSON array, not an object"),
        (r#"{"t":5,"e":"x"}"#, "no player field p"),
        (r#"{"p":1,"e":"x"}"#, "no time field t"),
        (r#"{"p":1,"t":5}"#, "no type field e"),
        (r#"{"p":1.0,"t":5,"e":"x"}"#, "player field p is the decimal number 1.0, expected a string or an integer"),
        (r#"{"p":null,"t":5,"e":"x"}"#, "player field p is the null null, expected a string or an integer"),
        (r#"{"p":"a","t":true,"e":"x"}"#, "time field t is the boolean true, expected a number"),
        (r#"{"p":"a","t":5,"e":7}"#, "type field e is the integer 7, expected a string"),
        (r#"{"p":"a","t":5,"e":{"a":1}}"#, r#"type field e is the object {"a":1}, expected a string"#),
        (r#"{"p":"","t":5,"e":"x"}"#, "player field p has 0 bytes, it must have 1 to 256: \"\""),
        (r#"{"p":"a","t":5,"e":""}"#, "type field e has 0 bytes, it must have 1 to 256: \"\""),
        (
            &format!(r#"{{"p":"{long}","t":5,"e":"x"}}"#),
            &format!("player field p has 257 bytes, it must have 1 to 256: \"{}...", &long[..79]),
        ),
        (
            &format!(r#"{{"p":"a","t":5,"e":"{long}"}}"#),
            &format!("type field e has 257 bytes, it must have 1 to 256: \"{}...", &long[..79]),
        ),
        (r#"{"p":"a","t":"soon","e":"x"}"#, "time field t is \"soon\", which is no time in ms"),
        (r#"{"p":"a","t":-1,"e":"x"}"#, "time field t is -1 in ms, outside 1970-01-01 to 2200-01-01"),
        (
            r#"{"p":"a","t":7258118400000,"e":"x"}"#,
            "time field t is 7258118400000 in ms, outside 1970-01-01 to 2200-01-01",
        ),
    ];
    for (line, expected) in table {
        let mut mapping = plain();
        assert_eq!(mapping.map(line.as_bytes()).unwrap_err().to_string(), expected, "{line}");
        assert_eq!(mapping.times(), None, "a bad line has no time");
    }
    assert_eq!(plain().map(b"{\"p\":\"\xff\"}").unwrap_err(), BadLine::NotUtf8 { at: 6 });
    let mut texts = mapping("p", "t", TimeUnit::Rfc3339, "e");
    let message = |line: &[u8], mapping: &mut Mapping| mapping.map(line).unwrap_err().to_string();
    assert_eq!(
        message(br#"{"p":"a","t":5,"e":"x"}"#, &mut texts),
        "time field t is the integer 5, expected an RFC 3339 string"
    );
    assert_eq!(
        message(br#"{"p":"a","t":"5","e":"x"}"#, &mut texts),
        "time field t is \"5\", which is no time in rfc3339"
    );
}

#[test]
fn the_limits_are_exact() {
    let with_id =
        |bytes: usize| format!(r#"{{"p":"{}","t":7258118399999,"e":"{}"}}"#, "i".repeat(bytes), "t".repeat(256));
    assert!(plain().map(with_id(256).as_bytes()).is_ok());
    assert!(matches!(plain().map(with_id(257).as_bytes()), Err(BadLine::Length { bytes: 257, max: 256, .. })));

    let with_properties = |count: usize| {
        let members: Vec<String> = (0..count).map(|n| format!("\"k{n}\":{n}")).collect();
        format!(r#"{{"p":"a","t":0,"e":"x",{}}}"#, members.join(","))
    };
    assert!(plain().map(with_properties(256).as_bytes()).is_ok());
    for count in [257, 258, 1000] {
        assert_eq!(plain().map(with_properties(count).as_bytes()), Err(BadLine::Properties { max: 256 }));
    }
    // A field inside an object takes none of the properties away.
    let inside = with_properties(256).replace(r#""p":"a""#, r#""p":{"q":1}"#);
    let mut nested = mapping("p.q", "t", TimeUnit::Milliseconds, "e");
    assert_eq!(nested.map(inside.as_bytes()), Err(BadLine::Properties { max: 256 }));

    // {"s":"..."} and two bytes for the player and the type.
    let with_bytes = |bytes: usize| format!(r#"{{"p":"a","t":0,"e":"x","s":"{}"}}"#, "s".repeat(bytes - 10));
    assert!(plain().map(with_bytes(EVENT_BYTES_MAX).as_bytes()).is_ok());
    let above = EVENT_BYTES_MAX + 1;
    assert_eq!(
        plain().map(with_bytes(above).as_bytes()),
        Err(BadLine::EventBytes { bytes: above, max: EVENT_BYTES_MAX })
    );
    let line = vec![b' '; LINE_BYTES_MAX + 1];
    assert!(matches!(plain().map(&line), Err(BadLine::LineBytes { .. })));
}

#[test]
fn lines_of_a_run_are_mapped_by_what_they_are_and_times_are_kept() {
    let mut mapping = plain();
    assert_eq!(mapping.map_line(Line::Blank { bytes: 3 }), None);
    let long = mapping.map_line(Line::TooLong { head: b"{", bytes: 9_000_000 });
    assert_eq!(long.unwrap().unwrap_err().to_string(), "line has 9000000 bytes, the limit is 1114112");
    for time in [50, 20, 90] {
        let line = format!(r#"{{"p":"a","t":{time},"e":"x"}}"#);
        assert!(mapping.map_line(Line::Text(line.as_bytes())).unwrap().is_ok());
    }
    let times = EventTimes { min_ms: 20, max_ms: 90 };
    assert_eq!(mapping.times(), Some(times));
    assert_eq!(times.merge(EventTimes { min_ms: 30, max_ms: 95 }), EventTimes { min_ms: 20, max_ms: 95 });
}

#[test]
fn the_sc2_file_maps_whole_and_loses_nothing() {
    let Some(path) = crate::shared_data("sc2.ndjson.zst") else { return };
    let mut reader = RunReader::new(Source::open(&path, None).unwrap());
    let first = reader.next_run().unwrap().unwrap();
    let texts = first.lines().filter_map(|(_, line)| if let Line::Text(text) = line { Some(text) } else { None });
    let detection = detect(MappingOptions::default(), texts).unwrap();
    assert_eq!(detection.fields.to_string(), r#"player="player_id" time="ts_ms" unit=ms type="event_type""#);
    let mut mapping = Mapping::new(detection.fields).unwrap();
    let (mut events, mut run) = (0, Some(first));
    while let Some(lines) = run {
        for (number, line) in lines.lines() {
            let event = mapping.map_line(line).unwrap().unwrap();
            events += 1;
            // One line in a hundred is proved by another parser.
            if number % 100 == 0 {
                let Line::Text(text) = line else { panic!("line {number} is text") };
                let mut expected: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(text).unwrap();
                assert_eq!(expected.remove("player_id").unwrap(), event.player_id.as_str());
                assert_eq!(expected.remove("ts_ms").unwrap(), event.event_time_ms);
                assert_eq!(expected.remove("event_type").unwrap(), event.event_type.as_str());
                assert_eq!(serde_json::from_str::<serde_json::Map<_, _>>(&event.properties).unwrap(), expected);
            }
        }
        run = reader.next_run().unwrap();
    }
    assert_eq!(events, 1_986_794);
}

proptest! {
    #[test]
    fn an_event_says_what_its_line_says(
        player in ".{1,20}", time in EVENT_TIME_MS, event_type in ".{1,20}",
        rest in proptest::collection::btree_map("[f-z]{1,4}|[^pte]{2,3}", "[^\u{0}]{0,9}", 0..9),
    ) {
        let mut object = serde_json::Map::new();
        for (key, value) in &rest {
            object.insert(key.clone(), value.clone().into());
        }
        // The fields' own names are not among the rest.
        for name in ["p", "t", "e"] {
            object.remove(name);
        }
        let properties = serde_json::Value::Object(object.clone());
        object.insert("p".to_owned(), player.clone().into());
        object.insert("t".to_owned(), time.into());
        object.insert("e".to_owned(), event_type.clone().into());
        let event = plain().map(serde_json::Value::Object(object).to_string().as_bytes()).unwrap();
        prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&event.properties).unwrap(), properties);
        prop_assert_eq!((event.player_id, event.event_time_ms, event.event_type), (player, time, event_type));
    }

    #[test]
    fn any_bytes_are_an_event_or_a_reason(line in proptest::collection::vec(any::<u8>(), 0..60)) {
        let accepted = plain().map(&line).is_ok();
        prop_assert!(!accepted || serde_json::from_slice::<serde_json::Value>(&line).is_ok());
    }
}
