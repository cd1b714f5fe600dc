//! Lines grouped into runs: the unit that is sent, numbered and repeated.
//!
//! A run is 1,000 lines, or fewer where their bytes would exceed 3 MiB. Where it is cut depends on the text of the
//! file alone, never on an option, a buffer or a thread: so the number of a run names the same lines on every import
//! of the same file, and a repeated run is recognised by its number. Blank and bad lines count like others.
//!
//! The last run may be cut by nothing but the end of the input. Such a run says [`Run::may_grow`]: when the file is
//! appended to and imported again, its number names more lines than before, or a longer last one.
//!
//! Out of a damaged input come the whole runs before the damage, then the error. The run that the damage cuts is never
//! given out: repaired, the same number would name other lines.

use std::sync::Arc;

use bytes::Bytes;

use crate::source::{End, LINE_BYTES_MAX, LINE_HEAD_BYTES, Line, Source, SourceError};

/// Lines of a run; the next one begins another.
pub const RUN_LINES_MAX: usize = 1_000;

/// Raw bytes of a run's lines, without line ends; a line that would exceed it begins another run.
///
/// Three quarters of a batch's 4 MiB: the envelope of 1,000 events fits beside them. Only a run of a single line that
/// is too long exceeds it, and of that line no more than a head is kept.
pub const RUN_BYTES_MAX: u64 = 3 << 20;

/// Every line that can be an event fits into a run.
const _: () = assert!(LINE_BYTES_MAX as u64 <= RUN_BYTES_MAX);

/// Offsets in a run's text fit into 32 bits: kept bytes are at most the raw ones or a head.
const _: () = assert!(RUN_BYTES_MAX + (LINE_HEAD_BYTES as u64) < u32::MAX as u64);

/// Room that a run's text gets above the length of the run before it.
const SLACK_BYTES: usize = 16 << 10;

/// What a span of a run's text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SpanKind {
    Text,
    Blank,
    TooLong,
}

/// Where a line stands in the run's text.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: u32,
    end: u32,
    kind: SpanKind,
    /// Length of the line as it came; more than the span for a blank or a too long one.
    bytes: u64,
}

/// A group of adjacent lines in one buffer; a clone shares it.
#[derive(Debug, Clone)]
pub struct Run {
    index: u64,
    line_first: u64,
    bytes: u64,
    text: Bytes,
    spans: Arc<[Span]>,
    may_grow: bool,
}

impl Run {
    /// The run's number in its file, from 0.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Number of its first line, from 1.
    pub fn line_first(&self) -> u64 {
        self.line_first
    }

    /// Number of its lines: 1 to [`RUN_LINES_MAX`].
    pub fn line_count(&self) -> usize {
        self.spans.len()
    }

    /// Raw bytes of its lines, without line ends.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether the input ended before the run was full, so that the same number may name more text later.
    pub fn may_grow(&self) -> bool {
        self.may_grow
    }

    /// Its lines in order, each with its number.
    pub fn lines(&self) -> impl ExactSizeIterator<Item = (u64, Line<'_>)> {
        self.spans.iter().enumerate().map(|(offset, span)| {
            let text = &self.text[span.start as usize..span.end as usize];
            let line = match span.kind {
                SpanKind::Text => Line::Text(text),
                SpanKind::Blank => Line::Blank { bytes: span.bytes },
                SpanKind::TooLong => Line::TooLong { head: text, bytes: span.bytes },
            };
            (self.line_first + offset as u64, line)
        })
    }
}

/// A run in the making.
#[derive(Debug, Default)]
struct Growing {
    text: Vec<u8>,
    spans: Vec<Span>,
    bytes: u64,
}

impl Growing {
    /// Makes an empty one with room for about as much text as the run before it had.
    fn with_room(text_bytes: usize) -> Growing {
        Growing { text: Vec::with_capacity(text_bytes), spans: Vec::with_capacity(RUN_LINES_MAX), bytes: 0 }
    }

    /// Says whether a line of `bytes` belongs to this run and not to the next.
    fn fits(&self, bytes: u64) -> bool {
        self.spans.is_empty() || (self.spans.len() < RUN_LINES_MAX && self.bytes + bytes <= RUN_BYTES_MAX)
    }

    fn push(&mut self, line: Line<'_>) {
        let (kind, kept): (SpanKind, &[u8]) = match line {
            Line::Text(text) => (SpanKind::Text, text),
            Line::Blank { .. } => (SpanKind::Blank, &[]),
            Line::TooLong { head, .. } => (SpanKind::TooLong, head),
        };
        let start = self.text.len() as u32;
        self.text.extend_from_slice(kept);
        self.bytes += line.bytes();
        self.spans.push(Span { start, end: self.text.len() as u32, kind, bytes: line.bytes() });
    }
}

/// Reads a source run by run.
pub struct RunReader {
    source: Source,
    growing: Growing,
    index_next: u64,
    line_next: u64,
}

impl RunReader {
    /// Reads runs from a source of which no line has been read.
    pub fn new(source: Source) -> RunReader {
        assert!(source.line_last() == 0, "runs begin at line 1, not after line {}", source.line_last());
        RunReader { source, growing: Growing::with_room(SLACK_BYTES), index_next: 0, line_next: 1 }
    }

    /// The source that is read.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Returns the next run, or `None` at the end, and for good after an error.
    ///
    /// # Errors
    /// As [`Source::next_line`], once, after all whole runs before it.
    pub fn next_run(&mut self) -> Result<Option<Run>, SourceError> {
        loop {
            let Some(line) = self.source.next_line().inspect_err(|_| self.growing = Growing::default())? else {
                return Ok(self.last_run());
            };
            if !self.growing.fits(line.bytes()) {
                let room = self.growing.text.len() + SLACK_BYTES;
                let whole = std::mem::replace(&mut self.growing, Growing::with_room(room));
                self.growing.push(line);
                return Ok(Some(self.give_out(whole)));
            }
            self.growing.push(line);
            if self.growing.spans.len() == RUN_LINES_MAX && self.source.ended() != End::InsideLine {
                let room = self.growing.text.len() + SLACK_BYTES;
                let whole = std::mem::replace(&mut self.growing, Growing::with_room(room));
                return Ok(Some(self.give_out(whole)));
            }
        }
    }

    /// Gives out what the end of the input left, which may grow.
    fn last_run(&mut self) -> Option<Run> {
        let last = std::mem::take(&mut self.growing);
        if last.spans.is_empty() {
            return None;
        }
        Some(Run { may_grow: true, ..self.give_out(last) })
    }

    /// Numbers a run that is whole.
    fn give_out(&mut self, run: Growing) -> Run {
        let (index, line_first) = (self.index_next, self.line_next);
        self.index_next += 1;
        self.line_next += run.spans.len() as u64;
        let (text, spans) = (Bytes::from(run.text), run.spans.into());
        Run { index, line_first, bytes: run.bytes, text, spans, may_grow: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    fn reader(content: Vec<u8>) -> RunReader {
        RunReader::new(Source::from_reader("e", Box::new(Cursor::new(content)), None, None).unwrap())
    }

    fn runs(content: Vec<u8>) -> Vec<Run> {
        let mut reader = reader(content);
        std::iter::from_fn(|| reader.next_run().unwrap()).collect()
    }

    /// (index, first line, lines, bytes, may grow) of each run.
    fn shape(runs: &[Run]) -> Vec<(u64, u64, usize, u64, bool)> {
        runs.iter().map(|run| (run.index(), run.line_first(), run.line_count(), run.bytes(), run.may_grow())).collect()
    }

    #[test]
    fn a_run_is_a_thousand_lines_and_only_the_end_of_the_input_leaves_one_open() {
        assert_eq!(shape(&runs(vec![])), []);
        assert_eq!(shape(&runs(b"a\n".repeat(999))), [(0, 1, 999, 999, true)]);
        assert_eq!(shape(&runs(b"a\n".repeat(1000))), [(0, 1, 1000, 1000, false)]);
        assert_eq!(shape(&runs(b"a\n".repeat(1001))), [(0, 1, 1000, 1000, false), (1, 1001, 1, 1, true)]);
        let open = [&b"a\n".repeat(999)[..], b"last"].concat();
        assert_eq!(shape(&runs(open)), [(0, 1, 1000, 1003, true)], "the last line may become longer");
        let blank = b"\n \r\n".repeat(1000);
        assert_eq!(shape(&runs(blank)), [(0, 1, 1000, 500, false), (1, 1001, 1000, 500, false)]);
    }

    #[test]
    fn a_run_is_cut_where_its_bytes_would_exceed_the_limit() {
        let line = |length: usize| [&vec![b'x'; length][..], b"\n"].concat();
        let half = (RUN_BYTES_MAX / 4) as usize;
        let exact = line(half).repeat(4);
        assert_eq!(shape(&runs(exact.clone())), [(0, 1, 4, RUN_BYTES_MAX, true)], "a blank line would still fit");
        assert_eq!(
            shape(&runs([exact.clone(), b"\n\ny\n".to_vec()].concat())),
            [(0, 1, 6, RUN_BYTES_MAX, false), (1, 7, 1, 1, true)]
        );
        let long = LINE_BYTES_MAX + 1;
        let found = runs([b"a\n".to_vec(), line(long), line(5 << 20), b"b\n".to_vec()].concat());
        assert_eq!(shape(&found), [(0, 1, 2, 1 + long as u64, false), (1, 3, 1, 5 << 20, false), (2, 4, 1, 1, true)]);
        let head = vec![b'x'; LINE_HEAD_BYTES];
        let lines: Vec<_> = found[1].lines().collect();
        assert_eq!(lines, [(3, Line::TooLong { head: &head, bytes: 5 << 20 })]);
    }

    #[test]
    fn the_run_that_a_damage_cuts_is_not_given_out() {
        let content: Vec<u8> = (0..50_000)
            .flat_map(|n: u32| format!("{{\"n\":{}}}\n", n.wrapping_mul(2_654_435_761)).into_bytes())
            .collect();
        let whole = runs(content.clone());
        let packed = zstd::encode_all(&content[..], 1).unwrap();
        let mut reader = reader(packed[..packed.len() * 2 / 3].to_vec());
        let mut given = Vec::new();
        let error = loop {
            match reader.next_run() {
                Ok(run) => given.push(run.expect("an error comes before the end")),
                Err(error) => break error,
            }
        };
        let SourceError::Damaged { line_last, .. } = error else { panic!("{error}") };
        assert!(given.len() > 5 && given.len() as u64 == line_last / 1000, "{} runs, {line_last} lines", given.len());
        assert_eq!(shape(&given), shape(&whole)[..given.len()]);
        assert!(reader.next_run().unwrap().is_none());
    }

    #[test]
    fn the_sc2_file_has_its_runs() {
        let Some(path) = crate::shared_data("sc2.ndjson.zst") else { return };
        let mut reader = RunReader::new(Source::open(&path, None).unwrap());
        let (mut runs, mut lines) = (0, 0);
        while let Some(run) = reader.next_run().unwrap() {
            assert_eq!((run.index(), run.line_first()), (runs, lines + 1));
            runs += 1;
            lines += run.line_count() as u64;
            assert_eq!(run.may_grow(), run.line_count() < RUN_LINES_MAX);
        }
        assert_eq!((runs, lines), (1_987, 1_986_794));
    }

    proptest! {
        #[test]
        fn growing_a_file_changes_no_run_but_the_one_that_may(
            lines in proptest::collection::vec(prop_oneof![8 => 0_usize..30, 1 => Just(400_000)], 1..2500),
            kept in 0.0_f64..1.0,
        ) {
            let mut content: Vec<u8> = Vec::new();
            for (index, length) in lines.iter().take(2500).enumerate() {
                // A few huge lines are enough to cut by bytes.
                let length = if index % 50 == 0 { *length } else { *length % 30 };
                content.extend(std::iter::repeat_n(b'a' + (index % 26) as u8, length));
                content.push(b'\n');
            }
            let cut = (content.len() as f64 * kept) as usize;
            let (whole, early) = (runs(content.clone()), runs(content[..cut].to_vec()));
            for (early, late) in early.iter().zip(&whole) {
                prop_assert_eq!(early.line_first(), late.line_first());
                if !early.may_grow() {
                    prop_assert!(early.lines().eq(late.lines()));
                }
            }
            prop_assert!(early.iter().rev().skip(1).all(|run| !run.may_grow()));
            let total: u64 = whole.iter().map(Run::bytes).sum();
            prop_assert_eq!(total, (content.len() - lines.len()) as u64);
        }
    }
}
