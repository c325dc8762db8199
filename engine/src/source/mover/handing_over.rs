//! The guest is paused: the last pages, its state, PREPARE and COMMIT; and what follows either way.

use super::*;

impl Mover<'_, '_> {
    /// Law 7: every writer stops, then what they wrote last is collected.
    pub(super) fn pause(&mut self) -> Event {
        self.observer.reached(Milestone::Pausing);
        let begin = Timestamp::now();
        let deadline = Deadline::after(self.blackout_cap());
        self.pause_deadline = Some(deadline);
        planted::delay("source:leaving");
        let record = match self.guest.pause(deadline) {
            Ok(record) => record,
            Err(error) => {
                self.timeline = Some(Timeline::new(begin));
                return self.stop(StayReason::Failed, &format!("pausing the guest: {error}"));
            }
        };
        let first = record.parked.iter().min().copied().unwrap_or(begin);
        self.leaving = first.since(begin);
        let mut timeline = Timeline::new(first);
        planted::delay("source:park");
        timeline.mark_now("park");
        self.parked = record.parked;
        let collected = self.collect(Some("source:collect"));
        timeline.mark_now("collect");
        self.timeline = Some(timeline);
        self.observer.reached(Milestone::Paused);
        match collected {
            Ok(()) => Event::Paused,
            Err(reason) => self.stop(StayReason::Failed, &reason),
        }
    }

    /// Saves device state. The lanes send the last pages meanwhile.
    pub(super) fn save(&mut self) -> Event {
        let begun = Timestamp::now();
        planted::delay("source:save-state");
        let saved = self.guest.save_state();
        let saved = saved.map_err(|error| format!("saving state: {error}"));
        let saved = saved.and_then(|state| {
            let encoded = state.encode();
            encoded.map_err(|error| format!("saving state: {error}"))
        });
        self.mark("save-state");
        self.record_operation(Operation::SaveState, begun);
        self.observer.reached(Milestone::Saved);
        match saved {
            Ok(state) => {
                self.state = state;
                Event::Saved
            }
            Err(reason) => self.stop(StayReason::Failed, &reason),
        }
    }

    /// Law 7: what saving wrote is collected too.
    pub(super) fn collect_again(&mut self) -> Event {
        let collected = self.collect(Some("source:collect-again"));
        self.mark("collect-again");
        match collected {
            Ok(()) => Event::Collected {
                dirtied: !self.pending.is_empty(),
            },
            Err(reason) => self.stop(StayReason::Failed, &reason),
        }
    }

    /// Waits until the destination has seen every lane's last fence.
    pub(super) fn fence_lanes(&mut self) -> Option<Event> {
        self.tallies.clear();
        self.order(&Order::ConfirmFence);
        loop {
            match self.next_event() {
                Event::RoundDone => {
                    self.mark("fence");
                    return None;
                }
                // Ranges that were closed in the round before.
                event @ (Event::Grants | Event::Closed) => {
                    for action in self.session.on(event) {
                        if let Some(event) = self.perform(action) {
                            return Some(event);
                        }
                    }
                }
                other => return Some(other),
            }
        }
    }

    pub(super) fn send_prepare(&mut self) -> Option<Event> {
        let mut all_digests = Vec::new();
        if self.full_digests() {
            let threads = usize::from(self.report.lanes);
            let deadline = self
                .pause_deadline
                .unwrap_or_else(|| Deadline::after(Duration::ZERO));
            let begun = Timestamp::now();
            planted::delay("source:digests");
            let all = digests(self.guest.memory(), threads, deadline);
            self.record_operation(Operation::Digest, begun);
            match all {
                Ok(digests) => all_digests = digests,
                Err(error) => {
                    // Past the cap, that is the reason.
                    let cap = self.overdue();
                    return cap.or_else(|| Some(self.stop(StayReason::Failed, &error.to_string())));
                }
            }
            self.mark("digests");
        }
        let prepare = Prepare {
            fences: self.fences.clone(),
            counts: Counts {
                payload_bytes: self.counters.iter().map(|lane| lane.payload_bytes).sum(),
                zero_pages: self.counters.iter().map(|lane| lane.zero_pages).sum(),
            },
            digests: all_digests,
            state: std::mem::take(&mut self.state).into(),
            blackout_cap_ns: nanoseconds(self.blackout_cap()),
        };
        let begun = Timestamp::now();
        self.recorder
            .count(Counter::State, prepare.state.len() as u64);
        planted::delay("source:send-prepare");
        self.prepare_sent = Some(Timestamp::now());
        let event = self.send(&Message::Prepare(prepare));
        self.record_operation(Operation::SendState, begun);
        if let Some(timeline) = &mut self.timeline {
            timeline.mark_sent("send-prepare");
        }
        self.observer.reached(Milestone::Prepared);
        event
    }

    pub(super) fn send_commit(&mut self) -> Option<Event> {
        planted::delay("source:commit");
        self.commit_begun = Some(Timestamp::now());
        let event = self.send(&Message::Commit);
        self.commit_sent = Some(Timestamp::now());
        if let Some(timeline) = &mut self.timeline {
            timeline.mark_sent("commit");
        }
        self.observer.reached(Milestone::Committed);
        event
    }

    /// Tells the destination what this side's frozen pages look like.
    pub(super) fn verify(&mut self) -> Option<Event> {
        self.close_timeline();
        self.verify_begin = Some(Timestamp::now());
        let common = self
            .welcome
            .as_ref()
            .map_or(0, |welcome| welcome.capabilities);
        let check = (self.settings.verify == Verify::Auto && common & capability::SELF_CHECK != 0)
            .then(|| self.guest.self_check())
            .flatten();
        if let Some(check) = check {
            self.report.verification.method = "pages".to_owned();
            for range in self.guest.memory().lane_map().whole() {
                let mut first = range.first;
                while first < range.end() {
                    let pages = (range.end().0 - first.0).min(VERIFY_PAGES_MAX as u64) as u32;
                    let claims = check.claims(first, pages);
                    let message = Message::VerifyPages(VerifyPages::new(first, &claims));
                    // The destination may take its time over each, but not over all of them.
                    if let Some(event) = self.send(&message).or_else(|| self.overdue()) {
                        return Some(event);
                    }
                    first.0 += u64::from(pages);
                }
            }
        }
        self.send(&Message::VerifyEnd)
    }

    pub(super) fn resume(&mut self) {
        self.begins();
        // Once more: what failed may have been a thread that was slow to answer.
        let begun = Timestamp::now();
        planted::delay("source:resume");
        let resumed = self.guest.resume().or_else(|_| self.guest.resume());
        if let Err(error) = resumed {
            self.not_resumed = true;
            let words = format!("the guest could not be resumed: {error}");
            self.observer.note(&words);
            self.reason = Some(match self.reason.take() {
                Some(reason) => format!("{reason}; {words}"),
                None => words,
            });
        }
        self.mark("resume");
        self.record_operation(Operation::Resume, begun);
        self.pause_deadline = None;
    }

    /// Ends the lanes' threads and the tracking of writes.
    pub(super) fn close_lanes(&mut self) {
        self.context.stop();
        self.stop_window();
        self.orders.clear();
        self.endpoint.stop();
        for source in &self.sources {
            if let Err(error) = source.stop() {
                self.observer.note(&format!(
                    "stopping dirty tracking ({}): {error}",
                    source.name()
                ));
            }
        }
    }
}
