//! What a destination's record tells a source that is in doubt. Pure: whoever asks brings what is
//! known, and performs what follows.

use super::Entry;

/// What a destination says of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Answer {
    /// The guest runs here, by this session.
    Running,
    /// The guest ran here by this session, and went on or ended in order: it is not the source's.
    Ended,
    /// This session never ran the guest here, and never will.
    Aborted,
    /// It is being decided: ask again.
    Undecided,
    /// The guest may have run here, and does not any more.
    MayHaveRun,
    /// Nothing is known here of this session.
    NoRecord,
}

impl Answer {
    /// Every answer.
    pub const ALL: [Self; 6] = [
        Self::Running,
        Self::Ended,
        Self::Aborted,
        Self::Undecided,
        Self::MayHaveRun,
        Self::NoRecord,
    ];

    /// What it means for a person, in half a sentence behind 'the destination says:'.
    pub fn words(self) -> &'static str {
        match self {
            Self::Running => "the guest runs there",
            Self::Ended => "the guest ran there, and went on or ended in order",
            Self::Aborted => "it never ran the guest, and never will",
            Self::Undecided => "it is not decided yet",
            Self::MayHaveRun => "the guest may have run there, and does not any more",
            Self::NoRecord => "nothing is known there of this move",
        }
    }
}

/// What is known of a session on the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Evidence {
    /// The record's last entry; `None` where there is no record.
    pub entry: Option<Entry>,
    /// Whether the process that writes the record lives.
    pub is_alive: bool,
    /// Whether the record was begun in this boot of the host: its plain entries are all there.
    pub is_same_boot: bool,
    /// Whether a later epoch of the guest was seen here: then this one went on from the source.
    pub has_later_epoch: bool,
}

/// What follows from the evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Say this.
    Say(Answer),
    /// Record [`Entry::Aborted`], durably, and say [`Answer::Aborted`]; if that can't be recorded,
    /// say [`Answer::Undecided`]. Nobody else writes the record: its process is gone.
    AbortFirst,
}

/// What the destination says of a session.
pub fn verdict(evidence: Evidence) -> Verdict {
    let answer = match (evidence.entry, evidence.is_alive) {
        (None | Some(Entry::DiscardedByHand), _) if evidence.has_later_epoch => Answer::Ended,
        (None, _) => Answer::NoRecord,
        (Some(Entry::Running | Entry::ResumedByHand), true) => Answer::Running,
        // It went on or was ended: whoever did so recorded it. What crashed did not.
        (Some(Entry::Ended), _) => Answer::Ended,
        (Some(Entry::Aborted), _) => Answer::Aborted,
        (Some(Entry::Expected | Entry::Owned), true) => Answer::Undecided,
        // The process is gone, and it entered no vCPU: it would have recorded `Owned` first. After
        // a crash of the host that entry may be lost, so there it proves nothing.
        (Some(Entry::Expected), false) if evidence.is_same_boot => return Verdict::AbortFirst,
        (Some(_), _) if evidence.has_later_epoch => Answer::Ended,
        (Some(_), _) => Answer::MayHaveRun,
    };
    Verdict::Say(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(entry: Entry, is_alive: bool) -> Evidence {
        Evidence {
            entry: Some(entry),
            is_alive,
            is_same_boot: true,
            has_later_epoch: false,
        }
    }

    #[test]
    fn only_a_record_that_proves_it_gives_the_guest_back() {
        for entry in [
            Entry::Expected,
            Entry::Owned,
            Entry::Running,
            Entry::Broken,
            Entry::Ended,
            Entry::DiscardedByHand,
        ] {
            for is_alive in [false, true] {
                for is_same_boot in [false, true] {
                    let found = verdict(Evidence {
                        is_same_boot,
                        ..evidence(entry, is_alive)
                    });
                    let gives_back =
                        matches!(found, Verdict::AbortFirst | Verdict::Say(Answer::Aborted));
                    let proven = entry == Entry::Expected && !is_alive && is_same_boot;
                    assert_eq!(gives_back, proven, "{entry:?} {is_alive} {is_same_boot}");
                }
            }
        }
        let aborted = verdict(evidence(Entry::Aborted, false));
        assert_eq!(aborted, Verdict::Say(Answer::Aborted));
    }

    #[test]
    fn a_guest_that_died_there_is_not_called_running() {
        for entry in [Entry::Owned, Entry::Running, Entry::Broken] {
            let found = verdict(evidence(entry, false));
            assert_eq!(found, Verdict::Say(Answer::MayHaveRun), "{entry:?}");
        }
        let found = verdict(evidence(Entry::Running, true));
        assert_eq!(found, Verdict::Say(Answer::Running));
        let found = verdict(evidence(Entry::Owned, true));
        assert_eq!(found, Verdict::Say(Answer::Undecided));
    }

    #[test]
    fn a_guest_that_was_moved_on_is_recognised() {
        let nothing = Evidence {
            entry: None,
            is_alive: false,
            is_same_boot: true,
            has_later_epoch: false,
        };
        assert_eq!(verdict(nothing), Verdict::Say(Answer::NoRecord));
        let later = Evidence {
            has_later_epoch: true,
            ..nothing
        };
        assert_eq!(verdict(later), Verdict::Say(Answer::Ended));
    }
}
