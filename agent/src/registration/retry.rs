use std::time::Duration;

use rand::RngExt;

/// Waits between tries: doubling, capped, jittered so that a fleet that lost its registrar together
/// does not come back together.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    initial: Duration,
    longest: Duration,
    tries: u32,
}

impl Backoff {
    /// The first wait is about `initial`, none is longer than `longest`.
    pub fn new(initial: Duration, longest: Duration) -> Self {
        Self {
            initial,
            longest,
            tries: 0,
        }
    }

    /// Tries that failed so far.
    pub fn tries(&self) -> u32 {
        self.tries
    }

    /// The wait before the next try: between half of this step's delay and all of it.
    pub fn next_delay(&mut self) -> Duration {
        let full = self.step();
        self.tries = self.tries.saturating_add(1);
        full.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    fn step(&self) -> Duration {
        let factor = 1u32.checked_shl(self.tries).unwrap_or(u32::MAX);
        self.initial.saturating_mul(factor).min(self.longest)
    }
}

/// `wait` and up to a quarter more, because a registrar may ask the whole fleet for the same wait.
pub(super) fn spread(wait: Duration) -> Duration {
    wait.mul_f64(rand::rng().random_range(1.0..=1.25))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_that_was_asked_for_is_never_cut_short() {
        let wait = Duration::from_secs(100);
        for _ in 0..20 {
            assert!((wait..=wait * 5 / 4).contains(&spread(wait)));
        }
    }

    #[test]
    fn waits_double_up_to_the_cap_and_are_jittered_below_it() {
        let (initial, longest) = (Duration::from_secs(1), Duration::from_secs(20));
        let mut backoff = Backoff::new(initial, longest);
        for full in [1, 2, 4, 8, 16, 20, 20, 20] {
            let full = Duration::from_secs(full);
            let delay = backoff.next_delay();
            assert!(delay >= full / 2 && delay <= full, "{delay:?} of {full:?}");
        }
        assert_eq!(backoff.tries(), 8);
    }

    #[test]
    fn two_hosts_do_not_wait_the_same_time() {
        let delay = || Backoff::new(Duration::from_secs(1000), Duration::MAX).next_delay();
        let first = delay();
        assert!((0..20).any(|_| delay() != first));
    }

    #[test]
    fn many_tries_do_not_overflow() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));
        backoff.tries = u32::MAX;
        assert!(backoff.next_delay() <= Duration::from_secs(300));
    }
}
