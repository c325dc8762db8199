//! Beats: the lines that a guest prints on its serial port while it runs, and how often it does.
//!
//! ```text
//! vcpu 0 beat 0000001a loops 00000000000f3a21 tick 00001234567890ab
//! ```
//!
//! The first vCPU prints them. All three numbers are the guest's own, in hexadecimal: how many beats
//! there were, how many times its program went round, and what its clock said just before. Beat and
//! loops are in guest memory, so they move with the guest, and a guest that ran twice from one
//! state prints the same beat twice. The lines of all places at which a guest was are therefore a
//! ledger of who ran it when. Three rules make it one to rely on:
//!
//! - A beat is printed only once the one before has left the VMM (it asks the port whether the
//!   transmitter is empty), so that a VMM that is killed takes one beat with it at most.
//! - A guest that was paused prints a beat first thing, wherever it goes on.
//! - A pause may fall into the middle of a line; the rest is printed where the guest goes on.

use std::fmt;
use std::str::FromStr;

use super::WorkloadError;

/// The time from one beat to the next, in whole milliseconds. The default is a second: often enough
/// to see a guest live, seldom enough to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BeatInterval(u64);

/// The longest interval, an hour: longer, and the guest looks dead to whoever waits.
const INTERVAL_MAX_MS: u64 = 3_600_000;

impl Default for BeatInterval {
    fn default() -> Self {
        Self(1000)
    }
}

impl BeatInterval {
    /// An interval of so many milliseconds.
    ///
    /// # Errors
    ///
    /// When it is none, or more than an hour.
    pub fn from_milliseconds(milliseconds: u64) -> Result<Self, WorkloadError> {
        if (1..=INTERVAL_MAX_MS).contains(&milliseconds) {
            Ok(Self(milliseconds))
        } else {
            Err(WorkloadError::Beat(format!("{milliseconds}ms")))
        }
    }

    /// In milliseconds.
    pub fn milliseconds(self) -> u64 {
        self.0
    }

    /// In ticks of a clock with so many in a second; at least one.
    pub(crate) fn ticks(self, ticks_per_second: u64) -> u64 {
        let ticks = u128::from(ticks_per_second) * u128::from(self.0) / 1000;
        u64::try_from(ticks.max(1)).unwrap_or(u64::MAX)
    }
}

impl FromStr for BeatInterval {
    type Err = WorkloadError;

    fn from_str(text: &str) -> Result<Self, WorkloadError> {
        let bad = || WorkloadError::Beat(text.to_owned());
        let (digits, unit_ms) = match text.strip_suffix("ms") {
            Some(digits) => (digits, 1),
            None => (text.strip_suffix('s').ok_or_else(bad)?, 1000),
        };
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(bad());
        }
        let count: u64 = digits.parse().map_err(|_| bad())?;
        let milliseconds = count.checked_mul(unit_ms).ok_or_else(bad)?;
        Self::from_milliseconds(milliseconds).map_err(|_| bad())
    }
}

impl fmt::Display for BeatInterval {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1000) {
            write!(formatter, "{}s", self.0 / 1000)
        } else {
            write!(formatter, "{}ms", self.0)
        }
    }
}

/// How long a line is, its end included.
pub(crate) const LINE_BYTES: usize = 66;

/// The line of a beat, as the program of a KVM guest prints it too.
pub(crate) fn line(beat: u64, loops: u64, tick: u64) -> String {
    // The guest prints the lower half of its count.
    format!(
        "vcpu 0 beat {:08x} loops {loops:016x} tick {tick:016x}\n",
        beat & 0xffff_ffff
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_become_ticks() {
        let interval: BeatInterval = "5ms".parse().unwrap();
        assert_eq!(interval.ticks(2_000_000_000), 10_000_000);
        assert_eq!(interval.ticks(1), 1);
        let longest: BeatInterval = "3600s".parse().unwrap();
        assert_eq!(longest.ticks(u64::MAX), u64::MAX);
    }

    #[test]
    fn a_line_is_as_written_down() {
        assert_eq!(
            line(0x1_0000_001a, 0xf_3a21, 0x1234_5678_90ab),
            "vcpu 0 beat 0000001a loops 00000000000f3a21 tick 00001234567890ab\n"
        );
        assert_eq!(line(u64::MAX, u64::MAX, 0).len(), LINE_BYTES);
    }
}
