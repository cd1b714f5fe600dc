//! The type `numeric` on the wire, of any precision.
//!
//! ```text
//! binary = groups u16 | weight i16 | sign u16 (0x4000 is minus) | scale u16 | groups x u16
//! ```
//! A group is four decimal digits; the first group counts `10000 ^ weight`. (`src/backend/utils/adt/numeric.c`,
//! `numeric_send`.) The crate behind `arrow-pg` holds 96 bits only; this holds what Arrow's 256 bits hold.

use std::error::Error;

use bytes::{BufMut, BytesMut};
use pgwire::types::ToSqlText;
use pgwire::types::format::FormatOptions;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

const MINUS: u16 = 0x4000;

/// A number as plain decimal text: `-12.50`, without an exponent.
#[derive(Debug)]
pub(super) struct Numeric(pub(super) String);

impl ToSql for Numeric {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        let (sign, digits) = match self.0.strip_prefix('-') {
            Some(digits) => (MINUS, digits),
            None => (0, self.0.as_str()),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let padding = (4 - whole.len() % 4) % 4;
        let padded = format!("{}{whole}", "0".repeat(padding));
        let tail = format!("{fraction}{}", "0".repeat((4 - fraction.len() % 4) % 4));
        let mut weight = i16::try_from(padded.len() / 4)? - 1;
        let mut groups = [padded, tail]
            .concat()
            .as_bytes()
            .chunks(4)
            .map(|group| std::str::from_utf8(group).map_err(Box::from).and_then(|group| Ok(group.parse()?)))
            .collect::<Result<Vec<u16>, Box<dyn Error + Sync + Send>>>()?;
        let zeros = groups.iter().take_while(|group| **group == 0).count();
        groups.drain(..zeros);
        weight -= i16::try_from(zeros)?;
        while groups.last() == Some(&0) {
            groups.pop();
        }
        if groups.is_empty() {
            weight = 0;
        }
        out.put_u16(u16::try_from(groups.len())?);
        out.put_i16(weight);
        out.put_u16(if groups.is_empty() { 0 } else { sign });
        out.put_u16(u16::try_from(fraction.len())?);
        for group in groups {
            out.put_u16(group);
        }
        Ok(IsNull::No)
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::NUMERIC
    }

    to_sql_checked!();
}

impl ToSqlText for Numeric {
    fn to_sql_text(
        &self,
        _: &Type,
        out: &mut BytesMut,
        _: &FormatOptions,
    ) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.put_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_bytes_of_postgres() {
        let cases: &[(&str, &[u16])] = &[
            ("0", &[0, 0, 0, 0]),
            ("0.00", &[0, 0, 0, 2]),
            ("1", &[1, 0, 0, 0, 1]),
            ("10000", &[1, 1, 0, 0, 1]),
            ("-12.50", &[2, 0, MINUS, 2, 12, 5000]),
            ("0.0001", &[1, u16::MAX, 0, 4, 1]),
            ("18446744073709551615", &[5, 4, 0, 0, 1844, 6744, 737, 955, 1615]),
        ];
        for (text, words) in cases {
            let mut out = BytesMut::new();
            Numeric((*text).to_owned()).to_sql(&Type::NUMERIC, &mut out).unwrap();
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
            assert_eq!(out.as_ref(), bytes, "{text}");
        }
    }
}
