//! The recorder that is not there: the same face as the one that records, no size, no clock.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::telemetry::declaration::End;
use crate::telemetry::measurements::Recording;
use crate::telemetry::track::Track;
use crate::telemetry::{Counter, Gauge, Operation, SpanName};

/// No moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment;

impl Moment {
    /// No moment.
    #[inline]
    pub fn at(_time: Timestamp) -> Self {
        Self
    }
}

/// Records nothing.
pub struct Recorder;

impl Recorder {
    /// Nothing.
    #[inline]
    pub fn new(_end: End, _track: Track) -> Self {
        Self
    }

    /// Nothing.
    #[inline]
    pub fn of_operations(_end: End, _track: Track, _operations: &[Operation]) -> Self {
        Self
    }

    /// Nothing.
    #[inline]
    pub fn beside(_end: End, _track: Track, _others: &[Operation]) -> Self {
        Self
    }

    /// Reads no clock.
    #[inline]
    pub fn now(&self) -> Moment {
        Moment
    }

    /// Does nothing.
    #[inline]
    pub fn done(&mut self, _operation: Operation, _begun: Moment) -> Moment {
        Moment
    }

    /// Does nothing.
    #[inline]
    pub fn between(&mut self, _operation: Operation, _begun: Moment, _ended: Moment) {}

    /// Does the work and nothing else.
    #[inline]
    pub fn time<T>(&mut self, _operation: Operation, work: impl FnOnce() -> T) -> T {
        work()
    }

    /// Does nothing.
    #[inline]
    pub fn took(&mut self, _operation: Operation, _duration: Duration) {}

    /// Does nothing.
    #[inline]
    pub fn count(&mut self, _counter: Counter, _more: u64) {}

    /// Does nothing.
    #[inline]
    pub fn counted(&mut self, _counter: Counter, _all: u64) {}

    /// Does nothing.
    #[inline]
    pub fn set(&mut self, _gauge: Gauge, _value: u64) {}

    /// Does nothing.
    #[inline]
    pub fn span(&mut self, _name: SpanName, _begun: Moment, _ended: Moment) {}

    /// Does nothing.
    #[inline]
    pub fn span_of(&mut self, _track: Track, _name: SpanName, _begun: Moment, _ended: Moment) {}

    /// Nothing.
    pub fn memory_bytes(&self) -> usize {
        0
    }
}

impl Recording {
    /// Nothing was recorded.
    pub fn merge(_recorders: impl IntoIterator<Item = Recorder>) -> Self {
        Self::default()
    }
}
