//! How long to wait before a try that failed is repeated.
//!
//! The one rule: the randomness is the caller's, so that whoever must be repeatable (a simulator, a test) can be.

use std::time::Duration;

/// The wait after `failures` tries in a row that failed: `first`, doubled with each of them, `longest` at the most, and
/// then shortened by up to a half, as much as `random` (0 to 1) says, so that many who failed together do not try again
/// together.
pub fn backoff(first: Duration, longest: Duration, failures: u32, random: f64) -> Duration {
    let doubled = first.saturating_mul(1 << failures.saturating_sub(1).min(30)).min(longest);
    doubled.mul_f64(1.0 - random.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_a_bound_and_is_shortened_by_a_half_at_most() {
        let (first, longest) = (Duration::from_millis(500), Duration::from_secs(30));
        let waits: Vec<_> = (1..=9).map(|n| backoff(first, longest, n, 0.0).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);
        assert_eq!(backoff(first, longest, 1, 1.0), Duration::from_millis(250));
        assert_eq!(backoff(first, longest, u32::MAX, 0.5), Duration::from_millis(22_500));
        assert_eq!(backoff(first, longest, 0, 0.0), first);
        assert_eq!(backoff(first, longest, 1, 7.0), Duration::from_millis(250), "randomness out of bounds is cut");
    }
}
