//! This side's record of the session, and what the guest holds outside of this host.

use super::*;

/// How long an entry outside of the pause may take. Past it the disk is as good as gone, and the
/// move goes on: nothing that is recorded there is needed to keep the guest safe.
const RECORD_TIME: Duration = Duration::from_secs(5);

impl Mover<'_, '_> {
    /// The last thing before COMMIT. Without the record there is no COMMIT: a crash of this process
    /// would leave nobody who knows that the guest may run elsewhere.
    pub(super) fn record_give_up(&mut self) -> Event {
        let deadline = self
            .pause_deadline
            .unwrap_or_else(|| Deadline::after(Duration::ZERO));
        let words = format!("COMMIT follows; guest epoch {}", self.offer.identity.epoch);
        let begun = Timestamp::now();
        planted::delay("source:record-give-up");
        let added = self
            .journal
            .add(Entry::GivenUp, &words, Durability::Plain, deadline);
        self.record_operation(Operation::CommitRecord, begun);
        self.mark("record-give-up");
        if let Err(error) = added {
            return self.stop(
                StayReason::Failed,
                &format!("recording the give-up: {error}"),
            );
        }
        self.observer.reached(Milestone::GivenUp);
        // The disk may have taken all the time that was left.
        self.overdue().unwrap_or(Event::GaveUp)
    }

    /// What was recorded inside the pause, made to outlive the host.
    pub(super) fn sync_record(&mut self) {
        if let Err(error) = self.journal.sync(Deadline::after(RECORD_TIME)) {
            self.observer
                .note(&format!("making the record durable: {error}"));
        }
    }

    /// The record's last entry. Behind the give-up it is durable, since the destination may forget
    /// the move then: a record that came back without it could be settled by nobody.
    pub(super) fn record_end(&mut self, entry: Entry) {
        let words = self.reason.clone().unwrap_or_default();
        let deadline = Deadline::after(RECORD_TIME);
        let durability = match entry == Entry::Released || self.doubt.is_some() {
            true => Durability::Durable,
            false => Durability::Plain,
        };
        let begun = Timestamp::now();
        let added = self.journal.add(entry, &words, durability, deadline);
        self.record_operation(Operation::CommitRecord, begun);
        self.has_recorded_end = added.is_ok();
        if let Err(error) = added {
            self.observer
                .note(&format!("recording that the move is over: {error}"));
        }
    }

    /// A person's word is recorded before it is acted on.
    pub(super) fn record_decision(&mut self, decision: Decision) -> Option<Event> {
        let (entry, word) = match decision {
            Decision::ResumeHere => (Entry::ResumedByHand, "resumed here"),
            Decision::DiscardHere => (Entry::DiscardedByHand, "discarded here"),
        };
        let how = self.handle.decision().map(|decided| decided.1);
        let how = how.unwrap_or_default();
        self.close_doubt("person", &how);
        self.reason = Some(format!(
            "the owner was not known; {word} by a person, who says of the other side: {how}"
        ));
        let deadline = Deadline::after(RECORD_TIME);
        let added = self.journal.add(entry, &how, Durability::Durable, deadline);
        if let Err(error) = added {
            // The person's word stands all the same; but a crash from here on finds the old record.
            self.observer
                .note(&format!("recording the decision: {error}"));
        }
        None
    }

    pub(super) fn release_outside(&mut self) {
        let reason = match self.session.state() {
            State::Discarded => ReleaseReason::Discarded,
            _ => ReleaseReason::MovedAway,
        };
        let begun = Timestamp::now();
        let released = self.outside.release(reason);
        self.record_operation(Operation::Outside, begun);
        if let Err(error) = released {
            self.observer
                .note(&format!("releasing what the guest holds outside: {error}"));
        }
    }
}
