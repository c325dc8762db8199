//! Points in time that can be told to another process: nanoseconds of `CLOCK_MONOTONIC`, and the
//! boot they belong to.

use std::time::Duration;

#[cfg(feature = "simulation")]
use dunlin_transports::runtime::simulation;
use serde::{Deserialize, Serialize};

/// Nanoseconds of this host's `CLOCK_MONOTONIC` (clock_gettime(2)). Comparable between processes
/// of one boot of one host, and nowhere else.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// This moment.
    pub fn now() -> Self {
        #[cfg(feature = "simulation")]
        if let Some(nanoseconds) = simulation::monotonic_ns() {
            return Self(nanoseconds);
        }
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
        Self(
            seconds
                .saturating_mul(1_000_000_000)
                .saturating_add(nanoseconds),
        )
    }

    /// The time from `earlier` to this moment; zero when `earlier` is not earlier.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// This moment moved by `nanoseconds`, forward or back.
    pub fn shifted(self, nanoseconds: i64) -> Self {
        Self(self.0.saturating_add_signed(nanoseconds))
    }
}

/// The identity of this host's current boot (`/proc/sys/kernel/random/boot_id`); empty where the
/// kernel does not tell. Two processes with the same non-empty boot id share `CLOCK_MONOTONIC`.
pub fn boot_id() -> String {
    #[cfg(feature = "simulation")]
    if let Some(boot_id) = simulation::boot_id() {
        return boot_id;
    }
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}
