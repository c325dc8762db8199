//! Settling: the source asks on new connections, the supervisor answers from the record. Any word
//! of it may be lost, and a question may arrive when nobody waits for its answer any more.

use dunlin_engine::records::verdict::{Answer, Evidence, Verdict, verdict};
use dunlin_engine::records::{Durability, Entry};
use dunlin_engine::session::Decision;

use crate::step::{SettlingStep, SourceStep, Step, is_to_ask};
use crate::world::{Disk, Exchange, World};

impl World {
    pub(crate) fn settling_steps(&self, steps: &mut Vec<Step>) {
        let mut push = |step| steps.push(Step::Settling(step));
        if self.is_supervisor_up {
            if self.settling.exchange == Exchange::Asked {
                push(SettlingStep::Look);
            }
            if let Exchange::Looked { is_alive } = self.settling.exchange {
                match self.verdict(is_alive) {
                    Verdict::Say(_) => push(SettlingStep::Answer(Disk::Well)),
                    Verdict::AbortFirst => {
                        let disks = self.destination.record.disks().iter();
                        disks.for_each(|&disk| push(SettlingStep::Answer(disk)));
                    }
                }
            }
            if self.settling.stale_asks > 0 {
                push(SettlingStep::AnswerStale);
            }
            if self.settling.is_settled_under_way {
                push(SettlingStep::Forget);
            }
            if self.has_answered_in_vain() {
                push(SettlingStep::ForgetUnsettled);
            }
        } else if !self.is_fenced {
            push(SettlingStep::RestartSupervisor);
        }
        if self.settling.is_settled_under_way {
            push(SettlingStep::LoseSettled);
        }
        let has_room = self.settling.stale_asks < self.bounds.stale_asks;
        if self.settling.exchange == Exchange::Asked && has_room {
            push(SettlingStep::Lose { is_late: true });
        }
        if self.settling.exchange != Exchange::Quiet {
            push(SettlingStep::Lose { is_late: false });
        }
    }

    /// The source in doubt. Comes last, so that whoever looks for the first calm step finds all
    /// others done when it comes to asking.
    pub(crate) fn asking_steps(&self, steps: &mut Vec<Step>) {
        if !is_to_ask(self) {
            return;
        }
        match self.settling.exchange {
            Exchange::Answered { .. } => steps.push(Step::Source(SourceStep::HearAnswer)),
            Exchange::Quiet if self.is_supervisor_up => steps.push(Step::Source(SourceStep::Ask)),
            _ => {}
        }
        // A person may say so only where it is true.
        if self.is_fenced {
            for decision in [Decision::ResumeHere, Decision::DiscardHere] {
                steps.push(Step::Source(SourceStep::Decide(decision)));
            }
        }
    }

    /// Whether the record's lock is held: by its process, or by a disk that hangs.
    pub(crate) fn is_locked(&self) -> bool {
        self.destination.life.is_alive() || !self.destination.record.pending.is_empty()
    }

    /// What the supervisor saw when it looked whether the record's process lives.
    pub(crate) fn looked(&self) -> bool {
        match self.settling.exchange {
            Exchange::Looked { is_alive } => is_alive,
            _ => self.is_locked(),
        }
    }

    /// What the supervisor makes of the destination's record.
    pub(crate) fn verdict(&self, is_alive: bool) -> Verdict {
        let record = &self.destination.record;
        verdict(Evidence {
            entry: record.last(),
            is_alive,
            is_same_boot: record.is_same_boot,
            has_later_epoch: self.destination.has_later_epoch,
        })
    }

    /// What it says, and whether it has to record ABORTED first.
    pub(crate) fn answer(&self, is_alive: bool, disk: Disk) -> (Answer, bool) {
        match self.verdict(is_alive) {
            Verdict::Say(answer) => (answer, false),
            // Another question's answer is just being recorded.
            Verdict::AbortFirst if self.is_locked() => (Answer::Undecided, false),
            Verdict::AbortFirst if disk == Disk::Well => (Answer::Aborted, true),
            Verdict::AbortFirst => (Answer::Undecided, true),
        }
    }

    fn answers(&mut self, is_alive: bool, disk: Disk) -> (Answer, bool) {
        let (answer, is_aborted_first) = self.answer(is_alive, disk);
        let record = &mut self.destination.record;
        if is_aborted_first {
            record.add(Entry::Aborted, Durability::Durable, disk);
        }
        self.slips.answered_aborted_without_record |=
            answer == Answer::Aborted && record.last() != Some(Entry::Aborted);
        (answer, is_aborted_first)
    }

    pub(crate) fn settling_does(&mut self, step: SettlingStep) {
        match step {
            SettlingStep::Look => {
                let is_alive = self.is_locked();
                self.settling.exchange = Exchange::Looked { is_alive };
            }
            SettlingStep::Answer(disk) => {
                let (answer, is_aborted_first) = self.answers(self.looked(), disk);
                self.settling.exchange = Exchange::Answered {
                    answer,
                    is_aborted_first,
                };
            }
            SettlingStep::AnswerStale => {
                self.settling.stale_asks -= 1;
                self.answers(self.is_locked(), Disk::Well);
            }
            SettlingStep::Lose { is_late } => {
                self.settling.exchange = Exchange::Quiet;
                self.settling.stale_asks += u8::from(is_late);
            }
            SettlingStep::Forget => {
                self.settling.is_settled_under_way = false;
                self.forget();
            }
            SettlingStep::ForgetUnsettled => self.forget(),
            SettlingStep::LoseSettled => self.settling.is_settled_under_way = false,
            SettlingStep::RestartSupervisor => self.is_supervisor_up = true,
        }
    }

    /// Whether a source that is not trusted might say SETTLED where nothing is.
    fn has_answered_in_vain(&self) -> bool {
        let record = self.destination.record.last();
        let is_open = matches!(record, Some(Entry::Expected | Entry::Owned | Entry::Broken));
        is_open && matches!(self.settling.exchange, Exchange::Answered { .. })
    }

    fn forget(&mut self) {
        let last = self.destination.record.last();
        if last.is_some_and(Entry::is_forgettable) {
            self.destination.record.remove();
        }
    }

    /// The supervisor is gone, and its connections with it. An answer that is out still arrives.
    pub(crate) fn supervisor_dies(&mut self) {
        self.is_supervisor_up = false;
        if !matches!(self.settling.exchange, Exchange::Answered { .. }) {
            self.settling.exchange = Exchange::Quiet;
        }
        self.settling.stale_asks = 0;
        self.settling.is_settled_under_way = false;
    }
}
