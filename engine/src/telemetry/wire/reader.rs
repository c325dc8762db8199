//! What came over the wire, held against caps, against what is declared, and against itself.

use std::collections::BTreeMap;

use dunlin_transports::lane::LANES_MAX;

use super::{
    WireAmount, WireError, WireLane, WireOperation, WireRecording, WireSpan, WireSummary,
    impossible,
};
use crate::clock::Timestamp;
use crate::telemetry::buckets::{BUCKETS, bucket_bounds};
use crate::telemetry::declaration::{Declaration, End};
use crate::telemetry::measurements::{
    Bucket, LaneMeasurements, Measurements, OperationMeasurement, OperationSummary, Recording,
    Summary,
};
use crate::telemetry::timeline::Span;
use crate::telemetry::track::{Track, TrackKind};
use crate::telemetry::{Counter, Gauge, Operation, SpanName};

/// Reads what one end sent, and counts what is not known here.
pub(super) struct Reader {
    from: End,
    unknown: u64,
}

impl Reader {
    pub(super) fn new(from: End) -> Self {
        Self { from, unknown: 0 }
    }

    /// How many things were not known here so far.
    pub(super) fn unknown(&self) -> u64 {
        self.unknown
    }

    pub(super) fn recording(&mut self, wire: &WireRecording) -> Result<Recording, WireError> {
        let mut measurements = Measurements {
            counters: self.counters(&wire.counters, None)?,
            gauges: self.amounts(&wire.gauges, None, Gauge::from_number, Gauge::declaration)?,
            misplaced: wire.misplaced,
            ..Measurements::default()
        };
        for told in &wire.operations {
            if let Some(name) = self.operation(told.number, None)? {
                if measurements.operation(name).is_some() {
                    return Err(impossible("an operation twice", told.number.into()));
                }
                measurements.operations.push(OperationMeasurement {
                    name,
                    summary: told.summary.read()?,
                    buckets: told.buckets()?,
                });
            }
        }
        measurements.operations.sort_by_key(|told| told.name);
        for told in &wire.lanes {
            let lane = self.lane(told)?;
            let last = measurements.lanes.last();
            if last.is_some_and(|last| last.lane >= lane.lane) || lane.lane >= LANES_MAX {
                return Err(impossible("a lane out of order", lane.lane.into()));
            }
            measurements.lanes.push(lane);
        }
        Ok(Recording {
            measurements,
            spans: self.spans(&wire.spans)?,
            dropped_spans: wire.dropped_spans,
        })
    }

    /// What that number means, where it is known.
    fn known<K>(
        &mut self,
        number: u16,
        track: Option<TrackKind>,
        from_number: fn(u16) -> Option<K>,
        declaration: fn(K) -> &'static Declaration,
    ) -> Result<Option<K>, WireError>
    where
        K: Copy,
    {
        let Some(known) = from_number(number) else {
            self.unknown = self.unknown.saturating_add(1);
            return Ok(None);
        };
        let declaration = declaration(known);
        let is_measured = match track {
            Some(track) => declaration.is_measured_by(self.from, track),
            None => declaration.sides.holds(self.from),
        };
        if is_measured {
            Ok(Some(known))
        } else {
            Err(impossible("what is not measured there", number.into()))
        }
    }

    fn operation(
        &mut self,
        number: u16,
        track: Option<TrackKind>,
    ) -> Result<Option<Operation>, WireError> {
        self.known(
            number,
            track,
            Operation::from_number,
            Operation::declaration,
        )
    }

    fn amounts<K: Copy + Ord>(
        &mut self,
        wire: &[WireAmount],
        track: Option<TrackKind>,
        from_number: fn(u16) -> Option<K>,
        declaration: fn(K) -> &'static Declaration,
    ) -> Result<BTreeMap<K, u64>, WireError> {
        let mut amounts = BTreeMap::new();
        for told in wire {
            let known = self.known(told.number, track, from_number, declaration)?;
            if known.is_some_and(|known| amounts.insert(known, told.value).is_some()) {
                return Err(impossible("an amount twice", told.number.into()));
            }
        }
        Ok(amounts)
    }

    fn counters(
        &mut self,
        wire: &[WireAmount],
        track: Option<TrackKind>,
    ) -> Result<BTreeMap<Counter, u64>, WireError> {
        self.amounts(wire, track, Counter::from_number, Counter::declaration)
    }

    fn lane(&mut self, wire: &WireLane) -> Result<LaneMeasurements, WireError> {
        let track = Some(TrackKind::Lane);
        let mut operations: Vec<OperationSummary> = Vec::new();
        for told in &wire.operations {
            if let Some(name) = self.operation(told.number, track)? {
                if operations.iter().any(|found| found.name == name) {
                    return Err(impossible("an operation twice", told.number.into()));
                }
                let summary = told.summary.read()?;
                operations.push(OperationSummary { name, summary });
            }
        }
        Ok(LaneMeasurements {
            lane: wire.lane,
            operations,
            counters: self.counters(&wire.counters, track)?,
        })
    }

    fn spans(&mut self, wire: &[WireSpan]) -> Result<Vec<Span>, WireError> {
        let mut spans = Vec::with_capacity(wire.len());
        let mut begin = 0_u64;
        for told in wire {
            begin = begin
                .checked_add(told.later_ns)
                .ok_or(impossible("a span past all time", told.later_ns))?;
            let end = begin
                .checked_add(told.duration_ns)
                .ok_or(impossible("a span past all time", told.duration_ns))?;
            let Some(kind) = TrackKind::ALL.get(usize::from(told.track)).copied() else {
                self.unknown = self.unknown.saturating_add(1);
                continue;
            };
            let known = self.known(
                told.number,
                Some(kind),
                SpanName::from_number,
                SpanName::declaration,
            )?;
            if kind == TrackKind::Lane && told.index >= LANES_MAX {
                return Err(impossible("a lane that can't be", told.index.into()));
            }
            if let Some(name) = known {
                spans.push(Span {
                    name,
                    track: Track::new(kind, told.index),
                    begin: Timestamp(begin),
                    end: Timestamp(end),
                });
            }
        }
        Ok(spans)
    }
}

impl WireSummary {
    fn read(&self) -> Result<Summary, WireError> {
        let summary = Summary {
            count: self.count,
            total_ns: self.total_ns,
            mean_ns: self.total_ns.checked_div(self.count).unwrap_or(0),
            min_ns: self.min_ns,
            p50_ns: self.p50_ns,
            p90_ns: self.p90_ns,
            p99_ns: self.p99_ns,
            p999_ns: self.p999_ns,
            max_ns: self.max_ns,
        };
        match summary.is_possible() {
            true => Ok(summary),
            false => Err(impossible("a summary of no durations", self.count)),
        }
    }
}

impl WireOperation {
    fn buckets(&self) -> Result<Vec<Bucket>, WireError> {
        let (pairs, rest) = self.buckets.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(impossible("a list of buckets", self.buckets.len() as u64));
        }
        let mut buckets = Vec::with_capacity(pairs.len());
        let (mut next, mut all) = (0_u64, 0_u64);
        for [later, count] in pairs.iter().copied() {
            next = next.saturating_add(later);
            all = all.saturating_add(count);
            let place = next
                .checked_sub(1)
                .and_then(|place| u16::try_from(place).ok());
            let place = place.filter(|place| *place < BUCKETS && later > 0 && count > 0);
            let place = place.ok_or(impossible("a bucket", next))?;
            let (_, below_ns) = bucket_bounds(place);
            buckets.push(Bucket { below_ns, count });
        }
        // Fewer are possible: a histogram's counts stop at 2^32 − 1.
        if all > self.summary.count {
            return Err(impossible("more in its buckets than in all", all));
        }
        Ok(buckets)
    }
}
