//! Every counter and every gauge. A name gets its unit behind it where it is told.

use super::declaration::declare;

declare! {
    /// An amount that only grows in a move.
    pub enum Counter;

    /// Guest bytes put on the lanes, or taken off them, without framing.
    Payload = 1, "payload": Counter, Bytes, Both, [Lane];
    /// All bytes on the lanes that the transport accounts for, with framing.
    Wire = 2, "wire": Counter, Bytes, Both, [Lane];
    /// Runs put on the lanes, or taken off them.
    Runs = 3, "runs": Counter, Count, Both, [Lane];
    /// Dirty pages found to be zero.
    Zero = 4, "zero": Counter, Pages, Source, [Lane];
    /// Pages put as zero.
    PutZero = 16, "put-zero": Counter, Pages, Both, [Lane];
    /// Zero pages that needed no word to the destination.
    Skipped = 5, "skipped": Counter, Pages, Source, [Lane];
    /// Chunks with dirty pages.
    Chunks = 6, "chunks": Counter, Count, Source, [Lane];
    /// System calls or entries into the kernel made to move data.
    Submissions = 7, "submissions": Counter, Count, Both, [Lane];
    /// Requests given to the RDMA device.
    WorkRequests = 8, "work-requests": Counter, Count, Both, [Lane];
    /// Times that the RDMA device was told of new requests.
    Doorbells = 9, "doorbells": Counter, Count, Both, [Lane];
    /// Completions taken from the RDMA device.
    Completions = 10, "completions": Counter, Count, Both, [Lane];
    /// Pages that were dirty when a round began, all rounds together.
    Dirty = 11, "dirty": Counter, Pages, Source, [Control];
    /// Rounds, the final one included.
    Rounds = 12, "rounds": Counter, Count, Source, [Control];
    /// Device state, encoded.
    State = 13, "state": Counter, Bytes, Both, [Control];
    /// Registrations that were made.
    RegistrationsMade = 14, "registrations-made": Counter, Count, Both, [Control];
    /// Registrations that were ended.
    RegistrationsEnded = 15, "registrations-ended": Counter, Count, Both, [Control];
}

declare! {
    /// An amount as it last was.
    pub enum Gauge;

    /// The guest's memory.
    GuestMemory = 1, "guest-memory": Gauge, Bytes, Both, [Control];
    /// The guest's vCPUs.
    Vcpus = 2, "vcpus": Gauge, Count, Both, [Control];
    /// Lanes that carry the move.
    Lanes = 3, "lanes": Gauge, Count, Both, [Control];
    /// Guest bytes sent a second, smoothed.
    Goodput = 4, "goodput": Gauge, BytesPerSecond, Source, [Control];
    /// Pages that the guest dirties a second.
    Dirtied = 5, "dirtied": Gauge, PagesPerSecond, Source, [Control];
    /// Dirty pages of the round that are not dealt with yet.
    Remaining = 6, "remaining": Gauge, Pages, Source, [Control];
    /// The blackout that is predicted.
    PredictedBlackout = 7, "predicted-blackout": Gauge, Nanoseconds, Source, [Control];
    /// The budget for the blackout.
    BlackoutBudget = 8, "blackout-budget": Gauge, Nanoseconds, Source, [Control];
    /// What the blackout never passes before the give-up.
    BlackoutCap = 9, "blackout-cap": Gauge, Nanoseconds, Source, [Control];
    /// The blackout, from the first source vCPU parked to the last destination vCPU running.
    Blackout = 10, "blackout": Gauge, Nanoseconds, Source, [Control];
    /// Bytes of guest memory registered with the device.
    Registered = 11, "registered": Gauge, Bytes, Both, [Control];
    /// How far the destination's times may be misplaced among the source's.
    ClockError = 12, "clock-error": Gauge, Nanoseconds, Source, [Control];
}
