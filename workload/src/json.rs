//! Writes JSON objects whose names and texts are plain, quickly and always in the same way.

use std::fmt::Write;

/// An object under construction at the end of a text.
pub(crate) struct Object<'a> {
    out: &'a mut String,
    empty: bool,
}

impl<'a> Object<'a> {
    pub(crate) fn begin(out: &'a mut String) -> Self {
        out.push('{');
        Self { out, empty: true }
    }

    /// Goes on with an object that has a member.
    pub(crate) fn more(out: &'a mut String) -> Self {
        Self { out, empty: false }
    }

    fn name(&mut self, name: &str) {
        if !self.empty {
            self.out.push(',');
        }
        self.empty = false;
        self.out.push('"');
        self.out.push_str(name);
        self.out.push_str("\":");
    }

    /// A text without characters that JSON would escape.
    pub(crate) fn text(&mut self, name: &str, value: &str) -> &mut Self {
        self.name(name);
        self.out.push('"');
        self.out.push_str(value);
        self.out.push('"');
        self
    }

    pub(crate) fn int(&mut self, name: &str, value: i64) -> &mut Self {
        self.name(name);
        push_int(self.out, value);
        self
    }

    /// A decimal number, given in tenths.
    pub(crate) fn tenths(&mut self, name: &str, value: i64) -> &mut Self {
        self.name(name);
        push_tenths(self.out, value);
        self
    }

    pub(crate) fn flag(&mut self, name: &str, value: bool) -> &mut Self {
        self.name(name);
        self.out.push_str(if value { "true" } else { "false" });
        self
    }

    /// Whatever `write` appends, which must be JSON.
    pub(crate) fn with(&mut self, name: &str, write: impl FnOnce(&mut String)) -> &mut Self {
        self.name(name);
        write(self.out);
        self
    }

    pub(crate) fn object(&mut self, name: &str, write: impl FnOnce(&mut Object<'_>)) -> &mut Self {
        self.name(name);
        let mut inner = Object::begin(self.out);
        write(&mut inner);
        inner.end();
        self
    }

    pub(crate) fn end(&mut self) {
        self.out.push('}');
    }
}

/// Appends an integer's digits.
pub(crate) fn push_int(out: &mut String, value: i64) {
    if value < 0 {
        out.push('-');
    }
    let mut digits = [0u8; 20];
    let (mut left, mut start) = (value.unsigned_abs(), digits.len());
    loop {
        start -= 1;
        digits[start] = b'0' + u8::try_from(left % 10).unwrap_or(0);
        left /= 10;
        if left == 0 {
            break;
        }
    }
    out.push_str(std::str::from_utf8(&digits[start..]).unwrap_or_default());
}

/// Appends a decimal number, given in tenths.
pub(crate) fn push_tenths(out: &mut String, value: i64) {
    if value < 0 {
        out.push('-');
    }
    let value = value.abs();
    push_int(out, value / 10);
    out.push('.');
    push_int(out, value % 10);
}

/// Appends a text in quotes, escaped as JSON asks for.
pub(crate) fn push_text(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            control if u32::from(control) < 0x20 => {
                // Writing to a string does not fail.
                let _ = write!(out, "\\u{:04x}", u32::from(control));
            }
            plain => out.push(plain),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_json() {
        let mut out = String::new();
        let mut object = Object::begin(&mut out);
        object.int("least", i64::MIN).int("zero", 0).tenths("cold", -5).tenths("warm", 123).flag("on", 1 > 0);
        object.object("inner", |inner| {
            inner.text("a", "b");
        });
        object.with("odd", |out| push_text(out, "a\"\\\n\u{1}é"));
        object.end();
        let read: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        let expected = serde_json::json!({
            "least": i64::MIN, "zero": 0, "cold": -0.5, "warm": 12.3, "on": true, "inner": {"a": "b"},
            "odd": "a\"\\\n\u{1}é",
        });
        assert_eq!(read, expected);
    }
}
