//! The destination's side of a move: lets a guest in, takes its pages, and runs it.
//!
//! A supervisor calls [`read_hello`], decides, and either calls [`refuse`] or has [`receive`] run
//! in the process that shall hold the guest.
//!
//! | room | what is in it |
//! |---|---|
//! | `receiver` | performs the session's actions, turns what happens into its events |
//! | `admission` | HELLO: reading, checking, refusing |
//! | `settling` | answering a source that is in doubt |

mod admission;
mod receiver;
mod settling;

use std::time::Duration;

use dunlin_transports::control::{ControlChannel, ControlError};
use dunlin_transports::lane::{DestinationEndpointFactory, LANES_MAX, LaneError};
use thiserror::Error;

pub use self::admission::{Hello, read_hello, refuse};
pub use self::settling::{Asked, answer_doubt};
use crate::guest::{GuestError, GuestFactory};
use crate::outside::Outside;
use crate::pin_budget::PinBudget;
use crate::protocol::{MessageError, VERSION_MAX, VERSION_MIN};
use crate::records::Journal;

/// What the destination's operator decides about moves to here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiveSettings {
    /// How long the source may be silent before it counts as gone.
    pub peer_timeout: Duration,
    /// The most time from WELCOME to COMMIT: a source that is there but does nothing must not hold
    /// a guest's worth of memory for ever.
    pub session_limit: Duration,
    /// The most lanes that are granted.
    pub lanes_max: u16,
    /// The CPUs that lane threads are pinned to, one after the other; empty: as on the source.
    pub cpus: Vec<usize>,
    /// How long acquiring what the guest holds outside may take. It is inside the pause, so the
    /// source's cap bounds it too.
    pub acquire_timeout: Duration,
    /// How much of one guest's memory is registered at once, for transports that register it.
    pub pin_budget: PinBudget,
    /// Whether all of a guest's memory is backed before the source is told to begin, what it never
    /// touched as well.
    pub prefault_all: bool,
    /// Whether memory is backed ahead of the lanes, as far as the source says that it will write
    /// there, by the processors that lanes leave (none where there are as many lanes). Where a
    /// transport registers memory, that backs it anyway.
    pub prefault_ahead: bool,
}

impl Default for ReceiveSettings {
    fn default() -> Self {
        Self {
            peer_timeout: Duration::from_secs(5),
            session_limit: Duration::from_secs(24 * 60 * 60),
            lanes_max: LANES_MAX,
            cpus: Vec::new(),
            acquire_timeout: Duration::from_secs(5),
            pin_budget: PinBudget::default(),
            prefault_all: false,
            prefault_ahead: false,
        }
    }
}

/// A guest that wants to come, and what it is given.
pub struct Arrival<'a, F> {
    /// The control connection.
    pub control: ControlChannel,
    /// What it said first.
    pub hello: Hello,
    /// Makes the guest.
    pub factory: &'a mut F,
    /// Makes the lanes' side.
    pub endpoint: DestinationEndpointFactory,
    /// Keeps this side's record of the session, which has its first entry.
    pub journal: Box<dyn Journal>,
    /// What the guest will hold outside of this host.
    pub outside: Box<dyn Outside>,
}

/// A guest that arrived, and runs.
pub struct Received<G> {
    /// The guest.
    pub guest: G,
    /// Its epoch from now on.
    pub epoch: u64,
    /// The session's record. It is kept for as long as the guest is here, which is what proves to
    /// others that it lives; where the source has not said RELEASED, it wants [`Entry::Ended`] when
    /// the guest goes on or ends in order.
    ///
    /// [`Entry::Ended`]: crate::records::Entry::Ended
    pub journal: Box<dyn Journal>,
    /// Whether the source knows that the guest runs here; the record has its end then.
    pub source_knows: bool,
    /// What the guest holds outside of this host.
    pub outside: Box<dyn Outside>,
    /// Pages that the source's claims were compared with, and how many of them were wrong.
    pub checked_pages: u64,
    /// See `checked_pages`.
    pub different_pages: u64,
}

/// Why no guest arrived. The source has been told where it could be.
#[derive(Debug, Error)]
pub enum ReceiveError {
    /// The control connection failed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The source sent what is no message, or one out of bounds.
    #[error("the source broke the protocol: {0}")]
    Message(#[from] MessageError),
    /// The source began with something else than HELLO.
    #[error("the source began with message {0}, not with HELLO")]
    NotHello(u16),
    /// The source began a connection for settling with something else than a question about its
    /// own session.
    #[error("the source sent message {0} where a question about its session was due")]
    NotAsked(u16),
    /// There is no version that both sides speak.
    #[error(
        "the source speaks protocol versions {min} to {max}, this build speaks {VERSION_MIN} to {VERSION_MAX}"
    )]
    Version {
        /// The source's oldest.
        min: u16,
        /// The source's newest.
        max: u16,
    },
    /// This host can't take the guest.
    #[error("refused: {0}")]
    Refused(String),
    /// This host does not have the transport that the source asks for.
    #[error("refused: {0}")]
    Transport(String),
    /// The lanes could not be set up.
    #[error(transparent)]
    Lane(#[from] LaneError),
    /// The system failed.
    #[error("starting a thread: {0}")]
    System(#[from] std::io::Error),
    /// The move ended before the guest was this side's; what was received is discarded.
    #[error("the move ended, the guest stays where it was: {0}")]
    Aborted(String),
    /// The guest was handed over and could not be run.
    #[error("the guest was handed over, but could not be run: {0}")]
    Broken(GuestError),
}

/// Takes a guest in: makes room for it by the factory, opens the lanes' side by the endpoint, and
/// returns once the guest runs here and the source has let go of it.
///
/// # Errors
///
/// When the guest did not arrive; it runs on at the source then (but for
/// [`ReceiveError::Broken`]). Everything that was received is freed.
pub fn receive<F: GuestFactory>(
    arrival: Arrival<'_, F>,
    settings: &ReceiveSettings,
) -> Result<Received<F::Guest>, ReceiveError> {
    receiver::receive(arrival, settings)
}
