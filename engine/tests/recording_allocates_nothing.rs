//! A recorder allocates when it is made, and never while it records: not at the first recording,
//! not for a duration past its range, not when its spans are full.

#![cfg(feature = "telemetry")]

mod counting;

use std::time::Duration;

use dunlin_engine::telemetry::{Counter, End, Gauge, Operation, Recorder, SpanName, Track};

use counting::ALLOCATED;

#[test]
fn recording_allocates_nothing() {
    for (end, track) in [
        (End::Source, Track::Control),
        (End::Source, Track::Lane(0)),
        (End::Destination, Track::Control),
        (End::Destination, Track::Lane(63)),
        (End::Destination, Track::Registrar(0)),
    ] {
        let before_making = ALLOCATED.get().calls;
        let mut recorder = Recorder::new(end, track);
        let before = ALLOCATED.get().calls;
        assert!(before > before_making, "the count does not count");
        for operation in Operation::ALL {
            for exponent in 0..64 {
                recorder.took(*operation, Duration::from_nanos(1 << exponent));
            }
            let begun = recorder.now();
            recorder.done(*operation, begun);
            recorder.time(*operation, || ());
        }
        for counter in Counter::ALL {
            recorder.count(*counter, u64::MAX);
            recorder.counted(*counter, 1);
        }
        for gauge in Gauge::ALL {
            recorder.set(*gauge, 1);
        }
        for _ in 0..10_000 {
            let now = recorder.now();
            for name in SpanName::ALL {
                recorder.span(*name, now, now);
                recorder.span_of(Track::Vcpu(1), *name, now, now);
            }
        }
        assert_eq!(ALLOCATED.get().calls - before, 0, "{end:?}, {track}");
    }
}
