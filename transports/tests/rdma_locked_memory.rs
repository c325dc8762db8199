//! The limit for locked memory is in the way.
//!
//! The limit is the whole process's, so this is on its own, and one test at a time.
#![cfg(all(feature = "rdma", feature = "testing"))]
// Test code, also where it is not in a test function.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Barrier;

use dunlin_transports::conformance::Pinned;
use dunlin_transports::lane::{DestinationEndpoint as _, SourceEndpoint as _};
use dunlin_transports::memory::PAGE_BYTES;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

mod fabric;

use fabric::{Ends, PATIENCE, destination, memory, run, soon, source, ticket};

/// Enough for the first ranges, and a lane at each end.
const LIMIT_BYTES: u64 = 2 << 20;

fn set_limit(current: Option<u64>) {
    let maximum = getrlimit(Resource::Memlock).maximum;
    setrlimit(Resource::Memlock, Rlimit { current, maximum }).unwrap();
}

/// Root may lock what it likes; this thread gives that up. It raises the limit before, to go on with
/// later.
fn obey_limits() -> Rlimit {
    let any = Rlimit {
        current: None,
        maximum: None,
    };
    let _ = setrlimit(Resource::Memlock, any);
    let mut sets = capabilities(None).unwrap();
    sets.effective.remove(CapabilitySet::IPC_LOCK);
    sets.permitted.remove(CapabilitySet::IPC_LOCK);
    sets.inheritable.remove(CapabilitySet::IPC_LOCK);
    set_capabilities(None, sets).unwrap();
    getrlimit(Resource::Memlock)
}

fn assert_names_limit(error: &str) {
    for word in [
        &format!("{LIMIT_BYTES} bytes (RLIMIT_MEMLOCK)"),
        "ulimit -l unlimited",
        "LimitMEMLOCK=infinity",
    ] {
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn a_registration_beyond_the_limit_names_it_and_harms_nothing() {
    let _pinned = Pinned::watch();
    let Some(ends) = Ends::here() else { return };
    let before = obey_limits();
    set_limit(Some(LIMIT_BYTES));
    let (from, to) = (memory(4096), memory(4096));
    let (destination, source) = (destination(&ends, to.clone()), source(&ends, from.clone()));
    source.accept_contact(&destination.contact()).unwrap();
    let (mut lane, mut other) = std::thread::scope(|scope| {
        let accepting = scope.spawn(|| destination.accept_lane(&[ticket()], soon()).unwrap());
        let lane = source.open_lane(&ticket(), soon()).unwrap();
        (lane, accepting.join().unwrap())
    });
    destination
        .confirm(lane.number(), &lane.identity())
        .unwrap();

    // Half way through the ranges.
    let first = destination.prepare(run(0, 64)).unwrap();
    let error = destination.prepare(run(64, 4032)).unwrap_err();
    assert_names_limit(&error.to_string());
    assert_eq!(destination.registrations().bytes, 64 << 12);
    source.accept_grants(&[first]).unwrap();
    let error = source.prepare(run(0, 4096)).unwrap_err();
    assert_names_limit(&error.to_string());
    assert_eq!(source.registrations().bytes, 0);

    // With a higher limit both go on where they were.
    set_limit(before.maximum);
    if before.maximum.is_some_and(|bytes| bytes < 64 << 20) {
        println!("skipped: the limit can't be raised far enough to go on");
        return;
    }
    source.prepare(run(0, 4096)).unwrap();
    let second = destination.prepare(run(64, 4032)).unwrap();
    source.accept_grants(&[second]).unwrap();
    lane.put(&[run(0, 4096)]).unwrap();
    let fence = lane.fence().unwrap();
    other.next_fence(soon()).unwrap();
    lane.wait_fence(fence, PATIENCE).unwrap();
    let (mut sent, mut arrived) = (vec![0; 4096 << 12], vec![0; 4096 << 12]);
    from.copy_out(run(0, 4096), &mut sent).unwrap();
    to.copy_out(run(0, 4096), &mut arrived).unwrap();
    assert!(sent == arrived);
}

#[test]
fn a_limit_lowered_while_ranges_are_prepared_gives_back_what_was_registered() {
    const THREADS: u64 = 3;
    const RANGE_PAGES: u32 = 32;
    /// What each thread prepares on both sides before the limit goes down: 12 MiB together.
    const RANGES_BEFORE: u64 = 16;
    const RANGES: u64 = 2 * RANGES_BEFORE;

    let pinned = Pinned::watch();
    let Some(ends) = Ends::here() else { return };
    let before = obey_limits();
    if before.maximum.is_some_and(|bytes| bytes < 64 << 20) {
        println!("skipped: the limit can't be raised far enough to be lowered");
        return;
    }
    set_limit(before.maximum);
    let pages = THREADS * RANGES * u64::from(RANGE_PAGES);
    let (destination, source) = (
        destination(&ends, memory(pages)),
        source(&ends, memory(pages)),
    );
    let at_first = pinned.more_bytes();
    let is_lowered = Barrier::new(THREADS as usize + 1);
    let (mut prepared, mut errors) = ([Vec::new(), Vec::new()], Vec::new());
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (source, destination, is_lowered) = (&source, &destination, &is_lowered);
                scope.spawn(move || {
                    let (mut prepared, mut errors) = ([Vec::new(), Vec::new()], Vec::new());
                    for index in 0..RANGES {
                        if index == RANGES_BEFORE {
                            // All are half way; the limit goes down.
                            is_lowered.wait();
                            is_lowered.wait();
                        }
                        let first = (thread * RANGES + index) * u64::from(RANGE_PAGES);
                        let range = run(first, RANGE_PAGES);
                        let results = [source.prepare(range), destination.prepare(range).map(drop)];
                        for (side, result) in prepared.iter_mut().zip(results) {
                            match result {
                                Ok(()) => side.push(range),
                                Err(error) => errors.push(error.to_string()),
                            }
                        }
                    }
                    (prepared, errors)
                })
            })
            .collect();
        is_lowered.wait();
        set_limit(Some(LIMIT_BYTES));
        is_lowered.wait();
        for thread in threads {
            let (ranges, refused) = thread.join().unwrap();
            for (side, ranges) in prepared.iter_mut().zip(ranges) {
                side.extend(ranges);
            }
            errors.extend(refused);
        }
    });
    assert_eq!(errors.len() as u64, THREADS * RANGES_BEFORE * 2);
    errors.iter().for_each(|error| assert_names_limit(error));
    let [of_source, of_destination] = prepared;
    let bytes = THREADS * RANGES_BEFORE * u64::from(RANGE_PAGES) * PAGE_BYTES;
    for counts in [source.registrations(), destination.registrations()] {
        assert_eq!((counts.bytes, counts.bytes_max), (bytes, bytes));
    }
    assert_eq!(pinned.more_bytes(), at_first + 2 * bytes);
    of_source
        .iter()
        .for_each(|range| source.retire(*range).unwrap());
    of_destination
        .iter()
        .for_each(|range| destination.retire(*range).unwrap());
    assert_eq!(pinned.more_bytes(), at_first);
    // What was given back can be had again, below the limit.
    source.prepare(run(0, RANGE_PAGES)).unwrap();
    set_limit(before.maximum);
}
