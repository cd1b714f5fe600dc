//! One pass over a line that proves it to be a JSON object and notes where its top-level members stand.
//!
//! No tree is built and no text is copied: mapping takes three members out and passes the texts of all others on as
//! they came, numbers with every digit. What is accepted is what `serde_json` accepts as a `Value` (RFC 8259, numbers
//! within the range of an `f64`, no lone surrogate escapes, at most [`NESTING_MAX`] levels), so that no reader behind
//! this one finds a flaw that this one passed; a property test holds the two against each other.
//!
//! A key that stands twice counts once: at its first place, with its last value.

use std::borrow::Cow;
use std::fmt;

use crate::scanner::Scanner;

/// Levels of objects and arrays, the line's own object among them; a deeper line is bad. `serde_json` has this limit.
pub const NESTING_MAX: usize = 127;

/// Distinct top-level keys of a line: 256 properties and three that mapping takes out. A line with more is bad.
pub const MEMBERS_MAX: usize = crate::mapping::PROPERTIES_MAX + 3;

/// Why a line is no object that can be taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// The line is no JSON.
    #[error("not JSON at byte {at}: {problem}")]
    Syntax {
        /// Offset of the byte in the line, from 0.
        at: usize,
        /// What is wrong there.
        problem: Problem,
    },
    /// The line nests too deep.
    #[error("nested deeper than {max} levels at byte {at}")]
    Nesting {
        /// Offset of the bracket that goes too deep.
        at: usize,
        /// The limit.
        max: usize,
    },
    /// The line is JSON, and no object.
    #[error("a JSON {kind}, not an object")]
    NotAnObject {
        /// What it is.
        kind: Kind,
    },
    /// The object has too many keys.
    #[error("more than {max} keys")]
    Members {
        /// The limit.
        max: usize,
    },
}

/// What is wrong at a byte of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The line ends inside a value.
    #[error("the line ends early")]
    Ends,
    /// Something else stands where a value must.
    #[error("expected a value")]
    Value,
    /// Something else stands where a key must.
    #[error("expected a key in quotes")]
    Key,
    /// No colon between a key and its value.
    #[error("expected a colon")]
    Colon,
    /// No comma and no closing bracket after a value.
    #[error("expected a comma or the closing bracket")]
    Comma,
    /// Something stands behind the value.
    #[error("text behind the value")]
    Behind,
    /// A number that JSON does not know, `01` or `1.` for example.
    #[error("malformed number")]
    Number,
    /// A number that no `f64` comes near.
    #[error("number out of range")]
    NumberRange,
    /// A byte below 0x20 in a string.
    #[error("control character in a string")]
    Control,
    /// A backslash before something that it cannot stand before, or half of a surrogate pair.
    #[error("malformed escape")]
    Escape,
}

/// Kinds of JSON values, as far as mapping tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A string without escapes.
    PlainString,
    /// A string with at least one escape.
    EscapedString,
    /// A number without fraction and exponent.
    Integer,
    /// A number with a fraction or an exponent.
    Decimal,
    /// An object.
    Object,
    /// An array.
    Array,
    /// `true` or `false`.
    Boolean,
    /// `null`.
    Null,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::PlainString | Kind::EscapedString => "string",
            Kind::Integer => "integer",
            Kind::Decimal => "decimal number",
            Kind::Object => "object",
            Kind::Array => "array",
            Kind::Boolean => "boolean",
            Kind::Null => "null",
        })
    }
}

/// A value in a line: its kind and its text as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Value<'a> {
    /// Its kind.
    pub kind: Kind,
    /// Its text, quotes and brackets included.
    pub text: &'a str,
}

impl<'a> Value<'a> {
    /// Returns what a string says; `None` for other kinds.
    pub fn string(&self) -> Option<Cow<'a, str>> {
        match self.kind {
            Kind::PlainString => Some(Cow::Borrowed(inside(self.text))),
            Kind::EscapedString => Some(unescape(self.text)),
            _ => None,
        }
    }

    /// Returns the value of `key` in an object, the last one if it stands there twice.
    pub fn member(&self, key: &str) -> Option<Value<'a>> {
        if self.kind != Kind::Object {
            return None;
        }
        let mut found = None;
        let mut scanner = Scanner::new(self.text);
        // The text is part of a line that was read whole before: there is no flaw to report.
        let _ = scanner.object(1, |member| {
            if member.name(self.text) == key {
                found = Some(member);
            }
            Ok(())
        });
        found.map(|member| member.value(self.text))
    }
}

/// Takes the quotes off.
fn inside(quoted: &str) -> &str {
    &quoted[1..quoted.len() - 1]
}

/// Returns what a string with escapes says.
fn unescape(quoted: &str) -> Cow<'_, str> {
    match serde_json::from_str(quoted) {
        Ok(said) => Cow::Owned(said),
        // Not met: the scanner accepts only what serde_json does.
        Err(_) => Cow::Borrowed(inside(quoted)),
    }
}

/// Where a member of an object stands in its text.
#[derive(Debug, Clone, Copy)]
pub struct Member {
    pub(super) key_start: u32,
    pub(super) key_end: u32,
    pub(super) key_escaped: bool,
    pub(super) value_start: u32,
    pub(super) value_end: u32,
    pub(super) kind: Kind,
    /// Tells most names apart; only [`Members::read`] sets it.
    pub(super) fingerprint: u32,
}

impl Member {
    /// The key's text in `line`, quotes included.
    pub fn key_text<'a>(&self, line: &'a str) -> &'a str {
        &line[self.key_start as usize..self.key_end as usize]
    }

    /// What the key says.
    pub fn name<'a>(&self, line: &'a str) -> Cow<'a, str> {
        let quoted = self.key_text(line);
        if self.key_escaped { unescape(quoted) } else { Cow::Borrowed(inside(quoted)) }
    }

    /// Its value in `line`.
    pub fn value<'a>(&self, line: &'a str) -> Value<'a> {
        Value { kind: self.kind, text: &line[self.value_start as usize..self.value_end as usize] }
    }
}

/// Four bytes of a key that differ for most keys that differ: its length and its first, middle and last byte.
fn fingerprint(name: &[u8]) -> u32 {
    match name {
        [] => 0,
        [first, .., last] => u32::from_le_bytes([name.len() as u8, *first, name[name.len() / 2], *last]),
        [only] => u32::from_le_bytes([1, *only, *only, *only]),
    }
}

/// The top-level members of a line, in order; one value serves many lines, so that none of them allocates.
#[derive(Debug, Clone, Default)]
pub struct Members {
    list: Vec<Member>,
}

impl Members {
    /// Reads a line whole and notes its members. After an error the members are those before it, and mean nothing.
    ///
    /// # Errors
    /// See [`Flaw`].
    pub fn read(&mut self, line: &str) -> Result<(), Flaw> {
        assert!(u32::try_from(line.len()).is_ok(), "a line of {} bytes is above every limit", line.len());
        self.list.clear();
        let mut scanner = Scanner::new(line);
        scanner.space();
        if scanner.peek() != Some(b'{') {
            let kind = scanner.value(0)?;
            scanner.end()?;
            return Err(Flaw::NotAnObject { kind });
        }
        let list = &mut self.list;
        scanner.object(1, |mut member| {
            member.fingerprint = fingerprint(member.name(line).as_bytes());
            let same = list.iter().position(|earlier| {
                earlier.fingerprint == member.fingerprint && earlier.name(line) == member.name(line)
            });
            match same {
                Some(place) => list[place] = member,
                None if list.len() == MEMBERS_MAX => return Err(Flaw::Members { max: MEMBERS_MAX }),
                None => list.push(member),
            }
            Ok(())
        })?;
        scanner.end()
    }

    /// The members in order.
    pub fn list(&self) -> &[Member] {
        &self.list
    }

    /// Returns the place of the member that is called `name`.
    pub fn position(&self, line: &str, name: &str) -> Option<usize> {
        let fingerprint = fingerprint(name.as_bytes());
        self.list.iter().position(|member| member.fingerprint == fingerprint && member.name(line) == name)
    }
}

#[cfg(test)]
#[path = "json_tests.rs"]
mod tests;
