//! What a guest holds outside of its host: locks on its disks, its place in the network. The engine
//! says when it changes hands; what it is, the embedder knows.

use dunlin_transports::deadline::Deadline;

use crate::guest::GuestError;

/// Why what a guest holds is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReleaseReason {
    /// Source: the destination runs the guest.
    MovedAway,
    /// Destination: the guest did not come.
    NotCome,
    /// Destination: the guest could not be run here, and may have run for a moment.
    Broken,
    /// Either: a person decided that the guest is not kept here.
    Discarded,
    /// Either: the guest was ended where it ran. The engine never says so; who ends it does.
    Ended,
}

impl ReleaseReason {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::MovedAway => "moved-away",
            Self::NotCome => "not-come",
            Self::Broken => "broken",
            Self::Discarded => "discarded",
            Self::Ended => "ended",
        }
    }
}

/// What one guest holds outside, for one move.
pub trait Outside: Send {
    /// The guest is about to run here: its memory and state are in place. Called on the
    /// destination, once, inside the pause.
    ///
    /// # Errors
    ///
    /// When it can't be had by `deadline`: the guest goes on at the source then.
    fn acquire(&mut self, deadline: Deadline) -> Result<(), GuestError>;

    /// The guest is not here any more, or never came. Called once, outside of the pause; on the
    /// destination only where `acquire` was called before, whatever came of it.
    ///
    /// # Errors
    ///
    /// When it was not done. The move goes on; the failure is told.
    fn release(&mut self, reason: ReleaseReason) -> Result<(), GuestError>;
}

/// A guest that holds nothing outside.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nothing;

impl Outside for Nothing {
    fn acquire(&mut self, _deadline: Deadline) -> Result<(), GuestError> {
        Ok(())
    }

    fn release(&mut self, _reason: ReleaseReason) -> Result<(), GuestError> {
        Ok(())
    }
}
