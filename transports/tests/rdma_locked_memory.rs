//! The limit for locked memory is in the way.
//!
//! The limit is the whole process's, so this is on its own.
#![cfg(all(feature = "rdma", feature = "testing"))]
// Test code, also where it is not in a test function.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use dunlin_transports::lane::{DestinationEndpoint as _, SourceEndpoint as _};
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

/// Root may lock what it likes; this thread gives that up.
fn obey_limits() {
    let mut sets = capabilities(None).unwrap();
    sets.effective.remove(CapabilitySet::IPC_LOCK);
    sets.permitted.remove(CapabilitySet::IPC_LOCK);
    sets.inheritable.remove(CapabilitySet::IPC_LOCK);
    set_capabilities(None, sets).unwrap();
}

fn assert_names_limit(error: &str) {
    for word in [
        "2097152 bytes (RLIMIT_MEMLOCK)",
        "ulimit -l unlimited",
        "LimitMEMLOCK=infinity",
    ] {
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn a_registration_beyond_the_limit_names_it_and_harms_nothing() {
    let Some(ends) = Ends::here() else { return };
    // Root may raise the limit, to go on with later.
    let any = Rlimit {
        current: None,
        maximum: None,
    };
    let _ = setrlimit(Resource::Memlock, any);
    obey_limits();
    let before = getrlimit(Resource::Memlock);
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
