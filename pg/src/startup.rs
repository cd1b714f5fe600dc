//! From the first byte to the first `ReadyForQuery`.
//!
//! A client may first ask for TLS or GSS (both are answered `N`: not here), then sends a startup message or a cancel
//! request. Nobody is asked for a password. The database must be a game, or one of the empty ones that tools connect to
//! first. A client that asks for a protocol newer than 3.0 is told 3.0.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::catalog::EMPTY_DATABASES;
use super::session::{REPORTED_AT_STARTUP, Settings};
use super::wire::{Outbox, violation};
use super::{Shared, SqlError};

/// Time for a startup. Over it the connection is closed.
const STARTUP_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of a startup message, as in Postgres. Over it the connection is closed.
const STARTUP_BYTES_MAX: usize = 10_000;

/// Requests for encryption before a startup message, one of each kind. Over it the connection is closed.
const ENCRYPTION_REQUESTS_MAX: usize = 2;

const CANCEL_CODE: u32 = 80_877_102;
const TLS_CODE: u32 = 80_877_103;
const GSS_CODE: u32 = 80_877_104;

/// A client that has introduced itself.
pub(super) struct Client {
    pub(super) user: String,
    pub(super) database: String,
    pub(super) is_game: bool,
    pub(super) settings: Settings,
    /// What it sent after its startup message.
    pub(super) inbox: BytesMut,
    /// What it must be told before all else.
    pub(super) outbox: Outbox,
}

/// Reads up to the startup message. `None` means that the connection has done what it was for, or has failed; it is to be
/// closed, and its client has been told all that there is.
pub(super) async fn greet(socket: &mut TcpStream, shared: &Shared) -> Option<Client> {
    let greeting = tokio::time::timeout(STARTUP_TIMEOUT, read_startup(socket, shared)).await.ok()?;
    let client = greeting.and_then(|startup| startup.map(|startup| introduce(startup, shared)).transpose());
    match client {
        Ok(client) => client,
        Err(error) => {
            tell(socket, &error).await;
            None
        }
    }
}

/// Tells a client that there is no seat for it; a cancel request is served all the same.
pub(super) async fn refuse(mut socket: TcpStream, shared: &Shared) {
    let greeting = tokio::time::timeout(STARTUP_TIMEOUT, read_startup(&mut socket, shared)).await;
    if let Ok(Ok(Some(_))) = greeting {
        let max = shared.limits.connections_max;
        tell(&mut socket, &SqlError::new("53300", format!("sorry, too many clients already: the limit is {max}")))
            .await;
    }
}

async fn tell(socket: &mut TcpStream, error: &SqlError) {
    let mut outbox = Outbox::default();
    outbox.error("FATAL", error);
    let _ = tokio::time::timeout(STARTUP_TIMEOUT, async {
        socket.write_all(&outbox.bytes).await?;
        socket.shutdown().await
    })
    .await;
}

/// A startup message, and what came after it.
struct Startup {
    minor: u16,
    parameters: BTreeMap<String, String>,
    inbox: BytesMut,
}

async fn read_startup(socket: &mut TcpStream, shared: &Shared) -> Result<Option<Startup>, SqlError> {
    let mut inbox = BytesMut::new();
    for _ in 0..=ENCRYPTION_REQUESTS_MAX {
        let Some((code, mut body)) = read_packet(socket, &mut inbox).await? else {
            return Ok(None);
        };
        match code {
            TLS_CODE | GSS_CODE => {
                // Bytes sent ahead of the answer could only be an attack on the upgrade (CVE-2021-23222).
                if !inbox.is_empty() {
                    return Err(violation("received unencrypted data after an encryption request"));
                }
                if socket.write_all(b"N").await.is_err() {
                    return Ok(None);
                }
            }
            CANCEL_CODE => {
                if body.len() == 8 {
                    shared.cancels.request(body.get_i32(), body.get_i32());
                }
                return Ok(None);
            }
            code if code >> 16 == 3 => {
                let minor = u16::try_from(code & 0xffff).unwrap_or(0);
                return Ok(Some(Startup { minor, parameters: parameters(&body)?, inbox }));
            }
            code => {
                let (major, minor) = (code >> 16, code & 0xffff);
                return Err(SqlError::new(
                    "0A000",
                    format!("unsupported frontend protocol {major}.{minor}: server supports 3.0"),
                ));
            }
        }
    }
    Err(violation("too many encryption requests"))
}

/// Reads a packet without a tag: its code and the rest of it. `None` is the end of the connection.
async fn read_packet(socket: &mut TcpStream, inbox: &mut BytesMut) -> Result<Option<(u32, BytesMut)>, SqlError> {
    loop {
        if let Some(length) = inbox.first_chunk::<4>() {
            let length = u32::from_be_bytes(*length) as usize;
            if !(8..=STARTUP_BYTES_MAX).contains(&length) {
                return Err(violation(format!("invalid length of startup packet: {length}")));
            }
            if inbox.len() >= length {
                let mut packet = inbox.split_to(length);
                packet.advance(4);
                let code = packet.get_u32();
                return Ok(Some((code, packet)));
            }
        }
        match socket.read_buf(inbox).await {
            Ok(0) | Err(_) => return Ok(None),
            Ok(_) => {}
        }
    }
}

/// Reads pairs of names and values, each ended by a zero byte, with one more zero byte at the end.
fn parameters(body: &[u8]) -> Result<BTreeMap<String, String>, SqlError> {
    let mut parameters = BTreeMap::new();
    let text =
        std::str::from_utf8(body).map_err(|_| SqlError::new("22021", "invalid byte sequence for encoding \"UTF8\""))?;
    let mut parts = text.split('\0');
    loop {
        match (parts.next(), parts.next()) {
            (Some(name), Some(value)) if !name.is_empty() => {
                parameters.insert(name.to_owned(), value.to_owned());
            }
            (Some(""), Some("")) => return Ok(parameters),
            _ => return Err(violation("invalid startup packet layout: expected terminator as last byte")),
        }
    }
}

fn introduce(startup: Startup, shared: &Shared) -> Result<Client, SqlError> {
    let Startup { minor, mut parameters, inbox } = startup;
    let mut outbox = Outbox::default();
    let unknown: Vec<&str> = parameters.keys().map(String::as_str).filter(|name| name.starts_with("_pq_.")).collect();
    if minor > 0 || !unknown.is_empty() {
        outbox.protocol_newest_minor(0, &unknown);
    }
    parameters.retain(|name, _| !name.starts_with("_pq_."));
    let user =
        parameters.remove("user").ok_or_else(|| SqlError::new("28000", "no user name specified in startup packet"))?;
    let database = parameters.remove("database").filter(|name| !name.is_empty()).unwrap_or_else(|| user.clone());
    if parameters.remove("replication").is_some_and(|value| !["false", "off", "no", "0"].contains(&value.as_str())) {
        return Err(SqlError::new("0A000", "replication is not supported by galoo"));
    }
    let is_game = shared.backend.games().contains(&database);
    if !is_game && !EMPTY_DATABASES.contains(&database.as_str()) {
        return Err(SqlError::new("3D000", format!("database \"{database}\" does not exist"))
            .with_hint("a database is a game: connect to postgres and list them with \\l"));
    }
    let mut settings = Settings::default();
    for (name, value) in options(&parameters.remove("options").unwrap_or_default()) {
        settings.set_at_startup(&name, &value)?;
    }
    for (name, value) in &parameters {
        settings.set_at_startup(name, value)?;
    }
    outbox.authentication_ok();
    for name in REPORTED_AT_STARTUP {
        outbox.parameter_status(name, &settings.get(name).unwrap_or_default());
    }
    outbox.parameter_status("session_authorization", &user);
    Ok(Client { user, database, is_game, settings, inbox, outbox })
}

/// Reads `-c name=value` and `--name=value`; a backslash keeps a space in a value.
fn options(text: &str) -> Vec<(String, String)> {
    let mut words = vec![String::new()];
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            '\\' => words.last_mut().into_iter().for_each(|word| word.extend(chars.next())),
            char if char.is_whitespace() => words.push(String::new()),
            char => words.last_mut().into_iter().for_each(|word| word.push(char)),
        }
    }
    let pair = |word: &str| {
        let word = word.strip_prefix("-c").or(word.strip_prefix("--")).unwrap_or(word);
        word.split_once('=').map(|(name, value)| (name.replace('-', "_"), value.to_owned()))
    };
    words.iter().filter_map(|word| pair(word)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_libpq_sends_them() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            options("-c statement_timeout=5s -csearch_path=a\\ b --work-mem=1MB"),
            [pair("statement_timeout", "5s"), pair("search_path", "a b"), pair("work_mem", "1MB")]
        );
        assert!(options("").is_empty());
    }

    #[test]
    fn a_startup_message_must_end() {
        assert_eq!(parameters(b"user\0ann\0\0").unwrap().get("user").map(String::as_str), Some("ann"));
        for broken in [&b"user\0ann\0"[..], b"user\0", b"user", b""] {
            assert_eq!(parameters(broken).unwrap_err().code, "08P01", "{broken:?}");
        }
    }
}
