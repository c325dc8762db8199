//! The counters of the machine's RDMA devices and its wire.

use dunlin_bench::host::{self, number_in};

/// The end of the wire at which the destination is.
pub(crate) const DESTINATION_DEVICE: &str = "v1";

/// Bytes that came to the destination's end of the wire, of whatever protocol.
pub(crate) fn arrived_bytes() -> u64 {
    host::arrived_bytes(DESTINATION_DEVICE)
}

/// How often the RDMA devices sent again what was not acknowledged in time.
pub(crate) fn retries() -> u64 {
    ["rxe0", "rxe1"]
        .iter()
        .map(|device| {
            format!("/sys/class/infiniband/{device}/ports/1/hw_counters/completer_retry_err")
        })
        .map(|path| number_in(&path))
        .sum()
}
