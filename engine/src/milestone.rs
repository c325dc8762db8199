//! Named points on the way of a move, on either side, for whoever watches or disturbs it.

macro_rules! milestones {
    ($($(#[$doc:meta])* $milestone:ident = $name:literal,)*) => {
        /// A point on the way of a move. Reaching one costs a call; some are inside the pause.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Milestone {
            $($(#[$doc])* $milestone,)*
        }

        impl Milestone {
            /// All of them: the source's, then the destination's, each in their order.
            pub const ALL: &[Self] = &[$(Self::$milestone,)*];

            /// Its name, as in commands.
            pub fn name(self) -> &'static str {
                match self { $(Self::$milestone => $name,)* }
            }
        }
    };
}

milestones! {
    /// Source: HELLO is about to be sent.
    Hello = "hello",
    /// Source: WELCOME came.
    Welcome = "welcome",
    /// Source: the lanes are open, writes are tracked.
    Opened = "opened",
    /// Source: a pre-copy round begins.
    Round = "round",
    /// Source: the guest is about to be paused.
    Pausing = "pausing",
    /// Source: the guest is paused, its last pages are about to be sent.
    Paused = "paused",
    /// Source: device state is saved.
    Saved = "saved",
    /// Source: PREPARE was sent.
    Prepared = "prepared",
    /// Source: READY came.
    Ready = "ready",
    /// Source: the give-up is recorded, COMMIT is not sent yet.
    GivenUp = "given-up",
    /// Source: COMMIT was sent.
    Committed = "committed",
    /// Source: RUNNING came.
    Running = "running",
    /// Source: memory was compared.
    Verified = "verified",
    /// Source: RELEASED was sent.
    Released = "released",
    /// Source: it is not known who owns the guest; the destination is about to be asked.
    InDoubt = "in-doubt",
    /// Destination: WELCOME is about to be sent.
    Welcomed = "welcomed",
    /// Destination: PREPARE came.
    Prepare = "prepare",
    /// Destination: the state is loaded.
    Loaded = "loaded",
    /// Destination: what the guest needs outside is acquired.
    Acquired = "acquired",
    /// Destination: READY was sent.
    ReadySent = "ready-sent",
    /// Destination: COMMIT came; nothing is recorded yet.
    Commit = "commit",
    /// Destination: the ownership is recorded, no vCPU is entered yet.
    Owned = "owned",
    /// Destination: every vCPU was entered.
    Entered = "entered",
    /// Destination: RUNNING was sent.
    RunningSent = "running-sent",
    /// Destination: RELEASED came, or the source is gone.
    Ended = "ended",
}
