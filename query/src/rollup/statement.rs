//! `CREATE ROLLUP` and `DROP ROLLUP`: what a statement says.

use std::fmt;

use datafusion::sql::sqlparser::{
    dialect::PostgreSqlDialect,
    keywords::Keyword,
    parser::{Parser, ParserError},
    tokenizer::Token,
};

use galoo_proto::rollup::Erasure;

use super::define::DefineError;

/// A statement about rollups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// `CREATE ROLLUP [IF NOT EXISTS] name AS SELECT ... [WITH (option = value, ...)]`
    Create {
        /// The rollup's name.
        name: String,
        /// One of that name is no error.
        if_not_exists: bool,
        /// The SELECT.
        select: String,
        /// What follows it.
        options: Options,
    },
    /// `DROP ROLLUP [IF EXISTS] name`
    Drop {
        /// The rollup's name.
        name: String,
        /// That there is none is no error.
        if_exists: bool,
    },
}

/// What a rollup has beside its SELECT.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Widths of its buckets, `tiers = '1 minute, 1 hour, 1 day'`: the first is that of the SELECT.
    pub tiers: Option<Vec<String>>,
    /// Of a bucket at most so many groups are kept by themselves, `max_groups = 1000`.
    pub max_groups: Option<u64>,
    /// How long buckets are kept, `retention = '7 days, 90 days, none'`: of each tier, `none` for ever.
    pub retention: Option<Vec<String>>,
    /// What becomes of a player's part when the player is forgotten, `erasure = 'subtract'`.
    pub erasure: Option<Erasure>,
}

/// As after a SELECT.
impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts = |name: &str, texts: &Vec<String>| format!("{name} = '{}'", texts.join(", "));
        let options = [
            self.tiers.as_ref().map(|widths| texts("tiers", widths)),
            self.max_groups.map(|groups| format!("max_groups = {groups}")),
            self.retention.as_ref().map(|spans| texts("retention", spans)),
            self.erasure.map(|erasure| format!("erasure = '{}'", erasure.as_str_name().to_lowercase())),
        ];
        let given: Vec<_> = options.into_iter().flatten().collect();
        if given.is_empty() { Ok(()) } else { write!(f, " WITH ({})", given.join(", ")) }
    }
}

impl Options {
    fn parse(parser: &mut Parser<'_>) -> Result<Self, ParserError> {
        let mut options = Self::default();
        if !parser.parse_keyword(Keyword::WITH) {
            return Ok(options);
        }
        parser.expect_token(&Token::LParen)?;
        loop {
            let name = parser.parse_identifier()?.value.to_lowercase();
            parser.expect_token(&Token::Eq)?;
            let again = match name.as_str() {
                "tiers" => options.tiers.replace(texts(parser)?).is_some(),
                "retention" => options.retention.replace(texts(parser)?).is_some(),
                "erasure" => {
                    let written = parser.parse_literal_string()?;
                    let policy = Erasure::from_str_name(&written.to_uppercase()).ok_or_else(|| {
                        ParserError::ParserError(format!("erasure {written:?}: there are keep, subtract and recompute"))
                    })?;
                    options.erasure.replace(policy).is_some()
                }
                "max_groups" => options.max_groups.replace(parser.parse_literal_uint()?).is_some(),
                other => {
                    return Err(ParserError::ParserError(format!(
                        "option {other:?}: there are tiers, max_groups, retention and erasure"
                    )));
                }
            };
            if again {
                return Err(ParserError::ParserError(format!("option {name:?} is given twice")));
            }
            if !parser.consume_token(&Token::Comma) {
                break;
            }
        }
        parser.expect_token(&Token::RParen)?;
        Ok(options)
    }
}

fn texts(parser: &mut Parser<'_>) -> Result<Vec<String>, ParserError> {
    Ok(parser.parse_literal_string()?.split(',').map(|text| text.trim().to_owned()).collect())
}

impl Statement {
    /// Reads a statement; `None` when it is about no rollup.
    pub fn parse(sql: &str) -> Result<Option<Self>, DefineError> {
        let syntax = |error: ParserError| DefineError::Syntax(error.to_string());
        let dialect = PostgreSqlDialect {};
        let mut parser = Parser::new(&dialect).try_with_sql(sql).map_err(syntax)?;
        let creates = parser.parse_keywords(&[Keyword::CREATE, Keyword::ROLLUP]);
        if !creates && !parser.parse_keywords(&[Keyword::DROP, Keyword::ROLLUP]) {
            return Ok(None);
        }
        let wanted: &[Keyword] =
            if creates { &[Keyword::IF, Keyword::NOT, Keyword::EXISTS] } else { &[Keyword::IF, Keyword::EXISTS] };
        let lenient = parser.parse_keywords(wanted);
        let ident = parser.parse_identifier().map_err(syntax)?;
        let name = if ident.quote_style.is_some() { ident.value } else { ident.value.to_lowercase() };
        let statement = if creates {
            parser.expect_keyword(Keyword::AS).map_err(syntax)?;
            let select = parser.parse_query().map_err(syntax)?.to_string();
            let options = Options::parse(&mut parser).map_err(syntax)?;
            Self::Create { name, if_not_exists: lenient, select, options }
        } else {
            Self::Drop { name, if_exists: lenient }
        };
        let _ended = parser.consume_token(&Token::SemiColon);
        match parser.peek_token().token {
            Token::EOF => Ok(Some(statement)),
            token => Err(DefineError::Syntax(format!("syntax error at or near \"{token}\""))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_told_apart() {
        let parse = |sql: &str| Statement::parse(sql).expect("parses");
        let create = |name: &str, if_not_exists| Statement::Create {
            name: name.into(),
            if_not_exists,
            select: "SELECT 1".into(),
            options: Options::default(),
        };
        assert_eq!(parse("create rollup Hours as select 1;"), Some(create("hours", false)));
        assert_eq!(parse("CREATE ROLLUP IF NOT EXISTS \"x\" AS SELECT 1"), Some(create("x", true)));
        assert_eq!(parse("drop rollup if exists x"), Some(Statement::Drop { name: "x".into(), if_exists: true }));
        assert_eq!(parse("CREATE TABLE rollup (a int)"), None);
        assert_eq!(parse("DROP TABLE x"), None);
        let with = "CREATE ROLLUP x AS SELECT 1 GROUP BY 1 WITH (TIERS = '1 minute, 1 hour', max_groups=5)";
        let Some(Statement::Create { select, options, .. }) = parse(with) else { panic!("no CREATE") };
        assert_eq!(select, "SELECT 1 GROUP BY 1");
        let tiers = Some(vec!["1 minute".to_owned(), "1 hour".to_owned()]);
        assert_eq!(options, Options { tiers, max_groups: Some(5), ..Options::default() });
        let with = "retention = '7 days, none', erasure = 'subtract'";
        let sql = format!("CREATE ROLLUP x AS SELECT 1 GROUP BY 1 WITH ({with})");
        let Some(Statement::Create { options, .. }) = parse(&sql) else { panic!("no CREATE") };
        assert_eq!((options.to_string(), options.erasure), (format!(" WITH ({with})"), Some(Erasure::Subtract)));
        assert_eq!(Options::default().to_string(), "");
        for rest in [
            "WITH (x = 1)",
            "WITH (erasure = 'never')",
            "WITH (retention = 5)",
            "WITH (max_groups = 1, max_groups = 1)",
            "WITH ()",
            "WITH (tiers = 5)",
            "WITH (tiers = ''",
        ] {
            let sql = format!("CREATE ROLLUP x AS SELECT 1 GROUP BY 1 {rest}");
            assert!(matches!(Statement::parse(&sql), Err(DefineError::Syntax(_))), "{rest}");
        }
        for sql in ["CREATE ROLLUP x SELECT 1", "DROP ROLLUP", "CREATE ROLLUP x AS SELECT 1 2 3", "DROP ROLLUP x y"] {
            assert!(matches!(Statement::parse(sql), Err(DefineError::Syntax(_))), "{sql}");
        }
    }
}
