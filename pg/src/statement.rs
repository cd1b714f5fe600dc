//! Cutting text into statements and telling their kinds apart.
//!
//! The text is cut by the tokenizer of the SQL parser, so a `;` in a string, a quoted name, a comment or a dollar-quoted
//! body cuts nothing. A statement is then known by its first words. Everything that only Postgres' sessions know (`SET`,
//! `BEGIN`, ...) is answered here and never reaches DataFusion; everything that would write is refused here; the rest is a
//! query. Pure: no clock, no connection.

use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer};

use super::SqlError;
use super::error::read_only;
use super::session::Scope;

/// Statements of one simple query. Over it the text is refused with 54000.
const STATEMENTS_MAX: usize = 10_000;

/// One statement: its text without the `;`, and its tokens without spaces and comments.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) tokens: Vec<Token>,
}

/// What a statement is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    /// `BEGIN` or `START TRANSACTION`, with its tag.
    Begin(&'static str),
    Commit,
    Rollback,
    /// `ROLLBACK TO SAVEPOINT`: the block is good again.
    RollbackTo,
    Savepoint,
    Release,
    /// Value `None` is `DEFAULT`.
    Set {
        scope: Scope,
        name: String,
        value: Option<String>,
    },
    /// Accepted without effect, with its tag.
    Nothing(&'static str),
    /// `None` resets all.
    Reset(Option<String>),
    Show(String),
    ShowAll,
    DiscardAll,
    /// `None` forgets all prepared statements.
    Deallocate(Option<String>),
    /// `CLOSE`: cursors are not declared here, so only `CLOSE ALL` succeeds.
    CloseAll,
    /// Begins with `CREATE`, `ALTER` or `DROP`: the backend is asked first, then it is refused with this.
    Define(SqlError),
    Refused(SqlError),
    /// Everything else: DataFusion plans it.
    Query,
}

impl Kind {
    /// Whether this may run in a failed transaction block.
    pub(super) fn ends_failed_block(&self) -> bool {
        matches!(self, Self::Commit | Self::Rollback | Self::RollbackTo)
    }
}

/// Cuts a text into its statements; empty ones are left out.
pub(super) fn split(sql: &str) -> Result<Vec<Piece>, SqlError> {
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, sql).tokenize_with_location()?;
    let mut offsets = Offsets::new(sql);
    let mut pieces = Vec::new();
    let mut start = 0;
    let mut current = Vec::new();
    for TokenWithSpan { token, span } in tokens {
        match token {
            Token::SemiColon => {
                let end = offsets.of(span.start);
                finish(&mut pieces, &sql[start..end], &mut current)?;
                start = end + 1;
            }
            Token::Whitespace(_) | Token::EOF => {}
            token => current.push(token),
        }
    }
    finish(&mut pieces, sql.get(start..).unwrap_or_default(), &mut current)?;
    Ok(pieces)
}

fn finish(pieces: &mut Vec<Piece>, text: &str, tokens: &mut Vec<Token>) -> Result<(), SqlError> {
    if tokens.is_empty() {
        return Ok(());
    }
    if pieces.len() == STATEMENTS_MAX {
        return Err(SqlError::new("54000", format!("a query may hold at most {STATEMENTS_MAX} statements")));
    }
    pieces.push(Piece { text: text.trim().to_owned(), tokens: std::mem::take(tokens) });
    Ok(())
}

/// Byte offsets of locations that are asked for in rising order.
struct Offsets<'a> {
    chars: std::iter::Peekable<std::str::CharIndices<'a>>,
    bytes: usize,
    line: u64,
    column: u64,
}

impl<'a> Offsets<'a> {
    fn new(sql: &'a str) -> Self {
        Self { chars: sql.char_indices().peekable(), bytes: sql.len(), line: 1, column: 1 }
    }

    fn of(&mut self, location: Location) -> usize {
        while let Some((offset, char)) = self.chars.peek().copied() {
            if (self.line, self.column) >= (location.line, location.column) {
                return offset;
            }
            self.chars.next();
            if char == '\n' {
                self.line += 1;
                self.column = 1;
            } else {
                self.column += 1;
            }
        }
        self.bytes
    }
}

/// Tells what a statement is.
pub(super) fn classify(piece: &Piece) -> Kind {
    let words = Words(&piece.tokens);
    match words.at(0).as_str() {
        "begin" => Kind::Begin("BEGIN"),
        "start" if words.is(1, "transaction") => Kind::Begin("START TRANSACTION"),
        "commit" if words.is(1, "prepared") => refused("COMMIT PREPARED"),
        "commit" | "end" => Kind::Commit,
        "rollback" if words.is(1, "prepared") => refused("ROLLBACK PREPARED"),
        "rollback" if (1..=3).any(|index| words.is(index, "to")) => Kind::RollbackTo,
        "rollback" | "abort" => Kind::Rollback,
        "savepoint" => Kind::Savepoint,
        "release" => Kind::Release,
        "set" => set(&words),
        "reset" if words.is(1, "all") => Kind::Reset(None),
        "reset" if words.is(1, "session") || words.is(1, "role") => Kind::Nothing("RESET"),
        "reset" if words.is(1, "time") && words.is(2, "zone") => Kind::Reset(Some("TimeZone".to_owned())),
        "reset" => match words.name(1).0 {
            name if name.is_empty() => syntax("RESET needs the name of a parameter"),
            name => Kind::Reset(Some(name)),
        },
        "show" => show(&words),
        "discard" => Kind::DiscardAll,
        "deallocate" => {
            let at = if words.is(1, "prepare") && words.0.len() > 2 { 2 } else { 1 };
            let name = words.0.get(at).map(text_of);
            Kind::Deallocate(name.filter(|name| !name.eq_ignore_ascii_case("all")))
        }
        "unlisten" => Kind::Nothing("UNLISTEN"),
        "close" if words.is(1, "all") => Kind::CloseAll,
        "close" => Kind::Refused(SqlError::new("34000", format!("cursor \"{}\" does not exist", words.at(1)))),
        "declare" | "fetch" | "move" => Kind::Refused(unsupported("cursors").with_hint(
            "use a portal with a fetch size (the extended protocol): rows are streamed and never held in memory",
        )),
        "copy" => Kind::Refused(unsupported("COPY").with_hint("use SELECT to read and the append API to write")),
        "insert" | "update" | "delete" | "merge" | "truncate" => {
            Kind::Refused(read_only(&words.at(0).to_ascii_uppercase()))
        }
        "create" | "alter" | "drop" => {
            let what = format!("{} {}", words.at(0), words.at(1)).trim().to_ascii_uppercase();
            Kind::Define(read_only(&what))
        }
        word @ ("grant" | "revoke" | "comment" | "vacuum" | "analyze" | "reindex" | "cluster" | "refresh" | "lock"
        | "listen" | "notify" | "prepare" | "execute" | "call" | "do" | "load" | "checkpoint" | "import"
        | "security" | "reassign") => refused(&word.to_ascii_uppercase()),
        _ => Kind::Query,
    }
}

fn unsupported(what: &str) -> SqlError {
    SqlError::new("0A000", format!("{what} is not supported by galoo"))
}

fn refused(what: &str) -> Kind {
    Kind::Refused(unsupported(what))
}

fn syntax(message: &str) -> Kind {
    Kind::Refused(SqlError::new("42601", format!("syntax error: {message}")))
}

fn set(words: &Words<'_>) -> Kind {
    let (scope, at) = match words.at(1).as_str() {
        "session" if words.is(2, "characteristics") => return Kind::Nothing("SET"),
        "session" if words.is(2, "authorization") => return Kind::Nothing("SET"),
        "transaction" | "constraints" | "role" => return Kind::Nothing("SET"),
        "session" => (Scope::Session, 2),
        "local" if words.is(2, "role") => return Kind::Nothing("SET"),
        "local" => (Scope::Local, 2),
        _ => (Scope::Session, 1),
    };
    let (name, rest) = if words.is(at, "time") && words.is(at + 1, "zone") {
        ("TimeZone".to_owned(), at + 2)
    } else if words.is(at, "names") {
        ("client_encoding".to_owned(), at + 1)
    } else {
        let (name, next) = words.name(at);
        let is_assigned = matches!(words.0.get(next), Some(Token::Eq)) || words.is(next, "to");
        if name.is_empty() || !is_assigned {
            return syntax("SET needs a name and = or TO");
        }
        (name, next + 1)
    };
    let values: Vec<String> =
        words.0.get(rest..).unwrap_or_default().iter().filter(|token| **token != Token::Comma).map(text_of).collect();
    let value = match values.as_slice() {
        [] => return syntax("SET needs a value"),
        [only] if only.eq_ignore_ascii_case("default") || only.eq_ignore_ascii_case("local") => None,
        [sign, number] if sign == "-" => Some(format!("-{number}")),
        values => Some(values.join(", ")),
    };
    Kind::Set { scope, name, value }
}

fn show(words: &Words<'_>) -> Kind {
    match words.at(1).as_str() {
        "all" => Kind::ShowAll,
        "time" if words.is(2, "zone") => Kind::Show("TimeZone".to_owned()),
        "transaction" if words.is(2, "isolation") => Kind::Show("transaction_isolation".to_owned()),
        "session" if words.is(2, "authorization") => Kind::Show("session_authorization".to_owned()),
        _ => match words.name(1).0 {
            name if name.is_empty() => syntax("SHOW needs the name of a parameter"),
            name => Kind::Show(name),
        },
    }
}

/// The tokens of a statement, read as words.
struct Words<'a>(&'a [Token]);

impl Words<'_> {
    /// The word at an index in lower case; empty if there is none, or if it is quoted.
    fn at(&self, index: usize) -> String {
        match self.0.get(index) {
            Some(Token::Word(word)) if word.quote_style.is_none() => word.value.to_ascii_lowercase(),
            _ => String::new(),
        }
    }

    fn is(&self, index: usize, word: &str) -> bool {
        self.at(index) == word
    }

    /// Reads a name that may have dots, and returns the index after it.
    fn name(&self, index: usize) -> (String, usize) {
        let mut name = match self.0.get(index) {
            Some(Token::Word(word)) => word.value.clone(),
            _ => return (String::new(), index),
        };
        let mut next = index + 1;
        while let (Some(Token::Period), Some(Token::Word(word))) = (self.0.get(next), self.0.get(next + 1)) {
            name = format!("{name}.{}", word.value);
            next += 2;
        }
        (name, next)
    }
}

/// The text that a token stands for: a string without its quotes.
fn text_of(token: &Token) -> String {
    match token {
        Token::Word(word) => word.value.clone(),
        Token::SingleQuotedString(text) | Token::EscapedStringLiteral(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(sql: &str) -> Kind {
        classify(&split(sql).unwrap()[0])
    }

    #[test]
    fn text_is_cut_only_between_statements() {
        let sql = "select ';' ; select \"a;b\" /* ; */ from t -- ;\n;;select $$ ; $$; é 'ü;';\n last";
        let texts: Vec<String> = split(sql).unwrap().into_iter().map(|piece| piece.text).collect();
        assert_eq!(texts, ["select ';'", "select \"a;b\" /* ; */ from t -- ;", "select $$ ; $$", "é 'ü;'", "last"]);
        assert!(split(" ; \n -- nothing\n;").unwrap().is_empty());
        assert_eq!(split("select 'open").unwrap_err().code, "42601");
    }

    #[test]
    fn transactions_and_sessions_are_known_by_their_words() {
        assert_eq!(kind("BEGIN isolation level serializable"), Kind::Begin("BEGIN"));
        assert_eq!(kind("start transaction read only"), Kind::Begin("START TRANSACTION"));
        assert_eq!(kind("END"), Kind::Commit);
        assert_eq!(kind("abort"), Kind::Rollback);
        assert_eq!(kind("rollback to savepoint a"), Kind::RollbackTo);
        assert_eq!(kind("ROLLBACK TRANSACTION TO a"), Kind::RollbackTo);
        assert_eq!(kind("show all"), Kind::ShowAll);
        assert_eq!(kind("SHOW transaction isolation level"), Kind::Show("transaction_isolation".to_owned()));
        assert_eq!(kind("deallocate prepare all"), Kind::Deallocate(None));
        assert_eq!(kind("deallocate \"S_1\""), Kind::Deallocate(Some("S_1".to_owned())));
        assert_eq!(kind("select 1"), Kind::Query);
        assert_eq!(kind("\"begin\""), Kind::Query);
    }

    #[test]
    fn set_is_read_in_all_its_forms() {
        let set = |name: &str, value: Option<&str>| Kind::Set {
            scope: Scope::Session,
            name: name.to_owned(),
            value: value.map(str::to_owned),
        };
        assert_eq!(kind("set statement_timeout = '5s'"), set("statement_timeout", Some("5s")));
        assert_eq!(kind("SET SESSION x.y TO 5"), set("x.y", Some("5")));
        assert_eq!(kind("set search_path to a, \"B\""), set("search_path", Some("a, B")));
        assert_eq!(kind("set time zone 'UTC'"), set("TimeZone", Some("UTC")));
        assert_eq!(kind("set names 'utf8'"), set("client_encoding", Some("utf8")));
        assert_eq!(kind("set a to default"), set("a", None));
        assert_eq!(kind("set session characteristics as transaction read only"), Kind::Nothing("SET"));
        assert!(matches!(kind("set local a = 1"), Kind::Set { scope: Scope::Local, .. }));
        assert!(matches!(kind("set a"), Kind::Refused(error) if error.code == "42601"));
    }

    #[test]
    fn what_would_write_is_refused() {
        assert!(matches!(kind("insert into events values (1)"), Kind::Refused(error) if error.code == "25006"));
        assert!(matches!(kind("CREATE TABLE t (a int)"), Kind::Define(error) if error.code == "25006"));
        assert!(matches!(kind("create rollup r"), Kind::Define(_)));
        assert!(matches!(kind("declare c cursor for select 1"), Kind::Refused(error) if error.code == "0A000"));
        assert!(matches!(kind("copy events to stdout"), Kind::Refused(error) if error.code == "0A000"));
    }
}
