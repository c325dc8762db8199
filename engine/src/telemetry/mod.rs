//! What a move measures of itself: how long each operation took, what each phase was doing when,
//! and what was counted; on both ends, put on one clock afterwards.
//!
//! | room | what is in it |
//! |---|---|
//! | [`declaration`], [`track`] | what can be measured, in what unit, where and by whom; and the names that follow |
//! | [`operations`], [`spans`], [`amounts`] | the declarations: everything that is measured stands there once |
//! | [`completeness`] | what tells how complete that is |
//! | [`recorder`] | what one thread measures: no lock, no allocation |
//! | `shelf` | where recorders lie once their threads are done |
//! | [`measurements`], [`buckets`] | what came of it: of one end, and of the whole move |
//! | [`timeline`] | spans of both ends on one clock |
//! | [`clock_offset`] | how far two hosts' clocks are apart, and how well that is known |
//! | [`wire`] | how the destination's part reaches the source |
//! | [`prometheus`], [`trace`], [`schema`], [`page`] | what others read: metrics, a trace, the JSON report's schema, docs/metrics.md |
//!
//! Each thread has a [`Recorder`]; they are made before the move and put together
//! ([`Recording::merge`]) after it. Nothing here decides anything about a move.

pub mod amounts;
pub mod buckets;
pub mod clock_offset;
pub mod completeness;
pub mod declaration;
pub mod measurements;
pub mod operations;
pub mod page;
pub mod prometheus;
pub mod recorder;
pub mod schema;
pub(crate) mod shelf;
pub mod spans;
pub mod timeline;
pub mod trace;
pub mod track;
pub mod wire;

pub use self::amounts::{Counter, Gauge};
pub use self::clock_offset::{ClockOffset, ClockRelation, RoundTrip};
pub use self::declaration::{Class, Declaration, End, Kind, Sides, Unit};
pub use self::measurements::{Measurements, MoveTelemetry, Recording};
pub use self::operations::Operation;
pub use self::recorder::{Moment, Recorder};
pub(crate) use self::shelf::{Kept, Shelf};
pub use self::spans::SpanName;
pub use self::timeline::Timeline;
pub use self::track::{Track, TrackKind};

/// Every declaration: parts of the blackout and phases, operations, counters, gauges.
pub fn declarations() -> impl Iterator<Item = &'static Declaration> {
    let spans = SpanName::ALL.iter().map(|name| name.declaration());
    let operations = Operation::ALL.iter().map(|name| name.declaration());
    let counters = Counter::ALL.iter().map(|name| name.declaration());
    let gauges = Gauge::ALL.iter().map(|name| name.declaration());
    spans.chain(operations).chain(counters).chain(gauges)
}

#[cfg(any(test, feature = "testing"))]
pub mod example;
#[cfg(test)]
mod tests;
