//! A slowness, planted for the comparison that must find it: `dunlin bench --against` has to tell a
//! build with the feature `planted-slowness` from one without. Nothing but speed is touched.

use std::time::{Duration, Instant};

/// What a round is made longer by: a tenth of itself.
const SHARE: u32 = 10;

/// When a lane's round began.
pub(super) struct Round(Instant);

impl Round {
    /// Now. The real clock: a simulated one does not go on while a thread is busy.
    pub(super) fn begins() -> Self {
        Self(Instant::now())
    }

    /// Keeps the lane busy for a tenth of the time since.
    pub(super) fn ends(self) {
        let end = Instant::now() + self.0.elapsed() / SHARE;
        while end.saturating_duration_since(Instant::now()) > Duration::ZERO {
            std::hint::spin_loop();
        }
    }
}
