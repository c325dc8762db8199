//! What one end measured, once its recorders are merged; and what a whole move measured, with both
//! ends on one clock. Serialised, this is the part of the JSON report that it fills: durations end
//! in `_ns`, sizes in `_bytes`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::clock_offset::ClockRelation;
use super::declaration::End;
use super::timeline::{Span, Timeline};
use super::{Counter, Gauge, Operation};

/// How long something took each time, in a few numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// How often it was done; at least once where there is a summary at all.
    pub count: u64,
    /// All times together, exact.
    pub total_ns: u64,
    /// `total_ns` over `count`.
    pub mean_ns: u64,
    /// The shortest, exact.
    pub min_ns: u64,
    /// Half of them took no longer; this and the next ones to 3 significant digits.
    pub p50_ns: u64,
    /// 90 of 100 took no longer.
    pub p90_ns: u64,
    /// 99 of 100 took no longer.
    pub p99_ns: u64,
    /// 999 of 1,000 took no longer.
    pub p999_ns: u64,
    /// The longest, exact.
    pub max_ns: u64,
}

impl Summary {
    /// Whether the numbers can be true of any durations at all.
    pub fn is_possible(&self) -> bool {
        let order = [
            self.min_ns,
            self.p50_ns,
            self.p90_ns,
            self.p99_ns,
            self.p999_ns,
            self.max_ns,
        ];
        self.count > 0
            && order.is_sorted()
            && self.total_ns >= self.max_ns
            && self.total_ns <= self.max_ns.saturating_mul(self.count)
            && self.mean_ns == self.total_ns / self.count
    }
}

/// How many durations fell into one bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// The bucket's end: its durations are shorter than this, and no shorter than the end of the
    /// bucket before it ([`bucket_bounds`](super::buckets::bucket_bounds)).
    pub below_ns: u64,
    /// How many.
    pub count: u64,
}

/// One operation, on all threads of one end together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationMeasurement {
    /// Which.
    pub name: Operation,
    /// In a few numbers.
    #[serde(flatten)]
    pub summary: Summary,
    /// The buckets that are not empty, in order.
    pub buckets: Vec<Bucket>,
}

/// One operation on one lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationSummary {
    /// Which.
    pub name: Operation,
    /// In a few numbers.
    #[serde(flatten)]
    pub summary: Summary,
}

/// What one lane's thread measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneMeasurements {
    /// Which lane.
    pub lane: u16,
    /// What it did, in the order of the declarations.
    pub operations: Vec<OperationSummary>,
    /// What it counted.
    pub counters: BTreeMap<Counter, u64>,
}

/// What one end measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measurements {
    /// Each operation that was done at all, in the order of the declarations.
    pub operations: Vec<OperationMeasurement>,
    /// What all threads counted, added up.
    pub counters: BTreeMap<Counter, u64>,
    /// What was last so.
    pub gauges: BTreeMap<Gauge, u64>,
    /// Each lane by itself, in lane order.
    pub lanes: Vec<LaneMeasurements>,
    /// How often something was recorded where it is not declared to be: a mistake in the engine.
    pub misplaced: u64,
}

impl Measurements {
    /// One operation, if it was done at all.
    pub fn operation(&self, name: Operation) -> Option<&OperationMeasurement> {
        self.operations.iter().find(|found| found.name == name)
    }
}

/// What one end recorded, on its own clock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recording {
    /// Histograms and amounts.
    pub measurements: Measurements,
    /// Its spans, by their begin.
    pub spans: Vec<Span>,
    /// How many spans there was no room for; the oldest go first.
    pub dropped_spans: u64,
}

/// What both ends of a move recorded, on the source's clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveTelemetry {
    /// The source's.
    pub source: Measurements,
    /// The destination's; absent where it told nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<Measurements>,
    /// How the two clocks stand to each other; absent where that was not measured, and then the
    /// timeline has no spans of the destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<ClockRelation>,
    /// The spans of both.
    pub timeline: Timeline,
}

impl MoveTelemetry {
    /// Puts both ends together.
    pub fn new(
        source: Recording,
        destination: Option<Recording>,
        clock: Option<ClockRelation>,
    ) -> Self {
        let timeline = Timeline::new(&source, destination.as_ref(), clock);
        let mut source = source.measurements;
        if let Some(clock) = clock {
            source.gauges.insert(Gauge::ClockError, clock.error_ns);
        }
        Self {
            source,
            destination: destination.map(|recording| recording.measurements),
            clock,
            timeline,
        }
    }

    /// Each end that told something, with what it told.
    pub fn ends(&self) -> impl Iterator<Item = (End, &Measurements)> {
        let destination = self.destination.iter();
        std::iter::once((End::Source, &self.source))
            .chain(destination.map(|measurements| (End::Destination, measurements)))
    }
}
