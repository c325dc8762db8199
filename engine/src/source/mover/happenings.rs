//! What happens to a move: messages, lanes, time and the operator, turned into the session's events.

use super::*;

impl Mover<'_, '_> {
    /// Waits for the next event.
    pub(super) fn next_event(&mut self) -> Event {
        let mut was_overdue = false;
        loop {
            if let Some(event) = self.overdue() {
                return event;
            }
            let input = match self.inputs.recv_timeout(TICK) {
                Ok(input) => input,
                Err(RecvTimeoutError::Timeout) => {
                    // Only who listened in vain may call the window late, and from the moment it was:
                    // this process may have been stopped for a while itself, with grants waiting.
                    if let Some(reason) = self.window_overdue()
                        && std::mem::replace(&mut was_overdue, true)
                    {
                        let reason = self.with_trouble(&reason);
                        return self.stop(StayReason::PeerFailed, &reason);
                    }
                    self.tell_progress();
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return self.lost("no thread is left"),
            };
            let event = match input {
                Input::Link(LinkEvent::Lost(reason)) => Some(self.lost(&reason)),
                Input::Link(LinkEvent::Message(message)) => Some(self.heard(*message)),
                Input::Lane(done) => self.lane_done(done),
                Input::Window(done) => self.window_done(done),
            };
            if let Some(event) = event {
                return event;
            }
        }
    }

    /// What time, or the operator, says.
    pub(super) fn overdue(&mut self) -> Option<Event> {
        if self.session.is_before_give_up() {
            if self.handle.cancelled() {
                return Some(self.stop(StayReason::Cancelled, "cancelled by the operator"));
            }
            if self.pause_deadline.is_some_and(Deadline::passed) {
                let cap = self.blackout_cap();
                let reason = format!("the guest was paused for {} ms, the cap", cap.as_millis());
                return Some(self.stop(StayReason::BlackoutCap, &reason));
            }
            let elapsed = Timestamp::now().since(self.began);
            if let Some(limit) = self.settings.timeout.filter(|limit| elapsed >= *limit) {
                let reason = format!("not done within {} s", limit.as_secs_f64());
                return Some(self.stop(StayReason::TimedOut, &reason));
            }
            let greeting = self.session.state() == State::Greeting;
            if greeting && elapsed >= self.greeting_timeout() {
                let reason = format!("no answer to HELLO within {} ms", elapsed.as_millis());
                return Some(self.lost(&reason));
            }
            let naming = self.session.state() == State::Naming;
            if naming && self.naming_limit.is_some_and(Deadline::passed) {
                let limit = self.settings.peer_timeout.as_millis();
                return Some(self.lost(&format!(
                    "the destination has not confirmed the lanes within {limit} ms"
                )));
            }
        }
        if self.session.state() == State::Committed {
            // As long as the destination waits for COMMIT. Its life signs alone are no RUNNING.
            let limit = self
                .blackout_cap()
                .saturating_add(self.settings.peer_timeout);
            let waited = Timestamp::now().since(self.commit_sent?);
            let reason = || format!("no RUNNING within {} ms of COMMIT", waited.as_millis());
            return (waited >= limit).then(|| self.lost(&reason()));
        }
        let verify_begin = self.verify_begin?;
        let allowed =
            VERIFY_TIME_BASE + Duration::from_secs(self.offer.layout.bytes() / VERIFY_PACE);
        (Timestamp::now().since(verify_begin) >= allowed).then(|| self.lost("no VERIFIED came"))
    }

    /// How long the destination may take to make room: memory for a large guest takes its time.
    pub(super) fn greeting_timeout(&self) -> Duration {
        self.settings.peer_timeout.max(VERIFY_TIME_BASE)
    }

    pub(super) fn heard(&mut self, message: Message) -> Event {
        match message {
            Message::Welcome(welcome) => {
                if welcome.version < VERSION_MIN || welcome.version > VERSION_MAX {
                    let version = welcome.version;
                    return self.lost(&format!("the destination chose version {version}"));
                }
                let can_digest = welcome.capabilities & capability::FULL_DIGESTS != 0;
                if self.settings.verify == Verify::Full && !can_digest {
                    let reason = "--verify full was asked for, the destination can't digest memory";
                    return self.stop(StayReason::Refused, reason);
                }
                let here = boot_id();
                self.same_clock = !here.is_empty() && welcome.host.boot_id == here;
                self.welcome = Some(welcome);
                self.record_phase(SpanName::Connect, self.began);
                self.observer.reached(Milestone::Welcome);
                Event::Welcome
            }
            Message::LanesConfirmed => {
                if self.session.state() == State::Naming {
                    self.observer.reached(Milestone::Opened);
                }
                Event::LanesConfirmed
            }
            Message::Grants(grants) => match grants.to_batch() {
                Ok(grants) => {
                    self.grants = grants;
                    Event::Grants
                }
                Err(error) => self.lost(&error.to_string()),
            },
            Message::Closed(ranges) => match ranges.to_runs(MessageKind::Closed) {
                Ok(closed) => {
                    self.closed = closed;
                    Event::Closed
                }
                Err(error) => self.lost(&error.to_string()),
            },
            Message::Refused(refused) => {
                self.report.another_transport_may_do = refused.is_of_transport();
                self.because(&refused.reason());
                Event::Refused
            }
            Message::Ready(ready) => {
                // The give-up comes next: the last moment for a cancel, and for the cap.
                if let Some(event) = self.overdue() {
                    return event;
                }
                let received = Timestamp::now();
                let there = ready.moments();
                if let Some(sent) = self.prepare_sent {
                    self.learn_clock(sent, [there[0], there[5]], received);
                }
                let clock = self.clock();
                if let (Some(timeline), Some(clock)) = (&mut self.timeline, clock) {
                    let [prepare, fences, digests, loaded, acquired, revoked] =
                        there.map(|moment| clock.here(moment));
                    timeline.mark("prepare-on-link", Side::Link, prepare.min(received));
                    timeline.mark("fences", Side::Destination, fences.min(received));
                    timeline.mark("digests", Side::Destination, digests.min(received));
                    timeline.mark("load-state", Side::Destination, loaded.min(received));
                    timeline.mark("acquire", Side::Destination, acquired.min(received));
                    timeline.mark("revoke-access", Side::Destination, revoked.min(received));
                }
                // Without a clock, the way there and what was done there as well.
                if let Some(timeline) = &mut self.timeline {
                    timeline.mark("ready-on-link", Side::Link, received);
                }
                self.ready = Some(ready);
                self.observer.reached(Milestone::Ready);
                Event::Ready
            }
            Message::Running(running) => {
                self.running_heard = Timestamp::now();
                let last = running.running_ns.iter().max().copied();
                let answered = last.or(running.owned_ns);
                if let (Some(sent), Some(answered)) = (self.commit_begun, answered) {
                    let there = [running.commit_received_ns, answered].map(Timestamp);
                    self.learn_clock(sent, there, self.running_heard);
                }
                self.running = Some(running);
                self.observer.reached(Milestone::Running);
                Event::Running
            }
            Message::Verified(mut verified) => {
                self.verified_recording = verified.recording.take().map(Into::into);
                self.verified = Some(verified);
                Event::Verified
            }
            Message::Aborted(abort) => {
                // It does not say of what. Another try costs little, and says more if it fails too.
                self.blame_transport();
                self.because(&format!("the destination gave up: {}", abort.reason()));
                Event::Aborted
            }
            other => {
                let kind = other.kind();
                self.lost(&format!("the destination may not say {kind:?} now"))
            }
        }
    }

    pub(super) fn lane_done(&mut self, done: LaneDone) -> Option<Event> {
        let tally = match done.result {
            Ok(tally) => tally,
            Err(failure) => {
                if let (lanes::LaneFailure::Lane(_), Some(event)) = (&failure, self.last_word()) {
                    return Some(event);
                }
                let reason = match failure {
                    lanes::LaneFailure::Lane(_) => {
                        self.blame_transport();
                        StayReason::PeerFailed
                    }
                    lanes::LaneFailure::Rearm(_)
                    | lanes::LaneFailure::Memory(_)
                    | lanes::LaneFailure::Unopened(_) => StayReason::Failed,
                };
                return Some(self.stop(reason, &failure.to_string()));
            }
        };
        let lane = usize::from(done.lane.0);
        if let Some(fence) = self.fences.get_mut(lane) {
            *fence = tally.fence.0;
        }
        if let Some(counters) = self.counters.get_mut(lane) {
            *counters = tally.counters;
        }
        if let Some(device) = self.device.get_mut(lane) {
            *device = tally.device;
        }
        self.tallies.push(tally);
        self.round_done()
    }

    /// Why the destination has ended the lanes, where it says so: its ABORTED goes before, but comes
    /// another way, and tells more than a lane that was closed.
    fn last_word(&mut self) -> Option<Event> {
        let in_round = matches!(
            self.session.state(),
            State::Copying | State::Saving | State::Finishing | State::Resending
        );
        let deadline = Deadline::after(LAST_WORD_TIME);
        while in_round && !deadline.passed() {
            match self.inputs.recv_timeout(deadline.remaining()) {
                Ok(Input::Link(LinkEvent::Message(message))) => {
                    if matches!(*message, Message::Aborted(_)) {
                        return Some(self.heard(*message));
                    }
                }
                // The move is over either way: nothing else matters any more.
                Ok(Input::Lane(_) | Input::Window(_)) => {}
                Ok(Input::Link(LinkEvent::Lost(_))) | Err(_) => return None,
            }
        }
        None
    }

    /// Ends the round once all lanes, and the walk ahead of them, have.
    pub(super) fn round_done(&mut self) -> Option<Event> {
        if self.tallies.len() < self.orders.len() || self.is_walking() {
            return None;
        }
        self.close_round();
        Some(Event::RoundDone)
    }

    /// The connection is of no use any more.
    pub(super) fn lost(&mut self, reason: &str) -> Event {
        self.link_is_lost = true;
        let reason = self.with_trouble(reason);
        self.because(&reason);
        Event::Lost
    }

    /// A peer that is not heard, and why, where the lanes' device knows: while memory is opened, or
    /// behind the last round, no lane is at work that would tell.
    fn with_trouble(&self, reason: &str) -> String {
        match self.endpoint.trouble() {
            Some(trouble) => format!("{reason}; {trouble}"),
            None => reason.to_owned(),
        }
    }

    /// It may be the transport that fails: another one may do, as long as nothing was put.
    pub(super) fn blame_transport(&mut self) {
        let is_early = matches!(self.session.state(), State::Naming | State::Copying);
        if is_early && !self.context.has_put() {
            self.report.another_transport_may_do = true;
        }
    }

    /// This side ends the move.
    pub(super) fn stop(&mut self, reason: StayReason, words: &str) -> Event {
        self.because(words);
        Event::Stop(reason)
    }

    pub(super) fn because(&mut self, words: &str) {
        self.reason.get_or_insert_with(|| words.to_owned());
    }
}
