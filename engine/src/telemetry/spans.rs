//! Every span that the timeline can hold: the parts of the blackout, and the other phases of a
//! move.

use super::declaration::declare;

declare! {
    /// What a span of the timeline is called.
    pub enum SpanName;

    /// From the first vCPU parked to the last, and devices quiet.
    Park = 1, "park": BlackoutPart, Nanoseconds, Source, [Control];
    /// Collecting what was written last.
    Collect = 2, "collect": BlackoutPart, Nanoseconds, Source, [Control];
    /// Scanning and sending what was written last, on all lanes.
    FinalRound = 3, "final-round": BlackoutPart, Nanoseconds, Source, [Control];
    /// Saving the state of vCPUs and devices.
    SaveState = 4, "save-state": BlackoutPart, Nanoseconds, Source, [Control];
    /// Collecting what saving wrote.
    CollectAgain = 5, "collect-again": BlackoutPart, Nanoseconds, Source, [Control];
    /// Waiting for the lanes' fences, where saving wrote memory and one more round follows.
    Fence = 6, "fence": BlackoutPart, Nanoseconds, Source, [Control];
    /// Digesting all memory; only where it is compared inside the handover.
    Digests = 7, "digests": BlackoutPart, Nanoseconds, Both, [Control];
    /// Encoding and sending PREPARE.
    SendPrepare = 8, "send-prepare": BlackoutPart, Nanoseconds, Source, [Control];
    /// From sending PREPARE until the destination had it, whole.
    PrepareOnLink = 9, "prepare-on-link": BlackoutPart, Nanoseconds, Link, [Link];
    /// Until every lane's last fence was seen.
    Fences = 10, "fences": BlackoutPart, Nanoseconds, Destination, [Control];
    /// Loading the state of vCPUs and devices.
    LoadState = 11, "load-state": BlackoutPart, Nanoseconds, Destination, [Control];
    /// Acquiring what the guest holds outside of its host.
    Acquire = 12, "acquire": BlackoutPart, Nanoseconds, Destination, [Control];
    /// Ending the lanes' access to guest memory.
    RevokeAccess = 13, "revoke-access": BlackoutPart, Nanoseconds, Destination, [Control];
    /// READY's way back.
    ReadyOnLink = 14, "ready-on-link": BlackoutPart, Nanoseconds, Link, [Link];
    /// The give-up's entry in the record.
    RecordGiveUp = 15, "record-give-up": BlackoutPart, Nanoseconds, Source, [Control];
    /// Sending COMMIT.
    Commit = 16, "commit": BlackoutPart, Nanoseconds, Source, [Control];
    /// COMMIT's way.
    CommitOnLink = 17, "commit-on-link": BlackoutPart, Nanoseconds, Link, [Link];
    /// The ownership's entry in the record.
    RecordOwnership = 18, "record-ownership": BlackoutPart, Nanoseconds, Destination, [Control];
    /// Until the last vCPU was entered; on the source, when the guest stayed.
    Resume = 19, "resume": BlackoutPart, Nanoseconds, Both, [Control];
    /// From COMMIT to the loss of the connection; only when the owner was not known for a time.
    Committed = 20, "committed": BlackoutPart, Nanoseconds, Source, [Control];
    /// From the loss of the connection until the owner was settled.
    InDoubt = 21, "in-doubt": BlackoutPart, Nanoseconds, Source, [Control];
    /// How long the slowest lane waited for memory to be registered in the final round.
    AwaitRegistration = 22, "registration": BlackoutPart, Nanoseconds, Source, [Control];
    /// Sharing out among the lanes what was written last.
    ShareOut = 23, "share-out": BlackoutPart, Nanoseconds, Source, [Control];

    /// From HELLO until WELCOME came.
    Connect = 32, "connect": Phase, Nanoseconds, Source, [Control];
    /// From WELCOME until the lanes are open and writes are tracked.
    Open = 33, "open": Phase, Nanoseconds, Source, [Control];
    /// One pre-copy round, with its fence on every lane.
    Round = 34, "round": Phase, Nanoseconds, Source, [Control];
    /// Collecting after a round, and deciding whether to go on.
    Judge = 35, "judge": Phase, Nanoseconds, Source, [Control];
    /// From the order to pause until the guest runs again, on either side, as far as this side knows.
    Handover = 36, "handover": Phase, Nanoseconds, Both, [Control];
    /// Comparing memory once the guest runs.
    Verify = 37, "verify": Phase, Nanoseconds, Both, [Control];
    /// From VERIFIED until this side was done with the guest: told, lanes closed, what it held outside
    /// released.
    Release = 38, "release": Phase, Nanoseconds, Source, [Control];
    /// Making a guest with its memory.
    MakeRoom = 39, "make-room": Phase, Nanoseconds, Destination, [Control];
    /// Preparing all of a guest's memory for the lanes.
    PrepareMemory = 40, "prepare-memory": Phase, Nanoseconds, Destination, [Control];
    /// From WELCOME until PREPARE came.
    ReceiveRounds = 41, "receive-rounds": Phase, Nanoseconds, Destination, [Control];
    /// A lane's share of one round.
    LaneRound = 48, "lane-round": Phase, Nanoseconds, Source, [Lane];
    /// A lane's fence, from sending it until the destination's word that it saw it.
    LaneFence = 49, "lane-fence": Phase, Nanoseconds, Source, [Lane];
    /// A lane's receiving, from one fence to the next.
    LaneReceive = 50, "lane-receive": Phase, Nanoseconds, Destination, [Lane];
    /// Registering memory, one piece.
    Register = 51, "register": Phase, Nanoseconds, Both, [Registrar];
    /// Having fresh memory backed ahead of the lanes, from the first piece to the last.
    Prefault = 52, "prefault": Phase, Nanoseconds, Destination, [Registrar];
    /// From the order to pause, on which all are kicked, until this vCPU was parked.
    VcpuKick = 56, "vcpu-kick": Phase, Nanoseconds, Source, [Vcpu];
    /// From this vCPU parked until the guest was somebody else's, or it ran here again.
    VcpuParked = 57, "vcpu-parked": Phase, Nanoseconds, Source, [Vcpu];
    /// From the order to run until this vCPU was entered.
    VcpuEnter = 58, "vcpu-enter": Phase, Nanoseconds, Destination, [Vcpu];
}
