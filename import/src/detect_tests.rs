//! Tests of [`super`]: which fields win, which unit, and what is said when nothing does.

use super::*;

fn options(player: Option<&str>, time: Option<&str>, unit: &str, event_type: Option<&str>) -> MappingOptions {
    MappingOptions {
        player_field: player.map(str::to_owned),
        time_field: time.map(str::to_owned),
        time_unit: unit.parse().unwrap(),
        type_field: event_type.map(str::to_owned),
        id_field: None,
    }
}

fn auto(lines: &[&str]) -> Result<Detection, DetectError> {
    detect(MappingOptions::default(), lines.iter().map(|line| line.as_bytes()))
}

/// (player, time, unit, type) of what is detected.
fn fields(lines: &[&str]) -> (String, String, &'static str, String) {
    let Fields { player, time, time_unit, event_type, .. } = auto(lines).unwrap().fields;
    (player, time, time_unit.name(), event_type)
}

#[test]
fn the_first_known_name_that_fits_in_a_line_wins() {
    let table = [
        (
            r#"{"player_id":"a","ts_ms":1280526899000,"event_type":"x","name":"n"}"#,
            ("player_id", "ts_ms", "ms", "event_type"),
        ),
        (r#"{"type":"x","time":1280526899,"user":7,"name":"n"}"#, ("user", "time", "s", "type")),
        (
            r#"{"event":{"a":1},"action":"x","timestamp":1280526899000000,"uid":7}"#,
            ("uid", "timestamp", "us", "action"),
        ),
        (r#"{"eventTime":1280526899000000000,"eventType":"x","userId":7}"#, ("userId", "eventTime", "ns", "eventType")),
        (
            r#"{"created_at":"2019-01-02 03:04:05","kind":"x","account":"q"}"#,
            ("account", "created_at", "rfc3339", "kind"),
        ),
        (r#"{"date":"2019-01-02","event_name":"x","actor":"q"}"#, ("actor", "date", "rfc3339", "event_name")),
        // The second of a match is no instant.
        (r#"{"time":35,"timestamp":1280526899.25,"type":"x","player":"q"}"#, ("player", "timestamp", "s", "type")),
        (r#"{"ts":"1280526899000","type":"x","player":{"id":"q"}}"#, ("player.id", "ts", "ms", "type")),
        // A name serves one role.
        (r#"{"at":1280526899,"name":"n","action":"x"}"#, ("name", "at", "s", "action")),
        // An empty id is none.
        (r#"{"player_id":"","user_id":"u","at":1280526899,"name":"x"}"#, ("user_id", "at", "s", "name")),
        // The suffix says more than the magnitude.
        (r#"{"player":"p","event_time_ms":1280526899,"type":"x"}"#, ("player", "event_time_ms", "ms", "type")),
    ];
    for (line, (player, time, unit, event_type)) in table {
        let expected = (player.to_owned(), time.to_owned(), unit, event_type.to_owned());
        assert_eq!(fields(&[line]), expected, "{line}");
    }
}

#[test]
fn a_field_must_fit_in_nearly_all_lines() {
    let with = r#"{"player_id":"a","user_id":"b","ts":1280526899,"type":"x"}"#;
    let without = r#"{"user_id":"b","ts":1280526899,"type":"x"}"#;
    let lines = |missing: usize| [vec![with; 100 - missing], vec![without; missing]].concat();
    assert_eq!(fields(&lines(5)).0, "player_id");
    assert_eq!(
        auto(&lines(6)).unwrap_err().to_string(),
        "player field player_id, the first that is known, fits in only 94 of 100 lines; top-level fields are player_id, \
         user_id, ts, type: give --player-field"
    );
    // Lines that are no objects have no say, and those behind the sample are not read.
    let torn = [["{", "[]", "1", ""]; 50].concat();
    assert_eq!(fields(&[torn, lines(5)].concat()).0, "player_id");
    let mut many = vec![with; SAMPLE_LINES_MAX];
    many.extend(vec![without; 5000]);
    assert_eq!(auto(&many).unwrap().why[0], Why::Fits { lines: SAMPLE_LINES_MAX, sampled: SAMPLE_LINES_MAX });
}

#[test]
fn lines_that_are_appended_change_no_choice() {
    let user = r#"{"user":"u","time":1280526899,"type":"x"}"#;
    let both = r#"{"player_id":"p","user":"u","ts_ms":1280526899000,"time":1280526899,"event_type":"y","type":"x"}"#;
    let expected = ("user".to_owned(), "time".to_owned(), "s", "type".to_owned());
    for appended in [0, 1, 50, 5_000] {
        assert_eq!(fields(&[vec![user], vec![both; appended]].concat()), expected, "{appended} lines appended");
    }
    // A line without any known field leaves the choice to the next one that has some.
    assert_eq!(fields(&[vec![r#"{"time":35}"#, user], vec![both; 50]].concat()), expected);
    // What is appended may not fit: it is refused, and nothing else is chosen.
    let other = r#"{"player_id":"p","time":1280526899,"type":"x"}"#;
    let error = auto(&[vec![user], vec![other; 50]].concat()).unwrap_err();
    assert!(matches!(&error, DetectError::Rare { role: Role::Player, field, .. } if field == "user"), "{error}");
    let later = r#"{"user":"u","time":1280526899000,"type":"x"}"#;
    let error = auto(&[vec![user], vec![later; 50]].concat()).unwrap_err();
    assert!(matches!(&error, DetectError::Rare { role: Role::Time, lines: 1, .. }), "{error}");
}

#[test]
fn options_come_first_and_their_fields_are_not_used_twice() {
    let line: &[u8] =
        br#"{"player_id":"a","hero":{"id":"h"},"ts":1280526899,"t2":1280526899000,"type":"x","name":"n"}"#;
    let found = detect(options(Some("hero.id"), Some("t2"), "auto", Some("player_id")), [line]).unwrap();
    assert_eq!(found.fields.to_string(), r#"player="hero.id" time="t2" unit=ms type="player_id""#);
    let found = detect(options(None, None, "auto", Some("player_id")), [line]).unwrap();
    assert_eq!(found.fields.player, "name");
    let found = detect(options(None, None, "ms", None), [line]).unwrap();
    assert_eq!((found.fields.time.as_str(), found.fields.time_unit), ("ts", TimeUnit::Milliseconds));
    // With everything given there is nothing to look at.
    let found = detect(options(Some("a"), Some("b"), "ns", Some("c")), []).unwrap();
    assert_eq!(found.fields.to_string(), r#"player="a" time="b" unit=ns type="c""#);
}

#[test]
fn a_detection_prints_what_it_chose_and_why() {
    let line: &[u8] = br#"{"player_id":"a","ts_ms":1280526899000,"what":"x"}"#;
    let found = detect(options(None, None, "auto", Some("what")), [line, line]).unwrap();
    let expected = "player field: player_id (fits in 2 of the first 2 lines)\n\
                    time field: ts_ms (fits in 2 of the first 2 lines), unit ms (by the suffix of its name)\n\
                    type field: what (given)";
    assert_eq!(found.to_string(), expected);
}

#[test]
fn what_cannot_be_told_is_an_error_with_the_option_to_give() {
    let message =
        |options, lines: &[&str]| detect(options, lines.iter().map(|line| line.as_bytes())).unwrap_err().to_string();
    let none = MappingOptions::default;
    assert_eq!(
        message(none(), &[r#"{"hero":"a","ts":1280526899,"type":"x"}"#]),
        "no known player field in any of 1 lines; top-level fields are hero, ts, type: give --player-field"
    );
    assert_eq!(
        message(none(), &[r#"{"player":"a","time":35,"type":"x"}"#]),
        "no known time field in any of 1 lines; top-level fields are player, time, type: give --time-field"
    );
    assert_eq!(
        message(none(), &["{}"]),
        "no known player field in any of 1 lines; top-level fields are none: give --player-field"
    );
    assert_eq!(
        message(none(), &["{", "7"]),
        "no JSON object among the first lines to tell the player field by: give --player-field"
    );
    assert_eq!(
        message(options(Some("plyer"), None, "auto", None), &[r#"{"player":"a"}"#]),
        "--player-field plyer is in none of 1 lines; top-level fields are player"
    );
    assert_eq!(
        message(options(None, Some("time"), "auto", None), &[r#"{"player":"a","time":35,"type":"x"}"#]),
        "unit of time field time cannot be told by values like 35: give --time-unit"
    );
    let mixed = [r#"{"player":"a","t":1280526899,"type":"x"}"#, r#"{"player":"a","t":1280526899000,"type":"x"}"#];
    assert_eq!(
        message(options(None, Some("t"), "auto", None), &mixed),
        "unit of time field t cannot be told by values like 1280526899: give --time-unit"
    );
    assert_eq!(
        message(options(Some("a"), Some("b"), "auto", Some("c")), &[]),
        "unit of time field b cannot be told by values like none: give --time-unit"
    );
    assert_eq!(
        message(options(Some(""), None, "auto", None), &[]),
        "name of the player field has 0 bytes, --player-field takes 1 to 1024"
    );
    let wide: Vec<String> = (0..100).map(|n| format!("\"f{n}\":{n}")).collect();
    let told = message(none(), &[&format!("{{{}}}", wide.join(","))]);
    assert!(told.contains("f0, f1, ") && told.contains("f39 and perhaps more") && !told.contains("f40"), "{told}");
}
