//! The source's process: the real session, and its actions performed one by one, the way the
//! engine's mover performs them. An action that brings an event makes what follows it void.

use dunlin_engine::records::{Durability, Entry};
use dunlin_engine::session::source::{Action, Event, State};
use dunlin_engine::session::{Decision, StayReason};

use crate::step::{SourceOutcome, SourceStep, Step};
use crate::world::{Disk, Exchange, Life, Word, World};

/// Whatever makes this side end the move: a cancel, the cap, a deadline, a failure here. The
/// session treats them alike, but for the word in the report.
const STOP: Event = Event::Stop(StayReason::Cancelled);

impl World {
    pub(crate) fn begin(&mut self) {
        self.source_takes(Event::Begin);
    }

    pub(crate) fn source_steps(&self, steps: &mut Vec<Step>) {
        if self.source.life != Life::InSession {
            return;
        }
        match self.source.actions.first() {
            None => self.source_waits(steps),
            // It waits for the lanes there, and takes whatever else comes.
            Some(Action::FenceLanes) => {
                steps.push(Step::Source(SourceStep::Perform(SourceOutcome::Well)));
                self.source_waits(steps);
            }
            // The last of all steps: where nothing else can happen, it is looked at what it brings.
            Some(Action::Ask) => {}
            Some(&action) => {
                let outcomes = self.source_outcomes(action);
                let step = |outcome| Step::Source(SourceStep::Perform(outcome));
                steps.extend(outcomes.iter().copied().map(step));
            }
        }
    }

    fn source_waits(&self, steps: &mut Vec<Step>) {
        let wire = &self.to_source;
        if self.source.in_round {
            steps.push(Step::Source(SourceStep::FinishRound));
        }
        if !wire.words.is_empty() {
            steps.push(Step::Source(SourceStep::Hear));
        }
        // Said once: behind it nobody reads.
        if !wire.is_deaf {
            steps.push(Step::Source(match wire.is_over() {
                true => SourceStep::NoticeLoss,
                false => SourceStep::ImagineLoss,
            }));
        }
        // Behind the give-up it is still said, when a lane ends, and must not be heeded.
        steps.push(Step::Source(SourceStep::Stop));
    }

    fn source_outcomes(&self, action: Action) -> Vec<SourceOutcome> {
        use SourceOutcome::{AnotherRound, Dirtied, Stopped, Unsent, Well};
        if is_recording(action) {
            let disks = self.source.record.disks().iter();
            return disks.map(|&disk| SourceOutcome::Disk(disk)).collect();
        }
        let mut outcomes = vec![Well];
        match action {
            Action::SendHello | Action::SendPrepare | Action::SendCommit | Action::Verify => {
                outcomes.extend([true, false].map(|is_sent| Unsent { is_sent }));
            }
            Action::Judge if self.rounds_left > 0 => outcomes.push(AnotherRound),
            Action::CollectAgain => outcomes.push(Dirtied),
            _ => {}
        }
        let can_stop = matches!(action, Action::Open | Action::Judge | Action::Pause);
        if can_stop || action.is_inside_blackout() {
            outcomes.push(Stopped);
        }
        outcomes
    }

    pub(crate) fn source_does(&mut self, step: SourceStep) {
        match step {
            SourceStep::Perform(outcome) => self.source_performs(outcome),
            SourceStep::Hear => {
                let word = self.to_source.words.remove(0);
                self.source_takes(heard(word));
            }
            SourceStep::NoticeLoss | SourceStep::ImagineLoss => {
                self.to_source.deafen();
                self.source_takes(Event::Lost);
            }
            SourceStep::FinishRound => {
                self.source.in_round = false;
                self.source_takes(Event::RoundDone);
            }
            SourceStep::Stop => self.source_takes(STOP),
            SourceStep::Ask => self.settling.exchange = Exchange::Asked,
            SourceStep::HearAnswer => {
                let exchange = std::mem::replace(&mut self.settling.exchange, Exchange::Quiet);
                if let Exchange::Answered { answer, .. } = exchange {
                    let is_unknown = answer == dunlin_engine::records::verdict::Answer::NoRecord;
                    self.slips.found_no_record |= is_unknown && !self.is_record_lost;
                    self.source_takes(Event::Answered(Some(answer)));
                }
            }
            SourceStep::Decide(decision) => self.source_takes(Event::Decided(decision)),
        }
    }

    fn source_takes(&mut self, event: Event) {
        self.source.actions = self.source.session.on(event);
        self.source_passes();
    }

    fn source_performs(&mut self, outcome: SourceOutcome) {
        let action = self.source.actions.remove(0);
        let stopped = outcome == SourceOutcome::Stopped;
        let disk = match outcome {
            SourceOutcome::Disk(disk) => disk,
            _ => Disk::Well,
        };
        let event = match action {
            Action::SendHello => self.source_sends(Word::Hello, outcome),
            Action::Open => Some(if stopped { STOP } else { Event::Opened }),
            Action::Judge if stopped => Some(STOP),
            Action::Judge if outcome == SourceOutcome::AnotherRound => {
                self.rounds_left -= 1;
                Some(Event::Continue)
            }
            Action::Judge => Some(Event::Converged),
            Action::Pause => {
                // Where pausing fails, some vCPUs may stand all the same.
                self.source.runs = false;
                Some(if stopped { STOP } else { Event::Paused })
            }
            _ if stopped => Some(STOP),
            Action::StartFinalRound => {
                self.source.in_round = true;
                None
            }
            Action::Save => Some(Event::Saved),
            Action::CollectAgain => Some(Event::Collected {
                dirtied: outcome == SourceOutcome::Dirtied,
            }),
            Action::SendPrepare => self.source_sends(Word::Prepare, outcome),
            Action::RecordGiveUp => {
                let record = &mut self.source.record;
                let is_recorded = record.add(Entry::GivenUp, Durability::Plain, disk);
                Some(if is_recorded { Event::GaveUp } else { STOP })
            }
            Action::SendCommit => {
                let is_recorded = self.source.record.last() == Some(Entry::GivenUp);
                self.slips.committed_before_give_up |= !is_recorded;
                self.source_sends(Word::Commit, outcome)
            }
            Action::SyncRecord => {
                if disk == Disk::Well {
                    self.source.record.sync();
                }
                None
            }
            Action::Verify => self.source_sends(Word::VerifyEnd, outcome),
            Action::SendReleased => {
                self.to_destination.send(Word::Released);
                None
            }
            Action::SendAbort => {
                self.to_destination.send(Word::Abort);
                None
            }
            Action::Resume => {
                self.source.runs = true;
                None
            }
            // Durable behind a doubt only; less is modelled.
            Action::RecordStayed => self.source_records(Entry::Stayed, Durability::Plain, disk),
            Action::RecordReleased => {
                self.source_records(Entry::Released, Durability::Durable, disk)
            }
            Action::RecordDecision(decision) => {
                let entry = match decision {
                    Decision::ResumeHere => Entry::ResumedByHand,
                    Decision::DiscardHere => Entry::DiscardedByHand,
                };
                self.source_records(entry, Durability::Durable, disk)
            }
            Action::ReleaseOutside => {
                self.source.releases = self.source.releases.saturating_add(1);
                None
            }
            Action::Hold => {
                // What was sent is still delivered; what comes is not heard any more.
                self.to_destination.is_closed = true;
                self.to_source.deafen();
                None
            }
            Action::TellSettled => {
                self.settling.is_settled_under_way = true;
                None
            }
            Action::StartRound => {
                self.source.in_round = true;
                None
            }
            Action::SendLanes | Action::FenceLanes | Action::CloseLanes | Action::Ask => None,
            // Nothing is registered here: what is open changes nothing of the handover.
            Action::OpenPending | Action::AcceptGrants | Action::AcceptClosed => None,
        };
        match event {
            Some(event) => self.source_takes(event),
            None => self.source_passes(),
        }
    }

    fn source_sends(&mut self, word: Word, outcome: SourceOutcome) -> Option<Event> {
        match outcome {
            SourceOutcome::Unsent { is_sent } => {
                self.to_destination.fail_to_send(word, is_sent);
                Some(Event::Lost)
            }
            _ => {
                self.to_destination.send(word);
                None
            }
        }
    }

    fn source_records(
        &mut self,
        entry: Entry,
        durability: Durability,
        disk: Disk,
    ) -> Option<Event> {
        // What is recorded at the end changes nothing for the guest: a failure is only told.
        let is_recorded = self.source.record.add(entry, durability, disk);
        self.source.is_end_unrecorded |= !is_recorded;
        None
    }

    /// Passes over actions that nobody outside of the process can see, so that a crash before and
    /// one behind them are one state; ends the session where it is over.
    fn source_passes(&mut self) {
        while let Some(&action) = self.source.actions.first() {
            match action {
                _ if self.bounds.is_fine => return,
                Action::StartRound => self.source.in_round = true,
                Action::CloseLanes => {}
                _ => return,
            }
            self.source.actions.remove(0);
        }
        if !self.source.session.is_over() {
            return;
        }
        self.to_destination.is_closed = true;
        self.to_source.deafen();
        self.source.in_round = false;
        if matches!(self.source.session.state(), State::Stayed(_)) {
            self.source.life = Life::Settled;
        } else {
            let is_moved = self.source.session.state() == State::Moved;
            self.slips.freed_unentered |= is_moved && !self.destination.has_entered;
            self.source.life = Life::Exited;
            self.source.runs = false;
            self.source.has_memory = false;
        }
    }
}

fn is_recording(action: Action) -> bool {
    matches!(
        action,
        Action::RecordGiveUp
            | Action::SyncRecord
            | Action::RecordStayed
            | Action::RecordReleased
            | Action::RecordDecision(_)
    )
}

fn heard(word: Word) -> Event {
    match word {
        Word::Welcome => Event::Welcome,
        Word::Refused => Event::Refused,
        Word::Ready => Event::Ready,
        Word::Running => Event::Running,
        Word::Verified => Event::Verified,
        Word::Aborted => Event::Aborted,
        _ => Event::Lost,
    }
}
