//! A point in time by which a wait must end. Every wait in Dunlin takes one, or a limit for the
//! time in which nothing moves.

use std::time::{Duration, Instant};

use crate::runtime;

/// A point in time by which a wait must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// The deadline at `instant`.
    pub fn at(instant: Instant) -> Self {
        Self(instant)
    }

    /// The deadline `duration` from now.
    ///
    /// A duration that the clock can't represent counts as thirty years.
    pub fn after(duration: Duration) -> Self {
        const THIRTY_YEARS: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);
        let now = runtime::now();
        Self(now.checked_add(duration).unwrap_or(now + THIRTY_YEARS))
    }

    /// The instant at which the wait must have ended.
    pub fn instant(self) -> Instant {
        self.0
    }

    /// How long is left; zero once the deadline has passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(runtime::now())
    }

    /// Whether the deadline has passed.
    pub fn passed(self) -> bool {
        self.remaining().is_zero()
    }

    /// The earlier of two deadlines.
    pub fn earlier(self, other: Self) -> Self {
        self.min(other)
    }
}

/// Bounds the time in which nothing moves, for a wait that ends late for as long as something does.
///
/// Whether something moved is looked at now and then only, so a stall is found up to a quarter of
/// the limit late.
#[cfg(any(test, feature = "tcp", feature = "rdma", feature = "testing"))]
pub(crate) struct StallWatch {
    limit: Duration,
    since: Instant,
}

#[cfg(any(test, feature = "tcp", feature = "rdma", feature = "testing"))]
impl StallWatch {
    pub(crate) fn new(limit: Duration) -> Self {
        let since = runtime::now();
        Self { limit, since }
    }

    /// Until when to wait before the next look.
    pub(crate) fn next_look(&self) -> Deadline {
        Deadline::after(self.limit / 4)
    }

    /// Takes what the look showed; whether nothing has moved for too long.
    pub(crate) fn is_stalled(&mut self, has_moved: bool) -> bool {
        if has_moved {
            self.since = runtime::now();
        }
        runtime::elapsed(self.since) >= self.limit
    }

    /// When something moved last.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_time_without_movement_counts() {
        let mut watch = StallWatch::new(Duration::from_secs(3600));
        assert!(!watch.is_stalled(false));
        watch.since -= Duration::from_secs(3601);
        assert!(!watch.is_stalled(true));
        assert!(!watch.is_stalled(false));
        watch.since -= Duration::from_secs(3601);
        assert!(watch.is_stalled(false));
    }
}
