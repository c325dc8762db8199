//! The destination's side of a move: lets a guest in, takes its pages, and runs it.
//!
//! A supervisor calls [`read_hello`], decides, and either calls [`refuse`] or has [`receive`] run
//! in the process that shall hold the guest.
//!
//! | room | what is in it |
//! |---|---|
//! | `receiver` | performs the session's actions, turns what happens into its events |
//! | `admission` | HELLO: reading, checking, refusing |

mod admission;
mod receiver;

use std::time::Duration;

use dunlin_transports::control::{ControlChannel, ControlError};
use dunlin_transports::lane::{DestinationEndpointFactory, LANES_MAX, LaneError};
use thiserror::Error;

pub use self::admission::{Hello, read_hello, refuse};
use crate::guest::{GuestError, GuestFactory};
use crate::protocol::{MessageError, VERSION_MAX, VERSION_MIN};

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
}

impl Default for ReceiveSettings {
    fn default() -> Self {
        Self {
            peer_timeout: Duration::from_secs(5),
            session_limit: Duration::from_secs(24 * 60 * 60),
            lanes_max: LANES_MAX,
            cpus: Vec::new(),
        }
    }
}

/// A guest that arrived, and runs.
pub struct Received<G> {
    /// The guest.
    pub guest: G,
    /// Its epoch from now on.
    pub epoch: u64,
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

/// Takes the guest that `hello` announces: makes room for it by `factory`, opens the lanes' side by
/// `endpoint`, and returns once the guest runs here and the source has let go of it.
///
/// # Errors
///
/// When the guest did not arrive; it runs on at the source then (but for
/// [`ReceiveError::Broken`]). Everything that was received is freed.
pub fn receive<F: GuestFactory>(
    control: ControlChannel,
    hello: Hello,
    factory: &mut F,
    endpoint: DestinationEndpointFactory,
    settings: &ReceiveSettings,
) -> Result<Received<F::Guest>, ReceiveError> {
    receiver::receive(control, &hello, factory, endpoint, settings)
}
