//! What is told of a move: progress while it runs, the report when it is over.

use super::*;

impl Mover<'_, '_> {
    pub(super) fn mark(&mut self, part: &'static str) {
        if let Some(timeline) = &mut self.timeline {
            timeline.mark_now(part);
        }
    }

    /// The next part of the pause begins now, and does not follow from the one before it.
    pub(super) fn begins(&mut self) {
        if let Some(timeline) = &mut self.timeline {
            timeline.begins_now();
        }
    }

    pub(super) fn tell_progress(&mut self) {
        let now = Timestamp::now();
        let phase = match self.session.state() {
            State::Created | State::Greeting => Phase::Connecting,
            State::Opening => Phase::Preparing,
            State::Copying => Phase::Copying,
            State::Committed | State::Verifying => Phase::Verifying,
            State::InDoubt => Phase::InDoubt,
            // Nothing is told while the guest waits.
            _ => return,
        };
        if self.session.state() == State::Committed || now.since(self.told) < PROGRESS_INTERVAL {
            return;
        }
        let lanes = self.lanes_progress(now.since(self.told));
        self.told = now;
        let remaining_pages = self.context.remaining_pages.load(Ordering::Relaxed);
        let sent_bytes = self.context.sent_bytes.load(Ordering::Relaxed);
        let round_took = now.since(self.round_begin).as_secs_f64();
        let sent_before = self.report.sent_bytes;
        let measured = sent_bytes.saturating_sub(sent_before) as f64 / round_took.max(1e-3);
        let rate = if phase == Phase::Copying && measured > 0.0 {
            measured
        } else if self.report.rounds.is_empty() {
            0.0
        } else {
            self.convergence.goodput()
        };
        // While pages are sent, others get dirty: what has to be sent is a geometric series.
        let dirtied = self.dirty_rate * PAGE_BYTES as f64;
        let remaining_bytes = remaining_pages.saturating_mul(PAGE_BYTES) as f64;
        let eta = (phase == Phase::Copying && rate > dirtied)
            .then(|| Duration::try_from_secs_f64(remaining_bytes / (rate - dirtied)).ok())
            .flatten();
        self.observer.progress(&Progress {
            phase,
            round: self.round.as_ref().map_or(0, |round| round.number),
            dirty_pages: self.round.as_ref().map_or(0, |round| round.dirty_pages),
            remaining_pages,
            sent_bytes,
            rate_bytes_per_s: rate as u64,
            eta_ns: eta.map(nanoseconds),
            predicted_blackout_ns: (!self.report.rounds.is_empty())
                .then(|| nanoseconds(self.prediction.total())),
            elapsed_ns: nanoseconds(now.since(self.began)),
            lanes,
        });
    }

    /// Each lane, `since` after it was told the last time.
    fn lanes_progress(&mut self, since: Duration) -> Vec<LaneProgress> {
        let lanes = self.context.lanes_sent_bytes.iter().zip(0..);
        let lanes = lanes.zip(&mut self.lanes_told).take(self.orders.len());
        let progress = lanes.map(|((LaneBytes(sent), lane), told)| {
            let sent_bytes = sent.load(Ordering::Relaxed);
            let sent_since = sent_bytes.saturating_sub(std::mem::replace(told, sent_bytes));
            LaneProgress {
                lane,
                sent_bytes,
                rate_bytes_per_s: (sent_since as f64 / since.as_secs_f64().max(1e-3)) as u64,
            }
        });
        progress.collect()
    }

    /// Adds the destination's last parts, placed on the source's clock.
    pub(super) fn close_timeline(&mut self) {
        let clock = self.clock();
        let (Some(timeline), Some(running)) = (&mut self.timeline, &self.running) else {
            return;
        };
        // RUNNING is here: nothing of it can have happened later.
        let heard = self.running_heard;
        let mut vcpus_ns = Vec::new();
        match clock {
            Some(clock) => {
                let here = |nanoseconds: u64| clock.here(Timestamp(nanoseconds)).min(heard);
                let received = here(running.commit_received_ns);
                timeline.mark("commit-on-link", Side::Link, received);
                let owned = running.owned_ns.map_or(received, here);
                timeline.mark("record-ownership", Side::Destination, owned);
                let last = running.running_ns.iter().max().copied();
                timeline.mark("resume", Side::Destination, last.map_or(heard, here));
                if self.parked.len() == running.running_ns.len() {
                    let pairs = self.parked.iter().zip(&running.running_ns);
                    let own = pairs.map(|(parked, running)| here(*running).since(*parked));
                    vcpus_ns = own.map(nanoseconds).collect();
                }
            }
            // Where in this time the guest began to run nobody can say: it is the link's, whole.
            None => timeline.mark("commit-on-link", Side::Link, heard),
        }
        let begin = timeline.begin();
        let end = timeline.end();
        self.report.total_ns = nanoseconds(end.since(self.began));
        self.report.blackout = Some(self.blackout_report(begin, end, vcpus_ns));
    }

    pub(super) fn blackout_report(
        &self,
        begin: Timestamp,
        end: Timestamp,
        vcpus_ns: Vec<u64>,
    ) -> BlackoutReport {
        BlackoutReport {
            total_ns: nanoseconds(end.since(begin)),
            predicted_ns: nanoseconds(self.prediction.total()),
            predicted_parts: self.prediction.parts.clone(),
            guest_visible_ns: None,
            parts: self
                .timeline
                .as_ref()
                .map(Timeline::parts)
                .unwrap_or_default(),
            vcpus_ns,
            budget_ns: nanoseconds(self.handle.max_blackout()),
            cap_ns: nanoseconds(self.blackout_cap()),
            clock_error_ns: self.clock().map(|clock| clock.error_ns),
            leaving_ns: nanoseconds(self.leaving),
        }
    }

    pub(super) fn finish(mut self) -> Ended {
        self.stop_window();
        let now = Timestamp::now();
        let mut report = self.report.clone();
        report.session = self.session_id.to_string();
        report.transport = self.endpoint.transport().to_owned();
        report.mechanism = self.endpoint.mechanism();
        report.guest.dirty_tracking = self
            .sources
            .iter()
            .map(|source| source.name().to_owned())
            .collect();
        report.hosts = Hosts {
            source: this_host(),
            destination: self
                .welcome
                .as_ref()
                .map(|w| w.host.to_host())
                .unwrap_or_default(),
        };
        report.registration = self.registration_report();
        report.wire_bytes = self.counters.iter().map(|lane| lane.wire_bytes).sum();
        report.device = DeviceReport {
            work_requests: self.device.iter().map(|lane| lane.work_requests).sum(),
            doorbells: self.device.iter().map(|lane| lane.doorbells).sum(),
            completions: self.device.iter().map(|lane| lane.completions).sum(),
            registrations: self.endpoint.registrations().made,
        };
        let rounds_ns: u64 = report.rounds.iter().map(|round| round.duration_ns).sum();
        let sent = u128::from(report.sent_bytes) * 1_000_000_000;
        report.goodput_bytes_per_s =
            u64::try_from(sent / u128::from(rounds_ns.max(1))).unwrap_or(u64::MAX);
        report.outcome = match self.session.state() {
            State::Moved => Outcome::Moved,
            State::Discarded => Outcome::DiscardedByHand,
            State::Stayed(_) if self.not_resumed => Outcome::NotResumed,
            State::Stayed(StayReason::Cancelled) => Outcome::Cancelled,
            State::Stayed(StayReason::NotConverging) => Outcome::NotConverging,
            State::Stayed(StayReason::BlackoutCap) => Outcome::BlackoutCap,
            State::Stayed(StayReason::TimedOut) => Outcome::TimedOut,
            State::Stayed(StayReason::Refused) => Outcome::Refused,
            State::Stayed(StayReason::PeerFailed) => Outcome::PeerFailed,
            State::Stayed(StayReason::Decided) => Outcome::ResumedByHand,
            State::InDoubt => Outcome::Unknown,
            _ => Outcome::Failed,
        };
        report.reason = self.reason.take();
        if report.outcome.moved() && self.running.is_none() {
            // Settled by an answer: when it began to run there is not known, but no later than now.
            report.total_ns = nanoseconds(now.since(self.began));
            report.blackout = self
                .timeline
                .as_ref()
                .map(|timeline| self.blackout_report(timeline.begin(), timeline.end(), Vec::new()));
        }
        if report.outcome.moved() {
            report.guest.epoch = self.offer.identity.epoch + 1;
            self.report_verification(&mut report, now);
        } else {
            report.total_ns = nanoseconds(now.since(self.began));
            // A pause that led nowhere is told too.
            report.blackout = self
                .timeline
                .as_ref()
                .map(|timeline| self.blackout_report(timeline.begin(), timeline.end(), Vec::new()));
        }
        self.record_end_of_move(&report);
        Ended {
            report,
            there: self.recorded_there(),
            clock: self.clock(),
        }
    }

    pub(super) fn report_verification(&mut self, report: &mut Report, now: Timestamp) {
        let digests = self.full_digests();
        let took = self
            .verify_begin
            .map_or(Duration::ZERO, |begin| now.since(begin));
        let verification = &mut report.verification;
        if let (Some(verified), Some(blackout)) = (&self.verified, &mut report.blackout) {
            blackout.guest_visible_ns = verified.guest_visible_ns;
        }
        if digests {
            // The destination compared before it said READY, or it would not have said it.
            let part = |parts: &BlackoutReport| {
                let digests = parts.parts.iter().filter(|part| part.name == "digests");
                digests.map(|part| part.duration_ns).sum::<u64>()
            };
            let blackout_ns = report.blackout.as_ref().map_or(0, part);
            *verification = VerificationReport {
                method: "digests".to_owned(),
                pages_checked: self.offer.layout.pages(),
                pages_same: self.offer.layout.pages(),
                equal: Some(true),
                duration_ns: blackout_ns,
                blackout_ns,
                ..VerificationReport::default()
            };
        } else if self.settings.verify == Verify::Off {
            verification.method = "off".to_owned();
        } else if let Some(verified) = self.verified.take().filter(|verified| verified.checked > 0)
        {
            verification.pages_checked = verified.checked;
            verification.pages_same = verified.same;
            verification.pages_later = verified.later;
            verification.pages_different = verified.different;
            // A destination that compared fewer pages than there are did not compare.
            let all = verified.checked == self.offer.layout.pages();
            verification.equal = Some(verified.different == 0 && all);
            verification.duration_ns = nanoseconds(took);
            verification.examples = verified
                .examples
                .iter()
                .take(16)
                .map(|example| Abort::new(example).reason())
                .collect();
            if verification.equal == Some(false) {
                report.outcome = Outcome::MovedUnverified;
                report.reason = Some(format!(
                    "{} of {} pages are not as they should be on the destination",
                    verified.different, verified.checked
                ));
            }
        }
    }

    /// How the destination's clock stands to this side's, as far as that is known now.
    pub(super) fn clock(&self) -> Option<ClockRelation> {
        match self.same_clock {
            true => Some(ClockRelation::SAME),
            false => self.link.clock_at(Timestamp::now()),
        }
    }

    /// PREPARE and READY, COMMIT and RUNNING are a way there and back as PINGs are, at just the
    /// right time: `sent`, when the one began to go out, `heard`, when the other was here whole.
    pub(super) fn learn_clock(&self, sent: Timestamp, there: [Timestamp; 2], heard: Timestamp) {
        if !self.same_clock {
            self.link.learn_clock(RoundTrip {
                sent,
                received_there: there[0],
                answered_there: there[1],
                received: heard,
            });
        }
    }
}
