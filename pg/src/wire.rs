//! Bytes of the protocol, in and out (PostgreSQL documentation, chapter 55.7).
//!
//! ```text
//! message   = tag u8 | length u32 big endian, with itself, without the tag | body
//! first one = length u32 | code u32 | body            (no tag)
//! ```
//! Reading never trusts a length or a count: what does not fit its frame is a protocol violation (08P01), text that is not
//! UTF-8 is 22021. Nothing here waits.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use pgwire::api::results::FieldInfo;

use super::SqlError;
use super::session::Block;

/// Bytes of a tag and a length.
const HEADER_BYTES: usize = 5;

/// What a `Describe` or `Close` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Statement,
    Portal,
}

/// A `Bind`: values for a prepared statement.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bind {
    pub(super) portal: String,
    pub(super) statement: String,
    pub(super) parameter_formats: Vec<i16>,
    pub(super) parameters: Vec<Option<Bytes>>,
    pub(super) result_formats: Vec<i16>,
}

/// A message of the client after startup.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frontend {
    Query(String),
    Parse {
        name: String,
        sql: String,
        oids: Vec<u32>,
    },
    Bind(Bind),
    Describe(Target, String),
    Execute {
        portal: String,
        rows_max: usize,
    },
    Close(Target, String),
    Flush,
    Sync,
    Terminate,
    /// A message of `COPY`, which no statement here begins. Postgres ignores it outside a copy, and so does this.
    Stray,
}

/// Takes the next whole frame off `inbox`: its tag and body. `None` means that more bytes are needed.
pub(super) fn next_frame(inbox: &mut BytesMut, bytes_max: usize) -> Result<Option<(u8, Bytes)>, SqlError> {
    if inbox.len() < HEADER_BYTES {
        return Ok(None);
    }
    let tag = inbox[0];
    if !b"QPBDECHSXpdcfF".contains(&tag) {
        return Err(violation(format!("invalid frontend message type {tag}")));
    }
    let length = u32::from_be_bytes([inbox[1], inbox[2], inbox[3], inbox[4]]) as usize;
    if length < 4 {
        return Err(violation(format!("invalid message length {length}")));
    }
    if length > bytes_max {
        return Err(SqlError::new(
            "54000",
            format!("message of {length} bytes exceeds the limit of {bytes_max} bytes"),
        ));
    }
    if inbox.len() < length + 1 {
        inbox.reserve(length + 1 - inbox.len());
        return Ok(None);
    }
    let mut frame = inbox.split_to(length + 1).freeze();
    frame.advance(HEADER_BYTES);
    Ok(Some((tag, frame)))
}

/// Whether [`next_frame`] would find a whole frame.
pub(super) fn has_frame(inbox: &[u8]) -> bool {
    match inbox.get(1..).and_then(|rest| rest.first_chunk::<4>()) {
        Some(length) => inbox.len() > u32::from_be_bytes(*length) as usize,
        None => false,
    }
}

/// Reads the body of a frame.
pub(super) fn parse(tag: u8, body: Bytes) -> Result<Frontend, SqlError> {
    let mut body = Body(body);
    let message = match tag {
        b'Q' => Frontend::Query(body.string()?),
        b'P' => {
            let (name, sql) = (body.string()?, body.string()?);
            let count = body.count()?;
            let oids = (0..count).map(|_| body.u32()).collect::<Result<_, _>>()?;
            Frontend::Parse { name, sql, oids }
        }
        b'B' => {
            let (portal, statement) = (body.string()?, body.string()?);
            let parameter_formats = body.formats()?;
            let count = body.count()?;
            let parameters = (0..count).map(|_| body.value()).collect::<Result<_, _>>()?;
            let result_formats = body.formats()?;
            Frontend::Bind(Bind { portal, statement, parameter_formats, parameters, result_formats })
        }
        b'D' => Frontend::Describe(body.target()?, body.string()?),
        b'E' => {
            let portal = body.string()?;
            // 0 or less means all rows.
            let rows_max = match i32::from_be_bytes(body.u32()?.to_be_bytes()) {
                rows if rows > 0 => rows.unsigned_abs() as usize,
                _ => usize::MAX,
            };
            Frontend::Execute { portal, rows_max }
        }
        b'C' => Frontend::Close(body.target()?, body.string()?),
        b'H' => Frontend::Flush,
        b'S' => Frontend::Sync,
        b'X' => Frontend::Terminate,
        _ => return Ok(Frontend::Stray),
    };
    if body.0.is_empty() {
        Ok(message)
    } else {
        Err(violation(format!("message of type {} has {} bytes too many", char::from(tag), body.0.len())))
    }
}

/// A `08P01`.
pub(super) fn violation(message: impl Into<String>) -> SqlError {
    SqlError::new("08P01", message)
}

/// A body that is read from its front.
struct Body(Bytes);

impl Body {
    fn string(&mut self) -> Result<String, SqlError> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or_else(|| violation("string without its end"))?;
        let text = self.0.split_to(end);
        self.0.advance(1);
        String::from_utf8(text.to_vec())
            .map_err(|_| SqlError::new("22021", "invalid byte sequence for encoding \"UTF8\""))
    }

    fn take(&mut self, bytes: usize) -> Result<Bytes, SqlError> {
        if self.0.len() < bytes {
            return Err(violation(format!("message ends {} bytes early", bytes - self.0.len())));
        }
        Ok(self.0.split_to(bytes))
    }

    fn u32(&mut self) -> Result<u32, SqlError> {
        Ok(self.take(4)?.get_u32())
    }

    fn count(&mut self) -> Result<usize, SqlError> {
        Ok(usize::from(self.take(2)?.get_u16()))
    }

    fn formats(&mut self) -> Result<Vec<i16>, SqlError> {
        let count = self.count()?;
        (0..count)
            .map(|_| match self.take(2)?.get_i16() {
                code @ (0 | 1) => Ok(code),
                code => Err(violation(format!("invalid format code {code}"))),
            })
            .collect()
    }

    fn value(&mut self) -> Result<Option<Bytes>, SqlError> {
        match self.u32()? {
            u32::MAX => Ok(None),
            bytes => self.take(bytes as usize).map(Some),
        }
    }

    fn target(&mut self) -> Result<Target, SqlError> {
        match self.take(1)?.get_u8() {
            b'S' => Ok(Target::Statement),
            b'P' => Ok(Target::Portal),
            other => Err(violation(format!("invalid target {other}"))),
        }
    }
}

/// Messages for the client, in the order in which they are to be sent.
#[derive(Default)]
pub(super) struct Outbox {
    pub(super) bytes: BytesMut,
}

impl Outbox {
    fn message(&mut self, tag: u8, body: impl FnOnce(&mut BytesMut)) {
        self.bytes.put_u8(tag);
        let start = self.bytes.len();
        self.bytes.put_u32(0);
        body(&mut self.bytes);
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&length.to_be_bytes());
    }

    pub(super) fn authentication_ok(&mut self) {
        self.message(b'R', |out| out.put_u32(0));
    }

    pub(super) fn protocol_newest_minor(&mut self, minor: u32, unknown_options: &[&str]) {
        self.message(b'v', |out| {
            out.put_u32(minor);
            out.put_u32(u32::try_from(unknown_options.len()).unwrap_or(0));
            for option in unknown_options {
                put_string(out, option);
            }
        });
    }

    pub(super) fn parameter_status(&mut self, name: &str, value: &str) {
        self.message(b'S', |out| {
            put_string(out, name);
            put_string(out, value);
        });
    }

    pub(super) fn backend_key(&mut self, pid: i32, secret: i32) {
        self.message(b'K', |out| {
            out.put_i32(pid);
            out.put_i32(secret);
        });
    }

    pub(super) fn ready(&mut self, block: Block) {
        self.message(b'Z', |out| out.put_u8(block.letter()));
    }

    pub(super) fn error(&mut self, severity: &str, error: &SqlError) {
        self.message(b'E', |out| put_report(out, severity, error));
    }

    pub(super) fn warning(&mut self, warning: &SqlError) {
        self.message(b'N', |out| put_report(out, "WARNING", warning));
    }

    pub(super) fn command_complete(&mut self, tag: &str) {
        self.message(b'C', |out| put_string(out, tag));
    }

    pub(super) fn empty_query(&mut self) {
        self.message(b'I', |_| ());
    }

    pub(super) fn parse_complete(&mut self) {
        self.message(b'1', |_| ());
    }

    pub(super) fn bind_complete(&mut self) {
        self.message(b'2', |_| ());
    }

    pub(super) fn close_complete(&mut self) {
        self.message(b'3', |_| ());
    }

    pub(super) fn no_data(&mut self) {
        self.message(b'n', |_| ());
    }

    pub(super) fn portal_suspended(&mut self) {
        self.message(b's', |_| ());
    }

    pub(super) fn parameter_description(&mut self, oids: &[u32]) {
        self.message(b't', |out| {
            out.put_u16(u16::try_from(oids.len()).unwrap_or(u16::MAX));
            for oid in oids {
                out.put_u32(*oid);
            }
        });
    }

    pub(super) fn row_description(&mut self, fields: &[FieldInfo]) {
        self.message(b'T', |out| {
            out.put_u16(u16::try_from(fields.len()).unwrap_or(u16::MAX));
            for field in fields {
                put_string(out, field.name());
                out.put_u32(0);
                out.put_u16(0);
                out.put_u32(field.datatype().oid());
                out.put_i16(type_bytes(field.datatype().oid()));
                out.put_i32(-1);
                out.put_i16(field.format().value());
            }
        });
    }

    /// Adds a row whose values, each with its length, are already encoded.
    pub(super) fn data_row(&mut self, columns: usize, values: &[u8]) {
        self.message(b'D', |out| {
            out.put_u16(u16::try_from(columns).unwrap_or(u16::MAX));
            out.put_slice(values);
        });
    }
}

fn put_string(out: &mut BytesMut, text: &str) {
    // A zero byte would end the string early and break the frame.
    out.extend(text.bytes().filter(|byte| *byte != 0));
    out.put_u8(0);
}

fn put_report(out: &mut BytesMut, severity: &str, report: &SqlError) {
    let fields = [(b'S', Some(severity)), (b'V', Some(severity)), (b'C', Some(report.code))];
    let texts = [(b'M', Some(report.message.as_str())), (b'H', report.hint.as_deref())];
    for (kind, text) in fields.into_iter().chain(texts) {
        if let Some(text) = text {
            out.put_u8(kind);
            put_string(out, text);
        }
    }
    out.put_u8(0);
}

/// The size of a type's values in `pg_type.typlen`, -1 if it varies.
fn type_bytes(oid: u32) -> i16 {
    match oid {
        16 | 18 => 1,
        21 => 2,
        23 | 24 | 26 | 700 | 1082 | 2202..=2206 => 4,
        20 | 701 | 1083 | 1114 | 1184 => 8,
        1186 => 16,
        _ => -1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(tag: u8, body: &[u8]) -> BytesMut {
        let mut bytes = BytesMut::new();
        bytes.put_u8(tag);
        bytes.put_u32(4 + body.len() as u32);
        bytes.put_slice(body);
        bytes
    }

    #[test]
    fn a_frame_waits_until_it_is_whole() {
        let whole = frame(b'Q', b"select 1\0");
        for cut in 0..whole.len() {
            assert_eq!(next_frame(&mut BytesMut::from(&whole[..cut]), 100), Ok(None));
        }
        let (tag, body) = next_frame(&mut whole.clone(), 100).unwrap().unwrap();
        assert_eq!(parse(tag, body), Ok(Frontend::Query("select 1".to_owned())));
    }

    #[test]
    fn broken_frames_are_errors_and_never_panics() {
        assert_eq!(next_frame(&mut frame(b'Q', &[0; 200]), 100).unwrap_err().code, "54000");
        assert_eq!(next_frame(&mut BytesMut::from(&b"GET / HTTP/1.1\r\n"[..]), 100).unwrap_err().code, "08P01");
        for tag in *b"QPBDECHSX" {
            for length in 0..24 {
                for byte in [0u8, 1, 0x7f, 0xff] {
                    let _ = parse(tag, Bytes::from(vec![byte; length]));
                }
            }
        }
        assert_eq!(parse(b'Q', Bytes::from_static(b"\xff\0")).unwrap_err().code, "22021");
    }
}
