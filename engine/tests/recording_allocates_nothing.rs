//! A recorder allocates when it is made, and never while it records: not at the first recording,
//! not for a duration past its range, not when its spans are full.

#![cfg(feature = "telemetry")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use dunlin_engine::telemetry::{Counter, End, Gauge, Operation, Recorder, SpanName, Track};

thread_local! {
    /// Allocations of this thread: the test's runner has threads of its own.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, and a count.
struct Counting;

// SAFETY: every call goes on to the system's allocator as it came. Counting neither allocates (the
// cell is made at compile time and has no destructor) nor panics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, bytes) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn recording_allocates_nothing() {
    for (end, track) in [
        (End::Source, Track::Control),
        (End::Source, Track::Lane(0)),
        (End::Destination, Track::Control),
        (End::Destination, Track::Lane(63)),
        (End::Destination, Track::Registrar(0)),
    ] {
        let before_making = ALLOCATIONS.get();
        let mut recorder = Recorder::new(end, track);
        let before = ALLOCATIONS.get();
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
        assert_eq!(ALLOCATIONS.get() - before, 0, "{end:?}, {track}");
    }
}
