//! PREPARE: what it says is compared with what arrived, and the state is loaded; and, once the guest
//! runs, the source's claims are compared with its pages.

use super::*;

impl<F: GuestFactory> Destination<'_, F> {
    /// Checks what PREPARE says and loads the state, once every fence was seen.
    pub(super) fn load(&mut self) -> Option<Event> {
        let prepare = self.prepare.as_ref()?;
        if prepare.fences.len() != self.seen.len() {
            let reason = format!(
                "{} fences for {} lanes",
                prepare.fences.len(),
                self.seen.len()
            );
            return Some(self.failed(&reason));
        }
        if self
            .seen
            .iter()
            .zip(&prepare.fences)
            .any(|(seen, named)| seen < named)
        {
            return None;
        }
        let prepare = self.prepare.take()?;
        self.ready.prepare_received_ns = self.prepare_received.0;
        self.ready.fences_seen_ns = Timestamp::now().0;
        Some(match self.check_and_load(&prepare) {
            Ok(()) => Event::Loaded,
            Err(reason) => self.failed(&reason),
        })
    }

    pub(super) fn check_and_load(&mut self, prepare: &Prepare) -> Result<(), String> {
        let counts = prepare.counts;
        let sent = (counts.payload_bytes, counts.zero_pages);
        if let Some(arrived) = arrived(&self.counters).filter(|arrived| *arrived != sent) {
            return Err(format!(
                "{} bytes and {} zero pages arrived, {} and {} were sent",
                arrived.0, arrived.1, sent.0, sent.1
            ));
        }
        let guest = self.guest.as_mut().ok_or("no guest")?;
        let memory = guest.memory().lane_map();
        if !prepare.digests.is_empty() {
            if prepare.digests.len() != digest_count(memory) {
                return Err(format!("{} digests came", prepare.digests.len()));
            }
            let deadline = Deadline::after(self.handover_limit);
            let begun = self.recorder.now();
            let own = digests(guest.memory(), self.seen.len(), deadline)
                .map_err(|error| error.to_string())?;
            self.recorder.done(Operation::Digest, begun);
            if let Some(block) = own.iter().zip(&prepare.digests).position(|(a, b)| a != b) {
                return Err(format!("memory differs in digest block {block}"));
            }
        }
        self.ready.digests_compared_ns = Timestamp::now().0;
        self.recorder
            .count(Counter::State, prepare.state.len() as u64);
        let state = DeviceState::decode(&prepare.state).map_err(|error| error.to_string())?;
        guest
            .load_state(&state)
            .map_err(|error| error.to_string())?;
        self.ready.state_loaded_ns = Timestamp::now().0;
        self.factory.reached(Milestone::Loaded);
        Ok(())
    }

    pub(super) fn check_pages(&mut self) -> Option<Event> {
        let pages = self.claims.take()?;
        let check = self.guest.as_ref().and_then(IncomingGuest::self_check)?;
        let first = PageNumber(pages.first);
        let claims = match pages.claims() {
            Ok(claims) => claims,
            Err(error) => {
                return Some(self.lost(&error.to_string()));
            }
        };
        let layout = &self.hello.offer().layout;
        let inside = |page: u64| layout.region_of(PageNumber(page)).map(|found| found.0);
        let last = pages
            .first
            .checked_add(claims.len() as u64)?
            .checked_sub(1)?;
        if claims.len() > VERIFY_PAGES_MAX
            || inside(pages.first).is_none()
            || inside(pages.first) != inside(last)
        {
            return Some(self.lost("claims about pages outside of guest memory"));
        }
        let found = check.check(first, &claims, Deadline::after(SETTLE_TIME));
        self.verified.checked = self.verified.checked.saturating_add(found.checked);
        self.verified.same = self.verified.same.saturating_add(found.same);
        self.verified.later = self.verified.later.saturating_add(found.later);
        self.verified.different = self.verified.different.saturating_add(found.different);
        let room = EXAMPLES_MAX.saturating_sub(self.verified.examples.len());
        let examples = found.examples.into_iter().take(room);
        self.verified
            .examples
            .extend(examples.map(|(page, what)| format!("{page}: {what}")));
        None
    }
}

/// The guest bytes and the zero pages that arrived on all lanes; `None` unless every lane tells.
pub(super) fn arrived(counters: &[Option<LaneCounters>]) -> Option<(u64, u64)> {
    counters.iter().try_fold((0_u64, 0_u64), |sum, lane| {
        let lane = lane.as_ref()?;
        Some((
            sum.0.saturating_add(lane.payload_bytes),
            sum.1.saturating_add(lane.zero_pages),
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_arrived_is_known_only_where_every_lane_tells() {
        let lane = |payload_bytes, zero_pages| {
            Some(LaneCounters {
                payload_bytes,
                zero_pages,
                ..LaneCounters::default()
            })
        };
        assert_eq!(arrived(&[lane(4096, 2), lane(8192, 0)]), Some((12_288, 2)));
        assert_eq!(arrived(&[lane(4096, 2), None]), None);
    }
}
