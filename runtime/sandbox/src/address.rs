//! Which addresses of a range are taken.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use crate::{Error, Range};

/// Hands out the addresses of a range in turn, so that one just freed is the last to be used again: a late
/// packet for a pod that is gone then meets nobody, not a stranger.
#[derive(Debug)]
pub struct AddressPool {
    range: Range,
    /// Positions at both ends that are never handed out.
    reserved_first: u32,
    next: u32,
    taken: HashSet<u32>,
}

impl AddressPool {
    /// A pool over `range` whose first `reserved_first` addresses and whose last are never handed out.
    pub fn new(range: Range, reserved_first: u32) -> Self {
        Self { range, reserved_first, next: reserved_first, taken: HashSet::new() }
    }

    /// Takes the next free address.
    ///
    /// # Errors
    /// [`Error::Exhausted`] if all are taken.
    pub fn take(&mut self) -> Result<Ipv4Addr, Error> {
        let usable = self.range.size() - 1 - self.reserved_first;
        if self.taken.len() >= usable as usize {
            return Err(Error::Exhausted(usable));
        }
        loop {
            let position = self.next;
            self.next += 1;
            if self.next == self.range.size() - 1 {
                self.next = self.reserved_first;
            }
            if self.taken.insert(position) {
                return Ok(self.range.nth(position));
            }
        }
    }

    /// Marks an address taken that a restarted node finds in use. One outside the range is left alone.
    pub fn reserve(&mut self, address: Ipv4Addr) {
        if let Some(position) = self.range.position(address) {
            self.taken.insert(position);
        }
    }

    /// Gives an address back. A repeat changes nothing.
    pub fn release(&mut self, address: Ipv4Addr) {
        if let Some(position) = self.range.position(address) {
            self.taken.remove(&position);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_unique_until_all_are_taken_and_reused_last() {
        let mut pool = AddressPool::new("10.1.0.0/29".parse().unwrap(), 2);
        pool.reserve(Ipv4Addr::new(10, 1, 0, 4));
        let taken: Vec<_> = (0..4).map(|_| pool.take().unwrap().octets()[3]).collect();
        assert_eq!(taken, [2, 3, 5, 6]);
        assert!(matches!(pool.take(), Err(Error::Exhausted(5))));
        pool.release(Ipv4Addr::new(10, 1, 0, 3));
        pool.release(Ipv4Addr::new(10, 1, 0, 2));
        assert_eq!(pool.take().unwrap().octets()[3], 2, "in turn");
    }
}
