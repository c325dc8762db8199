//! What this side recorded, put together for the source.

use super::*;

/// How long the recorders of threads that are just ending are waited for. The guest runs.
const GATHER_TIME: Duration = Duration::from_millis(50);

impl<F: GuestFactory> Destination<'_, F> {
    /// What was recorded, as it goes to the source; `None` where it has no use for it.
    pub(super) fn recording(&mut self) -> Option<Vec<u8>> {
        let common = capability::ALL & self.hello.message.capabilities;
        if common & capability::RECORDING == 0 {
            return None;
        }
        self.record_handover();
        // Nothing is registered any more behind READY, and lanes have ended with their access.
        self.pool.stop();
        self.link.end_recording();
        self.recorder.end();
        let recording = self.shelf.merge(Deadline::after(GATHER_TIME));
        // One that is too long is left out: it is nobody's loss but the report's.
        wire::encode(&recording).ok()
    }

    /// This side's parts of the pause, by the moments that READY and RUNNING told.
    fn record_handover(&mut self) {
        let ready = &self.ready;
        let [prepare, fences, digests, loaded, acquired, revoked] = ready.moments().map(Moment::at);
        let commit = Moment::at(Timestamp(self.running.commit_received_ns));
        let owned = self
            .running
            .owned_ns
            .map_or(commit, |owned| Moment::at(Timestamp(owned)));
        let running = self.running.running_ns.iter().max();
        let running = running.map_or(owned, |running| Moment::at(Timestamp(*running)));
        let now = self.recorder.now();
        let recorder = &mut self.recorder;
        let began = Moment::at(self.began);
        recorder.span(SpanName::ReceiveRounds, began, prepare);
        recorder.span(SpanName::Handover, prepare, running);
        for (name, begun, ended) in [
            (SpanName::Fences, prepare, fences),
            (SpanName::Digests, fences, digests),
            (SpanName::LoadState, digests, loaded),
            (SpanName::Acquire, loaded, acquired),
            (SpanName::RevokeAccess, acquired, revoked),
            (SpanName::RecordOwnership, commit, owned),
            (SpanName::Resume, owned, running),
            (SpanName::Verify, running, now),
        ] {
            recorder.span(name, begun, ended);
        }
        recorder.between(Operation::LoadState, digests, loaded);
        recorder.between(Operation::Outside, loaded, acquired);
        recorder.between(Operation::CommitRecord, commit, owned);
        let offer = self.hello.offer();
        let registered = self.endpoint.registrations();
        for (counter, all) in [
            (Counter::RegistrationsMade, registered.made),
            (Counter::RegistrationsEnded, registered.ended),
        ] {
            recorder.counted(counter, all);
        }
        for (gauge, value) in [
            (Gauge::GuestMemory, offer.layout.bytes()),
            (Gauge::Vcpus, u64::from(offer.vcpus)),
            (Gauge::Lanes, self.seen.len() as u64),
            (Gauge::Registered, registered.bytes_max),
        ] {
            recorder.set(gauge, value);
        }
    }
}
