//! What one end encodes the other one decodes; and nothing else gets through.

use minicbor::Encoder;
use proptest::prelude::*;

use super::*;
use crate::clock::Timestamp;
use crate::telemetry::buckets::{BUCKETS, bucket_bounds};
use crate::telemetry::example;
use crate::telemetry::measurements::{Bucket, Measurements, OperationSummary};
use crate::telemetry::timeline::Span;
use crate::telemetry::{Operation, SpanName, Track, TrackKind};

#[test]
fn both_ends_recordings_come_through() {
    for end in [End::Source, End::Destination] {
        let recording = example::recording(end, 3);
        let bytes = encode(&recording).unwrap();
        let received = decode(&bytes, end).unwrap();
        assert_eq!(
            received,
            Received {
                recording,
                unknown: 0
            }
        );
    }
    let empty = encode(&Recording::default()).unwrap();
    assert_eq!(
        decode(&empty, End::Source).unwrap().recording,
        Recording::default()
    );
}

/// A recording of a few things, as version 1 first wrote it: another version 1 reads and writes
/// the same bytes.
#[test]
fn the_first_form_stays_as_it_is() {
    let golden = "a8000101818313880219051419012c19012c1903e81903e81903e81903e88405010b010281820119\
        100003818202020481830181820f880219051419012c19012c1903e81903e81903e81903e8818201\
        191000058285183201011a000f42401901f4850b0000190258186406050700";
    let recording = small();
    let bytes = encode(&recording).unwrap();
    assert_eq!(bytes, bytes_of(golden), "{}", hexadecimal(&bytes));
    let received = decode(&bytes_of(golden), End::Destination);
    assert_eq!(
        received,
        Ok(Received {
            recording,
            unknown: 0
        })
    );
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn small() -> Recording {
    let summary = Summary {
        count: 2,
        total_ns: 1300,
        mean_ns: 650,
        min_ns: 300,
        p50_ns: 300,
        p90_ns: 1000,
        p99_ns: 1000,
        p999_ns: 1000,
        max_ns: 1000,
    };
    let bucket = |duration_ns| Bucket {
        below_ns: bucket_bounds(bucket_of(duration_ns)).1,
        count: 1,
    };
    let span = |name, track, begin, end| Span {
        name,
        track,
        begin: Timestamp(begin),
        end: Timestamp(end),
    };
    Recording {
        measurements: Measurements {
            operations: vec![OperationMeasurement {
                name: Operation::LoadState,
                summary,
                buckets: vec![bucket(300), bucket(1000)],
            }],
            counters: [(Counter::Payload, 4096)].into(),
            gauges: [(Gauge::Vcpus, 2)].into(),
            lanes: vec![LaneMeasurements {
                lane: 1,
                operations: vec![OperationSummary {
                    name: Operation::Receive,
                    summary,
                }],
                counters: [(Counter::Payload, 4096)].into(),
            }],
            misplaced: 0,
        },
        spans: vec![
            span(SpanName::LaneReceive, Track::Lane(1), 1_000_000, 1_000_500),
            span(SpanName::LoadState, Track::Control, 1_000_600, 1_000_700),
        ],
        dropped_spans: 5,
    }
}

fn bytes_of(hexadecimal: &str) -> Vec<u8> {
    let digits: Vec<_> = hexadecimal.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pairs = digits
        .chunks(2)
        .map(|pair| std::str::from_utf8(pair).unwrap());
    pairs
        .map(|pair| u8::from_str_radix(pair, 16).unwrap())
        .collect()
}

/// As much as a destination can measure, every number as long as it gets.
fn largest() -> Recording {
    let longest = Summary {
        count: u64::MAX,
        total_ns: u64::MAX,
        mean_ns: 1,
        min_ns: 1 << 40,
        p50_ns: 1 << 40,
        p90_ns: 1 << 40,
        p99_ns: 1 << 40,
        p999_ns: 1 << 40,
        max_ns: 1 << 40,
    };
    let mut recording = example::recording(End::Destination, 64);
    let measurements = &mut recording.measurements;
    for operation in &mut measurements.operations {
        operation.summary = longest;
        let bucket = |place| Bucket {
            below_ns: bucket_bounds(place).1,
            count: (1 << 32) + u64::from(place),
        };
        operation.buckets = (0..BUCKETS).map(bucket).collect();
    }
    for lane in &mut measurements.lanes {
        lane.operations
            .iter_mut()
            .for_each(|told| told.summary = longest);
        lane.counters
            .values_mut()
            .for_each(|count| *count = u64::MAX);
    }
    // The longest number of all that fit.
    let mut names = SpanName::ALL.iter().copied().filter(|name| {
        let declaration = name.declaration();
        declaration.is_measured_by(End::Destination, TrackKind::Vcpu)
    });
    let name = names.next_back().unwrap();
    let span = |number: u64| Span {
        name,
        track: Track::Vcpu(u16::MAX),
        begin: Timestamp(number << 33),
        end: Timestamp((number << 33) + (1 << 40)),
    };
    recording.spans = (1..=WIRE_SPANS_MAX as u64 + 100).map(span).collect();
    recording
}

#[test]
fn a_destination_always_fits_and_the_oldest_spans_are_left_out() {
    let recording = largest();
    let bytes = encode(&recording).unwrap();
    assert!(
        bytes.len() > 64 << 10,
        "{} bytes: that is not the largest",
        bytes.len()
    );
    let received = decode(&bytes, End::Destination).unwrap().recording;
    assert_eq!(received.measurements, recording.measurements);
    assert_eq!(received.spans, recording.spans[100..]);
    assert_eq!(received.dropped_spans, recording.dropped_spans + 100);
}

#[test]
fn what_is_too_long_is_neither_sent_nor_read() {
    let too_long = vec![0; WIRE_BYTES_MAX + 1];
    let expected = WireError::TooLong {
        bytes: WIRE_BYTES_MAX + 1,
    };
    assert_eq!(decode(&too_long, End::Destination), Err(expected));
}

#[test]
fn another_version_is_told_by_its_number() {
    let mut bytes = encode(&Recording::default()).unwrap();
    // A map of 8 fields, field 0: the version.
    assert_eq!(bytes[..3], [0xa8, 0, 1]);
    bytes[2] = 2;
    assert_eq!(
        decode(&bytes, End::Source),
        Err(WireError::Version { version: 2 })
    );
}

#[test]
fn what_a_newer_peer_adds_is_passed_over_and_counted() {
    let recording = example::recording(End::Destination, 1);
    let mut wire = wire_of(&recording);
    wire.operations[0].number = 999;
    wire.counters[0].number = 999;
    wire.lanes[0].operations[0].number = 999;
    wire.spans[0].number = 999;
    wire.spans[1].track = 99;
    let mut bytes = minicbor::to_vec(&wire).unwrap();
    // And a field that is not known here, behind the 8 that are.
    assert_eq!(bytes[0], 0xa8);
    bytes[0] = 0xa9;
    Encoder::new(&mut bytes)
        .u8(42)
        .unwrap()
        .str("more")
        .unwrap();
    let received = decode(&bytes, End::Destination).unwrap();
    assert_eq!(received.unknown, 5);
    let expected = recording.measurements.operations.len() - 1;
    assert_eq!(received.recording.measurements.operations.len(), expected);
    assert_eq!(received.recording.spans, recording.spans[2..]);
}

fn wire_of(recording: &Recording) -> WireRecording {
    minicbor::decode(&encode(recording).unwrap()).unwrap()
}

/// A name for what is spoilt, and the spoiling.
type Spoiling = (&'static str, fn(&mut WireRecording));

#[test]
fn what_cant_be_is_refused() {
    let spoilings: &[Spoiling] = &[
        ("an operation of the other end", |wire| {
            wire.operations[0].number = Operation::Clear.declaration().number;
        }),
        ("a session's operation on a lane", |wire| {
            wire.lanes[0].operations[0].number = Operation::LoadState.declaration().number;
        }),
        ("an operation twice", |wire| {
            wire.operations[1].number = wire.operations[0].number
        }),
        ("an operation twice on a lane", |wire| {
            let operations = &mut wire.lanes[0].operations;
            operations[1].number = operations[0].number;
        }),
        ("a counter of the other end", |wire| {
            wire.counters[0].number = Counter::Skipped.declaration().number;
        }),
        ("a counter twice", |wire| {
            wire.counters[1].number = wire.counters[0].number
        }),
        ("a gauge twice", |wire| {
            wire.gauges[1].number = wire.gauges[0].number
        }),
        ("no durations", |wire| wire.operations[0].summary.count = 0),
        ("a minimum past the rest", |wire| {
            wire.operations[0].summary.min_ns = u64::MAX
        }),
        ("half a bucket", |wire| wire.operations[0].buckets.push(1)),
        ("a bucket past the last", |wire| {
            wire.operations[0].buckets = vec![u64::from(BUCKETS) + 1, 1];
        }),
        ("a bucket far past the last", |wire| {
            wire.operations[0].buckets = vec![u64::MAX, 1]
        }),
        ("a bucket before the first", |wire| {
            wire.operations[0].buckets = vec![0, 1]
        }),
        ("a bucket twice", |wire| {
            wire.operations[0].buckets = vec![5, 1, 0, 1]
        }),
        ("a bucket with nothing in it", |wire| {
            wire.operations[0].buckets = vec![5, 0]
        }),
        ("more in the buckets than in all", |wire| {
            wire.operations[0].buckets = vec![5, u64::MAX, 1, u64::MAX];
        }),
        ("more buckets than there are", |wire| {
            wire.operations[0].buckets = vec![1; 2 * usize::from(BUCKETS) + 2];
        }),
        ("lanes out of order", |wire| wire.lanes.swap(0, 1)),
        ("a lane twice", |wire| {
            wire.lanes[1].lane = wire.lanes[0].lane
        }),
        ("a lane past the last", |wire| wire.lanes[1].lane = 64),
        ("more lanes than there may be", |wire| {
            wire.lanes = (0..65)
                .map(|lane| WireLane {
                    lane,
                    operations: Vec::new(),
                    counters: Vec::new(),
                })
                .collect();
        }),
        ("a span of the other end", |wire| {
            wire.spans[0].number = SpanName::Park.declaration().number;
        }),
        ("a lane's span on the session's track", |wire| {
            wire.spans[0].number = SpanName::LaneReceive.declaration().number;
        }),
        ("a span of a lane past the last", |wire| {
            wire.spans[0].number = SpanName::LaneReceive.declaration().number;
            wire.spans[0].track = TrackKind::Lane as u8;
            wire.spans[0].index = 64;
        }),
        ("a begin past all time", |wire| {
            wire.spans[1].later_ns = u64::MAX
        }),
        ("an end past all time", |wire| {
            wire.spans[1].duration_ns = u64::MAX
        }),
        ("more spans than are told", |wire| {
            wire.spans = (0..=WIRE_SPANS_MAX)
                .map(|_| WireSpan {
                    number: 10,
                    track: 0,
                    index: 0,
                    later_ns: 0,
                    duration_ns: 0,
                })
                .collect();
        }),
    ];
    let recording = example::recording(End::Destination, 2);
    for (what, spoil) in spoilings {
        let mut wire = wire_of(&recording);
        spoil(&mut wire);
        let decoded = decode(&minicbor::to_vec(&wire).unwrap(), End::Destination);
        let is_length = what.starts_with("more ") && !what.ends_with("in all");
        let is_refused = match &decoded {
            Err(WireError::Form(words)) => is_length && words.contains("are agreed"),
            Err(WireError::Impossible { .. }) => !is_length,
            _ => false,
        };
        assert!(is_refused, "{what}: {decoded:?}");
    }
    let mut longer = encode(&recording).unwrap();
    longer.push(0);
    assert!(
        decode(&longer, End::Destination).is_err(),
        "a byte behind its end"
    );
}

proptest! {
    /// A peer may send anything: what comes of it is an answer, whichever.
    #[test]
    fn any_bytes_get_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode(&bytes, End::Destination);
    }

    /// Bytes that are wrong in a few places get further.
    #[test]
    fn damaged_recordings_get_an_answer(
        damages in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = encode(&example::recording(End::Destination, 2)).unwrap();
        for (place, byte) in damages {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Ok(received) = decode(&bytes, End::Destination) {
            // What got through is within what is told of it.
            prop_assert!(received.recording.spans.len() <= WIRE_SPANS_MAX);
            prop_assert!(encode(&received.recording).is_ok());
        }
        bytes.truncate(cut.index(bytes.len()));
        prop_assert!(decode(&bytes, End::Destination).is_err());
    }
}
