//! Plain values in the one form that Kubernetes stores: amounts, times, bytes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;

const NOT_A_QUANTITY: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
const NO_SUFFIX: &str = "unable to parse quantity's suffix";

/// Amounts count in billionths.
const NANOS: i128 = 1_000_000_000;
/// The largest amount: 2^63 - 1.
const LARGEST: i128 = (i64::MAX as i128) * NANOS;

#[derive(Clone, Copy, PartialEq)]
enum Family {
    Decimal,
    Exponent,
    Binary,
}

/// The canonical form of an amount: `1000m` is `1`, `0.5` is `500m`, `1024Mi` is `1Gi`. The suffix keeps its
/// family, what is finer than a billionth is rounded away from zero, and what is too large becomes the largest.
///
/// # Errors
/// Kubernetes' words for text that is no amount.
pub(super) fn quantity(text: &str) -> Result<String, &'static str> {
    let (negative, unsigned) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let digits = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(digits);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(NOT_A_QUANTITY);
    }
    let (family, base, power) = factor(suffix)?;
    let nanos = scaled(whole, fraction, base, power);
    Ok(print(if negative { -nanos } else { nanos }, family))
}

fn factor(suffix: &str) -> Result<(Family, u32, i32), &'static str> {
    Ok(match suffix {
        "" => (Family::Decimal, 10, 0),
        "n" => (Family::Decimal, 10, -9),
        "u" => (Family::Decimal, 10, -6),
        "m" => (Family::Decimal, 10, -3),
        "k" => (Family::Decimal, 10, 3),
        "M" => (Family::Decimal, 10, 6),
        "G" => (Family::Decimal, 10, 9),
        "T" => (Family::Decimal, 10, 12),
        "P" => (Family::Decimal, 10, 15),
        "E" => (Family::Decimal, 10, 18),
        "Ki" => (Family::Binary, 2, 10),
        "Mi" => (Family::Binary, 2, 20),
        "Gi" => (Family::Binary, 2, 30),
        "Ti" => (Family::Binary, 2, 40),
        "Pi" => (Family::Binary, 2, 50),
        "Ei" => (Family::Binary, 2, 60),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E']).and_then(|text| text.parse::<i32>().ok());
            // Beyond this every amount but zero is the largest, or rounds to a billionth.
            (Family::Exponent, 10, exponent.ok_or(NO_SUFFIX)?.clamp(-60, 60))
        }
    })
}

/// `whole.fraction × base^power` in billionths, rounded up, at most [`LARGEST`].
fn scaled(whole: &str, fraction: &str, base: u32, power: i32) -> i128 {
    let digits = whole.bytes().chain(fraction.bytes()).skip_while(|&digit| digit == b'0');
    // 38 digits fit; those behind matter for rounding alone.
    let mut value: i128 = 0;
    let mut point = i32::try_from(fraction.len()).unwrap_or(i32::MAX);
    let (mut taken, mut rest) = (0, false);
    for digit in digits {
        if taken < 19 {
            value = value * 10 + i128::from(digit - b'0');
            taken += i32::from(value != 0);
        } else {
            point = point.saturating_sub(1);
            rest |= digit != b'0';
        }
    }
    if value == 0 {
        return 0;
    }
    let factor = if base == 2 { 1_i128 << power } else { 1 };
    let shift = 9 - i64::from(point) + if base == 10 { i64::from(power) } else { 0 };
    let Some(mut value) = value.checked_mul(factor) else { return LARGEST };
    if shift >= 0 {
        for _ in 0..shift {
            value = value.saturating_mul(10);
            if value > LARGEST {
                return LARGEST;
            }
        }
    } else {
        for _ in 0..shift.unsigned_abs().min(64) {
            rest |= value % 10 != 0;
            value /= 10;
        }
    }
    (value + i128::from(rest)).min(LARGEST)
}

fn print(nanos: i128, family: Family) -> String {
    const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
    const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    if nanos == 0 {
        return "0".to_owned();
    }
    let whole = nanos / NANOS;
    if family == Family::Binary && nanos % NANOS == 0 && whole.abs() >= 1024 {
        let (mut value, mut step) = (whole, 0);
        while value % 1024 == 0 && step + 1 < BINARY.len() {
            value /= 1024;
            step += 1;
        }
        return format!("{value}{}", BINARY[step]);
    }
    let (mut value, mut step) = (nanos, 0);
    while value % 1000 == 0 && step + 1 < DECIMAL.len() {
        value /= 1000;
        step += 1;
    }
    if family == Family::Exponent {
        let power = 3 * i32::try_from(step).unwrap_or_default() - 9;
        return if power == 0 { value.to_string() } else { format!("{value}e{power}") };
    }
    format!("{value}{}", DECIMAL[step])
}

/// A time in UTC: whole seconds, or with six digits.
///
/// # Errors
/// A message with the text in it.
pub(super) fn time(text: &str, micro: bool) -> Result<String, String> {
    let layout = if micro { "2006-01-02T15:04:05.000000Z07:00" } else { "2006-01-02T15:04:05Z07:00" };
    // The parser takes more forms than RFC 3339 has.
    let formed = text.len() >= 20 && matches!(text.as_bytes().get(10), Some(b'T' | b't'));
    let time: Timestamp = match text.parse() {
        Ok(time) if formed => time,
        _ => return Err(format!("parsing time {text:?} as {layout:?}: cannot parse {text:?} as {layout:?}")),
    };
    let form = if micro { "%Y-%m-%dT%H:%M:%S.%6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
    Ok(time.strftime(form).to_string())
}

/// Standard base64 with padding; line breaks are taken out.
///
/// # Errors
/// The place of the first byte that does not belong.
pub(super) fn base64(text: String) -> Result<String, usize> {
    let text = if text.contains(['\n', '\r']) { text.replace(['\n', '\r'], "") } else { text };
    match STANDARD.decode(&text) {
        Ok(_) => Ok(text),
        Err(base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _)) => {
            Err(at)
        }
        Err(_) => Err(text.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_take_their_canonical_form() {
        for (text, canonical) in [
            ("1", "1"),
            ("1000m", "1"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("1500m", "1500m"),
            ("1000", "1k"),
            ("100000", "100k"),
            ("1024Mi", "1Gi"),
            ("0.5Gi", "512Mi"),
            ("1536Mi", "1536Mi"),
            ("512Ki", "512Ki"),
            ("0.1Ki", "102400m"),
            ("1000Ki", "1000Ki"),
            ("1e3", "1e3"),
            ("12E", "9223372036854775807"),
            ("-250m", "-250m"),
            ("+1", "1"),
            ("0", "0"),
            ("0Gi", "0"),
            ("0.0000000001", "1n"),
            ("1e-60", "1e-9"),
            ("100M", "100M"),
            ("128Mi", "128Mi"),
            ("1e60", "9223372036854775807"),
        ] {
            assert_eq!(quantity(text).as_deref(), Ok(canonical), "{text}");
        }
        assert_eq!(quantity("1Q"), Err(NO_SUFFIX));
        for text in ["", "-", "a", "1.2.3", "."] {
            assert_eq!(quantity(text), Err(NOT_A_QUANTITY), "{text}");
        }
        for text in ["1 Gi", "1e", "1ee5", "1é"] {
            assert!(quantity(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_in_utc() {
        assert_eq!(time("2026-01-31T13:00:00+01:00", false).as_deref(), Ok("2026-01-31T12:00:00Z"));
        assert_eq!(time("2026-01-31T12:00:00.5Z", true).as_deref(), Ok("2026-01-31T12:00:00.500000Z"));
        assert!(time("2026-01-31", false).is_err());
        assert!(time("yesterday", false).is_err());
        assert!(time("", false).is_err());
    }

    #[test]
    fn bytes_are_base64() {
        assert_eq!(base64("YWJj\nZA==".to_owned()).as_deref(), Ok("YWJjZA=="));
        assert_eq!(base64("YW!j".to_owned()), Err(2));
    }
}
