//! Every transport of this crate passes the one suite.
#![cfg(feature = "testing")]
// Test code, also where it is not in a test function.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use dunlin_transports::conformance::{Harness, Pair};
use dunlin_transports::memory::MemoryMap;

mod in_memory {
    use dunlin_transports::inmemory::{Faults, pair};

    use super::*;

    /// With registrations, as RDMA has them, or without.
    struct InMemory {
        has_registrations: bool,
    }

    impl Harness for InMemory {
        fn name(&self) -> String {
            format!("in-memory, registrations: {}", self.has_registrations)
        }

        fn pair(&self, source: MemoryMap, destination: MemoryMap) -> Pair {
            let faults = Faults::new();
            // Small, so that a put blocks soon.
            faults.set_queue_bytes_max(8 << 20);
            if self.has_registrations {
                faults.register_memory();
            }
            let (source, destination) = pair(source, destination, faults);
            Pair {
                source: Box::new(source),
                destination: Box::new(destination),
                keep: Box::new(()),
            }
        }
    }

    mod without_registrations {
        use super::InMemory;

        dunlin_transports::conformance_tests!(InMemory {
            has_registrations: false
        });
    }

    mod with_registrations {
        use super::InMemory;

        dunlin_transports::conformance_tests!(InMemory {
            has_registrations: true
        });
    }
}

#[cfg(feature = "tcp")]
mod tcp;
