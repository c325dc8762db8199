//! Memory that is registered while the move runs: the window's side of each action.

use super::*;

/// The window, and what belongs to it on the session's thread.
pub(super) struct Opener {
    window: Arc<Window>,
    orders: Sender<WalkOrder>,
    /// Whether a walk was ordered that is not over.
    is_walking: bool,
    /// Whether it is one before the pause, which nobody follows.
    is_ahead: bool,
    /// Room for the numbers of all chunks, so that none has to be made while the guest is paused.
    chunks: Vec<u64>,
    /// Opened bytes and the time for them, as of the last sample.
    sampled: (u64, Duration),
    /// Pages put off, and how long the slowest lane of each round waited, so far.
    postponed_pages: u64,
    waited: Duration,
}

impl Opener {
    fn order(&mut self, order: WalkOrder) {
        // Without a walk lanes would wait for ever; the thread is gone only when all is over.
        self.is_walking = self.orders.send(order).is_ok();
    }
}

impl Drop for Opener {
    /// The window's threads end with the move, however that ends: its scope waits for them.
    fn drop(&mut self) {
        self.window.stop();
    }
}

impl Mover<'_, '_> {
    /// Makes the window that both sides' budgets leave, where memory is registered.
    ///
    /// Where a destination says nothing of a budget all is prepared at once, which costs nothing
    /// without registrations; with them such a destination is of no use.
    ///
    /// # Errors
    ///
    /// Whose failure it is, this host's or the peer's, and the reason.
    pub(super) fn make_window(&mut self, lanes: usize) -> Result<(), (StayReason, String)> {
        let ours = |reason| (StayReason::Failed, reason);
        let there = self.welcome.as_ref().and_then(|w| w.pin_budget_bytes);
        let layout = &self.offer.layout;
        let has_registrations = self.endpoint.has_registrations();
        let there = match there {
            Some(there) => there,
            // All at once would pin what was never touched, at the peer's word.
            None if has_registrations => {
                let reason =
                    "the destination can't open memory in parts: it may be of an older version";
                return Err((StayReason::PeerFailed, reason.to_owned()));
            }
            None => {
                for range in self.guest.memory().lane_map().whole() {
                    let prepared = self.endpoint.prepare(range);
                    prepared.map_err(|error| ours(error.to_string()))?;
                }
                return Ok(());
            }
        };
        let budget = if has_registrations {
            let budget = self.settings.pin_budget;
            let here = budget.window_bytes(layout.bytes(), layout.hugetlb_bytes());
            here.map_err(|error| ours(error.to_string()))?
        } else {
            u64::MAX
        };
        let bytes = budget.min(there);
        let window = Window::new(layout, bytes, lanes);
        let window = window.ok_or_else(|| {
            let (whose, of) = match there < budget {
                true => (StayReason::PeerFailed, "the destination's"),
                false => (StayReason::Failed, "this side's"),
            };
            (
                whose,
                format!("{of} pin budget is too small: {bytes} bytes"),
            )
        })?;
        let window = Arc::new(window);
        let started = window::start(
            &self.scope,
            &window,
            self.endpoint,
            self.context,
            self.link.speaker(),
            &self.inputs_sender,
            &self.shelf,
        );
        let orders = started.map_err(|error| {
            window.stop();
            ours(format!("starting a thread: {error}"))
        })?;
        let chunks = ChunkPlan::new(layout, CHUNK_PAGES).chunks();
        self.opening = Some(Opener {
            window,
            orders,
            is_walking: false,
            is_ahead: false,
            chunks: Vec::with_capacity(usize::try_from(chunks).unwrap_or(0)),
            sampled: (0, Duration::ZERO),
            postponed_pages: 0,
            waited: Duration::ZERO,
        });
        Ok(())
    }

    /// The window, for a lane.
    pub(super) fn window(&self) -> Option<Arc<Window>> {
        self.opening
            .as_ref()
            .map(|opening| Arc::clone(&opening.window))
    }

    pub(super) fn stop_window(&self) {
        if let Some(opening) = &self.opening {
            opening.window.stop();
        }
    }

    /// Each lane's share of the final round, and the walk that opens what it needs.
    pub(super) fn divide(&mut self) -> (Vec<Vec<Chunk>>, bool) {
        let lanes = self.orders.len();
        let Some(opening) = &mut self.opening else {
            let shares = share_by_bytes(&self.pending, &self.offer.layout, lanes);
            return (shares, false);
        };
        let mut shares = vec![Vec::new(); lanes.max(1)];
        let window = &opening.window;
        let must_open = window.divide(&self.pending, &mut opening.chunks, &mut shares);
        (shares, must_open)
    }

    /// Sends the walk ahead of the lanes, before they get the round.
    pub(super) fn start_walk(&mut self, round: &Arc<Round>, must_open: bool) {
        let Some(opening) = &mut self.opening else {
            return;
        };
        opening.is_ahead = false;
        match round.sharing {
            Sharing::Claimed(_) => {
                opening.window.reset();
                opening.order(WalkOrder::Round(Arc::clone(round)));
            }
            Sharing::Divided(_) if must_open => {
                let chunks = std::mem::take(&mut opening.chunks);
                opening.order(WalkOrder::Begun(chunks));
            }
            Sharing::Divided(_) => {}
        }
    }

    /// Whether the walk through this round is not over.
    pub(super) fn is_walking(&self) -> bool {
        let opening = self.opening.as_ref();
        opening.is_some_and(|opening| opening.is_walking)
    }

    /// A word of the window's threads.
    pub(super) fn window_done(&mut self, done: WindowDone) -> Option<Event> {
        match done {
            WindowDone::Walked(chunks) => {
                let opening = self.opening.as_mut()?;
                opening.is_walking = false;
                if chunks.capacity() > opening.chunks.capacity() {
                    opening.chunks = chunks;
                }
                if std::mem::take(&mut opening.is_ahead) {
                    return Some(Event::Converged);
                }
                self.round_done()
            }
            WindowDone::Failed(error) => {
                self.blame_transport();
                let reason = format!("registering memory: {error}");
                Some(self.stop(StayReason::Failed, &reason))
            }
            WindowDone::Unsaid(reason) => Some(self.lost(&reason)),
        }
    }

    /// What of the pending pages is not open.
    pub(super) fn unopened(&mut self) -> Option<Unopened> {
        let opening = self.opening.as_mut()?;
        let unopened = opening.window.unopened(&self.pending, &mut opening.chunks);
        Some(unopened)
    }

    /// Opens what is pending, as far as it fits, while the guest runs.
    pub(super) fn open_pending(&mut self) -> Option<Event> {
        let opening = self.opening.as_mut()?;
        opening.is_ahead = true;
        // Listed when the round was judged.
        let chunks = std::mem::take(&mut opening.chunks);
        opening.order(WalkOrder::Ahead(chunks));
        None
    }

    /// Learns from a round what opening costs.
    pub(super) fn sample_opening(&mut self, tallies: &[LaneTally]) -> Duration {
        let Some(opening) = &mut self.opening else {
            return Duration::ZERO;
        };
        let waited = tallies.iter().map(|tally| tally.waiting).max();
        let waited = waited.unwrap_or_default();
        opening.waited += waited;
        opening.postponed_pages += tallies
            .iter()
            .map(|tally| tally.postponed_pages)
            .sum::<u64>();
        let (tally, crossings) = opening.window.tally();
        let (bytes, time) = opening.sampled;
        let opening_took = tally.opening.saturating_sub(time);
        self.convergence
            .sample_opening(tally.opened_bytes.saturating_sub(bytes), opening_took);
        // Lanes wait while the next portion is opened, which has a figure of its own: counted with the
        // crossing as well it would be predicted twice.
        self.convergence
            .sample_crossings(crossings, waited.saturating_sub(opening_took));
        opening.sampled = (tally.opened_bytes, tally.opening);
        waited
    }

    pub(super) fn accept_grants(&mut self) -> Option<Event> {
        let grants = std::mem::take(&mut self.grants);
        let Some(window) = self.window() else {
            return Some(self.lost("the destination grants what nobody asked for"));
        };
        for grant in grants {
            let range = grant.range;
            if !window.awaits_grant(range) {
                let reason = format!(
                    "the destination grants {} pages at {}, which nobody asked for",
                    range.pages, range.first
                );
                return Some(self.lost(&reason));
            }
            if let Err(error) = self.endpoint.accept_grants(&[grant]) {
                return Some(self.lost(&error.to_string()));
            }
            window.granted(range);
        }
        None
    }

    pub(super) fn accept_closed(&mut self) -> Option<Event> {
        let closed = std::mem::take(&mut self.closed);
        let window = self.window();
        let mut closed = closed.iter();
        let wrong = closed.find(|range| !window.as_ref().is_some_and(|w| w.closed(**range)));
        wrong.map(|range| {
            self.lost(&format!(
                "the destination closes {} pages at {}, which nobody asked for",
                range.pages, range.first
            ))
        })
    }

    /// What is waited for, where the window has stood still for too long. Asked only in the states
    /// in which a lane may wait for it: what is being closed at PREPARE is never acknowledged.
    pub(super) fn window_overdue(&self) -> Option<String> {
        let state = self.session.state();
        if !matches!(
            state,
            State::Copying | State::Pausing | State::Saving | State::Finishing | State::Resending
        ) {
            return None;
        }
        let opening = self.opening.as_ref()?;
        opening.window.overdue(self.settings.peer_timeout)
    }

    /// What the report tells of registrations; `None` where there are none.
    pub(super) fn registration_report(&self) -> Option<RegistrationReport> {
        if !self.endpoint.has_registrations() {
            return None;
        }
        let side = |counters: RegistrationCounters| RegisteredReport {
            made: counters.made,
            ended: counters.ended,
            peak_bytes: counters.bytes_max,
        };
        let there = self.verified.as_ref().and_then(|v| v.registrations);
        let there = there.map(|there| RegisteredReport {
            made: there.made,
            ended: there.ended,
            peak_bytes: there.bytes_max,
        });
        let opening = self.opening.as_ref();
        let tally = opening.map(|opening| opening.window.tally().0);
        let window_bytes = opening.map(|opening| opening.window.bytes());
        Some(RegistrationReport {
            window_bytes: window_bytes.filter(|bytes| *bytes < u64::MAX),
            source: side(self.endpoint.registrations()),
            destination: there,
            evictions: tally.map_or(0, |tally| tally.closed),
            wait_ns: nanoseconds(opening.map_or(Duration::ZERO, |opening| opening.waited)),
            postponed_pages: opening.map_or(0, |opening| opening.postponed_pages),
        })
    }
}
