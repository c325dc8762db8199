//! Whose the guest is: this side's record of the session, and what the guest holds outside of this
//! host.

use super::*;

/// How long the entry behind COMMIT may take. It is inside the pause; a disk that hangs for longer
/// than this is no host for a guest.
const OWNERSHIP_TIME: Duration = Duration::from_secs(5);

/// How long an entry outside of the pause may take.
const RECORD_TIME: Duration = Duration::from_secs(10);

/// How long an entry that matters is tried.
const INSIST_TIME: Duration = Duration::from_secs(60);

/// How long after a failure an entry that matters is tried again.
const RECORD_AGAIN: Duration = Duration::from_millis(500);

impl<F: GuestFactory> Destination<'_, F> {
    /// The guest's locks, its network: the last thing before READY that can fail.
    pub(super) fn acquire(&mut self) -> Event {
        let waited = Timestamp::now().since(self.prepare_received);
        let left = self.handover_limit.saturating_sub(waited);
        let deadline = Deadline::after(left.min(self.settings.acquire_timeout));
        if self.outside.holds_something() {
            // So that whoever finds the record knows that there is something to release.
            let begun = self.recorder.now();
            let added = self
                .journal
                .add(Entry::Acquiring, "", Durability::Plain, deadline);
            self.recorder.done(Operation::CommitRecord, begun);
            if let Err(error) = added {
                return self.failed(&format!("recording what is acquired: {error}"));
            }
        }
        let acquired = self.outside.acquire(deadline);
        self.ready.acquired_ns = Some(Timestamp::now().0);
        match acquired {
            Ok(()) => {
                self.factory.reached(Milestone::Acquired);
                Event::Acquired
            }
            Err(error) => self.failed(&format!("acquiring what the guest holds outside: {error}")),
        }
    }

    pub(super) fn record_ownership(&mut self) -> Event {
        let words = format!("guest epoch {}", self.epoch());
        let deadline = Deadline::after(OWNERSHIP_TIME);
        let added = self
            .journal
            .add(Entry::Owned, &words, Durability::Plain, deadline);
        self.running.owned_ns = Some(Timestamp::now().0);
        match added {
            Ok(()) => {
                self.factory.reached(Milestone::Owned);
                Event::Recorded
            }
            Err(error) => {
                self.because(&format!("recording the ownership: {error}"));
                Event::NotRecorded
            }
        }
    }

    /// Behind this the session can never run the guest here, not even after a crash of the host.
    pub(super) fn record_aborted(&mut self) -> Event {
        let words = self.reason.clone().unwrap_or_default();
        let deadline = Deadline::after(RECORD_TIME);
        let added = self
            .journal
            .add(Entry::Aborted, &words, Durability::Durable, deadline);
        match added {
            Ok(()) => Event::Recorded,
            Err(error) => {
                self.because(&format!("recording that the move is over: {error}"));
                Event::NotRecorded
            }
        }
    }

    /// Nobody will ask; where it can't be recorded, a tombstone stays that means nothing.
    pub(super) fn record_not_come(&mut self) {
        let words = self.reason.clone().unwrap_or_default();
        let deadline = Deadline::after(RECORD_TIME);
        let _ = self
            .journal
            .add(Entry::NotCome, &words, Durability::Plain, deadline);
    }

    /// Outside of the pause: the guest runs. A record that says less than is so makes a source that
    /// is in doubt wait, and nothing worse.
    pub(super) fn record_running(&mut self) {
        let words = format!("guest epoch {}", self.epoch());
        let deadline = Deadline::after(RECORD_TIME);
        let begun = self.recorder.now();
        let added = self
            .journal
            .add(Entry::Running, &words, Durability::Durable, deadline);
        self.recorder.done(Operation::CommitRecord, begun);
        self.has_recorded_running = added.is_ok();
    }

    /// The source never said that it knows, so it may be in doubt, and this entry is all that can
    /// tell it: where the disk failed before, it is tried again for a while. The guest has nobody
    /// to see to it meanwhile.
    pub(super) fn insist_on_running(&mut self) {
        let deadline = Deadline::after(INSIST_TIME);
        while !self.source_knows && !self.has_recorded_running && !deadline.passed() {
            runtime::sleep(RECORD_AGAIN.min(deadline.remaining()));
            self.record_running();
        }
    }

    pub(super) fn record_broken(&mut self) {
        let words = self.broken.as_ref().map(ToString::to_string);
        let words = words.unwrap_or_default();
        let deadline = Deadline::after(RECORD_TIME);
        let _ = self
            .journal
            .add(Entry::Broken, &words, Durability::Durable, deadline);
    }

    pub(super) fn record_released(&mut self) {
        self.source_knows = true;
        let deadline = Deadline::after(RECORD_TIME);
        let _ = self
            .journal
            .add(Entry::Released, "", Durability::Plain, deadline);
    }

    pub(super) fn release_outside(&mut self) {
        let reason = match self.session.state() {
            State::Broken => ReleaseReason::Broken,
            _ => ReleaseReason::NotCome,
        };
        match self.outside.release(reason) {
            Ok(()) => self.factory.released(),
            Err(error) => {
                self.because(&format!("releasing what the guest holds outside: {error}"));
            }
        }
    }
}
