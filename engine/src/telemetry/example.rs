//! A move in which everything that is declared was measured, for tests of what others read.

use std::collections::BTreeMap;

use super::buckets::{bucket_bounds, bucket_of};
use super::measurements::{
    Bucket, LaneMeasurements, Measurements, MoveTelemetry, OperationMeasurement, OperationSummary,
    Recording, Summary,
};
use super::timeline::Span;
use super::{ClockRelation, Counter, End, Gauge, Operation, SpanName, Track};
use crate::clock::Timestamp;

/// The durations of which every operation of the example consists.
pub const DURATIONS_NS: [u64; 6] = [90, 255, 256, 1_000, 40_000, 2_500_000];

/// What a thread of that end can measure, all of it, in numbers that differ.
pub fn recording(end: End, lanes: u16) -> Recording {
    let summary = Summary {
        count: 6,
        total_ns: DURATIONS_NS.iter().sum(),
        mean_ns: DURATIONS_NS.iter().sum::<u64>() / 6,
        min_ns: 90,
        p50_ns: 256,
        p90_ns: 2_500_000,
        p99_ns: 2_500_000,
        p999_ns: 2_500_000,
        max_ns: 2_500_000,
    };
    let mut buckets: BTreeMap<u64, u64> = BTreeMap::new();
    for duration_ns in DURATIONS_NS {
        let (_, below_ns) = bucket_bounds(bucket_of(duration_ns));
        *buckets.entry(below_ns).or_default() += 1;
    }
    let buckets: Vec<_> = buckets
        .into_iter()
        .map(|(below_ns, count)| Bucket { below_ns, count })
        .collect();
    let lane_operations = Operation::ALL.iter().filter(|name| {
        let declaration = name.declaration();
        declaration.is_measured_by(end, super::TrackKind::Lane)
    });
    let lane_counters: Vec<_> = Counter::ALL
        .iter()
        .filter(|name| {
            let declaration = name.declaration();
            declaration.is_measured_by(end, super::TrackKind::Lane)
        })
        .collect();
    let lane = |lane: u16| LaneMeasurements {
        lane,
        operations: lane_operations
            .clone()
            .map(|name| OperationSummary {
                name: *name,
                summary,
            })
            .collect(),
        counters: lane_counters
            .iter()
            .map(|name| (**name, 1000 + u64::from(lane)))
            .collect(),
    };
    let here = |sides: super::Sides| sides.holds(end);
    let mut begin = 5_000_000;
    let mut spans = Vec::new();
    for name in SpanName::ALL {
        let declaration = name.declaration();
        if !here(declaration.sides) {
            continue;
        }
        for kind in declaration.tracks {
            let track = Track::new(*kind, 1);
            let end = begin + 1_001;
            spans.push(Span {
                name: *name,
                track,
                begin: Timestamp(begin),
                end: Timestamp(end),
            });
            begin = end;
        }
    }
    Recording {
        measurements: Measurements {
            operations: Operation::ALL
                .iter()
                .filter(|name| here(name.declaration().sides))
                .map(|name| OperationMeasurement {
                    name: *name,
                    summary,
                    buckets: buckets.clone(),
                })
                .collect(),
            counters: Counter::ALL
                .iter()
                .filter(|name| here(name.declaration().sides))
                .map(|name| (*name, 1_000_000 + u64::from(name.declaration().number)))
                .collect(),
            gauges: Gauge::ALL
                .iter()
                .filter(|name| here(name.declaration().sides))
                .map(|name| (*name, 2_000_000_500 + u64::from(name.declaration().number)))
                .collect(),
            lanes: (0..lanes).map(lane).collect(),
            misplaced: 3,
        },
        spans,
        dropped_spans: 7,
    }
}

/// A whole move in which everything that is declared was measured.
pub fn whole_move() -> MoveTelemetry {
    let clock = ClockRelation {
        offset_ns: -1_000,
        error_ns: 25_000,
        is_same_clock: false,
    };
    let source = recording(End::Source, 2);
    MoveTelemetry::new(source, Some(recording(End::Destination, 2)), Some(clock))
}
