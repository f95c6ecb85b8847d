//! IPv4 ranges in CIDR form.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use crate::Error;

/// An IPv4 range: its first address and the length of its prefix in bits (at most 30).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    first: Ipv4Addr,
    prefix: u8,
}

impl Range {
    /// The range that begins at `first`; `None` if that is no range, or one with too few addresses.
    pub fn new(first: Ipv4Addr, prefix: u8) -> Option<Self> {
        // A half must still hold an address beside its own name and its broadcast.
        let range = (1..=29).contains(&prefix).then_some(Self { first, prefix })?;
        first.to_bits().is_multiple_of(range.size()).then_some(range)
    }

    /// The first address of the range, which names the range itself.
    pub fn first(self) -> Ipv4Addr {
        self.first
    }

    /// The prefix length in bits.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// How many addresses it spans, those that name the range and its broadcast included.
    pub fn size(self) -> u32 {
        1 << (32 - self.prefix)
    }

    /// The `n`th address. `n` is less than [`Self::size`].
    pub fn nth(self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first.to_bits() + n)
    }

    /// Where `address` lies in the range, if it does.
    pub fn position(self, address: Ipv4Addr) -> Option<u32> {
        let offset = address.to_bits().checked_sub(self.first.to_bits())?;
        (offset < self.size()).then_some(offset)
    }

    /// The lower and the upper half.
    pub fn halves(self) -> (Self, Self) {
        let prefix = self.prefix + 1;
        let upper = Ipv4Addr::from_bits(self.first.to_bits() + self.size() / 2);
        (Self { first: self.first, prefix }, Self { first: upper, prefix })
    }
}

impl FromStr for Range {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || Error::BadRange(text.to_owned());
        let (first, prefix) = text.split_once('/').ok_or_else(bad)?;
        let (first, prefix): (Ipv4Addr, u8) =
            (first.parse().map_err(|_| bad())?, prefix.parse().map_err(|_| bad())?);
        Self::new(first, prefix).ok_or_else(bad)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_splits_into_halves_that_meet() {
        let range: Range = "10.128.0.0/17".parse().unwrap();
        let (lower, upper) = range.halves();
        assert_eq!(lower.to_string(), "10.128.0.0/18");
        assert_eq!(upper.to_string(), "10.128.64.0/18");
        assert_eq!(lower.nth(lower.size() - 1).to_bits() + 1, upper.first().to_bits());
        assert_eq!(upper.position(lower.first()), None);
        assert_eq!(upper.position(upper.nth(5)), Some(5));
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in
            ["", "10.0.0.0", "10.0.0.1/16", "10.0.0.0/33", "10.0.0.0/31", "10.0.0.0/0", "x/8", "10.0.0.0/-1"]
        {
            assert!(text.parse::<Range>().is_err(), "{text:?} was taken");
        }
    }
}
