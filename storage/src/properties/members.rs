//! The members of an object that was checked when it was stored.
//!
//! A reader that trusts nobody looks at each byte of each value, here for properties that nobody asked for. These texts passed
//! [`super::check`] once: where a value ends is all that is looked for, and a string's end is found by `memchr`. What such a
//! text is not read as is an error or nonsense, and never a panic.

use std::borrow::Cow;

use memchr::memchr2;

use crate::{Error, Result};

/// Gives the name and the JSON text of each member, in order. Empty text is an empty object.
#[derive(Clone, Debug)]
pub struct Members<'a> {
    json: &'a str,
    at: usize,
    end: End,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The object's beginning.
    Begins,
    /// A member's end.
    InObject,
    /// Nothing.
    Ended,
}

/// Reads the members of an object that passed [`super::check`].
pub fn members(json: &str) -> Members<'_> {
    Members { json, at: 0, end: if json.is_empty() { End::Ended } else { End::Begins } }
}

impl<'a> Members<'a> {
    fn peek(&self) -> Option<u8> {
        self.json.as_bytes().get(self.at).copied()
    }

    fn pass_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Passes over a byte and the space behind it.
    fn pass(&mut self, byte: u8) -> Option<()> {
        let is_next = self.peek() == Some(byte);
        self.at += 1;
        self.pass_space();
        is_next.then_some(())
    }

    /// Passes over a string, and the space behind it; returns it with its quotes.
    fn string(&mut self) -> Option<&'a str> {
        let (begin, bytes) = (self.at, self.json.as_bytes());
        self.at += 1;
        loop {
            self.at += memchr2(b'"', b'\\', bytes.get(self.at..)?)? + 1;
            if bytes[self.at - 1] == b'"' {
                break;
            }
            // What is escaped ends nothing.
            self.at += 1;
        }
        let string = self.json.get(begin..self.at);
        self.pass_space();
        string
    }

    /// Passes over an array or an object, or what of it is behind its beginning.
    fn nested(&mut self) -> Option<()> {
        let mut depth = 0usize;
        loop {
            match self.peek()? {
                b'"' => {
                    self.string()?;
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth = depth.checked_sub(1)?,
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return Some(());
            }
        }
    }

    /// Passes over a value, and the space behind it.
    fn value(&mut self) -> Option<&'a str> {
        let begin = self.at;
        match self.peek()? {
            b'"' => return self.string(),
            b'{' | b'[' => self.nested()?,
            _ => {
                while !matches!(self.peek()?, b',' | b'}' | b' ' | b'\t' | b'\n' | b'\r') {
                    self.at += 1;
                }
            }
        }
        let value = self.json.get(begin..self.at).filter(|value| !value.is_empty());
        self.pass_space();
        value
    }

    /// The next member; `Some(None)` at the end, `None` for what is no object.
    fn member(&mut self) -> Option<Option<(Cow<'a, str>, &'a str)>> {
        if self.end == End::Begins {
            self.pass_space();
            self.pass(b'{')?;
        }
        if self.peek()? == b'}' {
            self.pass(b'}')?;
            self.end = End::Ended;
            return (self.at == self.json.len()).then_some(None);
        }
        if self.end == End::InObject {
            self.pass(b',')?;
        }
        self.end = End::InObject;
        if self.peek()? != b'"' {
            return None;
        }
        let quoted = self.string()?;
        let plain = &quoted[1..quoted.len() - 1];
        let name = if plain.contains('\\') { serde_json::from_str(quoted).ok()? } else { Cow::Borrowed(plain) };
        self.pass(b':')?;
        Some(Some((name, self.value()?)))
    }
}

impl<'a> Iterator for Members<'a> {
    type Item = Result<(Cow<'a, str>, &'a str)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.end == End::Ended {
            return None;
        }
        match self.member() {
            Some(member) => member.map(Ok),
            None => {
                self.end = End::Ended;
                Some(Err(Error::row("event properties", format!("malformed before byte {}", self.at))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::{super::check, *};

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            // Exact in few digits: what reads them rounds.
            (-4_000i32..4_000).prop_map(|quarters| Value::from(f64::from(quarters) / 4.0)),
            r#"[a"\\{}\[\],: \n\u{7f}é]{0,12}"#.prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(r#"[a"\\{},é]{0,4}"#, inner, 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn members_are_those_that_a_reader_of_json_finds(
            object in prop::collection::btree_map(r#"[a"\\{},:é]{0,6}"#, value(), 0..6),
            pretty in any::<bool>(),
        ) {
            let object = Value::Object(object.into_iter().collect());
            let json = if pretty { serde_json::to_string_pretty(&object).expect("JSON") } else { object.to_string() };
            let kinds = check(&json).expect("it is one");
            let found: Vec<_> = members(&json).map(|member| member.expect("it was checked")).collect();
            prop_assert_eq!(found.len(), kinds.len());
            for ((name, raw), (checked, _)) in found.iter().zip(&kinds) {
                prop_assert_eq!(name, checked);
                prop_assert_eq!(&serde_json::from_str::<Value>(raw).expect("JSON"), &object[name.as_ref()]);
            }
        }

        #[test]
        fn what_is_no_object_does_no_harm(text in r#"[{}\[\]",:\\a1 é]{0,24}"#) {
            let read: Result<Vec<_>> = members(&text).collect();
            if check(&text).is_ok() {
                read.expect("it was checked");
            }
        }
    }
}
