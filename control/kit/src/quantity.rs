//! Kubernetes quantities: `100m`, `1.5Gi`, `12e3`.
//!
//! A quantity is an exact number of billionths, and remembers in which family of suffixes it was written.
//! What is finer than a billionth is rounded away from zero, as Kubernetes does.

use std::cmp::Ordering;
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Neg, Sub, SubAssign};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a text is no quantity, in Kubernetes' words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse numeric part of quantity")]
    Number,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// The family of suffixes in which a quantity is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// `n u m k M G T P E`
    #[default]
    DecimalSi,
    /// `Ki Mi Gi Ti Pi Ei`
    BinarySi,
    /// `e3`, `e-6`
    DecimalExponent,
}

/// A number with a unit prefix. Equal and ordered by number alone: `1000m == 1`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

const NANOS: i128 = 1_000_000_000;
/// Beyond 2^63 - 1 whole units Kubernetes caps what it parses; sums may go further here.
const MAX_NANOS: i128 = i64::MAX as i128 * NANOS;
const DECIMAL: [(i32, &str); 10] =
    [(-9, "n"), (-6, "u"), (-3, "m"), (0, ""), (3, "k"), (6, "M"), (9, "G"), (12, "T"), (15, "P"), (18, "E")];
const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

impl Quantity {
    pub const ZERO: Self = Self { nanos: 0, format: Format::DecimalSi };

    /// So many whole units, printed with decimal suffixes.
    pub const fn new(units: i64) -> Self {
        Self { nanos: units as i128 * NANOS, format: Format::DecimalSi }
    }

    /// So many thousandths: CPU.
    pub const fn from_millis(millis: i64) -> Self {
        Self { nanos: millis as i128 * (NANOS / 1000), format: Format::DecimalSi }
    }

    /// So many bytes, printed with binary suffixes.
    pub const fn from_bytes(bytes: i64) -> Self {
        Self { nanos: bytes as i128 * NANOS, format: Format::BinarySi }
    }

    pub fn format(&self) -> Format {
        self.format
    }

    /// In whole units, rounded away from zero: bytes, counts. Capped to what an `i64` holds.
    pub fn value(&self) -> i64 {
        capped(rounded_away(self.nanos, NANOS))
    }

    /// In thousandths, rounded away from zero: CPU millis. Capped to what an `i64` holds.
    pub fn millis(&self) -> i64 {
        capped(rounded_away(self.nanos, NANOS / 1000))
    }

    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// Whether it is a number of whole units.
    pub fn is_integer(&self) -> bool {
        self.nanos % NANOS == 0
    }

    /// How often `other`, which is not zero, goes into it.
    pub fn ratio_to(&self, other: Self) -> f64 {
        self.nanos as f64 / other.nanos as f64
    }

    /// A fraction of it, rounded up: `numerator / denominator` of a limit. `denominator` is above zero.
    pub fn scaled(&self, numerator: i64, denominator: i64) -> Self {
        let nanos = rounded_away(self.nanos.saturating_mul(numerator.into()), denominator.max(1).into());
        Self { nanos, format: self.format }
    }
}

fn rounded_away(number: i128, unit: i128) -> i128 {
    let whole = number / unit;
    if number % unit == 0 { whole } else { whole + number.signum() }
}

fn capped(number: i128) -> i64 {
    i64::try_from(number).unwrap_or(if number < 0 { i64::MIN } else { i64::MAX })
}

impl FromStr for Quantity {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(digits);
        if number.is_empty() || !suffix_shaped(suffix) {
            return Err(Error::Format);
        }
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
            return Err(Error::Number);
        }
        let (multiplier, format) = multiplier(suffix)?;
        let nanos = nanos(whole, fraction, multiplier);
        Ok(Self { nanos: if negative { -nanos } else { nanos }, format })
    }
}

/// `[eEinumkKMGTP]*[-+]?[0-9]*`
fn suffix_shaped(suffix: &str) -> bool {
    let rest = suffix.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
    let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest);
    rest.bytes().all(|byte| byte.is_ascii_digit())
}

#[derive(Clone, Copy)]
enum Multiplier {
    /// 10 to this power.
    Ten(i32),
    /// 2 to this power.
    Two(u32),
}

fn multiplier(suffix: &str) -> Result<(Multiplier, Format), Error> {
    if let Some((power, _)) = DECIMAL.iter().find(|(_, name)| *name == suffix) {
        return Ok((Multiplier::Ten(*power), Format::DecimalSi));
    }
    if let Some(step) = BINARY.iter().position(|name| *name == suffix) {
        return Ok((Multiplier::Two(10 * step as u32), Format::BinarySi));
    }
    let exponent = suffix.strip_prefix(['e', 'E']).ok_or(Error::Suffix)?;
    let power: i64 = exponent.parse().map_err(|_| Error::Suffix)?;
    // Beyond these every number is zero's neighbour or the cap.
    Ok((Multiplier::Ten(power.clamp(-100_000, 100_000) as i32), Format::DecimalExponent))
}

/// `whole.fraction` times the multiplier in billionths, rounded up and capped.
fn nanos(whole: &str, fraction: &str, multiplier: Multiplier) -> i128 {
    let fraction = fraction.trim_end_matches('0');
    let digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).skip_while(|digit| *digit == b'0').collect();
    if digits.is_empty() {
        return 0;
    }
    let (power, two) = match multiplier {
        Multiplier::Ten(power) => (power, 0),
        Multiplier::Two(two) => (0, two),
    };
    // The value is 0.DIGITS times 10^point billionths (times 2^two).
    let point = digits.len() as i64 - fraction.len() as i64 + i64::from(power) + 9;
    if point <= 0 && two == 0 {
        return 1; // finer than a billionth, but not zero
    }
    if point > 30 {
        return MAX_NANOS;
    }
    if two > 0 {
        return wide(&digits, point, two);
    }
    let keep = usize::try_from(point).unwrap_or(0);
    let digit = |place| digits.get(place).map_or(0, |digit: &u8| i128::from(digit - b'0'));
    let number = (0..keep).fold(0, |number, place| number * 10 + digit(place)); // 30 digits fit in an i128
    (number + i128::from(digits.len() > keep)).min(MAX_NANOS)
}

/// As above where a power of two multiplies: long multiplication and division by digits, which no width limits.
fn wide(digits: &[u8], point: i64, two: u32) -> i128 {
    let mut product: Vec<u8> = digits.iter().map(|digit| digit - b'0').collect();
    let mut point = point;
    for _ in 0..two {
        let mut carry = 0;
        for digit in product.iter_mut().rev() {
            let sum = *digit * 2 + carry;
            *digit = sum % 10;
            carry = sum / 10;
        }
        if carry > 0 {
            product.insert(0, carry);
            point += 1;
        }
    }
    let keep = usize::try_from(point).unwrap_or(0);
    if keep > 30 {
        return MAX_NANOS;
    }
    let whole = (0..keep)
        .fold(0, |number: i128, place| number * 10 + product.get(place).map_or(0, |d| i128::from(*d)));
    let inexact = product.iter().skip(keep).any(|digit| *digit != 0);
    (whole + i128::from(inexact)).min(MAX_NANOS)
}

impl fmt::Display for Quantity {
    /// The canonical form: the largest suffix that leaves no fraction.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return out.write_str("0");
        }
        let units = self.nanos / NANOS;
        if self.format == Format::BinarySi && self.is_integer() && units.abs() >= 1024 {
            let (mut number, mut step) = (units, 0);
            while number % 1024 == 0 && step + 1 < BINARY.len() {
                (number, step) = (number / 1024, step + 1);
            }
            return write!(out, "{number}{}", BINARY[step]);
        }
        let (mut number, mut step) = (self.nanos, 0);
        while number % 1000 == 0 && step + 1 < DECIMAL.len() {
            (number, step) = (number / 1000, step + 1);
        }
        let (power, suffix) = DECIMAL[step];
        match self.format {
            Format::DecimalExponent if power != 0 => write!(out, "{number}e{power}"),
            Format::DecimalExponent => write!(out, "{number}"),
            _ => write!(out, "{number}{suffix}"),
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl Add for Quantity {
    type Output = Self;

    /// In the format of the first, or of the second if the first is zero.
    fn add(self, other: Self) -> Self {
        let format = if self.nanos == 0 { other.format } else { self.format };
        Self { nanos: self.nanos.saturating_add(other.nanos), format }
    }
}

impl Neg for Quantity {
    type Output = Self;

    fn neg(self) -> Self {
        Self { nanos: -self.nanos, ..self }
    }
}

impl Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

impl AddAssign for Quantity {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl SubAssign for Quantity {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

impl Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::ZERO, Add::add)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    /// From a string, or from a number as the API also takes it.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Quantity;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a quantity")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Quantity, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Quantity, E> {
                Ok(Quantity::new(number))
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Quantity, E> {
                number.to_string().parse().map_err(E::custom)
            }

            fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Quantity, E> {
                number.to_string().parse().map_err(E::custom)
            }

            fn visit_unit<E: serde::de::Error>(self) -> Result<Quantity, E> {
                Ok(Quantity::ZERO)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl TryFrom<&k8s_openapi::apimachinery::pkg::api::resource::Quantity> for Quantity {
    type Error = Error;

    fn try_from(other: &k8s_openapi::apimachinery::pkg::api::resource::Quantity) -> Result<Self, Error> {
        other.0.parse()
    }
}

impl From<Quantity> for k8s_openapi::apimachinery::pkg::api::resource::Quantity {
    fn from(quantity: Quantity) -> Self {
        Self(quantity.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn q(text: &str) -> Quantity {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn quantities_print_in_their_canonical_form() {
        for (text, canonical) in [
            ("0", "0"),
            ("0Mi", "0"),
            ("-0", "0"),
            ("100m", "100m"),
            ("0.1", "100m"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            (".5", "500m"),
            ("5.", "5"),
            ("1Gi", "1Gi"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Gi", "512Mi"),
            ("512", "512"),
            ("1023Ki", "1023Ki"),
            ("0.5Ki", "512"),
            ("0.1Ki", "102400m"),
            ("1000k", "1M"),
            ("1e3", "1e3"),
            ("12E3", "12e3"),
            ("1500e-3", "1500e-3"),
            ("100e2", "10e3"),
            ("5e0", "5"),
            ("1E", "1E"),
            ("+3", "3"),
            ("-1.5", "-1500m"),
            ("-2Ki", "-2Ki"),
            ("1n", "1n"),
            ("0.1n", "1n"),
            ("-0.1n", "-1n"),
            ("1.0000000001", "1000000001n"),
            ("7Ei", "7Ei"),
            ("8Ei", "9223372036854775807"),
            ("9999999999999999999999", "9223372036854775807"),
            ("0.000000000001Ki", "2n"),
            ("1.5Ei", "1536Pi"),
        ] {
            assert_eq!(q(text).to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused_in_kubernetes_words() {
        for (text, error) in [
            ("", Error::Format),
            ("-", Error::Format),
            ("abc", Error::Format),
            ("1 Gi", Error::Format),
            ("1gi", Error::Format),
            ("1x", Error::Format),
            ("1.2.3", Error::Number),
            (".", Error::Number),
            ("1Kim", Error::Suffix),
            ("1K", Error::Suffix),
            ("1e", Error::Suffix),
            ("1ee3", Error::Suffix),
            ("1mm", Error::Suffix),
        ] {
            assert_eq!(text.parse::<Quantity>(), Err(error), "{text}");
        }
    }

    #[test]
    fn values_round_away_from_zero() {
        assert_eq!(q("1m").value(), 1);
        assert_eq!(q("-1m").value(), -1);
        assert_eq!(q("1u").millis(), 1);
        assert_eq!(q("1.5Gi").value(), 1_610_612_736);
        assert_eq!(q("2").millis(), 2000);
        assert_eq!(q("9E").millis(), i64::MAX);
        assert_eq!(q("10").scaled(1, 3), q("3333333334n"));
    }

    #[test]
    fn json_numbers_and_strings_are_taken_and_strings_given() {
        for text in ["\"2\"", "2", "2.0"] {
            assert_eq!(serde_json::from_str::<Quantity>(text).unwrap(), q("2"));
        }
        assert_eq!(serde_json::to_string(&q("1024Mi")).unwrap(), "\"1Gi\"");
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_to_the_same(number in any::<i64>(), suffix in 0..10_usize, binary in any::<bool>()) {
            let suffix = if binary { BINARY[suffix % 7] } else { DECIMAL[suffix].1 };
            let quantity = q(&format!("{number}{suffix}"));
            let again = q(&quantity.to_string());
            prop_assert_eq!(quantity, again);
            prop_assert_eq!(quantity.to_string(), again.to_string());
        }

        #[test]
        fn sums_and_order_are_those_of_the_numbers(a in -1_000_000_000_000_i64..1_000_000_000_000, b in -1_000_000_000_000_i64..1_000_000_000_000) {
            let (x, y) = (Quantity::from_millis(a), q(&format!("{b}m")));
            prop_assert_eq!((x + y).millis(), a + b);
            prop_assert_eq!((x - y).millis(), a - b);
            prop_assert_eq!(x.cmp(&y), a.cmp(&b));
        }

        #[test]
        fn no_text_panics(text in "[+-]?[0-9.]{0,40}[eEinumkKMGTP]{0,3}[-+]?[0-9]{0,6}") {
            let _ = text.parse::<Quantity>();
        }

        #[test]
        fn decimals_are_exact_to_the_billionth(whole in 0..1_000_000_i64, nanos in 0..1_000_000_000_i64) {
            let quantity = q(&format!("{whole}.{nanos:09}"));
            prop_assert_eq!(quantity.nanos, i128::from(whole) * NANOS + i128::from(nanos));
        }
    }
}
