//! The guest runs: greeting the destination, opening lanes, rounds, and judging them.

use super::*;

impl Mover<'_, '_> {
    pub(super) fn send_hello(&mut self) -> Option<Event> {
        let configuration = match self.offer.configuration.encode() {
            Ok(bytes) => bytes,
            Err(error) => return Some(self.stop(StayReason::Failed, &error.to_string())),
        };
        let hello = Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            capabilities: capability::ALL,
            session: self.session_id.0.into(),
            uuid: self.offer.identity.uuid.into_bytes().into(),
            name: self.offer.identity.name.clone(),
            epoch: self.offer.identity.epoch,
            kind: self.offer.kind.clone(),
            vcpus: self.offer.vcpus,
            layout: WireLayout::new(&self.offer.layout),
            configuration: configuration.into(),
            lanes: self.lanes_wanted(),
            transport: self.endpoint.transport().to_owned(),
            host: WireHost::new(&this_host(), &boot_id()),
            peer_timeout_ms: u64::try_from(self.settings.peer_timeout.as_millis())
                .unwrap_or(u64::MAX),
        };
        self.observer.reached(Milestone::Hello);
        self.send(&Message::Hello(Box::new(hello)))
    }

    pub(super) fn lanes_wanted(&self) -> u16 {
        let auto = || {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            u16::try_from(cores.min(LANES_AUTO_MAX)).unwrap_or(1)
        };
        self.settings.lanes.unwrap_or_else(auto).clamp(1, LANES_MAX)
    }

    /// Opens the lanes, starts their threads and the tracking of writes.
    pub(super) fn open(&mut self) -> Event {
        let begun = Timestamp::now();
        let event = self.open_all();
        self.record_phase(SpanName::Open, begun);
        event
    }

    fn open_all(&mut self) -> Event {
        let lanes = self.open_lanes();
        let lanes = lanes.map_err(|reason| (StayReason::PeerFailed, reason));
        let lanes = lanes.and_then(|lanes| {
            self.make_window(lanes.len())?;
            Ok(lanes)
        });
        let lanes = match lanes {
            Ok(lanes) => lanes,
            Err((whose, reason)) => {
                if let Some(overdue) = self.overdue() {
                    return overdue;
                }
                self.report.another_transport_may_do = true;
                return self.stop(whose, &reason);
            }
        };
        self.record_takes = self
            .journal
            .expected_duration(Deadline::after(self.settings.peer_timeout));
        self.identities = lanes.iter().map(|lane| lane.identity()).collect();
        self.fences = vec![0; lanes.len()];
        self.counters = vec![LaneCounters::default(); lanes.len()];
        self.device = vec![DeviceCounters::default(); lanes.len()];
        self.report.lanes = u16::try_from(lanes.len()).unwrap_or(u16::MAX);
        let cpus = lane_cpus(
            &self.settings.cpus,
            &self.endpoint.near_cpus(),
            self.report.lanes,
            self.offer.vcpus,
        );
        for (lane, cpu) in lanes.into_iter().zip(cpus) {
            if let Err(error) = self.start_lane(lane, cpu) {
                return self.stop(StayReason::Failed, &format!("starting a lane: {error}"));
            }
        }
        for source in self.sources.clone() {
            if let Err(error) = source.start() {
                let reason = format!("starting dirty tracking ({}): {error}", source.name());
                return self.stop(StayReason::Failed, &reason);
            }
        }
        // The pause may need two: one for the last pages, one for what saving state writes. Rounds
        // take them in turns and give them back.
        let page_span = self.offer.layout.page_span();
        self.spare = [DirtyBitmap::new(page_span), DirtyBitmap::new(page_span)].into();
        // The first round takes every page, whatever was written before tracking started.
        self.pending = DirtyBitmap::new(self.offer.layout.page_span());
        for (region, shape) in self.offer.layout.regions().iter().enumerate() {
            if let Some(first) = self.offer.layout.first_page(region) {
                self.pending.set_range(first, shape.bytes / PAGE_BYTES);
            }
        }
        if self.identities.iter().any(|identity| !identity.is_empty()) {
            return Event::OpenedUnconfirmed;
        }
        self.observer.reached(Milestone::Opened);
        Event::Opened
    }

    /// Says which connections the lanes are. Nothing is put before the destination's word.
    pub(super) fn send_lanes(&mut self) -> Option<Event> {
        self.naming_limit = Some(Deadline::after(self.settings.peer_timeout));
        let identities = std::mem::take(&mut self.identities);
        self.send(&Message::Lanes(Lanes::new(identities)))
    }

    pub(super) fn open_lanes(&mut self) -> Result<Vec<Box<dyn SourceLane>>, String> {
        let asked = self.lanes_wanted();
        let welcome = self.welcome.as_ref().ok_or("no WELCOME")?;
        let tickets = welcome
            .tickets(self.session_id, asked)
            .map_err(|error| error.to_string())?;
        let grants = welcome
            .grants
            .to_grants()
            .map_err(|error| error.to_string())?;
        let contact = welcome.contact().map_err(|error| error.to_string())?;
        self.endpoint
            .accept_contact(contact)
            .map_err(|error| error.to_string())?;
        self.endpoint
            .accept_grants(&grants)
            .map_err(|error| error.to_string())?;
        if self.settings.lanes.is_some() && tickets.len() < usize::from(asked) {
            let granted = tickets.len();
            self.observer.note(&format!(
                "the destination grants {granted} of {asked} lanes"
            ));
        }
        let mut lanes = Vec::with_capacity(tickets.len());
        // One limit for all: a destination that lets each in at the last moment gains nothing.
        let deadline = Deadline::after(self.settings.peer_timeout);
        for ticket in &tickets {
            if self.handle.cancelled() {
                return Err("cancelled by the operator".to_owned());
            }
            let lane = self.endpoint.open_lane(ticket, deadline);
            lanes.push(lane.map_err(|error| error.to_string())?);
        }
        Ok(lanes)
    }

    pub(super) fn start_lane(
        &mut self,
        mut lane: Box<dyn SourceLane>,
        cpu: Option<usize>,
    ) -> std::io::Result<()> {
        let (orders_sender, orders) = channel();
        let (context, window) = (self.context, self.window());
        let done = self.inputs_sender.clone();
        self.shelf.observe_source(lane.as_mut());
        let recorder = self.shelf.recorder(Track::Lane(lane.number().0));
        let name = format!("dunlin-{}", lane.number().0);
        self.scope.spawn(name, move || {
            if let Some(cpu) = cpu {
                pin_current_thread(cpu);
            }
            lanes::serve(lane, context, window, recorder, &orders, &done);
        })?;
        self.orders.push(orders_sender);
        Ok(())
    }

    pub(super) fn start_round(&mut self) {
        self.observer.reached(Milestone::Round);
        let plan = ChunkPlan::new(&self.offer.layout, CHUNK_PAGES);
        let is_first = self.report.rounds.is_empty();
        self.begin_round(
            Sharing::Claimed(Box::new(ChunkCursor::new(plan))),
            is_first,
            false,
            false,
        );
    }

    pub(super) fn start_final_round(&mut self) {
        planted::delay("source:share-out");
        let (shares, must_open) = self.divide();
        let is_first = self.report.rounds.is_empty();
        self.begin_round(Sharing::Divided(shares), is_first, true, must_open);
        self.mark("share-out");
    }

    /// Hands the pending pages to the lanes; `must_open`: not all of a divided round is open.
    pub(super) fn begin_round(
        &mut self,
        sharing: Sharing,
        is_first: bool,
        is_final: bool,
        must_open: bool,
    ) {
        let spare = self.spare.pop_front();
        let mut empty = spare.unwrap_or_else(|| DirtyBitmap::new(self.offer.layout.page_span()));
        empty.clear();
        let dirty = std::mem::replace(&mut self.pending, empty);
        let dirty_pages = dirty.count();
        self.round = Some(RoundReport {
            number: u32::try_from(self.report.rounds.len() + 1).unwrap_or(u32::MAX),
            is_final,
            dirty_pages,
            ..RoundReport::default()
        });
        self.tallies.clear();
        self.context
            .remaining_pages
            .store(dirty_pages, Ordering::Relaxed);
        self.round_begin = Timestamp::now();
        let round = Arc::new(Round {
            dirty,
            sharing,
            is_first,
        });
        self.start_walk(&round, must_open);
        if is_first && !is_final {
            self.start_telling(dirty_pages);
        }
        self.order(&Order::Round(Arc::clone(&round)));
        self.shared_round = Some(round);
    }

    /// Has the destination told what the first round will write next, where it cares.
    fn start_telling(&mut self, all_pages: u64) {
        let both = self.welcome.as_ref().map_or(0, |w| w.capabilities);
        if both & capability::PREFAULT == 0 {
            return;
        }
        let chunks = ChunkPlan::new(&self.offer.layout, CHUNK_PAGES);
        let speaker = self.link.speaker();
        // Nothing is lost where the system starts no thread.
        let started = Telling::start(&self.scope, self.context, chunks, all_pages, speaker);
        self.telling = started.ok();
    }

    pub(super) fn order(&self, order: &Order) {
        for lane in &self.orders {
            // A lane thread that is gone has told why before it went.
            let _ = lane.send(order.clone());
        }
    }

    /// All lanes are done with what they were told.
    pub(super) fn close_round(&mut self) {
        self.telling = None;
        // Lanes let go of a round before they say that it is done.
        let shared = self.shared_round.take().and_then(Arc::into_inner);
        if let Some(mut round) = shared {
            // In the pause that is left to whoever needs it.
            if self.timeline.is_none() {
                round.dirty.clear();
            }
            self.spare.push_back(round.dirty);
        }
        let tallies = std::mem::take(&mut self.tallies);
        let Some(mut round) = self.round.take() else {
            return;
        };
        let took = Timestamp::now().since(self.round_begin);
        round.duration_ns = nanoseconds(took);
        if !round.is_final {
            self.record_phase(SpanName::Round, self.round_begin);
        }
        for tally in &tallies {
            round.zero_pages += tally.zero_pages;
            round.skipped_pages += tally.skipped_pages;
            round.sent_bytes += tally.sent_bytes;
            round.postponed_pages += tally.postponed_pages;
        }
        let waited = self.sample_opening(&tallies);
        round.registration_wait_ns = nanoseconds(waited);
        if !round.is_final {
            let slowest =
                |time: fn(&LaneTally) -> Duration| tallies.iter().map(time).max().unwrap_or(took);
            self.convergence.sample(RoundSample {
                bytes: round.sent_bytes,
                sending: slowest(|tally| tally.sending),
                pages: round.dirty_pages,
                scanning: slowest(|tally| tally.scanning),
                unfenced: took.saturating_sub(slowest(|tally| tally.fencing)),
            });
        }
        self.report.sent_bytes += round.sent_bytes;
        if let Some(timeline) = &mut self.timeline {
            if !waited.is_zero() {
                // The slowest lane's, as if it had all been at the begin.
                let end = self.round_begin.0.saturating_add(nanoseconds(waited));
                let end = Timestamp(end).min(Timestamp::now());
                timeline.mark("registration", Side::Source, end);
            }
            timeline.mark_now("final-round");
        }
        self.report.rounds.push(round);
    }

    /// Collects what was written, and decides whether to go on.
    pub(super) fn judge(&mut self) -> Event {
        let begun = Timestamp::now();
        let event = self.judge_round();
        self.record_phase(SpanName::Judge, begun);
        event
    }

    fn judge_round(&mut self) -> Event {
        if let Err(reason) = self.collect(None) {
            return self.stop(StayReason::Failed, &reason);
        }
        let dirty_pages = self.pending.count();
        let unopened = self.unopened();
        let round_took = Duration::from_nanos(
            self.report
                .rounds
                .last()
                .map_or(0, |round| round.duration_ns),
        );
        self.dirty_rate = dirty_pages as f64 / round_took.as_secs_f64().max(1e-6);
        self.prediction = self.convergence.predict(Circumstances {
            dirty_pages,
            collect: self.collect_took,
            round_trip: self.link.idle_round_trip(),
            costs: self.handover_costs(),
            records: [self.record_takes, self.told_cost(|told| told.record_ns)],
            lanes: u32::from(self.report.lanes),
            vcpus: self.offer.vcpus,
            digest_bytes: if self.full_digests() {
                self.offer.layout.bytes()
            } else {
                0
            },
            digest_threads: u32::from(self.report.lanes),
            unopened,
        });
        let predicted = self.prediction.total();
        if let Some(round) = self.report.rounds.last_mut() {
            round.predicted_blackout_ns = nanoseconds(predicted);
        }
        let limits = Limits {
            // A pause that would pass the cap is called off: there is no use in beginning it.
            max_blackout: self.handle.max_blackout().min(self.blackout_cap()),
            blackout_cap: self.blackout_cap(),
            max_rounds: self.settings.max_rounds,
            on_stall: self.settings.on_stall,
        };
        let rounds = u32::try_from(self.report.rounds.len()).unwrap_or(u32::MAX);
        let saved = self
            .convergence
            .saved_by_a_round(dirty_pages, self.dirty_rate);
        match self.convergence.judge(rounds, predicted, saved, limits) {
            Verdict::Continue => Event::Continue,
            Verdict::Switch if unopened.is_some_and(|unopened| unopened.bytes > 0) => {
                Event::ConvergedUnopened
            }
            Verdict::Switch => Event::Converged,
            Verdict::GiveIn => {
                let longest = self.prediction.longest();
                let reason = format!(
                    "after {rounds} rounds the blackout would still take {:.1} ms, the longest part of \
                     it {}; the budget is {:.1} ms (the guest dirties {:.0} MiB/s, the lanes move {:.0} \
                     MiB/s)",
                    predicted.as_secs_f64() * 1e3,
                    longest.map_or("unknown", |part| part.name.as_str()),
                    limits.max_blackout.as_secs_f64() * 1e3,
                    self.dirty_rate * PAGE_BYTES as f64 / f64::from(1 << 20),
                    self.convergence.goodput() / f64::from(1 << 20),
                );
                self.stop(StayReason::NotConverging, &reason)
            }
        }
    }

    /// What was measured of the guest's share of the handover on both sides.
    fn handover_costs(&self) -> HandoverCosts {
        let here = self.guest.handover_costs();
        HandoverCosts {
            load: self.told_cost(|told| told.load_ns),
            // What entering took here is a better guess than none.
            resume: self.told_cost(|told| told.resume_ns).or(here.resume),
            ..here
        }
    }

    /// A figure of the destination's.
    fn told_cost(&self, of: impl FnOnce(WireCosts) -> Option<u64>) -> Option<Duration> {
        let told = **self.welcome.as_ref()?.costs.as_ref()?;
        of(told).map(Duration::from_nanos)
    }

    /// Adds to the pending pages what the dirty sources report; `part` of the pause, where it is one.
    pub(super) fn collect(&mut self, part: Option<&str>) -> Result<(), String> {
        let begin = Timestamp::now();
        for source in &self.sources {
            let begun = self.recorder.now();
            part.into_iter().for_each(planted::delay);
            let collected = source.collect(&mut self.pending);
            self.recorder.done(Operation::Harvest, begun);
            collected.map_err(|error| format!("collecting ({}): {error}", source.name()))?;
        }
        if let Some(window) = self.window() {
            window.take_postponed(&mut self.pending);
        }
        self.collect_took = Timestamp::now().since(begin);
        Ok(())
    }
}
