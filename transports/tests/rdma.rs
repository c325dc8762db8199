//! RDMA passes the suite, and holds against peers and devices that fail.
//!
//! These tests need an RDMA device with an IP address that reaches itself, or two that reach each
//! other, named by the addresses in `RDMA_IPV4_A` and `RDMA_IPV4_B` (`RDMA_IPV6_…`). A machine with
//! software devices (rxe) will do. Without a device each test says so.
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
        poll: PollMode::Event,
        ..Fabric::default()
    });
}

mod ipv6 {
    use super::fabric::Fabric;

    dunlin_transports::conformance_tests!(Fabric {
        is_ipv6: true,
        ..Fabric::default()
    });
}
