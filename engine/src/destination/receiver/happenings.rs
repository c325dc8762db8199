//! What happens to a session: messages, lanes and time, turned into its events.

use super::*;

impl<F: GuestFactory> Destination<'_, F> {
    pub(super) fn next_event(&mut self) -> Event {
        loop {
            if let Some(event) = self.overdue() {
                return event;
            }
            let input = match self.inputs.recv_timeout(TICK) {
                Ok(input) => input,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return self.failed("no thread is left"),
            };
            let event = match input {
                Input::Link(LinkEvent::Lost(reason)) => Some(self.lost(&reason)),
                Input::Link(LinkEvent::Message(message)) => match *message {
                    Message::Prefault(ranges) => self.heard_prefault(&ranges),
                    message => Some(self.heard(message)),
                },
                Input::LaneOpen(lane) => self.lane_open(lane),
                Input::Fence {
                    lane,
                    number,
                    counters,
                } => self.fence(lane, number, counters),
                Input::RangesDone => Some(Event::RangesDone),
                // Behind PREPARE nothing depends on it, and all access ends soon.
                Input::RangeFailed(_) if self.session.state() != State::Receiving => None,
                Input::RangeFailed(error) => {
                    Some(self.failed(&format!("registering memory: {error}")))
                }
                // Once access is revoked, lanes end by themselves.
                Input::LaneFailed(_) if self.is_past_lanes() => None,
                Input::LaneFailed(error) => Some(self.failed(&error.to_string())),
            };
            if let Some(event) = event {
                return event;
            }
        }
    }

    pub(super) fn is_past_lanes(&self) -> bool {
        !matches!(self.session.state(), State::Receiving | State::Loading)
    }

    pub(super) fn overdue(&mut self) -> Option<Event> {
        let now = Timestamp::now();
        match self.session.state() {
            State::Receiving if self.naming_limit.is_some_and(Deadline::passed) => {
                let open = self.open.iter().filter(|open| **open).count();
                let reason = format!("{open} of {} lanes came in time", self.open.len());
                Some(self.failed(&reason))
            }
            State::Receiving => {
                let limit = self.settings.session_limit;
                (now.since(self.began) >= limit)
                    .then(|| self.failed(&format!("not done within {} s", limit.as_secs())))
            }
            State::Loading | State::Acquiring | State::Ready => {
                let limit = self.handover_limit;
                let waited = now.since(self.prepare_received);
                (waited >= limit).then(|| {
                    self.failed(&format!(
                        "no COMMIT within {} ms of PREPARE",
                        waited.as_millis()
                    ))
                })
            }
            State::Running => {
                // The guest runs here, and whoever has it wants to see to it. What is left is talk
                // about its memory: the source's own limit for that, and as much again.
                let bytes = self.hello.offer().layout.bytes();
                let limit = 2 * (VERIFY_TIME_BASE + Duration::from_secs(bytes / VERIFY_PACE));
                self.running_since
                    .is_some_and(|since| now.since(since) >= limit)
                    .then_some(Event::Lost)
            }
            _ => None,
        }
    }

    pub(super) fn heard(&mut self, message: Message) -> Event {
        match message {
            Message::Lanes(lanes) => {
                self.identities = Some(lanes);
                Event::Lanes
            }
            Message::Open(ranges) => self.heard_ranges(&ranges, MessageKind::Open, Event::Open),
            Message::Close(ranges) => self.heard_ranges(&ranges, MessageKind::Close, Event::Close),
            Message::Prepare(prepare) => {
                let opening = self.ranges.as_ref().map_or(0, OpenRanges::opening);
                if opening > 0 {
                    return self.failed(&format!(
                        "PREPARE came while {opening} ranges were being opened"
                    ));
                }
                planted::delay("link:prepare-on-link");
                self.prepare_received = Timestamp::now();
                let cap = Duration::from_nanos(prepare.blackout_cap_ns).min(BLACKOUT_CAP_MAX);
                self.handover_limit = cap + self.settings.peer_timeout;
                self.prepare = Some(prepare);
                self.factory.reached(Milestone::Prepare);
                Event::Prepare
            }
            Message::Commit => {
                planted::delay("link:commit-on-link");
                self.running.commit_received_ns = Timestamp::now().0;
                self.factory.reached(Milestone::Commit);
                Event::Commit
            }
            Message::VerifyPages(pages) => {
                self.claims = Some(pages);
                Event::VerifyPages
            }
            Message::VerifyEnd => Event::VerifyEnd,
            Message::Released => Event::Released,
            Message::Abort(abort) => {
                self.because(&format!("the source ended it: {}", abort.reason()));
                Event::Abort
            }
            other => {
                let kind = other.kind();
                self.failed(&format!("the source may not say {kind:?} now"))
            }
        }
    }

    pub(super) fn fence(
        &mut self,
        lane: LaneNumber,
        number: FenceNumber,
        counters: Option<LaneCounters>,
    ) -> Option<Event> {
        // The first round is over on this lane, and nearly so on the others: nothing is fresh any more.
        self.ahead.iter().for_each(Ahead::stop);
        if let Some(seen) = self.seen.get_mut(usize::from(lane.0)) {
            *seen = number.0;
        }
        if let Some(slot) = self.counters.get_mut(usize::from(lane.0)) {
            *slot = counters;
        }
        (self.session.state() == State::Loading)
            .then(|| self.load())
            .flatten()
    }

    pub(super) fn failed(&mut self, reason: &str) -> Event {
        self.because(reason);
        Event::Failed
    }

    pub(super) fn lost(&mut self, reason: &str) -> Event {
        self.lost = true;
        match self.endpoint.trouble() {
            Some(trouble) => self.because(&format!("{reason}; {trouble}")),
            None => self.because(reason),
        }
        Event::Lost
    }

    pub(super) fn because(&mut self, words: &str) {
        self.reason.get_or_insert_with(|| words.to_owned());
    }
}
