//! Every operation that has a histogram.

use super::declaration::declare;

declare! {
    /// Something done many times in a move, whose durations go into a histogram.
    pub enum Operation;

    /// Collecting what one dirty source reports.
    Harvest = 1, "harvest": Operation, Nanoseconds, Source, [Control];
    /// Re-arming the tracking of one chunk's dirty pages, where collecting does not do so itself.
    Clear = 2, "clear": Operation, Nanoseconds, Source, [Lane];
    /// Asking which pages of one chunk were never touched.
    UntouchedProbe = 3, "untouched-probe": Operation, Nanoseconds, Source, [Lane];
    /// Looking through one chunk's dirty pages for pages of zeros.
    ZeroScan = 4, "zero-scan": Operation, Nanoseconds, Source, [Lane];
    /// Holding a lane back for the limit on bandwidth, before one chunk.
    Pacing = 5, "pacing": Operation, Nanoseconds, Source, [Lane];
    /// Registering one piece of memory with the device.
    Registration = 6, "registration": Operation, Nanoseconds, Both, [Registrar];
    /// Ending the registration of one piece of memory, to make room for others; what is registered in
    /// the end goes with the lanes, behind the move.
    Deregistration = 7, "deregistration": Operation, Nanoseconds, Both, [Registrar];
    /// One put of guest bytes, from posting it to its completion; at most 4 KiB.
    Put4KiB = 8, "put-4kib" ("put", "4KiB"): Operation, Nanoseconds, Source, [Lane];
    /// One put of guest bytes, from posting it to its completion; more than 4 KiB, at most 64 KiB.
    Put64KiB = 9, "put-64kib" ("put", "64KiB"): Operation, Nanoseconds, Source, [Lane];
    /// One put of guest bytes, from posting it to its completion; more than 64 KiB, at most 1 MiB.
    Put1MiB = 10, "put-1mib" ("put", "1MiB"): Operation, Nanoseconds, Source, [Lane];
    /// One put of guest bytes, from posting it to its completion; more than 1 MiB.
    PutMore = 11, "put-more" ("put", "more"): Operation, Nanoseconds, Source, [Lane];
    /// One put of pages of zeros, from posting it until the call returns.
    PutZero = 12, "put-zero": Operation, Nanoseconds, Source, [Lane];
    /// One operation of io_uring, from submitting it until its completion was seen.
    Submission = 13, "submission": Operation, Nanoseconds, Both, [Lane];
    /// One fence, from sending it until the destination's word that it saw it.
    Fence = 14, "fence": Operation, Nanoseconds, Source, [Lane];
    /// Taking one batch off a lane and into guest memory, waiting for its bytes included; over RDMA
    /// the device does that by itself, and nobody can time it.
    Receive = 15, "receive": Operation, Nanoseconds, Destination, [Lane];
    /// Parking one vCPU, from the order to pause, on which all are kicked, until it was parked.
    Kick = 16, "kick": Operation, Nanoseconds, Source, [Control];
    /// Saving the state of vCPUs and devices.
    SaveState = 17, "save-state": Operation, Nanoseconds, Source, [Control];
    /// Encoding PREPARE with the device state and handing it to the connection.
    SendState = 18, "send-state": Operation, Nanoseconds, Source, [Control];
    /// Decoding the device state and loading it into vCPUs and devices.
    LoadState = 19, "load-state": Operation, Nanoseconds, Destination, [Control];
    /// Writing one entry of the handover's record.
    CommitRecord = 20, "commit-record": Operation, Nanoseconds, Both, [Control];
    /// Entering the guest's vCPUs, from the order until the last of them ran.
    Resume = 21, "resume": Operation, Nanoseconds, Both, [Control];
    /// Ending the lanes' access to guest memory.
    RevokeAccess = 22, "revoke-access": Operation, Nanoseconds, Destination, [Control];
    /// Acquiring or releasing what the guest holds outside of its host.
    Outside = 23, "outside": Operation, Nanoseconds, Both, [Control];
    /// One PING on the control connection, from sending it until its PONG came.
    ControlRoundTrip = 24, "control-round-trip": Operation, Nanoseconds, Both, [Control];
    /// Digesting all of memory; only where it is compared inside the handover.
    Digest = 25, "digest": Operation, Nanoseconds, Both, [Control];
    /// Having one piece of fresh memory backed ahead of the lanes, at most 2 MiB.
    Prefault = 26, "prefault": Operation, Nanoseconds, Destination, [Registrar];
}

impl Operation {
    /// The put of so many guest bytes.
    #[inline]
    pub fn put(bytes: u64) -> Self {
        match bytes {
            0..=0x1000 => Self::Put4KiB,
            0x1001..=0x1_0000 => Self::Put64KiB,
            0x1_0001..=0x10_0000 => Self::Put1MiB,
            _ => Self::PutMore,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_put_counts_for_the_smallest_class_that_holds_it() {
        for (bytes, expected) in [
            (0, Operation::Put4KiB),
            (4096, Operation::Put4KiB),
            (4097, Operation::Put64KiB),
            (64 << 10, Operation::Put64KiB),
            ((64 << 10) + 1, Operation::Put1MiB),
            (1 << 20, Operation::Put1MiB),
            ((1 << 20) + 1, Operation::PutMore),
            (u64::MAX, Operation::PutMore),
        ] {
            assert_eq!(Operation::put(bytes), expected, "{bytes} bytes");
        }
    }
}
