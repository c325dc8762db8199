//! The destination's process: the real session, and its actions performed one by one, the way the
//! engine's receiver performs them. An event that an action brings is taken once all are performed.

use dunlin_engine::records::{Durability, Entry};
use dunlin_engine::session::DestinationSession;
use dunlin_engine::session::destination::{Action, Event, State};

use crate::step::{DestinationOutcome, DestinationStep, Step};
use crate::world::{Disk, Life, Record, Word, World};

impl World {
    pub(crate) fn destination_steps(&self, steps: &mut Vec<Step>) {
        let push = |steps: &mut Vec<Step>, step| steps.push(Step::Destination(step));
        match self.destination.life {
            Life::None if self.to_destination.words.first() == Some(&Word::Hello) => {
                push(steps, DestinationStep::Admit);
                push(steps, DestinationStep::Refuse);
            }
            Life::None if self.to_destination.is_over() => {
                push(steps, DestinationStep::GiveUpWaiting);
            }
            Life::InSession => match self.destination.actions.first() {
                None => self.destination_waits(steps),
                Some(&action) => {
                    let step = |outcome| Step::Destination(DestinationStep::Perform(outcome));
                    steps.extend(self.destination_outcomes(action).into_iter().map(step));
                }
            },
            Life::Settled => {
                for is_recorded in [true, false] {
                    for comes_back in [false, true] {
                        push(
                            steps,
                            DestinationStep::EndGuest {
                                is_recorded,
                                comes_back,
                            },
                        );
                    }
                }
            }
            _ => {}
        }
    }

    fn destination_waits(&self, steps: &mut Vec<Step>) {
        let wire = &self.to_destination;
        let state = self.destination.session.state();
        let mut push = |step| steps.push(Step::Destination(step));
        if state == State::Loading {
            push(DestinationStep::Load);
        }
        if !wire.words.is_empty() {
            push(DestinationStep::Hear);
        }
        // Said once: behind it nobody reads.
        if !wire.is_deaf {
            push(match wire.is_over() {
                true => DestinationStep::NoticeLoss,
                false => DestinationStep::ImagineLoss,
            });
        }
        // Said while the guest runs too, and not to be heeded then.
        push(DestinationStep::Fail);
    }

    fn destination_outcomes(&self, action: Action) -> Vec<DestinationOutcome> {
        use DestinationOutcome::{Failed, MayHaveRun, NeverEntered, Unsent, Well};
        if is_recording(action) {
            let disks = self.destination.record.disks().iter();
            return disks.map(|&disk| DestinationOutcome::Disk(disk)).collect();
        }
        let mut outcomes = vec![Well];
        match action {
            Action::SendReady | Action::SendRunning | Action::SendVerified => {
                outcomes.extend([true, false].map(|is_sent| Unsent { is_sent }));
            }
            Action::Acquire => outcomes.push(Failed),
            Action::Run => outcomes.extend([NeverEntered, MayHaveRun]),
            _ => {}
        }
        outcomes
    }

    pub(crate) fn destination_does(&mut self, step: DestinationStep) {
        match step {
            DestinationStep::Admit => {
                self.to_destination.words.remove(0);
                self.destination.life = Life::InSession;
                self.destination.has_memory = true;
                self.destination.record = Record::begun(Entry::Expected);
                self.to_source.send(Word::Welcome);
            }
            DestinationStep::Refuse | DestinationStep::GiveUpWaiting => {
                if step == DestinationStep::Refuse {
                    self.to_source.send(Word::Refused);
                }
                self.hang_up_on_source();
                self.destination.life = Life::Exited;
            }
            DestinationStep::Perform(outcome) => self.destination_performs(outcome),
            DestinationStep::Hear => {
                let word = self.to_destination.words.remove(0);
                self.destination_takes(heard(word));
            }
            DestinationStep::NoticeLoss | DestinationStep::ImagineLoss => {
                self.to_destination.deafen();
                self.destination_takes(Event::Lost);
            }
            DestinationStep::Load => self.destination_takes(Event::Loaded),
            DestinationStep::Fail => self.destination_takes(Event::Failed),
            DestinationStep::EndGuest {
                is_recorded,
                comes_back,
            } => {
                let record = &mut self.destination.record;
                let disk = match (record.pending.is_empty(), is_recorded) {
                    (false, _) => Disk::Hang,
                    (true, true) => Disk::Well,
                    (true, false) => Disk::Unwritten,
                };
                record.add(Entry::Ended, Durability::Durable, disk);
                self.destination.has_later_epoch = comes_back;
                self.destination_exits();
            }
        }
    }

    fn destination_takes(&mut self, event: Event) {
        self.destination.events.push(event);
        self.destination_passes();
    }

    fn destination_performs(&mut self, outcome: DestinationOutcome) {
        let action = self.destination.actions.remove(0);
        let disk = match outcome {
            DestinationOutcome::Disk(disk) => disk,
            _ => Disk::Well,
        };
        let event = match action {
            Action::Acquire if outcome == DestinationOutcome::Failed => Some(Event::Failed),
            Action::Acquire => Some(Event::Acquired),
            Action::SendReady => {
                self.destination.has_said_ready = true;
                self.destination_sends(Word::Ready, outcome)
            }
            Action::SendRunning => self.destination_sends(Word::Running, outcome),
            Action::SendVerified => self.destination_sends(Word::Verified, outcome),
            Action::SendAborted => {
                // The source may have heard it by asking, and have had the record removed. Before
                // READY there is no give-up that the record would have to outlast.
                let record = &self.destination.record;
                let is_recorded = !record.is_there || record.has_durably(Entry::Aborted);
                self.slips.aborted_before_recorded |=
                    self.destination.has_said_ready && !is_recorded;
                self.to_source.send(Word::Aborted);
                None
            }
            Action::RecordOwnership => {
                Some(self.destination_records(Entry::Owned, Durability::Plain, disk))
            }
            Action::RecordAborted => {
                Some(self.destination_records(Entry::Aborted, Durability::Durable, disk))
            }
            // What becomes of these changes nothing for the guest.
            Action::RecordRunning => {
                self.destination_records(Entry::Running, Durability::Durable, disk);
                None
            }
            Action::RecordBroken => {
                self.destination_records(Entry::Broken, Durability::Durable, disk);
                None
            }
            Action::RecordNotCome => {
                self.destination_records(Entry::NotCome, Durability::Plain, disk);
                None
            }
            Action::RecordReleased => {
                self.destination_records(Entry::Released, Durability::Plain, disk);
                None
            }
            Action::Run => Some(self.enter(outcome)),
            Action::Discard => {
                let entered = self.destination.may_have_entered;
                self.slips.discarded_entered |= entered;
                self.destination.has_memory = false;
                None
            }
            Action::ReleaseOutside => {
                self.destination.releases = self.destination.releases.saturating_add(1);
                None
            }
            // Lanes without identities: what comes before the rounds changes nothing of the handover.
            Action::ConfirmLanes | Action::SendLanesConfirmed => None,
            // Nothing is registered either.
            Action::OpenRanges | Action::CloseRanges | Action::TellRanges => None,
            Action::Load | Action::RevokeAccess | Action::CheckPages | Action::CloseLanes => None,
        };
        self.destination.events.extend(event);
        self.destination_passes();
    }

    fn enter(&mut self, outcome: DestinationOutcome) -> Event {
        let record = &self.destination.record;
        let is_owned = !record.is_there || record.last() == Some(Entry::Owned);
        self.slips.entered_before_owned |= !is_owned;
        match outcome {
            DestinationOutcome::NeverEntered => Event::NeverEntered,
            DestinationOutcome::MayHaveRun => {
                self.destination.may_have_entered = true;
                Event::NotEntered
            }
            _ => {
                self.destination.may_have_entered = true;
                self.destination.has_entered = true;
                self.destination.runs = true;
                Event::Entered
            }
        }
    }

    fn destination_sends(&mut self, word: Word, outcome: DestinationOutcome) -> Option<Event> {
        match outcome {
            DestinationOutcome::Unsent { is_sent } => {
                self.to_source.fail_to_send(word, is_sent);
                Some(Event::Lost)
            }
            _ => {
                self.to_source.send(word);
                None
            }
        }
    }

    fn destination_records(&mut self, entry: Entry, durability: Durability, disk: Disk) -> Event {
        match self.destination.record.add(entry, durability, disk) {
            true => Event::Recorded,
            false => Event::NotRecorded,
        }
    }

    /// Passes over what nobody outside of the process can see; takes the next event; ends the
    /// session where it is over.
    fn destination_passes(&mut self) {
        loop {
            match self.destination.actions.first() {
                Some(_) if self.bounds.is_fine => return,
                // Loading takes its time: its end comes as a step.
                Some(
                    Action::Load | Action::RevokeAccess | Action::CheckPages | Action::CloseLanes,
                ) => {
                    self.destination.actions.remove(0);
                }
                Some(_) => return,
                None if self.destination.session.is_over() => break,
                None if self.destination.events.is_empty() => return,
                None => {
                    let event = self.destination.events.remove(0);
                    self.destination.actions = self.destination.session.on(event);
                }
            }
        }
        self.destination.events.clear();
        self.hang_up_on_source();
        if self.destination.session.state() == State::Released {
            self.destination.life = Life::Settled;
        } else {
            self.destination_exits();
        }
    }

    pub(crate) fn hang_up_on_source(&mut self) {
        self.to_source.is_closed = true;
        self.to_destination.deafen();
    }

    fn destination_exits(&mut self) {
        self.destination.life = Life::Exited;
        self.destination.record.lose_writer();
        self.destination.runs = false;
        self.destination.has_memory = false;
    }

    /// The process is gone from one moment to the next. What it sent before is still delivered.
    pub(crate) fn destination_dies(&mut self, is_entering: bool) {
        let destination = &mut self.destination;
        destination.life = Life::Crashed;
        destination.record.lose_writer();
        destination.may_have_entered |= is_entering;
        destination.runs = false;
        destination.has_memory = false;
        destination.actions.clear();
        destination.events.clear();
        destination.session = DestinationSession::new();
        self.hang_up_on_source();
    }
}

fn is_recording(action: Action) -> bool {
    matches!(
        action,
        Action::RecordOwnership
            | Action::RecordRunning
            | Action::RecordBroken
            | Action::RecordReleased
            | Action::RecordAborted
            | Action::RecordNotCome
    )
}

fn heard(word: Word) -> Event {
    match word {
        Word::Prepare => Event::Prepare,
        Word::Commit => Event::Commit,
        Word::VerifyEnd => Event::VerifyEnd,
        Word::Released => Event::Released,
        Word::Abort => Event::Abort,
        _ => Event::Failed,
    }
}
