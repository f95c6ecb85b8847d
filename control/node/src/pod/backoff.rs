//! How long a container or an image waits before the next try.

use std::time::Duration;

use tokio::time::Instant;

/// The kubelet's figures for crashing containers and failing pulls.
pub const FIRST: Duration = Duration::from_secs(10);
/// No wait is longer.
pub const LONGEST: Duration = Duration::from_secs(300);
/// A container that ran this long starts afresh (twice [`LONGEST`], as the kubelet has it).
pub const FORGIVEN: Duration = Duration::from_secs(600);

/// Doubling waits between restarts; the first restart is at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Restarts {
    /// The wait after the last exit.
    current: Option<Duration>,
    /// The wait after the next exit; none before the first.
    next: Option<Duration>,
}

impl Restarts {
    /// How long to wait now that a container ended after `ran`.
    pub fn ended(&mut self, ran: Duration) -> Duration {
        if ran >= FORGIVEN {
            self.next = None;
        }
        let wait = self.next.unwrap_or(Duration::ZERO);
        self.current = Some(wait);
        self.next = Some(if wait.is_zero() { FIRST } else { (wait * 2).min(LONGEST) });
        wait
    }

    /// The wait that the last exit asked for.
    pub fn current(&self) -> Option<Duration> {
        self.current
    }

    /// Continues after an adoption: `restarts` that happened before count, as far as they still matter.
    pub fn after(restarts: u32) -> Self {
        let mut this = Self::default();
        for _ in 0..restarts.min(6) {
            this.ended(Duration::ZERO);
        }
        this
    }
}

/// Doubling waits between tries of something that fails, from `first` to `longest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tries {
    pub failures: u32,
    pub retry_at: Option<Instant>,
}

impl Tries {
    pub const fn none() -> Self {
        Self { failures: 0, retry_at: None }
    }

    /// Notes a failure at `now`; the wait before the next try.
    pub fn failed(&mut self, now: Instant, first: Duration, longest: Duration) -> Duration {
        let wait = first.saturating_mul(1u32 << self.failures.min(16)).min(longest);
        self.failures += 1;
        self.retry_at = Some(now + wait);
        wait
    }

    pub fn may_try(&self, now: Instant) -> bool {
        self.retry_at.is_none_or(|at| at <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_wait_nothing_then_ten_seconds_doubling_to_five_minutes() {
        let mut restarts = Restarts::default();
        let waits: Vec<_> = (0..8).map(|_| restarts.ended(Duration::from_secs(1)).as_secs()).collect();
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(restarts.ended(FORGIVEN).as_secs(), 0, "ten minutes of running are a fresh start");
        assert_eq!(restarts.ended(Duration::ZERO).as_secs(), 10);
        assert_eq!(Restarts::after(3).ended(Duration::ZERO).as_secs(), 40);
    }

    #[tokio::test(start_paused = true)]
    async fn tries_double_up_to_the_longest() {
        let mut tries = Tries::none();
        let now = Instant::now();
        assert!(tries.may_try(now));
        let waits: Vec<_> = (0..7).map(|_| tries.failed(now, FIRST, LONGEST).as_secs()).collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300]);
        assert!(!tries.may_try(now));
        assert!(tries.may_try(now + LONGEST));
    }
}
