//! The rules: how a move may end after each fault, and why that is right. All that a run is judged
//! by is here and in the `ledger`.
//!
//! The protocol behind them: until COMMIT is sent, the guest is the source's; once COMMIT has come
//! and is recorded, it is the destination's; in between, whoever dies or falls silent, the other
//! one asks, and the records answer. A guest whose owner is killed is gone, as with any VMM: nobody
//! else may run it, since nobody else can know that it does not run.

use super::fault::{Deed, Fault, Phase, Victim};

/// How a move ended: where the guest is, once nothing changes any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ending {
    /// It runs on the source.
    Stayed,
    /// It runs on the destination.
    Moved,
    /// It is paused on the source, which says that the owner is not known, and why.
    Held,
    /// Nobody has it any more.
    Gone,
    /// It ran in two places, or from an old state.
    TwoOwners,
    /// Nothing of the above, for as long as a run may take.
    Unsettled,
}

impl Ending {
    /// A word for tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stayed => "stayed",
            Self::Moved => "moved",
            Self::Held => "held",
            Self::Gone => "gone",
            Self::TwoOwners => "TWO OWNERS",
            Self::Unsettled => "UNSETTLED",
        }
    }
}

/// What is expected behind a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// How the move may end.
    pub endings: &'static [Ending],
    /// Why.
    pub because: &'static str,
}

/// Whose the guest is when a process is stopped at a phase, as far as that is known there. (The
/// other side runs on meanwhile.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// The source has not given up.
    SourceOwns,
    /// The source may have given up, COMMIT may be on its way, while the destination stands still.
    ReadySaid,
    /// The source has given up, COMMIT is not sent.
    GivenUp,
    /// COMMIT was sent, and the destination goes on with it.
    CommitSent,
    /// COMMIT has come and is not recorded; the destination stands still.
    CommitCame,
    /// The destination owns the guest, the source does not know.
    Unknown,
    /// The destination owns the guest and has just said so.
    Told,
    /// The destination owns the guest, and the source knows.
    DestinationOwns,
}

fn stage(phase: Phase) -> Option<Stage> {
    Some(match phase {
        Phase::Random => return None,
        phase if phase < Phase::ReadySent => Stage::SourceOwns,
        Phase::ReadySent => Stage::ReadySaid,
        Phase::Ready => Stage::SourceOwns,
        Phase::GivenUp => Stage::GivenUp,
        Phase::Committed => Stage::CommitSent,
        // To make the source doubt, the destination stands still there.
        Phase::Commit | Phase::InDoubt => Stage::CommitCame,
        Phase::Owned | Phase::Entered => Stage::Unknown,
        Phase::RunningSent => Stage::Told,
        _ => Stage::DestinationOwns,
    })
}

const fn only(endings: &'static [Ending], because: &'static str) -> Expectation {
    Expectation { endings, because }
}

const GOES_THROUGH: Expectation = only(&[Ending::Moved], "nothing that the move needs is hit");

/// What is expected behind a fault.
pub fn expected(fault: Fault) -> Expectation {
    match fault.deed {
        Deed::Nothing => GOES_THROUGH,
        Deed::Kill(Victim::Send) if fault.phase == Phase::Random => only(
            &[Ending::Moved, Ending::Stayed],
            "'send' only watches; killed before it asked, there is no move",
        ),
        Deed::Kill(Victim::Send) | Deed::Blink(Victim::Send) | Deed::Freeze(Victim::Send) => only(
            &[Ending::Moved],
            "'send' only watches: the move goes on without it",
        ),
        Deed::Kill(Victim::Run) | Deed::FreezeKill(Victim::Run) => source_dies(fault),
        Deed::Kill(Victim::Incoming) | Deed::FreezeKill(Victim::Incoming) => {
            destination_dies(fault)
        }
        Deed::Kill(Victim::Receive)
        | Deed::FreezeKill(Victim::Send | Victim::Receive)
        | Deed::Freeze(Victim::Receive) => supervisor_dies(fault),
        Deed::Blink(_) => only(
            &[Ending::Moved],
            "a silence shorter than the peer timeout is none",
        ),
        Deed::Freeze(Victim::Run | Victim::Incoming) => silence(fault),
        Deed::Cut | Deed::CutRestart => cut(fault),
    }
}

fn source_dies(fault: Fault) -> Expectation {
    let frozen_first = matches!(fault.deed, Deed::FreezeKill(_));
    match stage(fault.phase) {
        None => only(
            &[Ending::Gone, Ending::Moved],
            "whoever owned the guest when the source died: it is gone with the source, or moved",
        ),
        Some(Stage::SourceOwns | Stage::GivenUp) => only(
            &[Ending::Gone],
            "the only owner is killed: the destination was never told to run the guest",
        ),
        Some(Stage::ReadySaid) => only(
            &[Ending::Gone, Ending::Moved],
            "the owner is killed; COMMIT may be out by then",
        ),
        Some(Stage::CommitSent) if frozen_first => only(
            &[Ending::Moved],
            "COMMIT is out: the destination runs the guest",
        ),
        Some(_) => only(
            &[Ending::Moved],
            "COMMIT is out: the destination runs the guest, and needs the source no more",
        ),
    }
}

fn destination_dies(fault: Fault) -> Expectation {
    match stage(fault.phase) {
        None => only(
            &[Ending::Stayed, Ending::Held, Ending::Gone, Ending::Moved],
            "as in the row of the phase that it hits; before there is such a process, nothing is hit",
        ),
        Some(Stage::SourceOwns) => only(&[Ending::Stayed], "the source owns the guest"),
        Some(Stage::ReadySaid | Stage::GivenUp | Stage::CommitCame) => only(
            &[Ending::Stayed],
            "it died without having recorded the ownership, so the guest never ran there: the \
             supervisor says so, and the source resumes",
        ),
        Some(Stage::CommitSent) => only(
            &[Ending::Stayed, Ending::Held, Ending::Gone],
            "the destination runs on for a moment: it dies before it owns the guest (stayed), \
             before the source knows (held), or behind that (gone)",
        ),
        Some(Stage::Unknown) => only(
            &[Ending::Held],
            "it owned the guest and may have run it: what the source holds may be old, so only a \
             person may decide",
        ),
        Some(Stage::Told) => only(
            &[Ending::Gone, Ending::Held],
            "the owner is killed; the source may not have heard RUNNING by then",
        ),
        Some(Stage::DestinationOwns) => only(
            &[Ending::Gone],
            "the only owner is killed: what the source held is old, and freed",
        ),
    }
}

fn supervisor_dies(fault: Fault) -> Expectation {
    match stage(fault.phase) {
        None | Some(Stage::SourceOwns | Stage::ReadySaid | Stage::GivenUp | Stage::CommitSent) => {
            only(
                &[Ending::Stayed, Ending::Moved],
                "a VMM that loses its supervisor before it owns the guest ends, and the source \
                 keeps the guest; one that gets to own it first goes on",
            )
        }
        Some(_) => only(
            &[Ending::Moved],
            "COMMIT has come, and the rest is between the two VMMs; a source that has to ask finds \
             the supervisor when it is back, which knows from the records",
        ),
    }
}

fn silence(fault: Fault) -> Expectation {
    match stage(fault.phase) {
        Some(Stage::SourceOwns) => only(
            &[Ending::Stayed, Ending::Moved],
            "silence ends the move while the source owns the guest, unless nobody waited",
        ),
        None | Some(Stage::ReadySaid | Stage::GivenUp | Stage::CommitSent | Stage::CommitCame) => {
            only(
                &[Ending::Stayed, Ending::Moved],
                "the source asks: the destination has refused COMMIT by then, or owns the guest",
            )
        }
        Some(_) => only(&[Ending::Moved], "the destination owns the guest"),
    }
}

fn cut(fault: Fault) -> Expectation {
    let may_have_ready = matches!(
        fault.phase,
        Phase::Prepared | Phase::ReadySent | Phase::Ready | Phase::GivenUp
    );
    match stage(fault.phase) {
        None => only(
            &[Ending::Stayed, Ending::Moved],
            "whoever owned the guest when the link was cut",
        ),
        _ if may_have_ready => only(
            &[Ending::Stayed, Ending::Moved],
            "the source has READY or gets it, gives up and says COMMIT into the cut link: it comes \
             when the link is back (moved), or too late (stayed); the source holds the guest until \
             it knows",
        ),
        Some(Stage::SourceOwns) => only(
            &[Ending::Stayed],
            "the source owns the guest, and resumes without the link",
        ),
        Some(_) => only(
            &[Ending::Moved],
            "the destination has COMMIT and runs the guest; the source learns it when the link is \
             back",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_rule_allows_what_may_never_be() {
        for fault in Fault::all() {
            let expectation = expected(fault);
            assert!(!expectation.endings.is_empty(), "{fault}");
            for never in [Ending::TwoOwners, Ending::Unsettled] {
                assert!(!expectation.endings.contains(&never), "{fault}");
            }
        }
    }

    /// A guest may be gone only where the process that owned it was killed.
    #[test]
    fn a_guest_is_gone_only_with_its_owner() {
        for fault in Fault::all() {
            let kills_a_vmm = matches!(
                fault.deed,
                Deed::Kill(Victim::Run | Victim::Incoming)
                    | Deed::FreezeKill(Victim::Run | Victim::Incoming)
            );
            let expectation = expected(fault);
            assert!(
                kills_a_vmm || !expectation.endings.contains(&Ending::Gone),
                "{fault}"
            );
            // And not with one that never owned it, or does not any more.
            let (deed, phase) = (fault.deed, fault.phase);
            let destination_dies = kills_a_vmm && deed.victim() == Some(Victim::Incoming);
            if destination_dies && phase != Phase::Random && phase < Phase::Committed {
                assert_eq!(expectation.endings, [Ending::Stayed], "{fault}");
            }
        }
    }
}
