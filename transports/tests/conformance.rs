//! Every transport of this crate passes the one suite.
#![cfg(feature = "testing")]
// Test code, also where it is not in a test function.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use dunlin_transports::conformance::{Harness, Pair};
use dunlin_transports::memory::MemoryMap;

mod in_memory {
    use dunlin_transports::inmemory::{Faults, pair};

    use super::*;

    struct InMemory;

    impl Harness for InMemory {
        fn name(&self) -> String {
            "in-memory".to_owned()
        }

        fn pair(&self, source: MemoryMap, destination: MemoryMap) -> Pair {
            let faults = Faults::new();
            // Small, so that a put blocks soon.
            faults.set_queue_bytes_max(8 << 20);
            let (source, destination) = pair(source, destination, faults);
            Pair {
                source: Box::new(source),
                destination: Box::new(destination),
                keep: Box::new(()),
            }
        }
    }

    dunlin_transports::conformance_tests!(InMemory);
}

#[cfg(feature = "tcp")]
mod tcp;
