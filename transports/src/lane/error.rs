//! Why lanes and endpoints fail.

use std::time::Duration;

use thiserror::Error;

use super::LaneNumber;
use crate::memory::{MemoryError, Run};

/// Why a lane or an endpoint failed. Each ends the session's lanes; none ends the guest.
#[derive(Debug, Error)]
pub enum LaneError {
    /// The connection could not be made.
    #[error("{lane} could not reach {peer}: {source}")]
    Connect {
        /// The lane.
        lane: LaneNumber,
        /// The address that was tried.
        peer: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The destination turned the lane away.
    #[error("{lane} was refused by the destination: {reason}")]
    Refused {
        /// The lane.
        lane: LaneNumber,
        /// Why.
        reason: String,
    },
    /// The system failed a send, a receive or a set-up call.
    #[error("{lane}: {doing}: {source}")]
    System {
        /// The lane.
        lane: LaneNumber,
        /// What was being done.
        doing: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The peer closed the lane in the middle of the session.
    #[error("{0}: the peer closed the connection")]
    Closed(LaneNumber),
    /// Nothing moved on the lane for as long as is allowed.
    #[error("{lane}: nothing moved for {} ms while {doing}", waited.as_millis())]
    Stalled {
        /// The lane.
        lane: LaneNumber,
        /// What was being done.
        doing: &'static str,
        /// How long nothing moved.
        waited: Duration,
    },
    /// The peer sent what the protocol does not allow.
    #[error("{lane}: the peer broke the protocol: {violation}")]
    Protocol {
        /// The lane.
        lane: LaneNumber,
        /// What was wrong, with the value.
        violation: String,
    },
    /// A range is not inside guest memory, or was not prepared.
    #[error("{lane}: {source}")]
    Memory {
        /// The lane.
        lane: LaneNumber,
        /// Which range.
        source: MemoryError,
    },
    /// A range was not prepared, or was retired or revoked.
    #[error("{lane}: {} pages at {} are not prepared", run.pages, run.first)]
    NotPrepared {
        /// The lane.
        lane: LaneNumber,
        /// Which range.
        run: Run,
    },
    /// The transport can't be used by this side at all.
    #[error("no {transport} here: {source}")]
    Unavailable {
        /// Which transport.
        transport: &'static str,
        /// Why not, and the way out.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The endpoint was stopped from this side.
    #[error("{0}: stopped")]
    Stopped(LaneNumber),
}

/// The error of a verb that a transport does not have.
pub(super) fn unsupported(lane: LaneNumber, doing: &'static str) -> LaneError {
    LaneError::System {
        lane,
        doing,
        source: std::io::ErrorKind::Unsupported.into(),
    }
}

/// The error for bytes of another transport.
pub(super) fn unexpected(lane: LaneNumber, what: &str, bytes: &[u8]) -> LaneError {
    LaneError::Protocol {
        lane,
        violation: format!(
            "{what} of {} bytes for a transport that has none",
            bytes.len()
        ),
    }
}
