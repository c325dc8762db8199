//! RDMA passes the suite, and holds against peers and devices that fail.
//!
//! These tests need an RDMA device with an IPv4 address, and two sessions on it that reach each
//! other; the machine of `make softroce` has one in software. Without a device each says so.
#![cfg(all(feature = "rdma", feature = "testing"))]
// Test code, also where it is not in a test function.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fabric;

mod conformance {
    use super::fabric::Fabric;

    dunlin_transports::conformance_tests!(Fabric::default());
}

mod event_driven {
    use dunlin_transports::rdma::PollMode;

    use super::fabric::Fabric;

    dunlin_transports::conformance_tests!(Fabric {
        poll: PollMode::Event
    });
}
