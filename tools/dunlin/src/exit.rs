//! Exit codes: one enum, one table. The help texts, the JSON errors and the process itself read it.

use dunlin_engine::report::Outcome;

/// How a command ends. The number is the process's exit code and never changes its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Exit {
    /// What was asked for is done.
    Done = 0,
    /// It was looked into, and the answer is no.
    No = 1,
    /// The command line is wrong.
    Usage = 2,
    /// There is no such guest here, or its process does not answer.
    NoGuest = 3,
    /// The destination refused the guest.
    Refused = 4,
    /// The destination or the link failed.
    PeerFailed = 5,
    /// The blackout can't be brought under the budget.
    NotConverging = 6,
    /// The blackout's cap was reached.
    BlackoutCap = 7,
    /// The move's time limit was reached.
    TimedOut = 8,
    /// The move was cancelled.
    Cancelled = 9,
    /// Moved, but the memories did not compare equal.
    Unequal = 10,
    /// Nobody knows which side owns the guest.
    UnknownOwner = 11,
    /// Something on this machine failed.
    Local = 12,
    /// The command left while the move goes on.
    Detached = 13,
    /// Something is in the way: a name that is taken, a move under way.
    Conflict = 14,
    /// The guest stayed here, and could not be resumed.
    NotResumed = 15,
    /// A person decided that the guest goes on here.
    ResumedByHand = 16,
    /// A person decided that the guest is not kept here.
    DiscardedByHand = 17,
    /// What was compared is slower than it may be.
    Slower = 18,
    /// Two results have nothing that can be compared.
    NotComparable = 19,
}

/// One line of the table.
pub(crate) struct Entry {
    /// The code.
    pub(crate) exit: Exit,
    /// Its name in JSON.
    pub(crate) name: &'static str,
    /// What it means, for a person.
    pub(crate) meaning: &'static str,
}

/// Every exit code, in order.
pub(crate) const TABLE: &[Entry] = &[
    entry(
        Exit::Done,
        "done",
        "done; for a move: the destination runs the guest",
    ),
    entry(
        Exit::No,
        "no",
        "looked into, and the answer is no (doctor: no guest can be moved from here)",
    ),
    entry(Exit::Usage, "usage", "the command line is wrong"),
    entry(
        Exit::NoGuest,
        "no-guest",
        "no such guest here, or its process does not answer",
    ),
    entry(
        Exit::Refused,
        "refused",
        "the destination refused the guest; it runs on the source",
    ),
    entry(
        Exit::PeerFailed,
        "peer-failed",
        "the destination can't be reached, or it or the link failed; the guest runs on the source",
    ),
    entry(
        Exit::NotConverging,
        "not-converging",
        "rounds don't bring the blackout under the budget; the guest runs on the source",
    ),
    entry(
        Exit::BlackoutCap,
        "blackout-cap",
        "the blackout reached its cap; the guest runs on the source",
    ),
    entry(
        Exit::TimedOut,
        "timed-out",
        "the time limit was reached; the guest runs on the source",
    ),
    entry(
        Exit::Cancelled,
        "cancelled",
        "cancelled; the guest runs on the source",
    ),
    entry(
        Exit::Unequal,
        "unequal",
        "moved, but memory did not compare equal; the destination runs the guest",
    ),
    entry(
        Exit::UnknownOwner,
        "unknown-owner",
        "the link was lost behind the give-up: which side owns the guest is not known; the source keeps it paused",
    ),
    entry(
        Exit::Local,
        "local",
        "something on this machine failed; a guest that was to move runs on here",
    ),
    entry(
        Exit::Detached,
        "detached",
        "this command left, the move goes on without it",
    ),
    entry(
        Exit::Conflict,
        "conflict",
        "something is in the way: a name that is taken, a move under way",
    ),
    entry(
        Exit::NotResumed,
        "not-resumed",
        "the guest stayed on the source, but could not be resumed there; it is paused",
    ),
    entry(
        Exit::ResumedByHand,
        "resumed-by-hand",
        "the owner was not known; a person decided that the guest goes on on the source",
    ),
    entry(
        Exit::DiscardedByHand,
        "discarded-by-hand",
        "the owner was not known; a person decided that the source does not keep the guest",
    ),
    entry(
        Exit::Slower,
        "slower",
        "compared, and slower by more than the threshold",
    ),
    entry(
        Exit::NotComparable,
        "not-comparable",
        "the two results have no cell in common, or too few passes to judge by",
    ),
];

const fn entry(exit: Exit, name: &'static str, meaning: &'static str) -> Entry {
    Entry {
        exit,
        name,
        meaning,
    }
}

impl Exit {
    /// The number.
    pub(crate) fn code(self) -> u8 {
        self as u8
    }

    /// Its line of the table.
    pub(crate) fn entry(self) -> &'static Entry {
        // The table is in the enum's order; a test keeps it so.
        &TABLE[usize::from(self.code())]
    }

    /// The exit code that goes with a move's outcome.
    pub(crate) fn of(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Moved => Self::Done,
            Outcome::MovedUnverified => Self::Unequal,
            Outcome::Cancelled => Self::Cancelled,
            Outcome::NotConverging => Self::NotConverging,
            Outcome::BlackoutCap => Self::BlackoutCap,
            Outcome::TimedOut => Self::TimedOut,
            Outcome::Refused => Self::Refused,
            Outcome::PeerFailed => Self::PeerFailed,
            Outcome::Failed => Self::Local,
            Outcome::Unknown => Self::UnknownOwner,
            Outcome::NotResumed => Self::NotResumed,
            Outcome::ResumedByHand => Self::ResumedByHand,
            Outcome::DiscardedByHand => Self::DiscardedByHand,
        }
    }
}

/// The part of a help text that lists a command's exit codes.
pub(crate) fn help(codes: &[Exit]) -> String {
    let mut text = String::from("Exit codes:\n");
    for exit in codes {
        let Entry { exit, meaning, .. } = exit.entry();
        text.push_str(&format!("  {:>3}  {meaning}\n", exit.code()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_complete_and_in_order() {
        for (index, entry) in TABLE.iter().enumerate() {
            assert_eq!(usize::from(entry.exit.code()), index, "{}", entry.name);
        }
        assert_eq!(TABLE.len(), usize::from(Exit::NotComparable.code()) + 1);
    }

    #[test]
    fn only_a_move_that_is_verified_or_not_checked_exits_0() {
        let outcomes = [
            Outcome::Moved,
            Outcome::MovedUnverified,
            Outcome::Cancelled,
            Outcome::NotConverging,
            Outcome::BlackoutCap,
            Outcome::TimedOut,
            Outcome::Refused,
            Outcome::PeerFailed,
            Outcome::Failed,
            Outcome::Unknown,
            Outcome::NotResumed,
            Outcome::ResumedByHand,
            Outcome::DiscardedByHand,
        ];
        let mut seen: Vec<u8> = outcomes.map(|outcome| Exit::of(outcome).code()).to_vec();
        assert_eq!(seen.iter().filter(|code| **code == 0).count(), 1);
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), outcomes.len(), "each outcome has its own code");
    }
}
