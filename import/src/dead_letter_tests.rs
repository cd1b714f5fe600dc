//! Tests of [`super`]: the file holds the bad lines of one import, whole or not at all.

use super::*;

fn folder_names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn an_import_replaces_the_letters_of_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("e.rejected.ndjson");

    let letters = DeadLetters::new(&path).unwrap();
    assert_eq!(letters.finish().unwrap(), None);
    assert_eq!(folder_names(folder.path()), [""; 0]);

    for _ in 0..2 {
        let mut letters = DeadLetters::new(&path).unwrap();
        letters.add(17, &"no player", b"{\"a\":\"\\n\xff\"}").unwrap();
        letters.add(18, &format!("limit {}", 3), b"x").unwrap();
        assert_eq!(letters.count(), 2);
        assert_eq!(letters.finish().unwrap(), Some(path.clone()));
        let expected = "{\"line\":17,\"reason\":\"no player\",\"text\":\"{\\\"a\\\":\\\"\\\\n\u{fffd}\\\"}\"}\n\
                        {\"line\":18,\"reason\":\"limit 3\",\"text\":\"x\"}\n";
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
        assert_eq!(folder_names(folder.path()), ["e.rejected.ndjson"]);
    }

    let mut failing = DeadLetters::new(&path).unwrap();
    failing.add(1, &"x", b"").unwrap();
    assert_eq!(folder_names(folder.path()).len(), 2, "gathered beside the file");
    drop(failing);
    assert_eq!(folder_names(folder.path()), ["e.rejected.ndjson"]);
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2, "an import that fails leaves the old file");

    assert_eq!(DeadLetters::new(&path).unwrap().finish().unwrap(), None);
    assert_eq!(folder_names(folder.path()), [""; 0], "no bad line, no file");
}

#[test]
fn a_file_that_no_import_wrote_is_never_touched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.ndjson");
    fs::write(&path, "{\"player_id\":1}\n").unwrap();
    let error = DeadLetters::new(&path).err().unwrap();
    assert_eq!(
        error.to_string(),
        format!("{} holds no rejected lines of an import and is not replaced", path.display())
    );
    assert!(matches!(DeadLetters::new(folder.path()), Err(DeadLetterError::NotOurs { .. })));
    assert!(matches!(DeadLetters::new(Path::new("..")), Err(DeadLetterError::NotOurs { .. })));

    let late = folder.path().join("late");
    let mut letters = DeadLetters::new(&late).unwrap();
    letters.add(1, &"x", b"").unwrap();
    fs::write(&late, "diary").unwrap();
    assert!(matches!(letters.finish(), Err(DeadLetterError::NotOurs { .. })));
    assert_eq!(fs::read_to_string(&late).unwrap(), "diary");
    assert_eq!(folder_names(folder.path()), ["events.ndjson", "late"]);

    let absent = folder.path().join("no").join("file");
    let mut letters = DeadLetters::new(&absent).unwrap();
    assert!(matches!(letters.add(1, &"x", b""), Err(DeadLetterError::File { what: "create", .. })));
}

#[test]
fn long_lines_are_cut_between_characters() {
    for (character, lead) in
        [("x", 0), ("ß", 0), ("ß", 1), ("€", 0), ("€", 1), ("€", 2), ("😀", 1), ("😀", 2), ("😀", 3)]
    {
        let text = "x".repeat(lead) + &character.repeat(TEXT_BYTES_MAX);
        let kept = std::str::from_utf8(cut(text.as_bytes())).unwrap();
        assert!(text.starts_with(kept) && TEXT_BYTES_MAX - kept.len() < character.len(), "{character} {lead}");
    }
    let binary = vec![0x80; TEXT_BYTES_MAX + 1];
    assert_eq!(cut(&binary).len(), TEXT_BYTES_MAX);
    assert_eq!(cut(b"short"), b"short");
}

#[test]
fn the_default_file_stands_in_the_current_folder() {
    assert_eq!(default_path("events.ndjson.gz"), Path::new("events.ndjson.gz.rejected.ndjson"));
    assert_eq!(default_path("../etc/x"), Path::new(".._etc_x.rejected.ndjson"));
}
