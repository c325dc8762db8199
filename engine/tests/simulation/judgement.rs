//! What came of a schedule, and what must hold in its end.

use std::time::Duration;

use dunlin_engine::records::verdict::{Answer, Verdict, verdict};
use dunlin_engine::records::{Entry, Role};
use dunlin_engine::report::Outcome;

use super::faults::{Fault, Who};
use super::hosts::{Hosts, Results};
use super::ledger::Side;
use super::stage::Call;

/// What came of a schedule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// The destination runs the guest.
    #[default]
    Moved,
    /// The source runs it.
    Stayed,
    /// A person decided that the source does not keep it.
    Discarded,
    /// It went with the process or the host that held it.
    Died,
}

impl Class {
    /// All of them, with their words in the closing line.
    pub(crate) const ALL: [(Self, &'static str); 4] = [
        (Self::Moved, "moved"),
        (Self::Stayed, "stayed"),
        (Self::Discarded, "discarded by hand"),
        (Self::Died, "died with their host"),
    ];
}

/// How a schedule in which the owner was not known for a while came to an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Doubt {
    /// The destination's records told.
    Answered,
    /// They could not, and a person decided.
    Decided,
    /// The source's process died meanwhile.
    Died,
}

impl Doubt {
    /// All of them, with their words in the closing line.
    pub(crate) const ALL: [(Self, &'static str); 3] = [
        (Self::Answered, "settled by an answer"),
        (Self::Decided, "by a person"),
        (Self::Died, "died with the source"),
    ];
}

/// A schedule, judged.
#[derive(Default)]
pub(crate) struct Judged {
    /// What came of it.
    pub(crate) class: Class,
    /// Whether the owner was not known for a while, and what ended that.
    pub(crate) doubt: Option<Doubt>,
    /// What came of moving a guest that stayed once more, with nothing wrong.
    pub(crate) again: Option<Class>,
    /// What must not be, and was.
    pub(crate) violations: Vec<String>,
    /// The faults that befell it.
    pub(crate) faults: Vec<&'static str>,
    /// Virtual time that it took.
    pub(crate) took: Duration,
    /// How often the baton could change hands.
    pub(crate) steps: u64,
    /// The same for every run of the same seed.
    pub(crate) digest: u64,
    /// What happened, where it was asked for.
    pub(crate) trace: Vec<String>,
}

/// Judges a schedule that is over; what must not be is told to the ledger.
pub(crate) fn judge(hosts: &Hosts) -> (Class, Option<Doubt>) {
    let judge = Judge { hosts };
    (judge.judge(), judge.doubt())
}

struct Judge<'a> {
    hosts: &'a Hosts,
}

impl Judge<'_> {
    fn doubt(&self) -> Option<Doubt> {
        self.hosts.stage.agenda().lock().in_doubt_since?;
        let results = self.hosts.results.lock().unwrap();
        let report = results.report.as_ref();
        let settled = report.and_then(|report| report.in_doubt.as_ref());
        Some(match settled.map(|settled| settled.settled_by.as_str()) {
            Some("person") => Doubt::Decided,
            Some(_) => Doubt::Answered,
            None => Doubt::Died,
        })
    }

    fn judge(&self) -> Class {
        let stage = &self.hosts.stage;
        let ledger = stage.ledger();
        let source_lives = stage.alive(Who::Source).is_some();
        let destination_lives = stage.alive(Who::Destination).is_some();
        let runs_here = ledger.runs(Side::Source);
        let runs_there = ledger.runs(Side::Destination);
        let results = self.hosts.results.lock().unwrap();
        let outcome = results.report.as_ref().map(|report| report.outcome);
        if source_lives {
            self.check_outcome(&results, outcome);
            self.check_record(outcome);
        }
        let arrived = results.arrived.as_ref();
        let arrived = arrived.map(|arrived| arrived.as_ref().err().map(ToString::to_string));
        drop(results);
        if destination_lives {
            if (arrived == Some(None)) != runs_there {
                ledger.violation(format!("the destination's word is wrong: {arrived:?}"));
            }
            let made = self.hosts.made.lock().unwrap().clone();
            if !runs_there && made.is_some_and(|machine| !machine.is_discarded()) {
                ledger.violation("the destination keeps the memory of a guest that did not come");
            }
        }
        for (side, runs) in [(Side::Source, runs_here), (Side::Destination, runs_there)] {
            if runs {
                self.check_memory(side);
            }
            let lives = match side {
                Side::Source => source_lives,
                Side::Destination => destination_lives,
            };
            if lives && ledger.holds(side) != runs {
                let side = side.name();
                ledger.violation(format!("what the {side} holds outside is not as it runs"));
            }
        }
        match (runs_here, runs_there) {
            (true, _) => Class::Stayed,
            (false, true) => Class::Moved,
            _ if outcome == Some(Outcome::DiscardedByHand) && source_lives => Class::Discarded,
            _ => {
                self.check_loss(source_lives);
                Class::Died
            }
        }
    }

    /// What the source tells is so.
    fn check_outcome(&self, results: &Results, outcome: Option<Outcome>) {
        let stage = &self.hosts.stage;
        let ledger = stage.ledger();
        let runs_here = ledger.runs(Side::Source);
        let is_right = match outcome {
            Some(Outcome::Moved | Outcome::MovedUnverified) => {
                !runs_here && ledger.was_entered(Side::Destination)
            }
            Some(Outcome::DiscardedByHand) => !runs_here,
            Some(Outcome::Unknown | Outcome::NotResumed) => false,
            _ => runs_here,
        };
        let is_by_settings = matches!(
            outcome,
            Some(
                Outcome::Moved | Outcome::NotConverging | Outcome::BlackoutCap | Outcome::TimedOut
            )
        );
        if !stage.is_disturbed() && !is_by_settings {
            let reason = results.report.as_ref().map(|report| &report.reason);
            ledger.violation(format!("{outcome:?} without a fault: {reason:?}"));
        }
        let jumped = Fault::ClockForward(Side::Source, Duration::ZERO).name();
        // Behind a doubt nobody here knows when it ran there.
        let told = results.report.as_ref();
        let told = told.filter(|report| report.outcome.moved() && report.in_doubt.is_none());
        let blackout = told.and_then(|report| report.blackout.as_ref());
        if let Some(blackout) = blackout.filter(|_| !stage.all_injected().contains(&jumped))
            && let Some(error_ns) = blackout.clock_error_ns
        {
            let told = Duration::from_nanos(blackout.total_ns);
            ledger.told_pause(told, Duration::from_nanos(error_ns));
        }
        if !is_right {
            let reason = results
                .report
                .as_ref()
                .and_then(|report| report.reason.clone());
            ledger.violation(format!(
                "the source's word is wrong: {outcome:?}, {reason:?}"
            ));
        }
    }

    /// The source's record has its end. Where the disk failed at that, it says that the guest was
    /// given up, and then the destination can still tell what became of it.
    fn check_record(&self, outcome: Option<Outcome>) {
        let stage = &self.hosts.stage;
        let disk = stage.disk(Side::Source);
        let left = disk.open_entry(stage.session(), Role::Source);
        let (Some(left), Some(outcome)) = (left, outcome) else {
            return;
        };
        let faults = stage.all_injected();
        let failed = faults.contains(&"failing-disk") || faults.contains(&"slow-disk");
        let by_hand = matches!(outcome, Outcome::ResumedByHand | Outcome::DiscardedByHand);
        let destination_died = stage.was_killed(Who::Destination);
        let evidence = stage.evidence();
        let can_tell = match verdict(evidence) {
            Verdict::Say(Answer::Running | Answer::Ended) => outcome.moved(),
            Verdict::Say(Answer::Aborted) | Verdict::AbortFirst => !outcome.moved(),
            Verdict::Say(_) => destination_died,
        };
        let is_settled = left == Entry::Offered || by_hand || can_tell;
        if !failed || !is_settled {
            stage.ledger().violation(format!(
                "{outcome:?}, the source's record says {left:?}, the destination's {evidence:?}"
            ));
        }
    }

    fn check_memory(&self, side: Side) {
        let machine = match side {
            Side::Source => {
                let results = self.hosts.results.lock().unwrap();
                let kept = results.kept.as_ref();
                kept.map(|guest| guest.machine().clone())
            }
            Side::Destination => self.hosts.made.lock().unwrap().clone(),
        };
        let wrong = machine.map(|machine| machine.wrong_pages());
        if wrong.as_ref().is_none_or(|wrong| !wrong.is_empty()) {
            let words = format!("pages {wrong:?} are wrong on the {}", side.name());
            self.hosts.stage.ledger().violation(words);
        }
    }

    /// A guest is gone only with the process that held it.
    fn check_loss(&self, source_lives: bool) {
        let stage = &self.hosts.stage;
        let was_there = stage.ledger().was_entered(Side::Destination);
        // A guest of which one vCPU could not be entered died there too.
        let broken = Fault::Fail(Side::Destination, Call::Entered).name();
        let broke = stage.all_injected().contains(&broken);
        let destination_died = stage.was_killed(Who::Destination) || broke;
        let holder_died = if was_there {
            destination_died
        } else {
            !source_lives
        };
        if !holder_died {
            let words = "the guest runs nowhere, and whoever held it lives";
            stage.ledger().violation(words);
        }
    }
}
