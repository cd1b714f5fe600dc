//! Settings and the transaction block of one connection.
//!
//! Statements here never write, so a transaction block only has a state: none, open, or failed. Settings are remembered as
//! text. Only a few mean anything: `statement_timeout` stops statements, `client_encoding` must be UTF8, and the reported
//! ones are told to the client at each change. `SET LOCAL` lasts until the block ends.

use std::collections::BTreeMap;
use std::time::Duration;

use super::SqlError;

/// Names that a connection may set. One more is refused with 54000.
const SETTINGS_MAX: usize = 500;

/// Bytes of a setting's name or value. Over it `SET` is refused with 22023.
const SETTING_BYTES_MAX: usize = 8 << 10;

/// The version that clients read; the number is the Postgres whose dialect is closest.
pub(super) const SERVER_VERSION: &str = concat!("16.0 (Galoo ", env!("CARGO_PKG_VERSION"), ")");

/// What `select version()` answers. Tools look for `PostgreSQL NUMBER` at its beginning.
pub(super) const VERSION_TEXT: &str = concat!("PostgreSQL 16.0 (Galoo ", env!("CARGO_PKG_VERSION"), ")");

/// Where a connection stands in a transaction block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Block {
    /// Each statement stands for itself.
    None,
    /// After `BEGIN`.
    Open,
    /// After `BEGIN` and an error: only the end of the block is accepted.
    Failed,
}

impl Block {
    /// The letter of `ReadyForQuery`.
    pub(super) fn letter(self) -> u8 {
        match self {
            Self::None => b'I',
            Self::Open => b'T',
            Self::Failed => b'E',
        }
    }
}

/// Whom the client said to be, and its process id here.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) user: String,
    pub(super) database: String,
    /// Whether the database is a game; the others only have a catalog.
    pub(super) is_game: bool,
    pub(super) pid: i32,
}

/// How long a `SET` lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    Session,
    Local,
}

/// A setting that exists without being set.
struct Known {
    name: &'static str,
    value: &'static str,
    /// Whether its changes are told to the client.
    kind: Kind,
}

#[derive(PartialEq)]
enum Kind {
    Quiet,
    Reported,
    Fixed,
}

const fn quiet(name: &'static str, value: &'static str) -> Known {
    Known { name, value, kind: Kind::Quiet }
}

const fn reported(name: &'static str, value: &'static str) -> Known {
    Known { name, value, kind: Kind::Reported }
}

const fn fixed(name: &'static str, value: &'static str) -> Known {
    Known { name, value, kind: Kind::Fixed }
}

const KNOWN: &[Known] = &[
    reported("application_name", ""),
    quiet("bytea_output", "hex"),
    reported("client_encoding", "UTF8"),
    quiet("client_min_messages", "notice"),
    reported("DateStyle", "ISO, MDY"),
    quiet("default_tablespace", ""),
    quiet("default_transaction_deferrable", "off"),
    quiet("default_transaction_isolation", "read committed"),
    quiet("default_transaction_read_only", "on"),
    quiet("extra_float_digits", "1"),
    quiet("idle_in_transaction_session_timeout", "0"),
    fixed("in_hot_standby", "off"),
    fixed("integer_datetimes", "on"),
    reported("IntervalStyle", "postgres"),
    fixed("is_superuser", "off"),
    fixed("lc_collate", "C"),
    fixed("lc_ctype", "C"),
    quiet("lc_messages", "C"),
    quiet("lc_monetary", "C"),
    quiet("lc_numeric", "C"),
    quiet("lc_time", "C"),
    quiet("lock_timeout", "0"),
    fixed("max_identifier_length", "63"),
    fixed("max_index_keys", "32"),
    quiet("row_security", "on"),
    quiet("search_path", "\"$user\", public"),
    fixed("server_encoding", "UTF8"),
    fixed("server_version", SERVER_VERSION),
    fixed("server_version_num", "160000"),
    quiet("session_replication_role", "origin"),
    reported("standard_conforming_strings", "on"),
    quiet("statement_timeout", "0"),
    reported("TimeZone", "UTC"),
    quiet("transaction_deferrable", "off"),
    quiet("transaction_isolation", "read committed"),
    quiet("transaction_read_only", "on"),
    quiet("work_mem", "4MB"),
];

/// Settings that are told to the client at startup.
pub(super) const REPORTED_AT_STARTUP: &[&str] = &[
    "server_version",
    "server_encoding",
    "client_encoding",
    "application_name",
    "is_superuser",
    "DateStyle",
    "IntervalStyle",
    "TimeZone",
    "integer_datetimes",
    "standard_conforming_strings",
    "in_hot_standby",
    "default_transaction_read_only",
];

/// The settings of one connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    startup: BTreeMap<String, String>,
    session: BTreeMap<String, String>,
    local: BTreeMap<String, String>,
}

/// A change that the client must be told: name and value.
pub(super) type Report = Option<(&'static str, String)>;

fn known(name: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.name.eq_ignore_ascii_case(name))
}

fn unknown(name: &str) -> SqlError {
    SqlError::new("42704", format!("unrecognized configuration parameter \"{name}\""))
}

impl Settings {
    /// Takes a setting of the startup message; it is what `RESET` goes back to.
    pub(super) fn set_at_startup(&mut self, name: &str, value: &str) -> Result<(), SqlError> {
        let value = self.check(name, value)?;
        self.startup.insert(name.to_ascii_lowercase(), value);
        Ok(())
    }

    /// Sets a setting.
    pub(super) fn set(&mut self, scope: Scope, name: &str, value: &str) -> Result<Report, SqlError> {
        let value = self.check(name, value)?;
        let key = name.to_ascii_lowercase();
        match scope {
            Scope::Session => {
                self.local.remove(&key);
                self.session.insert(key, value.clone());
            }
            Scope::Local => {
                self.local.insert(key, value.clone());
            }
        }
        Ok(known(name).filter(|known| known.kind == Kind::Reported).map(|known| (known.name, value)))
    }

    /// Sets a setting back to what it was at startup.
    pub(super) fn reset(&mut self, name: &str) -> Result<Report, SqlError> {
        let key = name.to_ascii_lowercase();
        self.local.remove(&key);
        if self.session.remove(&key).is_none() && known(name).is_none() && !self.startup.contains_key(&key) {
            return Err(unknown(name));
        }
        let reported = known(name).filter(|known| known.kind == Kind::Reported);
        Ok(reported.and_then(|known| self.get(known.name).map(|value| (known.name, value))))
    }

    /// Sets all settings back to what they were at startup.
    pub(super) fn reset_all(&mut self) {
        self.session.clear();
        self.local.clear();
    }

    /// Ends a transaction block: what was set for it alone is gone.
    pub(super) fn end_block(&mut self) {
        self.local.clear();
    }

    /// The value of a setting, if it is known or was set.
    pub(super) fn get(&self, name: &str) -> Option<String> {
        let key = name.to_ascii_lowercase();
        [&self.local, &self.session, &self.startup]
            .into_iter()
            .find_map(|level| level.get(&key).cloned())
            .or_else(|| known(name).map(|known| known.value.to_owned()))
    }

    /// The value of a setting, or the error of `SHOW`.
    pub(super) fn show(&self, name: &str) -> Result<String, SqlError> {
        self.get(name).ok_or_else(|| unknown(name))
    }

    /// All settings, in the order of their names.
    pub(super) fn all(&self) -> Vec<(String, String)> {
        let mut all: BTreeMap<String, String> =
            KNOWN.iter().map(|known| (known.name.to_owned(), known.value.to_owned())).collect();
        for (name, value) in self.startup.iter().chain(&self.session).chain(&self.local) {
            let name = known(name).map_or(name.as_str(), |known| known.name);
            all.insert(name.to_owned(), value.clone());
        }
        all.into_iter().collect()
    }

    /// The time that a statement may take.
    pub(super) fn statement_timeout(&self) -> Option<Duration> {
        self.get("statement_timeout").and_then(|text| duration(&text).ok()).filter(|timeout| !timeout.is_zero())
    }

    fn check(&self, name: &str, value: &str) -> Result<String, SqlError> {
        let invalid = || SqlError::new("22023", format!("invalid value for parameter \"{name}\": \"{value}\""));
        if name.len() > SETTING_BYTES_MAX || value.len() > SETTING_BYTES_MAX {
            return Err(SqlError::new(
                "22023",
                format!(
                    "setting of {} bytes exceeds the limit of {SETTING_BYTES_MAX} bytes",
                    name.len().max(value.len())
                ),
            ));
        }
        if self.session.len() + self.local.len() + self.startup.len() >= SETTINGS_MAX {
            return Err(SqlError::new("54000", format!("a connection may set at most {SETTINGS_MAX} parameters")));
        }
        match known(name) {
            Some(known) if known.kind == Kind::Fixed => {
                return Err(SqlError::new("55P02", format!("parameter \"{name}\" cannot be changed")));
            }
            Some(known) if known.name == "client_encoding" => {
                let plain = value.replace(['-', '_', '\''], "");
                if ["UTF8", "UNICODE", "SQLASCII", "AUTO"].iter().all(|good| !good.eq_ignore_ascii_case(&plain)) {
                    return Err(invalid().with_hint("galoo speaks UTF8 only"));
                }
                return Ok("UTF8".to_owned());
            }
            Some(known) if known.name == "standard_conforming_strings" && value.eq_ignore_ascii_case("off") => {
                return Err(invalid().with_hint("backslashes in strings are always plain here"));
            }
            Some(known) if known.name == "statement_timeout" => {
                duration(value).map_err(|()| invalid())?;
            }
            Some(known) if known.name == "DateStyle" && !value.to_ascii_uppercase().contains("ISO") => {
                // Dates are always written in ISO 8601; a client that was told otherwise would misread them.
                return Ok("ISO, MDY".to_owned());
            }
            _ => {}
        }
        Ok(value.to_owned())
    }
}

/// Reads a time as Postgres does: a number with `us`, `ms`, `s`, `min`, `h` or `d`, milliseconds without a unit.
fn duration(text: &str) -> Result<Duration, ()> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| ())?;
    let millis = match unit.trim() {
        "us" => 0.001,
        "" | "ms" => 1.0,
        "s" => 1e3,
        "min" => 60e3,
        "h" => 3_600e3,
        "d" => 86_400e3,
        _ => return Err(()),
    } * number;
    // Postgres' own bound: the value must fit 31 bits.
    if millis > f64::from(i32::MAX) {
        return Err(());
    }
    Ok(Duration::from_micros((millis * 1e3).round() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_in_postgres() {
        for (text, millis) in
            [("5s", 5_000), ("500ms", 500), ("250", 250), ("1min", 60_000), ("1.5 s", 1_500), ("0", 0)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "5 parsecs", "-1", "99999999999"] {
            assert_eq!(duration(text), Err(()), "{text}");
        }
    }

    #[test]
    fn a_local_setting_ends_with_its_block_and_reset_goes_back_to_startup() {
        let mut settings = Settings::default();
        settings.set_at_startup("statement_timeout", "1s").unwrap();
        settings.set(Scope::Local, "STATEMENT_TIMEOUT", "2s").unwrap();
        assert_eq!(settings.statement_timeout(), Some(Duration::from_secs(2)));
        settings.end_block();
        assert_eq!(settings.statement_timeout(), Some(Duration::from_secs(1)));
        settings.set(Scope::Session, "statement_timeout", "3s").unwrap();
        settings.reset("statement_timeout").unwrap();
        assert_eq!(settings.show("statement_timeout").unwrap(), "1s");
    }

    #[test]
    fn what_cannot_be_kept_is_refused() {
        let mut settings = Settings::default();
        assert_eq!(settings.show("nope").unwrap_err().code, "42704");
        assert_eq!(settings.set(Scope::Session, "client_encoding", "latin1").unwrap_err().code, "22023");
        assert_eq!(settings.set(Scope::Session, "server_version", "9").unwrap_err().code, "55P02");
        assert_eq!(settings.set(Scope::Session, "statement_timeout", "soon").unwrap_err().code, "22023");
        let report = settings.set(Scope::Session, "timezone", "Europe/Rome").unwrap();
        assert_eq!(report, Some(("TimeZone", "Europe/Rome".to_owned())));
        settings.set(Scope::Session, "my.own", "1").unwrap();
        assert_eq!(settings.show("my.own").unwrap(), "1");
    }
}
