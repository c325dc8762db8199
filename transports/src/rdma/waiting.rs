//! Waiting for completions: spinning, then sleeping.

use std::time::Instant;

use super::PollMode;
use super::connection::Connection;
use crate::deadline::Deadline;
use crate::lane::LaneError;

/// How many looks at the queues in vain go between two at everything else, while spinning: some
/// 10 µs.
const LOOKS_BETWEEN: u32 = 128;

/// What to do after a pause.
pub(super) enum Pause {
    /// Look at the queues again.
    Look,
    /// The deadline has passed.
    TimedOut,
    /// Look at the queues a last time; if what is waited for is not there, fail with this.
    Ended(LaneError),
}

/// The pauses of one wait, between looks at the queues that found nothing.
pub(super) struct Waiter {
    mode: PollMode,
    begun: Option<Instant>,
    looks: u32,
    is_armed: bool,
}

impl Waiter {
    pub(super) fn new(mode: PollMode) -> Self {
        Self {
            mode,
            begun: None,
            looks: 0,
            is_armed: false,
        }
    }

    /// Something came: spin anew the next time.
    pub(super) fn found(&mut self) {
        self.begun = None;
    }

    /// Pauses after a look that found nothing.
    ///
    /// # Errors
    ///
    /// The system's.
    pub(super) fn pause(
        &mut self,
        connection: &Connection,
        until: Deadline,
    ) -> Result<Pause, LaneError> {
        let begun = *self.begun.get_or_insert_with(Instant::now);
        let spins = match self.mode {
            PollMode::Spin => true,
            PollMode::Event => false,
            PollMode::Adaptive { spin } => begun.elapsed() < spin,
        };
        if spins {
            std::hint::spin_loop();
            self.looks = self.looks.wrapping_add(1);
            if !self.looks.is_multiple_of(LOOKS_BETWEEN) {
                return Ok(Pause::Look);
            }
        } else if !self.is_armed {
            connection.arm().map_err(|source| LaneError::System {
                lane: connection.number(),
                doing: "arming a completion queue",
                source,
            })?;
            // What came between the last look and this is not announced.
            self.is_armed = true;
            return Ok(Pause::Look);
        } else {
            connection.wait(until)?;
            self.is_armed = false;
        }
        if let Some(ended) = connection.look() {
            return Ok(Pause::Ended(ended));
        }
        if until.passed() {
            return Ok(Pause::TimedOut);
        }
        Ok(Pause::Look)
    }
}
