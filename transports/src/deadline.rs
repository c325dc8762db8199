//! A point in time by which a wait must end. Every wait in Dunlin takes one.

use std::time::{Duration, Instant};

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
        let now = Instant::now();
        Self(now.checked_add(duration).unwrap_or(now + THIRTY_YEARS))
    }

    /// The instant at which the wait must have ended.
    pub fn instant(self) -> Instant {
        self.0
    }

    /// How long is left; zero once the deadline has passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
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
