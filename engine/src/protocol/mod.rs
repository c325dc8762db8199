//! The control protocol: what the two sides say to each other, in which order, and within which
//! limits. docs/protocol.md explains it to people; this room is what runs.
//!
//! ```text
//!        source                                   destination
//!          │ ── HELLO ────────────────────────────▶ │  who, how much, which versions
//!          │ ◀──────────────── WELCOME | REFUSED ── │  tokens, grants
//!          │ ══ lanes open, one token each ═══════▶ │
//!          │ ── LANES ────────────────────────────▶ │  only for a transport whose lanes have
//!          │ ◀────────────────── LANES_CONFIRMED ── │  identities: which connection each is
//!          │ ══ rounds: pages, fences ════════════▶ │  fences answered on the lanes
//!          │ ── OPEN, CLOSE ──────────────────────▶ │  only where memory is registered: which
//!          │ ◀───────────────────── GRANTS, CLOSED ─ │  ranges the lanes may write, up to PREPARE
//!          │ ◀─────────── PING / PONG, any time ──▶ │
//!   paused │ ══ final round, last fences ═════════▶ │
//!          │ ── PREPARE ──────────────────────────▶ │  fence numbers, counts, digests, state
//!          │ ◀──────────────────────────── READY ── │  loaded, checked, access revoked
//!  give-up │ ── COMMIT ───────────────────────────▶ │
//!          │ ◀────────────────────────── RUNNING ── │  every vCPU entered
//!          │ ── VERIFY_PAGES … VERIFY_END ────────▶ │
//!          │ ◀───────────────────────── VERIFIED ── │  what compared equal; the pause it saw
//!          │ ── RELEASED ─────────────────────────▶ │
//!
//!   before COMMIT: either side ── ABORT / ABORTED ──▶ and the guest goes on at the source
//! ```
//!
//! | room | what is in it |
//! |---|---|
//! | `message` | kinds and frames |
//! | `body` | what each message carries |
//! | `check` | from a body to what the engine works with, every value checked |
//! | `limits` | how long each may be |
//!
//! Every message is a CBOR map with numbered fields (RFC 8949). A field that a reader does not know
//! is skipped: what may not be skipped is guarded by the version or by a capability.

mod body;
mod check;
mod limits;
mod message;
#[cfg(test)]
mod tests;

pub use body::{
    Abort, Ask, Counts, Grants, Hello, Lanes, Ping, Pong, Prepare, Ranges, Ready, Refused, Running,
    Verified, VerifyPages, Welcome, WireAnswer, WireClaim, WireCosts, WireHost, WireLayout,
    WireRegion, WireRegistrations,
};
pub use limits::{
    HELLO_BYTES_MAX, PREFAULT_PAGES_MAX, RANGES_IN_MESSAGE_MAX, RANGES_MAX, REASON_BYTES_MAX,
    TEXT_BYTES_MAX, VERIFY_PAGES_MAX, frame_limit,
};
pub use message::{Message, MessageError, MessageKind};

/// The newest protocol version that this build speaks.
pub const VERSION_MAX: u16 = 1;

/// The oldest protocol version that this build speaks.
pub const VERSION_MIN: u16 = 1;

/// Capabilities: what a side can do beyond its version's minimum. A move uses what both have.
pub mod capability {
    /// The destination can compare digests of all memory inside the handover.
    pub const FULL_DIGESTS: u64 = 1 << 0;
    /// The guest can check its own pages while it runs.
    pub const SELF_CHECK: u64 = 1 << 1;

    /// Ranges are opened and closed while the move runs. Without it a destination that registers
    /// memory has to register all of it before WELCOME.
    pub const PIN_WINDOW: u64 = 1 << 2;

    /// The source takes what the destination recorded, in a VERIFIED that is long enough for it.
    /// A build without recording does not have it.
    pub const RECORDING: u64 = 1 << 3;

    /// The destination backs memory ahead of the lanes, where the source says by PREFAULT what it
    /// will write next.
    pub const PREFAULT: u64 = 1 << 4;

    /// All that this build has.
    pub const ALL: u64 = FULL_DIGESTS
        | SELF_CHECK
        | PIN_WINDOW
        | PREFAULT
        | if cfg!(feature = "telemetry") {
            RECORDING
        } else {
            0
        };
}

/// The version that two ranges have in common, the newest; `None` when they have none.
pub fn common_version(min: u16, max: u16) -> Option<u16> {
    let newest = max.min(VERSION_MAX);
    (newest >= min.max(VERSION_MIN)).then_some(newest)
}
