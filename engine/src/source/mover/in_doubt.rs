//! The connection was lost behind the give-up: the guest may run on the destination. It is kept
//! paused here, and the destination is asked on new connections, for as long as it takes. This is
//! the one wait without a deadline.

use super::*;
use crate::source::asking::{Answered, AskError, ask};

/// How long after an answer that settles nothing the destination is asked again, at first.
const ASK_INTERVAL_MIN: Duration = Duration::from_millis(50);

/// The interval grows to this: a destination that comes back is found within it.
const ASK_INTERVAL_MAX: Duration = Duration::from_secs(2);

/// What is known while nobody knows who owns the guest.
pub(super) struct Doubt {
    since: Timestamp,
    asked: u32,
    interval: Duration,
    /// What was told of it last, so that the same is not told twice.
    told: String,
    /// The last answer, and its connection.
    answered: Option<Answered>,
}

impl Mover<'_, '_> {
    /// Nothing more goes over the old connection, and nobody waits for it.
    pub(super) fn hold(&mut self) {
        planted::delay("source:committed");
        self.mark("committed");
        self.link.stop();
        self.pause_deadline = None;
        self.doubt = Some(Doubt {
            since: Timestamp::now(),
            asked: 0,
            interval: Duration::ZERO,
            told: String::new(),
            answered: None,
        });
        self.tell_doubt("it was not asked yet");
        self.observer.reached(Milestone::InDoubt);
    }

    /// Asks once, after a while. Returns earlier when a person decides.
    pub(super) fn ask(&mut self) -> Event {
        let interval = self
            .doubt
            .as_ref()
            .map_or(Duration::ZERO, |doubt| doubt.interval);
        let due = Deadline::after(interval);
        loop {
            if let Some((decision, _)) = self.handle.decision() {
                return Event::Decided(decision);
            }
            self.tell_progress();
            let left = due.remaining();
            if left.is_zero() {
                break;
            }
            runtime::sleep(left.min(TICK));
        }
        let asked = self.ask_now();
        let Some(doubt) = &mut self.doubt else {
            return Event::Answered(None);
        };
        doubt.asked = doubt.asked.saturating_add(1);
        doubt.interval = (doubt.interval * 2).clamp(ASK_INTERVAL_MIN, ASK_INTERVAL_MAX);
        let (answer, words) = match asked {
            Ok(answered) => {
                let told = (Some(answered.answer), answered.words());
                doubt.answered = Some(answered);
                told
            }
            Err(error) => (None, format!("the destination can't be asked: {error}")),
        };
        match answer {
            Some(Answer::Running | Answer::Ended | Answer::Aborted) => {
                let lost = self.reason.take().unwrap_or_default();
                self.reason = Some(format!("{lost}; settled: {words}"));
                self.close_doubt("answer", &words);
            }
            _ => {
                self.tell_doubt(&words);
                self.unpin();
            }
        }
        Event::Answered(answer)
    }

    /// The guest may be held for days: its memory need not be pinned for lanes that are closed. Not
    /// before the first question, which settles most doubts, since it takes its time.
    fn unpin(&self) {
        let is_first = self.doubt.as_ref().is_some_and(|doubt| doubt.asked == 1);
        if is_first {
            self.endpoint.retire_all();
        }
    }

    pub(super) fn ask_now(&mut self) -> Result<Answered, AskError> {
        let deadline = Deadline::after(self.settings.peer_timeout);
        let channel = self.reconnect.reconnect(deadline)?;
        let identity = &self.offer.identity;
        ask(
            channel,
            self.session_id,
            identity.uuid,
            identity.epoch,
            deadline,
        )
    }

    /// The destination need not keep its record any more. One that does not hear it keeps it.
    pub(super) fn tell_settled(&mut self) {
        let answered = self.doubt.as_mut().and_then(|doubt| doubt.answered.take());
        // Where this side's record has no end, the destination's is all that can end it.
        if let Some(answered) = answered.filter(|_| self.has_recorded_end) {
            answered.settle(Deadline::after(self.settings.peer_timeout));
        }
    }

    pub(super) fn close_doubt(&mut self, settled_by: &str, words: &str) {
        planted::delay("source:in-doubt");
        self.mark("in-doubt");
        if let Some(doubt) = &self.doubt {
            self.report.in_doubt = Some(InDoubtReport {
                held_ns: nanoseconds(Timestamp::now().since(doubt.since)),
                asked: doubt.asked,
                settled_by: settled_by.to_owned(),
                words: words.to_owned(),
            });
        }
    }

    fn tell_doubt(&mut self, words: &str) {
        let lost = self.reason.clone().unwrap_or_default();
        let Some(doubt) = self.doubt.as_mut().filter(|doubt| doubt.told != words) else {
            return;
        };
        doubt.told = words.to_owned();
        self.observer.in_doubt(&format!(
            "the connection was lost behind the give-up ({lost}): the guest is kept paused here, \
             since it may run on the destination; {words}"
        ));
    }
}
