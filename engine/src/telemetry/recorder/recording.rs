//! The recorder that records.

use std::collections::BTreeMap;
use std::time::Duration;

use super::tally::Tally;
use super::{CONTROL_SPANS, LANE_SPANS};
use crate::clock::Timestamp;
use crate::telemetry::declaration::End;
use crate::telemetry::measurements::{
    LaneMeasurements, OperationMeasurement, OperationSummary, Recording,
};
use crate::telemetry::timeline::Span;
use crate::telemetry::track::{Track, TrackKind};
use crate::telemetry::{Counter, Gauge, Operation, SpanName};

/// A reading of the clock: the end of what was before it and the begin of what follows. Without
/// the cargo feature `telemetry` it has no size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment(Timestamp);

impl Moment {
    /// A moment that was read already, for whoever needs the time anyway.
    #[inline]
    pub fn at(time: Timestamp) -> Self {
        Self(time)
    }
}

/// What one thread measures. Its memory is [`memory_bytes`](Self::memory_bytes) at most, all of it
/// asked for when it is made; pages of it that are never written are never there.
pub struct Recorder {
    end: End,
    track: Track,
    /// By operation; there for those that this end and kind of track measure.
    tallies: Box<[Option<Tally>]>,
    counters: [u64; Counter::COUNT],
    gauges: [Option<u64>; Gauge::COUNT],
    spans: Vec<Span>,
    spans_max: usize,
    /// Where the next span goes once all places are taken: the oldest is there.
    next_span: usize,
    dropped_spans: u64,
    misplaced: u64,
}

impl Recorder {
    /// The recorder of the thread `track` of the end `end`, with everything that such a one
    /// measures. Make it before the move: this allocates.
    pub fn new(end: End, track: Track) -> Self {
        Self::beside(end, track, &[])
    }

    /// The recorder of a thread that does a few things only and has no spans: one that helps the
    /// thread `track`, such as the reader of the control connection.
    pub fn of_operations(end: End, track: Track, operations: &[Operation]) -> Self {
        Self::with(end, track, operations, 0)
    }

    /// As [`Recorder::new`], without the operations that another recorder of the same thread has.
    pub fn beside(end: End, track: Track, others: &[Operation]) -> Self {
        let own = Operation::ALL
            .iter()
            .filter(|operation| !others.contains(operation));
        let own: Vec<_> = own.copied().collect();
        let spans_max = match track.kind() {
            TrackKind::Control => CONTROL_SPANS,
            _ => LANE_SPANS,
        };
        Self::with(end, track, &own, spans_max)
    }

    fn with(end: End, track: Track, operations: &[Operation], spans_max: usize) -> Self {
        let tally = |operation: &Operation| {
            let declaration = operation.declaration();
            let is_measured =
                operations.contains(operation) && declaration.is_measured_by(end, track.kind());
            is_measured.then(Tally::new).flatten()
        };
        Self {
            end,
            track,
            tallies: Operation::ALL.iter().map(tally).collect(),
            counters: [0; Counter::COUNT],
            gauges: [None; Gauge::COUNT],
            spans: Vec::with_capacity(spans_max),
            spans_max,
            next_span: 0,
            dropped_spans: 0,
            misplaced: 0,
        }
    }

    /// This moment. Reads the clock.
    #[inline]
    pub fn now(&self) -> Moment {
        Moment(Timestamp::now())
    }

    /// The operation that began at `begun` is done now. Reads the clock, and returns that reading:
    /// what follows begins with it.
    #[inline]
    pub fn done(&mut self, operation: Operation, begun: Moment) -> Moment {
        let now = self.now();
        self.between(operation, begun, now);
        now
    }

    /// The operation took from `begun` to `ended`. Reads no clock.
    #[inline]
    pub fn between(&mut self, operation: Operation, begun: Moment, ended: Moment) {
        self.record_ns(operation, ended.0.0.saturating_sub(begun.0.0));
    }

    /// Does something, and records how long it took. Reads the clock twice.
    #[inline]
    pub fn time<T>(&mut self, operation: Operation, work: impl FnOnce() -> T) -> T {
        let begun = self.now();
        let result = work();
        self.done(operation, begun);
        result
    }

    /// The operation took so long, as somebody else measured. Reads no clock.
    #[inline]
    pub fn took(&mut self, operation: Operation, duration: Duration) {
        let duration_ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.record_ns(operation, duration_ns);
    }

    #[inline]
    fn record_ns(&mut self, operation: Operation, duration_ns: u64) {
        match self.tallies.get_mut(operation as usize) {
            Some(Some(tally)) => tally.record(duration_ns),
            _ => self.misplaced += 1,
        }
    }

    /// So many more.
    #[inline]
    pub fn count(&mut self, counter: Counter, more: u64) {
        if let Some(count) = self.counters.get_mut(counter as usize) {
            *count = count.saturating_add(more);
        }
    }

    /// So many in all since the begin, as somebody else counted.
    #[inline]
    pub fn counted(&mut self, counter: Counter, all: u64) {
        if let Some(count) = self.counters.get_mut(counter as usize) {
            *count = (*count).max(all);
        }
    }

    /// It is so now.
    #[inline]
    pub fn set(&mut self, gauge: Gauge, value: u64) {
        if let Some(place) = self.gauges.get_mut(gauge as usize) {
            *place = Some(value);
        }
    }

    /// A span of this thread, from `begun` to `ended`. Reads no clock.
    #[inline]
    pub fn span(&mut self, name: SpanName, begun: Moment, ended: Moment) {
        self.span_of(self.track, name, begun, ended);
    }

    /// A span of a vCPU or of the link, which have no thread of their own. Reads no clock.
    #[inline]
    pub fn span_of(&mut self, track: Track, name: SpanName, begun: Moment, ended: Moment) {
        if !name.declaration().is_measured_by(self.end, track.kind()) {
            self.misplaced += 1;
            return;
        }
        let span = Span {
            name,
            track,
            begin: begun.0,
            end: ended.0.max(begun.0),
        };
        if self.spans.len() < self.spans_max {
            self.spans.push(span);
        } else if let Some(oldest) = self.spans.get_mut(self.next_span) {
            *oldest = span;
            self.next_span = (self.next_span + 1) % self.spans_max;
            self.dropped_spans += 1;
        } else {
            self.dropped_spans += 1;
        }
    }

    /// Forgets amounts that this end or kind of track does not measure. Looked at afterwards, so
    /// that counting costs an addition.
    fn without_misplaced(mut self) -> Self {
        let (end, track) = (self.end, self.track.kind());
        for (counter, count) in Counter::ALL.iter().zip(&mut self.counters) {
            if *count > 0 && !counter.declaration().is_measured_by(end, track) {
                *count = 0;
                self.misplaced += 1;
            }
        }
        for (gauge, value) in Gauge::ALL.iter().zip(&mut self.gauges) {
            if value.is_some() && !gauge.declaration().is_measured_by(end, track) {
                *value = None;
                self.misplaced += 1;
            }
        }
        self
    }

    /// What it takes at most, in bytes.
    pub fn memory_bytes(&self) -> usize {
        let histograms = self.tallies.iter().flatten().map(Tally::histogram_bytes);
        size_of::<Self>()
            + size_of_val(&*self.tallies)
            + histograms.sum::<usize>()
            + self.spans.capacity() * size_of::<Span>()
    }
}

impl Recording {
    /// What all recorders of one end measured, together and lane by lane. For afterwards: it goes
    /// through every histogram that is not empty.
    pub fn merge(recorders: impl IntoIterator<Item = Recorder>) -> Self {
        let mut recording = Self::default();
        let mut together: Vec<Option<Tally>> = Vec::new();
        together.resize_with(Operation::COUNT, || None);
        let mut counters = [0_u64; Counter::COUNT];
        let measurements = &mut recording.measurements;
        for recorder in recorders {
            recording.spans.extend(&recorder.spans);
            recording.dropped_spans += recorder.dropped_spans;
            let recorder = recorder.without_misplaced();
            measurements.misplaced += recorder.misplaced;
            let gauges = Gauge::ALL.iter().copied().zip(recorder.gauges);
            let gauges = gauges.filter_map(|(gauge, value)| Some((gauge, value?)));
            measurements.gauges.extend(gauges);
            for (all, count) in counters.iter_mut().zip(recorder.counters) {
                *all = all.saturating_add(count);
            }
            if let Track::Lane(lane) = recorder.track {
                let told = lane_measurements(lane, &recorder);
                let mut lanes = measurements.lanes.iter_mut();
                match lanes.find(|known| known.lane == lane) {
                    Some(known) => add_to_lane(known, told),
                    None => measurements.lanes.push(told),
                }
            }
            for (all, tally) in together.iter_mut().zip(recorder.tallies) {
                match (all, tally.filter(|tally| !tally.is_empty())) {
                    (_, None) => {}
                    (Some(all), Some(tally)) => all.add(&tally),
                    (all, tally) => *all = tally,
                }
            }
        }
        measurements.counters = told(&counters);
        measurements.lanes.sort_by_key(|lane| lane.lane);
        let operations = Operation::ALL.iter().copied().zip(&together);
        let operations = operations.filter_map(|(name, tally)| {
            let tally = tally.as_ref()?;
            Some(OperationMeasurement {
                name,
                summary: tally.summary(),
                buckets: tally.buckets(),
            })
        });
        measurements.operations = operations.collect();
        recording.spans.sort_by_key(|span| span.begin);
        recording
    }
}

fn lane_measurements(lane: u16, recorder: &Recorder) -> LaneMeasurements {
    let operations = Operation::ALL.iter().copied().zip(&recorder.tallies);
    let operations = operations.filter_map(|(name, tally)| {
        let tally = tally.as_ref().filter(|tally| !tally.is_empty())?;
        let summary = tally.summary();
        Some(OperationSummary { name, summary })
    });
    LaneMeasurements {
        lane,
        operations: operations.collect(),
        counters: told(&recorder.counters),
    }
}

/// Adds what another recorder of the same lane has: other operations.
fn add_to_lane(known: &mut LaneMeasurements, told: LaneMeasurements) {
    known.operations.extend(told.operations);
    known.operations.sort_by_key(|operation| operation.name);
    for (counter, count) in told.counters {
        *known.counters.entry(counter).or_default() += count;
    }
}

/// The counters that counted anything.
fn told(counters: &[u64; Counter::COUNT]) -> BTreeMap<Counter, u64> {
    let counters = Counter::ALL.iter().copied().zip(*counters);
    counters.filter(|(_, count)| *count > 0).collect()
}
