//! The recorder: what one thread measures while a move runs. Owned by that thread, no lock, and no
//! allocation once it is made.
//!
//! Where one thing follows another, one reading of the clock is the end of the first and the begin
//! of the second:
//!
//! ```
//! # use dunlin_engine::telemetry::{End, Operation, Recorder, SpanName, Track};
//! # fn rearm() {}
//! # fn scan() {}
//! # fn put() {}
//! # let bytes = 4096;
//! let mut recorder = Recorder::new(End::Source, Track::Lane(0));
//! let begun = recorder.now();
//! rearm();
//! let cleared = recorder.done(Operation::Clear, begun);
//! scan();
//! let scanned = recorder.done(Operation::ZeroScan, cleared);
//! put();
//! let put = recorder.done(Operation::put(bytes), scanned);
//! recorder.span(SpanName::LaneRound, begun, put);
//! ```
//!
//! With the cargo feature `telemetry` off a recorder and a moment have no size, read no clock and
//! do nothing, so that what recording costs can be measured by comparing the two.

#[cfg(not(feature = "telemetry"))]
pub use self::absent::{Moment, Recorder};
#[cfg(feature = "telemetry")]
pub use self::recording::{Moment, Recorder};

#[cfg(not(feature = "telemetry"))]
mod absent;
#[cfg(feature = "telemetry")]
mod recording;
#[cfg(feature = "telemetry")]
mod tally;

/// The shortest duration that histograms tell from shorter ones.
pub const HISTOGRAM_NS_MIN: u64 = 100;

/// The longest duration that histograms tell from longer ones: an hour. Longer ones count as this;
/// the longest and the total stay exact.
pub const HISTOGRAM_NS_MAX: u64 = 3_600_000_000_000;

/// To how many significant digits.
pub const HISTOGRAM_DIGITS: u8 = 3;

/// What one histogram takes: 27 × 1,024 counts of 4 bytes. Formula: 2,048 is the next power of two
/// above 2 × 10^3 steps; the first 2,048 of them are 64 ns wide (the power of two below 100 ns), and
/// each of 25 doublings up to 2^42 ns takes half as many again. A count stops at 2^32 − 1.
pub const HISTOGRAM_BYTES: usize = (2 + 25) * 1024 * 4;

/// How many spans a lane's recorder holds, and one of a thread that registers memory: some ten for
/// each round, and a piece of 1 GiB each.
pub const LANE_SPANS: usize = 1024;

/// How many spans the session's recorder holds: some ten for each round and for the handover, and
/// two for each vCPU.
pub const CONTROL_SPANS: usize = 4096;

#[cfg(test)]
mod tests;
