//! Tests of [`super`]: lines are the same however they are packed, and damage is told after what is whole.

use super::*;
use flate2::Compression as Level;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use std::io::Write;

/// A line that owns what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kept {
    Text(Vec<u8>),
    Blank(u64),
    TooLong(Vec<u8>, u64),
}

impl From<Line<'_>> for Kept {
    fn from(line: Line<'_>) -> Kept {
        match line {
            Line::Text(text) => Kept::Text(text.to_vec()),
            Line::Blank { bytes } => Kept::Blank(bytes),
            Line::TooLong { head, bytes } => Kept::TooLong(head.to_vec(), bytes),
        }
    }
}

/// Gives its content in pieces of a few bytes, then fails if it shall.
struct Pieces {
    content: io::Cursor<Vec<u8>>,
    piece: usize,
    failure: Option<io::Error>,
}

impl Read for Pieces {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let piece = self.piece.min(room.len());
        match self.content.read(&mut room[..piece])? {
            0 => self.failure.take().map_or(Ok(0), Err),
            count => Ok(count),
        }
    }
}

fn source(content: Vec<u8>, piece: usize) -> Source {
    let pieces = Pieces { content: io::Cursor::new(content), piece, failure: None };
    Source::from_reader("e.ndjson", Box::new(pieces), None, None).unwrap()
}

fn read_all(mut source: Source) -> (Vec<Kept>, End, Option<SourceError>) {
    let mut lines = Vec::new();
    loop {
        match source.next_line() {
            Ok(Some(line)) => lines.push(Kept::from(line)),
            Ok(None) => return (lines, source.ended(), None),
            Err(error) => {
                assert!(source.next_line().unwrap().is_none(), "an error is the end");
                return (lines, source.ended(), Some(error));
            }
        }
    }
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Level::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn zstd_with_sum(content: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// Lines by the plainest means.
fn model(content: &[u8]) -> Vec<Kept> {
    let content = content.strip_prefix(BYTE_ORDER_MARK).unwrap_or(content);
    let mut pieces: Vec<&[u8]> = content.split(|byte| *byte == b'\n').collect();
    if pieces.last().is_some_and(|last| last.is_empty()) {
        pieces.pop();
    }
    pieces.into_iter().map(|line| classify(line).into()).collect()
}

/// `count` numbered lines, long enough for many blocks.
fn numbered(count: usize) -> Vec<u8> {
    (0..count).flat_map(|n| format!("{{\"n\":{n},\"x\":{}}}\n", n.wrapping_mul(2_654_435_761)).into_bytes()).collect()
}

#[test]
fn line_ends_blank_lines_and_the_byte_order_mark() {
    let text = |text: &str| Kept::Text(text.into());
    let table: [(&[u8], Vec<Kept>, End); 9] = [
        (b"", vec![], End::AfterLineEnd),
        (b"\xef\xbb\xbf", vec![], End::AfterLineEnd),
        (b"\xef\xbb\xbfa\n", vec![text("a")], End::AfterLineEnd),
        (b"a\nb", vec![text("a"), text("b")], End::InsideLine),
        (b"a\r\nb\r\n", vec![text("a"), text("b")], End::AfterLineEnd),
        (b"\n\r\n \t\na", vec![Kept::Blank(0), Kept::Blank(0), Kept::Blank(2), text("a")], End::InsideLine),
        (b"a\rb\r\r\n", vec![text("a\rb\r")], End::AfterLineEnd),
        (b"a\n\xef\xbb\xbfb\n", vec![text("a"), text("\u{feff}b")], End::AfterLineEnd),
        (b"a\r", vec![text("a")], End::InsideLine),
    ];
    for (content, expected, end) in table {
        for piece in [1, 3, 4096] {
            let (lines, ended, error) = read_all(source(content.to_vec(), piece));
            assert!(error.is_none());
            assert_eq!((lines, ended), (expected.clone(), end), "{content:?}");
        }
    }
}

#[test]
fn a_line_above_the_limit_is_skipped_with_its_length_and_the_next_one_is_whole() {
    for (length, long) in
        [(LINE_BYTES_MAX, false), (LINE_BYTES_MAX + 1, true), (LINE_BYTES_MAX + 2, true), (5 << 20, true)]
    {
        for line_end in ["\n", "\r\n"] {
            let mut content = b"first\n".to_vec();
            content.extend(std::iter::repeat_n(b'x', length));
            content.extend_from_slice(line_end.as_bytes());
            content.extend_from_slice(b"last");
            let expected = if long {
                Kept::TooLong(vec![b'x'; LINE_HEAD_BYTES], length as u64)
            } else {
                Kept::Text(vec![b'x'; length])
            };
            for piece in [50_000, 1 << 20] {
                let mut source = source(content.clone(), piece);
                let mut lines = Vec::new();
                while let Some(line) = source.next_line().unwrap() {
                    lines.push(Kept::from(line));
                }
                assert!(source.buffer.len() <= LINE_BYTES_MAX + 2 * CHUNK_BYTES + 2, "{}", source.buffer.len());
                assert_eq!(source.line_last(), 3);
                assert!(lines == [Kept::Text(b"first".to_vec()), expected.clone(), Kept::Text(b"last".to_vec())]);
            }
        }
    }
}

#[test]
fn members_and_frames_are_read_to_their_end() {
    let (first, second) = (numbered(30_000), numbered(40_000));
    let whole = model(&[first.clone(), second.clone()].concat());
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
    let packed = [
        (Compression::Plain, [first.clone(), second.clone()].concat()),
        (Compression::Gzip, [gzip(&first), gzip(b""), gzip(&second)].concat()),
        (Compression::Zstd, [skippable, zstd_with_sum(&first), zstd_with_sum(&second)].concat()),
    ];
    for (compression, bytes) in packed {
        let length = bytes.len() as u64;
        let source = source(bytes, 10_000);
        assert_eq!(source.compression(), compression);
        let identity = source.identity().clone();
        assert_eq!(identity.prefix_bytes, PREFIX_BYTES_MAX as u64);
        assert_eq!(identity, Identity::of("e.ndjson", &[first.clone(), second.clone()].concat()));
        let meter = source.meter();
        let (lines, ended, error) = read_all(source);
        assert!(error.is_none(), "{error:?}");
        assert!(lines == whole && ended == End::AfterLineEnd);
        assert_eq!(meter.bytes_read(), length);
    }
}

#[test]
fn a_cut_at_any_byte_is_told_after_the_whole_lines_before_it() {
    let content = numbered(300);
    let whole = model(&content);
    for (compression, packed) in [(Compression::Gzip, gzip(&content)), (Compression::Zstd, zstd_with_sum(&content))] {
        for cut in 4..packed.len() {
            let (lines, ended, error) = read_all(source(packed[..cut].to_vec(), 1 << 16));
            assert!(whole.starts_with(&lines), "{compression} cut at {cut}");
            match error {
                Some(SourceError::Damaged { name, compression: told, line_last, .. }) => {
                    assert_eq!((name.as_str(), told), ("e.ndjson", compression));
                    assert_eq!((line_last, ended), (lines.len() as u64, End::Failed));
                }
                other => panic!("{compression} cut at {cut}: {other:?}"),
            }
        }
    }
}

#[test]
fn lines_long_before_a_cut_are_given_out() {
    let content = numbered(200_000);
    let whole = model(&content);
    for packed in [gzip(&content), zstd_with_sum(&content)] {
        let cut = packed.len() * 3 / 4;
        let (lines, _, error) = read_all(source(packed[..cut].to_vec(), 1 << 16));
        assert!(whole.starts_with(&lines) && lines.len() > 100_000, "{} lines", lines.len());
        let message = error.unwrap().to_string();
        assert!(message.starts_with(&format!("e.ndjson is damaged after line {}: ", lines.len())), "{message}");
    }
}

#[test]
fn a_flipped_bit_or_garbage_behind_the_end_is_damage() {
    let content = numbered(20_000);
    for packed in [gzip(&content), zstd_with_sum(&content)] {
        let mut flipped = packed.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 0x10;
        let (_, _, error) = read_all(source(flipped, 1 << 16));
        assert!(matches!(error, Some(SourceError::Damaged { .. })), "{error:?}");

        let (lines, _, error) = read_all(source([packed, b"garbage".to_vec()].concat(), 1 << 16));
        assert!(matches!(error, Some(SourceError::Damaged { line_last: 20_000, .. })), "{error:?}");
        assert_eq!(lines.len(), 20_000);
    }
}

#[test]
fn a_file_that_breaks_off_is_no_damage() {
    for content in [b"a\nb\nc".to_vec(), gzip(b"a\nb\nc")] {
        let cut = content.len() - 1;
        let pieces = Pieces {
            content: io::Cursor::new(content[..cut].to_vec()),
            piece: 5,
            failure: Some(io::Error::other("gone")),
        };
        let (lines, ended, error) = read_all(Source::from_reader("x", Box::new(pieces), None, None).unwrap());
        assert_eq!(ended, End::Failed);
        assert_eq!(lines, [Kept::Text(b"a".to_vec()), Kept::Text(b"b".to_vec())]);
        assert_eq!(error.unwrap().to_string(), "cannot read x after line 2: gone");
    }
}

#[test]
fn keys_and_names_are_checked_before_anything_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.log");
    std::fs::write(&path, "{}\n").unwrap();
    let by_content = Source::open(&path, None).unwrap();
    assert_eq!(by_content.source_key(), Identity::of("events.log", b"{}\n").source_key());
    assert_eq!(by_content.total_bytes(), Some(3));
    assert_eq!(Source::open(&path, Some("season 4")).unwrap().source_key(), "source:season 4");
    assert!(matches!(Source::open(Path::new("-"), None), Err(SourceError::StdinNeedsName)));
    assert!(matches!(Source::open(&path, Some("")), Err(SourceError::SourceName { bytes: 0, max: 256 })));
    assert!(matches!(Source::open(&folder.path().join("no"), None), Err(SourceError::Open { .. })));
    assert!(matches!(Source::open(folder.path(), None), Err(SourceError::Read { line_last: 0, .. })));
}

#[test]
fn the_sc2_file_has_its_lines() {
    let Some(path) = crate::shared_data("sc2.ndjson.zst") else { return };
    let mut source = Source::open(&path, None).unwrap();
    while let Some(line) = source.next_line().unwrap() {
        assert!(matches!(line, Line::Text(_)));
    }
    assert_eq!(source.line_last(), 1_986_794);
    assert_eq!(Some(source.meter().bytes_read()), source.total_bytes());
}

proptest! {
    #[test]
    fn lines_do_not_depend_on_the_pieces(
        content in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b' '), any::<u8>()], 0..400),
        piece in 1_usize..50,
    ) {
        // What begins like a packed file is not plain text.
        prop_assume!(Compression::of(&content) == Compression::Plain);
        let (lines, _, error) = read_all(source(content.clone(), piece));
        prop_assert!(error.is_none());
        prop_assert_eq!(&lines, &model(&content));
        let (lines, _, error) = read_all(source(gzip(&content), piece));
        prop_assert!(error.is_none());
        prop_assert_eq!(&lines, &model(&content));
    }
}
