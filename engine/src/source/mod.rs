//! The source's side of a move: performs what the session decides, on threads.
//!
//! One thread, the caller's, owns the session. The control connection and the lanes have threads of
//! their own and report to it through one queue.
//!
//! | room | what is in it |
//! |---|---|
//! | `mover` | performs the session's actions, turns what happens into its events |
//! | [`asking`] | one question to the destination's supervisor |
//! | `lanes` | the lane threads |
//! | `window` | registering memory ahead of them, and no more than a budget at once |
//! | `prefault` | telling the destination what comes next, so that it backs that memory before |
//! | `convergence` | when to pause |
//! | `blackout` | the pause's timeline |
//! | `slowness` | a slowness, for the comparison that must find it |

pub mod asking;
mod blackout;
mod convergence;
mod lanes;
mod mover;
mod prefault;
#[cfg(feature = "planted-slowness")]
mod slowness;
mod window;

use dunlin_transports::control::{ControlChannel, ControlError};
use dunlin_transports::deadline::Deadline;
use dunlin_transports::lane::{SessionId, SourceEndpoint};

use crate::guest::{Guest, GuestOffer};
use crate::host::this_host;
use crate::milestone::Milestone;
use crate::outside::Outside;
use crate::records::Journal;
use crate::report::{
    DeviceReport, GuestReport, Hosts, Outcome, Progress, REPORT_SCHEMA, Report, VerificationReport,
};
use crate::settings::{MoveHandle, MoveSettings};

/// Makes a new control connection to the destination's supervisor, for a session that is in doubt.
pub trait Reconnect: Send {
    /// Connects, under the session's id.
    ///
    /// # Errors
    ///
    /// When nobody is reached by the deadline.
    fn reconnect(&mut self, deadline: Deadline) -> Result<ControlChannel, ControlError>;
}

/// A destination that was reached.
pub struct Peer {
    /// The session's id, as told in the connection's preamble.
    pub session: SessionId,
    /// The control connection.
    pub control: ControlChannel,
    /// Opens the lanes.
    pub endpoint: Box<dyn SourceEndpoint>,
    /// Keeps this side's record of the session, which has its first entry.
    pub journal: Box<dyn Journal>,
    /// Reaches the destination again when the session is in doubt.
    pub reconnect: Box<dyn Reconnect>,
    /// What the guest holds outside of this host.
    pub outside: Box<dyn Outside>,
}

/// Watches a move.
pub trait MoveObserver: Sync {
    /// Where it stands. Called a few times a second while the guest runs, never while it is paused.
    fn progress(&self, progress: &Progress);

    /// Something worth telling an operator, in one sentence.
    fn note(&self, note: &str);

    /// It is not known who owns the guest: it is paused here, and the destination is being asked.
    /// Called again whenever there is something new to say about it.
    fn in_doubt(&self, reason: &str) {
        self.note(reason);
    }

    /// A point on the way was reached. Some are inside the pause.
    fn reached(&self, milestone: Milestone) {
        let _ = milestone;
    }
}

/// Moves `guest` to `peer`. Returns when the move is over:
///
/// - [`Outcome::moved`]: the destination runs the guest; the one here may be dropped.
/// - [`Outcome::DiscardedByHand`]: a person decided that the guest is not kept here.
/// - otherwise the guest runs on here.
///
/// When the connection is lost behind the give-up, it keeps the guest paused and asks the
/// destination again and again, for as long as it takes: until the answer settles it, or a person
/// does by [`MoveHandle::decide`].
pub fn migrate(
    guest: &mut dyn Guest,
    peer: Peer,
    settings: &MoveSettings,
    handle: &MoveHandle,
    observer: &dyn MoveObserver,
) -> Report {
    mover::migrate(guest, peer, settings, handle, observer)
}

impl Report {
    /// The report of a move that ended before a destination was reached.
    pub fn not_started(offer: &GuestOffer, outcome: Outcome, reason: impl Into<String>) -> Self {
        Self {
            schema: REPORT_SCHEMA.to_owned(),
            session: String::new(),
            outcome,
            reason: Some(reason.into()),
            transport: String::new(),
            mechanism: String::new(),
            lanes: 0,
            guest: GuestReport {
                name: offer.identity.name.clone(),
                uuid: offer.identity.uuid.to_string(),
                epoch: offer.identity.epoch,
                kind: offer.kind.clone(),
                memory_bytes: offer.layout.bytes(),
                vcpus: offer.vcpus,
                dirty_tracking: Vec::new(),
            },
            rounds: Vec::new(),
            total_ns: 0,
            sent_bytes: 0,
            wire_bytes: 0,
            device: DeviceReport::default(),
            goodput_bytes_per_s: 0,
            blackout: None,
            in_doubt: None,
            registration: None,
            verification: VerificationReport {
                method: "none".to_owned(),
                ..VerificationReport::default()
            },
            hosts: Hosts {
                source: this_host(),
                ..Hosts::default()
            },
            telemetry: None,
            another_transport_may_do: false,
        }
    }
}
