//! What the session's thread records of the move as a whole.

use super::*;

impl Mover<'_, '_> {
    /// A phase from `begun` until now.
    pub(super) fn record_phase(&mut self, name: SpanName, begun: Timestamp) {
        let now = self.recorder.now();
        self.recorder.span(name, Moment::at(begun), now);
    }

    /// An operation from `begun` until now.
    pub(super) fn record_operation(&mut self, operation: Operation, begun: Timestamp) {
        self.recorder.done(operation, Moment::at(begun));
    }

    /// Each vCPU's way into the pause, which was ordered at `begun`.
    pub(super) fn record_parking(&mut self, begun: Timestamp) {
        for (vcpu, parked) in (0..).zip(&self.parked) {
            let (begun, parked) = (Moment::at(begun), Moment::at(*parked));
            self.recorder.between(Operation::Kick, begun, parked);
            let track = Track::Vcpu(vcpu);
            self.recorder
                .span_of(track, SpanName::VcpuKick, begun, parked);
        }
    }

    /// The destination has said what it compared.
    pub(super) fn record_verified(&mut self) {
        if let Some(begun) = self.verify_begin {
            self.record_phase(SpanName::Verify, begun);
            self.verified_at = Some(Timestamp::now());
        }
    }

    /// The pause, part by part, as far as it was spent here or on the way; and what is known only
    /// at the end.
    pub(super) fn record_end_of_move(&mut self, report: &Report) {
        if let Some(timeline) = &self.timeline {
            let end = Moment::at(timeline.end());
            for (name, side, begin, end) in timeline.moments() {
                let known = SpanName::ALL.iter().copied().find(|known| {
                    let declaration = known.declaration();
                    declaration.kind == Kind::BlackoutPart && declaration.name == name
                });
                let Some(name) = known.filter(|_| side != Side::Destination) else {
                    continue;
                };
                let track = match name.declaration().sides {
                    Sides::Link => Track::Link,
                    _ => Track::Control,
                };
                let (begin, end) = (Moment::at(begin), Moment::at(end));
                self.recorder.span_of(track, name, begin, end);
            }
            let begin = Moment::at(timeline.begin());
            self.recorder.span(SpanName::Handover, begin, end);
            for (vcpu, parked) in (0..).zip(&self.parked) {
                let track = Track::Vcpu(vcpu);
                let parked = Moment::at(*parked);
                self.recorder
                    .span_of(track, SpanName::VcpuParked, parked, end);
            }
        }
        if let Some(begun) = self.verified_at {
            self.record_phase(SpanName::Release, begun);
        }
        let registered = self.endpoint.registrations();
        let remaining = self.context.remaining_pages.load(Ordering::Relaxed);
        let dirty: u64 = report.rounds.iter().map(|round| round.dirty_pages).sum();
        for (counter, all) in [
            (Counter::Dirty, dirty),
            (Counter::Rounds, report.rounds.len() as u64),
            (Counter::RegistrationsMade, registered.made),
            (Counter::RegistrationsEnded, registered.ended),
        ] {
            self.recorder.counted(counter, all);
        }
        for (gauge, value) in [
            (Gauge::GuestMemory, report.guest.memory_bytes),
            (Gauge::Vcpus, u64::from(report.guest.vcpus)),
            (Gauge::Lanes, u64::from(report.lanes)),
            (Gauge::Goodput, report.goodput_bytes_per_s),
            (Gauge::Dirtied, self.dirty_rate as u64),
            (Gauge::Remaining, remaining),
            (Gauge::Registered, registered.bytes),
        ] {
            self.recorder.set(gauge, value);
        }
        if let Some(blackout) = &report.blackout {
            for (gauge, value) in [
                (Gauge::PredictedBlackout, blackout.predicted_ns),
                (Gauge::BlackoutBudget, blackout.budget_ns),
                (Gauge::BlackoutCap, blackout.cap_ns),
                (Gauge::Blackout, blackout.total_ns),
            ] {
                self.recorder.set(gauge, value);
            }
        }
    }

    /// What the destination recorded. One that says nothing of use costs nothing but that.
    pub(super) fn recorded_there(&mut self) -> Option<Recording> {
        let bytes = self.verified_recording.take()?;
        match wire::decode(&bytes, End::Destination) {
            Ok(received) => Some(received.recording),
            Err(error) => {
                let note = format!("what the destination measured is of no use: {error}");
                self.observer.note(&note);
                None
            }
        }
    }
}
