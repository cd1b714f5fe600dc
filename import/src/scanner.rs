//! The grammar of JSON (RFC 8259), passed over byte by byte without building anything.
//!
//! A value is proved and measured, not read: the scanner says of what kind it is and where it ends, and shows the
//! members of the outermost object. Nesting recurses, and is bounded by [`NESTING_MAX`]. That it accepts exactly what
//! `serde_json` does is tested in [`crate::json`], its only user.

use crate::json::{Flaw, Kind, Member, NESTING_MAX, Problem};

/// Digits of a number that is surely within the range of an `f64` when it has no exponent.
const PLAIN_NUMBER_BYTES_MAX: usize = 308;

/// Bytes that end the plain part of a string: the quote, the backslash, and control characters.
const STRING_STOPS: [bool; 256] = {
    let mut stops = [false; 256];
    let mut byte = 0;
    while byte < 0x20 {
        stops[byte] = true;
        byte += 1;
    }
    stops[b'"' as usize] = true;
    stops[b'\\' as usize] = true;
    stops
};

/// A place in a text that is known to be UTF-8.
pub(super) struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    /// Stands before the first byte of `text`.
    pub(super) fn new(text: &'a str) -> Scanner<'a> {
        Scanner { text, at: 0 }
    }

    /// The byte here; `None` at the end of the text.
    #[inline]
    pub(super) fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Says what is wrong here, or that the line ends here.
    #[cold]
    fn flaw(&self, problem: Problem) -> Flaw {
        let problem = if self.at >= self.text.len() { Problem::Ends } else { problem };
        Flaw::Syntax { at: self.at, problem }
    }

    /// Passes white space.
    #[inline]
    pub(super) fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.peek() {
            self.at += 1;
        }
    }

    /// Passes one byte that must stand here.
    #[inline]
    fn expect(&mut self, byte: u8, problem: Problem) -> Result<(), Flaw> {
        if self.peek() != Some(byte) {
            return Err(self.flaw(problem));
        }
        self.at += 1;
        Ok(())
    }

    /// Passes what may stand behind the outermost value.
    pub(super) fn end(&mut self) -> Result<(), Flaw> {
        self.space();
        if self.at < self.text.len() { Err(self.flaw(Problem::Behind)) } else { Ok(()) }
    }

    /// Passes a value inside `depth` levels.
    pub(super) fn value(&mut self, depth: usize) -> Result<Kind, Flaw> {
        match self.peek() {
            Some(b'"') => self.string(),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b'{') => self.object(depth + 1, ignore).map(|()| Kind::Object),
            Some(b'[') => self.array(depth + 1).map(|()| Kind::Array),
            Some(b't') => self.word("true", Kind::Boolean),
            Some(b'f') => self.word("false", Kind::Boolean),
            Some(b'n') => self.word("null", Kind::Null),
            _ => Err(self.flaw(Problem::Value)),
        }
    }

    /// Passes `true`, `false` or `null`.
    fn word(&mut self, word: &str, kind: Kind) -> Result<Kind, Flaw> {
        if !self.text.as_bytes()[self.at..].starts_with(word.as_bytes()) {
            return Err(Flaw::Syntax { at: self.at, problem: Problem::Value });
        }
        self.at += word.len();
        Ok(kind)
    }

    /// Passes the opening bracket of level `depth`.
    fn enter(&mut self, depth: usize) -> Result<(), Flaw> {
        if depth > NESTING_MAX {
            return Err(Flaw::Nesting { at: self.at, max: NESTING_MAX });
        }
        self.at += 1;
        self.space();
        Ok(())
    }

    /// Passes an object that is level `depth` and shows each member.
    pub(super) fn object(
        &mut self,
        depth: usize,
        mut each: impl FnMut(Member) -> Result<(), Flaw>,
    ) -> Result<(), Flaw> {
        self.enter(depth)?;
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            if self.peek() != Some(b'"') {
                return Err(self.flaw(Problem::Key));
            }
            let key_start = self.at;
            let key_escaped = self.string()? == Kind::EscapedString;
            let key_end = self.at;
            self.space();
            self.expect(b':', Problem::Colon)?;
            self.space();
            let value_start = self.at;
            let kind = self.value(depth)?;
            each(Member {
                key_start: key_start as u32,
                key_end: key_end as u32,
                key_escaped,
                value_start: value_start as u32,
                value_end: self.at as u32,
                kind,
                fingerprint: 0,
            })?;
            self.space();
            match self.peek() {
                Some(b',') => {
                    self.at += 1;
                    self.space();
                }
                Some(b'}') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return Err(self.flaw(Problem::Comma)),
            }
        }
    }

    /// Passes an array that is level `depth`.
    fn array(&mut self, depth: usize) -> Result<(), Flaw> {
        self.enter(depth)?;
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.value(depth)?;
            self.space();
            match self.peek() {
                Some(b',') => {
                    self.at += 1;
                    self.space();
                }
                Some(b']') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return Err(self.flaw(Problem::Comma)),
            }
        }
    }

    /// Passes a string, from its opening quote.
    #[inline]
    fn string(&mut self) -> Result<Kind, Flaw> {
        let bytes = self.text.as_bytes();
        let mut kind = Kind::PlainString;
        self.at += 1;
        loop {
            let plain = bytes[self.at..].iter().position(|byte| STRING_STOPS[usize::from(*byte)]);
            self.at = plain.map_or(bytes.len(), |plain| self.at + plain);
            match bytes.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(kind);
                }
                Some(b'\\') => {
                    kind = Kind::EscapedString;
                    self.escape()?;
                }
                _ => return Err(self.flaw(Problem::Control)),
            }
        }
    }

    /// Passes an escape, or the two of a surrogate pair.
    fn escape(&mut self) -> Result<(), Flaw> {
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 1;
                Ok(())
            }
            Some(b'u') => match self.hex()? {
                0xdc00..=0xdfff => Err(self.flaw(Problem::Escape)),
                0xd800..=0xdbff => {
                    self.expect(b'\\', Problem::Escape)?;
                    if self.peek() != Some(b'u') || !matches!(self.hex()?, 0xdc00..=0xdfff) {
                        return Err(self.flaw(Problem::Escape));
                    }
                    Ok(())
                }
                _ => Ok(()),
            },
            _ => Err(self.flaw(Problem::Escape)),
        }
    }

    /// Passes a `u` and four hex digits, and returns their value.
    fn hex(&mut self) -> Result<u32, Flaw> {
        let mut value = 0;
        for _ in 0..4 {
            self.at += 1;
            let digit = self.peek().and_then(|byte| char::from(byte).to_digit(16));
            value = value << 4 | digit.ok_or_else(|| self.flaw(Problem::Escape))?;
        }
        self.at += 1;
        Ok(value)
    }

    /// Passes one digit or more.
    fn digits(&mut self) -> Result<(), Flaw> {
        if !matches!(self.peek(), Some(b'0'..=b'9')) {
            return Err(self.flaw(Problem::Number));
        }
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        Ok(())
    }

    /// Passes a number that an `f64` comes near.
    fn number(&mut self) -> Result<Kind, Flaw> {
        let start = self.at;
        let (mut kind, mut exponent) = (Kind::Integer, false);
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
            if let Some(b'0'..=b'9') = self.peek() {
                return Err(self.flaw(Problem::Number));
            }
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            kind = Kind::Decimal;
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            (kind, exponent) = (Kind::Decimal, true);
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        let text = &self.text[start..self.at];
        if (exponent || text.len() > PLAIN_NUMBER_BYTES_MAX) && !text.parse().is_ok_and(f64::is_finite) {
            return Err(Flaw::Syntax { at: start, problem: Problem::NumberRange });
        }
        Ok(kind)
    }
}

/// Takes no note of a member.
fn ignore(_: Member) -> Result<(), Flaw> {
    Ok(())
}
