//! The control channel: bounded frames both ways, in order, on a connection of its own.
//!
//! What a frame means is the engine's business. This room's are the frame's bounds, its time
//! limits and the connection's two halves.

use std::time::Duration;

use thiserror::Error;

use crate::deadline::Deadline;

/// One control frame: a kind, and a payload that only the engine reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The message's kind.
    pub kind: u16,
    /// Its body.
    pub payload: Vec<u8>,
}

/// Says how many payload bytes a frame of a kind may have; `None` for a kind that is not known.
pub type FrameLimit = fn(kind: u16) -> Option<u32>;

/// Why the control channel failed.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The connection could not be made.
    #[error("can't reach {peer}: {source}")]
    Connect {
        /// The address that was tried.
        peer: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The system failed a call.
    #[error("control connection: {doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The peer closed the connection.
    #[error("the peer closed the control connection")]
    Closed,
    /// Nothing came, or nothing could be sent, by the deadline.
    #[error("control connection: {doing} took longer than {} ms", waited.as_millis())]
    TimedOut {
        /// What was being done.
        doing: &'static str,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The peer sent a frame of a kind that is not known.
    #[error("control connection: the peer sent a message of unknown kind {0}")]
    UnknownKind(u16),
    /// The peer announced a frame that is longer than its kind allows.
    #[error(
        "control connection: a message of kind {kind} has {bytes} bytes, at most {limit} are allowed"
    )]
    TooLong {
        /// The frame's kind.
        kind: u16,
        /// Its announced length.
        bytes: u64,
        /// The most that is allowed.
        limit: u32,
    },
    /// The peer's first bytes are not those of this protocol.
    #[error("the peer does not speak Dunlin's protocol: {0}")]
    NotDunlin(String),
    /// The peer speaks this protocol, and wants no connection now.
    #[error("the other side turned the connection away: {0}")]
    TurnedAway(String),
    /// The channel was stopped from this side.
    #[error("control connection: stopped")]
    Stopped,
}

/// The sending half.
pub trait ControlSender: Send {
    /// Sends one frame, whole, by the deadline.
    ///
    /// # Errors
    ///
    /// Any [`ControlError`]; the channel is of no use afterwards.
    fn send(&mut self, frame: &Frame, deadline: Deadline) -> Result<(), ControlError>;
}

/// The receiving half.
pub trait ControlReceiver: Send {
    /// Waits for the next frame. Nothing is allocated for a frame before its kind and length have
    /// passed `limit`, and a long one is allocated as its bytes arrive.
    ///
    /// # Errors
    ///
    /// [`ControlError::TimedOut`] when no frame had *begun* by the deadline: the channel is still
    /// good, and the call may be made again. A frame that began must be whole within the channel's
    /// own stall limit. Any other error: the channel is of no use afterwards.
    fn receive(&mut self, limit: FrameLimit, deadline: Deadline) -> Result<Frame, ControlError>;
}

/// Ends a channel from outside: every call on its halves ends soon. May be called from any thread.
pub trait ControlStopper: Send + Sync {
    /// Ends the channel.
    fn stop(&self);
}

/// A control channel, in the pieces that different threads use.
pub struct ControlChannel {
    /// The sending half.
    pub sender: Box<dyn ControlSender>,
    /// The receiving half.
    pub receiver: Box<dyn ControlReceiver>,
    /// Ends both.
    pub stopper: std::sync::Arc<dyn ControlStopper>,
}
