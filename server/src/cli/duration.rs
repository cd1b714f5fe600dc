//! Lengths of time on the command line.

use galoo_proto::limits::TTL_MS_MAX;

/// What a time is counted in, in milliseconds.
const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Reads a length of time with its unit: 500ms, 90s, 15m, 12h, 30d.
pub(super) fn duration_ms(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (count, unit) = text.split_at(digits);
    let unit_ms = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, unit_ms)| *unit_ms);
    let ms = count.parse::<u64>().ok().zip(unit_ms).and_then(|(count, unit_ms)| count.checked_mul(unit_ms));
    let said = "it must be a number with ms, s, m, h or d, from 1ms to 36500d";
    ms.filter(|ms| (1..=TTL_MS_MAX).contains(ms)).ok_or_else(|| said.to_owned())
}

/// Reads a length of time, or `never`: 0.
pub(super) fn duration_or_never_ms(text: &str) -> Result<u64, String> {
    if text == "never" { Ok(0) } else { duration_ms(text).map_err(|said| format!("{said}, or never")) }
}

/// A length of time in the largest unit that says it in whole numbers; 0 is none.
pub(super) fn duration_text(ms: u64) -> String {
    let whole = UNITS.iter().rev().find(|(_, unit_ms)| ms.is_multiple_of(*unit_ms));
    match whole {
        Some((unit, unit_ms)) if ms > 0 => format!("{}{unit}", ms / unit_ms),
        _ => "never".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written_with_their_unit() {
        for (text, ms) in
            [("500ms", 500), ("90s", 90_000), ("15m", 900_000), ("12h", 43_200_000), ("36500d", TTL_MS_MAX)]
        {
            assert_eq!(duration_ms(text), Ok(ms), "{text}");
            assert_eq!(duration_text(ms), text);
        }
        assert_eq!((duration_text(0), duration_text(60_000)), ("never".to_owned(), "1m".to_owned()));
        assert_eq!((duration_or_never_ms("never"), duration_or_never_ms("1m")), (Ok(0), Ok(60_000)));
        for text in ["", "5", "d", "0s", "-5s", "1.5h", "36501d", "5 s", "99999999999999999999d", "213503982335d"] {
            assert!(duration_ms(text).is_err(), "{text}");
        }
    }
}
