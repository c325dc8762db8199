//! Who may say what when: the two sides of a session as pure state machines.
//!
//! A machine takes one event and answers with the actions to perform, in order. It does no I/O,
//! reads no clock, holds no payload, and is `Clone + Eq + Hash`, so that a model checker can walk
//! through every state. The threads around it ([`crate::source`], [`crate::destination`]) perform
//! the actions and report what came of them as events.

use serde::{Deserialize, Serialize};

pub mod destination;
pub mod source;

pub use destination::DestinationSession;
pub use source::SourceSession;

/// Why a guest stays on the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StayReason {
    /// The operator cancelled.
    Cancelled,
    /// The prediction stayed over the budget.
    NotConverging,
    /// The blackout's cap passed.
    BlackoutCap,
    /// The move's time limit passed.
    TimedOut,
    /// The destination refused.
    Refused,
    /// The destination or the link failed.
    PeerFailed,
    /// Something on this side failed.
    Failed,
    /// A person decided so, in doubt.
    Decided,
}

/// What a person decides about a guest whose owner is not known. Either rests on their word that
/// the other side is fenced off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// The guest goes on here.
    ResumeHere,
    /// The guest is not kept here.
    DiscardHere,
}

#[cfg(test)]
mod tests;
