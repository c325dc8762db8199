//! Performs the session's actions and turns what happens into its events.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::Scope;
use std::time::Duration;

use dunlin_transports::deadline::Deadline;
use dunlin_transports::lane::{LANES_MAX, LaneCounters, SourceEndpoint, SourceLane};
use dunlin_transports::memory::PAGE_BYTES;

use super::blackout::Timeline;
use super::convergence::{Circumstances, Convergence, Limits, Prediction, RoundSample, Verdict};
use super::lanes::{self, LaneContext, LaneDone, LaneTally, Order, Round, Sharing};
use super::{MoveObserver, Peer};
use crate::affinity::{lane_cpus, pin_current_thread};
use crate::chunk::{CHUNK_PAGES, ChunkCursor, ChunkPlan, share_by_bytes};
use crate::clock::{Timestamp, boot_id};
use crate::digest::digests;
use crate::dirty::{DirtyBitmap, DirtySource};
use crate::guest::{Guest, GuestOffer};
use crate::host::this_host;
use crate::link::{Link, LinkEvent, Opening};
use crate::protocol::{
    Abort, Counts, Hello, Message, Prepare, Ready, Running, VERIFY_PAGES_MAX, VERSION_MAX,
    VERSION_MIN, Verified, VerifyPages, Welcome, WireHost, WireLayout, capability,
};
use crate::report::{
    BlackoutReport, Hosts, Outcome, Phase, Progress, Report, RoundReport, Side, VerificationReport,
};
use crate::session::source::{Action, Event, State};
use crate::session::{SourceSession, StayReason};
use crate::settings::{MoveHandle, MoveSettings, Verify};
use crate::untouched::Untouched;

/// How often a waiting source looks at what nobody tells it: a cancel, a deadline.
const TICK: Duration = Duration::from_millis(5);

/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// The cap, where none was given, as a multiple of the budget.
const CAP_FACTOR: u32 = 10;

/// How many lanes `auto` opens at most: QEMU and Cloud Hypervisor both measured most of the gain by
/// then on 100 Gb/s, and each lane costs the host a core while it runs.
const LANES_AUTO_MAX: usize = 8;

/// Comparing memory afterwards may take this long, and one more second for each [`VERIFY_PACE`].
const VERIFY_TIME_BASE: Duration = Duration::from_secs(30);

/// A pace, in bytes a second, that comparing memory keeps on a slow and busy host.
const VERIFY_PACE: u64 = 64 << 20;

/// What reaches the session's thread.
enum Input {
    Link(LinkEvent),
    Lane(LaneDone),
}

impl From<LinkEvent> for Input {
    fn from(event: LinkEvent) -> Self {
        Self::Link(event)
    }
}

impl From<LaneDone> for Input {
    fn from(done: LaneDone) -> Self {
        Self::Lane(done)
    }
}

pub(super) fn migrate(
    guest: &mut dyn Guest,
    peer: Peer,
    settings: &MoveSettings,
    handle: &MoveHandle,
    observer: &dyn MoveObserver,
) -> Report {
    let offer = match guest.offer() {
        Ok(offer) => offer,
        Err(error) => {
            // Nothing was said to the peer: the connection just ends.
            let identity = crate::guest::GuestIdentity {
                uuid: uuid::Uuid::nil(),
                name: String::new(),
                epoch: 0,
            };
            let offer = GuestOffer {
                identity,
                kind: String::new(),
                vcpus: 0,
                layout: guest.memory().layout().clone(),
                configuration: crate::state::DeviceState::new(),
            };
            return Report::not_started(&offer, Outcome::Failed, error.to_string());
        }
    };
    let (inputs_sender, inputs) = sync_channel(64 + usize::from(LANES_MAX));
    let Peer {
        session,
        control,
        endpoint,
    } = peer;
    let link = Link::start(
        control,
        Opening::Ours,
        settings.peer_timeout,
        inputs_sender.clone(),
    );
    let link = match link {
        Ok(link) => link,
        Err(error) => return Report::not_started(&offer, Outcome::Failed, error.to_string()),
    };
    let sources = guest.dirty_sources();
    let context = LaneContext::new(
        guest.memory().lane_map().clone(),
        Untouched::new(guest.memory()),
        sources.clone(),
        handle,
        settings.peer_timeout,
    );
    std::thread::scope(|scope| {
        let mover = Mover {
            scope,
            report: Report::not_started(&offer, Outcome::Failed, ""),
            guest,
            offer,
            session_id: session,
            endpoint: endpoint.as_ref(),
            settings,
            handle,
            observer,
            context: &context,
            sources,
            inputs,
            link,
            inputs_sender,
            orders: Vec::new(),
            session: SourceSession::new(),
            reason: None,
            began: Timestamp::now(),
            convergence: Convergence::default(),
            prediction: Prediction::default(),
            pending: DirtyBitmap::new(0),
            collect_took: Duration::ZERO,
            round_begin: Timestamp::now(),
            spare: Vec::new(),
            shared_round: None,
            round: None,
            tallies: Vec::new(),
            counters: Vec::new(),
            fences: Vec::new(),
            dirty_rate: 0.0,
            told: Timestamp::now(),
            timeline: None,
            pause_deadline: None,
            parked: Vec::new(),
            state: Vec::new(),
            welcome: None,
            same_clock: false,
            ready: None,
            running: None,
            verified: None,
            not_resumed: false,
            commit_sent: None,
            verify_begin: None,
        };
        mover.run()
    })
}

struct Mover<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    guest: &'env mut dyn Guest,
    offer: GuestOffer,
    session_id: dunlin_transports::lane::SessionId,
    endpoint: &'env dyn SourceEndpoint,
    settings: &'env MoveSettings,
    handle: &'env MoveHandle,
    observer: &'env dyn MoveObserver,
    context: &'env LaneContext<'env>,
    sources: Vec<Arc<dyn DirtySource>>,
    /// Before the link, so that it is dropped first: the link's thread may be waiting for room.
    inputs: Receiver<Input>,
    link: Link,
    inputs_sender: SyncSender<Input>,
    /// A sender for each lane thread; dropping them ends the threads.
    orders: Vec<Sender<Order>>,
    session: SourceSession,
    /// Why the move is ending, where it is not going well: the first reason counts.
    reason: Option<String>,
    began: Timestamp,
    convergence: Convergence,
    prediction: Prediction,
    /// Pages that are dirty and in no round yet.
    pending: DirtyBitmap,
    collect_took: Duration,
    round_begin: Timestamp,
    /// Cleared bitmaps, so that none has to be made while the guest is paused.
    spare: Vec<DirtyBitmap>,
    /// What the lanes work on.
    shared_round: Option<Arc<Round>>,
    /// The round that is under way.
    round: Option<RoundReport>,
    /// What lanes have said of it so far.
    tallies: Vec<LaneTally>,
    /// What each lane carried, as of its last word.
    counters: Vec<LaneCounters>,
    /// The last fence of each lane.
    fences: Vec<u64>,
    /// Pages a second that the guest dirtied in the last round.
    dirty_rate: f64,
    told: Timestamp,
    timeline: Option<Timeline>,
    /// The cap's end, once the guest is being paused.
    pause_deadline: Option<Deadline>,
    parked: Vec<Timestamp>,
    state: Vec<u8>,
    welcome: Option<Welcome>,
    /// Whether the destination runs on this very boot of this host, and so shares its clock.
    same_clock: bool,
    ready: Option<Ready>,
    running: Option<Running>,
    verified: Option<Verified>,
    /// The guest could be run neither there nor here.
    not_resumed: bool,
    commit_sent: Option<Timestamp>,
    verify_begin: Option<Timestamp>,
    report: Report,
}

impl Mover<'_, '_> {
    fn run(mut self) -> Report {
        let mut events = VecDeque::from([Event::Begin]);
        while !self.session.is_over() {
            let event = match events.pop_front() {
                Some(event) => event,
                None => self.next_event(),
            };
            let actions = self.session.on(event);
            if matches!(self.session.state(), State::Stayed(_) | State::Unknown) {
                // Whatever has no reason by now is a message that is in order, out of turn.
                self.because(&format!("the destination may not say {event:?} now"));
            }
            for action in actions {
                // An action that fails makes what follows it pointless: the session decides anew.
                if let Some(event) = self.perform(action) {
                    events.push_back(event);
                    break;
                }
            }
        }
        self.finish()
    }

    // ---- what happens ----

    /// Waits for the next event.
    fn next_event(&mut self) -> Event {
        loop {
            if let Some(event) = self.overdue() {
                return event;
            }
            let input = match self.inputs.recv_timeout(TICK) {
                Ok(input) => input,
                Err(RecvTimeoutError::Timeout) => {
                    self.tell_progress();
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return self.lost("no thread is left"),
            };
            let event = match input {
                Input::Link(LinkEvent::Lost(reason)) => Some(self.lost(&reason)),
                Input::Link(LinkEvent::Message(message)) => Some(self.heard(*message)),
                Input::Lane(done) => self.lane_done(done),
            };
            if let Some(event) = event {
                return event;
            }
        }
    }

    /// What time, or the operator, says.
    fn overdue(&mut self) -> Option<Event> {
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
    fn greeting_timeout(&self) -> Duration {
        self.settings.peer_timeout.max(VERIFY_TIME_BASE)
    }

    fn heard(&mut self, message: Message) -> Event {
        match message {
            Message::Welcome(welcome) => {
                if welcome.version < VERSION_MIN || welcome.version > VERSION_MAX {
                    let version = welcome.version;
                    return self.lost(&format!("the destination chose version {version}"));
                }
                let here = boot_id();
                self.same_clock = !here.is_empty() && welcome.host.boot_id == here;
                self.welcome = Some(welcome);
                Event::Welcome
            }
            Message::Refused(refused) => {
                self.because(&refused.reason());
                Event::Refused
            }
            Message::Ready(ready) => {
                // The give-up comes next: the last moment for a cancel, and for the cap.
                if let Some(event) = self.overdue() {
                    return event;
                }
                let offset = self.clock_offset_ns();
                if let Some(timeline) = &mut self.timeline {
                    let received = Timestamp::now();
                    let [prepare, fences, digests, loaded, revoked] = ready
                        .moments()
                        .map(|moment| moment.shifted(offset.saturating_neg()));
                    timeline.mark("prepare-on-link", Side::Link, prepare.min(received));
                    timeline.mark("fences", Side::Destination, fences.min(received));
                    timeline.mark("digests", Side::Destination, digests.min(received));
                    timeline.mark("load-state", Side::Destination, loaded.min(received));
                    timeline.mark("revoke-access", Side::Destination, revoked.min(received));
                    timeline.mark("ready-on-link", Side::Link, received);
                }
                self.ready = Some(ready);
                Event::Ready
            }
            Message::Running(running) => {
                self.running = Some(running);
                Event::Running
            }
            Message::Verified(verified) => {
                self.verified = Some(verified);
                Event::Verified
            }
            Message::Aborted(abort) => {
                self.because(&format!("the destination gave up: {}", abort.reason()));
                Event::Aborted
            }
            other => {
                let kind = other.kind();
                self.lost(&format!("the destination may not say {kind:?} now"))
            }
        }
    }

    fn lane_done(&mut self, done: LaneDone) -> Option<Event> {
        let tally = match done.result {
            Ok(tally) => tally,
            Err(failure) => {
                let reason = match failure {
                    lanes::LaneFailure::Lane(_) => StayReason::PeerFailed,
                    lanes::LaneFailure::Rearm(_) | lanes::LaneFailure::Memory(_) => {
                        StayReason::Failed
                    }
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
        self.tallies.push(tally);
        if self.tallies.len() < self.orders.len() {
            return None;
        }
        self.close_round();
        Some(Event::RoundDone)
    }

    /// The connection is of no use any more.
    fn lost(&mut self, reason: &str) -> Event {
        self.because(reason);
        Event::Lost
    }

    /// This side ends the move.
    fn stop(&mut self, reason: StayReason, words: &str) -> Event {
        self.because(words);
        Event::Stop(reason)
    }

    fn because(&mut self, words: &str) {
        self.reason.get_or_insert_with(|| words.to_owned());
    }

    // ---- what to do ----

    /// Performs an action. An event that follows from it at once is returned.
    fn perform(&mut self, action: Action) -> Option<Event> {
        if action.is_inside_blackout() {
            // These follow each other without a wait in which the cap would be looked at.
            if let Some(event) = self.overdue() {
                return Some(event);
            }
        }
        match action {
            Action::SendHello => self.send_hello(),
            Action::Open => Some(self.open()),
            Action::StartRound => {
                self.start_round();
                None
            }
            Action::Judge => Some(self.judge()),
            Action::Pause => Some(self.pause()),
            Action::StartFinalRound => {
                self.start_final_round();
                None
            }
            Action::Save => Some(self.save()),
            Action::FenceLanes => self.fence_lanes(),
            Action::SendPrepare => self.send_prepare(),
            // The record that survives a crash goes here; until there is one, the session's state
            // is the record.
            Action::RecordGiveUp => None,
            Action::SendCommit => self.send_commit(),
            Action::Verify => self.verify(),
            Action::SendReleased => {
                // The guest is the destination's whether or not this word arrives.
                let _ = self.link.send(&Message::Released);
                None
            }
            Action::SendAbort => {
                let reason = self.reason.clone().unwrap_or_default();
                // A destination that does not hear it notices the closed connection.
                let _ = self.link.send(&Message::Abort(Abort::new(&reason)));
                None
            }
            Action::CloseLanes => {
                self.close_lanes();
                None
            }
            Action::Resume => {
                self.resume();
                None
            }
            Action::Hold => {
                self.mark("held");
                self.observer.note(
                    "the connection was lost behind the give-up: the guest is kept paused here, \
                     since it may run on the destination",
                );
                None
            }
        }
    }

    fn send(&mut self, message: &Message) -> Option<Event> {
        // While the guest is paused, the cap holds for a send as for everything else.
        let sent = match self
            .pause_deadline
            .filter(|_| self.session.is_before_give_up())
        {
            Some(deadline) => self.link.send_by(message, deadline),
            None => self.link.send(message),
        };
        let error = sent.err()?;
        self.overdue()
            .or_else(|| Some(self.lost(&error.to_string())))
    }

    fn send_hello(&mut self) -> Option<Event> {
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
        self.send(&Message::Hello(Box::new(hello)))
    }

    fn lanes_wanted(&self) -> u16 {
        let auto = || {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            u16::try_from(cores.min(LANES_AUTO_MAX)).unwrap_or(1)
        };
        self.settings.lanes.unwrap_or_else(auto).clamp(1, LANES_MAX)
    }

    /// Opens the lanes, starts their threads and the tracking of writes.
    fn open(&mut self) -> Event {
        let lanes = match self.open_lanes() {
            Ok(lanes) => lanes,
            Err(reason) => {
                let overdue = self.overdue();
                return overdue.unwrap_or_else(|| self.stop(StayReason::PeerFailed, &reason));
            }
        };
        self.fences = vec![0; lanes.len()];
        self.counters = vec![LaneCounters::default(); lanes.len()];
        self.report.lanes = u16::try_from(lanes.len()).unwrap_or(u16::MAX);
        let cpus = lane_cpus(&self.settings.cpus, self.report.lanes, self.offer.vcpus);
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
        // The first round takes every page, whatever was written before tracking started.
        self.pending = DirtyBitmap::new(self.offer.layout.page_span());
        for (region, shape) in self.offer.layout.regions().iter().enumerate() {
            if let Some(first) = self.offer.layout.first_page(region) {
                self.pending.set_range(first, shape.bytes / PAGE_BYTES);
            }
        }
        Event::Opened
    }

    fn open_lanes(&mut self) -> Result<Vec<Box<dyn SourceLane>>, String> {
        let asked = self.lanes_wanted();
        let welcome = self.welcome.as_ref().ok_or("no WELCOME")?;
        let tickets = welcome
            .tickets(self.session_id, asked)
            .map_err(|error| error.to_string())?;
        let grants = welcome
            .grants
            .to_grants()
            .map_err(|error| error.to_string())?;
        self.endpoint
            .accept_grants(&grants)
            .map_err(|error| error.to_string())?;
        for range in self.guest.memory().lane_map().whole() {
            self.endpoint
                .prepare(range)
                .map_err(|error| error.to_string())?;
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

    fn start_lane(&mut self, lane: Box<dyn SourceLane>, cpu: Option<usize>) -> std::io::Result<()> {
        let (orders_sender, orders) = channel();
        let context = self.context;
        let done = self.inputs_sender.clone();
        std::thread::Builder::new()
            .name(format!("dunlin-{}", lane.number().0))
            .spawn_scoped(self.scope, move || {
                if let Some(cpu) = cpu {
                    pin_current_thread(cpu);
                }
                lanes::serve(lane, context, &orders, &done);
            })?;
        self.orders.push(orders_sender);
        Ok(())
    }

    fn start_round(&mut self) {
        let plan = ChunkPlan::new(&self.offer.layout, CHUNK_PAGES);
        let is_first = self.report.rounds.is_empty();
        self.begin_round(
            Sharing::Claimed(Box::new(ChunkCursor::new(plan))),
            is_first,
            false,
        );
    }

    fn start_final_round(&mut self) {
        let shares = share_by_bytes(&self.pending, &self.offer.layout, self.orders.len());
        let is_first = self.report.rounds.is_empty();
        self.begin_round(Sharing::Divided(shares), is_first, true);
    }

    /// Hands the pending pages to the lanes.
    fn begin_round(&mut self, sharing: Sharing, is_first: bool, is_final: bool) {
        let empty = self.spare.pop();
        let empty = empty.unwrap_or_else(|| DirtyBitmap::new(self.offer.layout.page_span()));
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
        self.order(&Order::Round(Arc::clone(&round)));
        self.shared_round = Some(round);
    }

    fn order(&self, order: &Order) {
        for lane in &self.orders {
            // A lane thread that is gone has told why before it went.
            let _ = lane.send(order.clone());
        }
    }

    /// All lanes are done with what they were told.
    fn close_round(&mut self) {
        // Lanes let go of a round before they say that it is done.
        let shared = self.shared_round.take().and_then(Arc::into_inner);
        if let Some(mut round) = shared.filter(|_| self.timeline.is_none()) {
            round.dirty.clear();
            self.spare.push(round.dirty);
        }
        let tallies = std::mem::take(&mut self.tallies);
        let Some(mut round) = self.round.take() else {
            return;
        };
        let took = Timestamp::now().since(self.round_begin);
        round.duration_ns = nanoseconds(took);
        for tally in &tallies {
            round.zero_pages += tally.zero_pages;
            round.skipped_pages += tally.skipped_pages;
            round.sent_bytes += tally.sent_bytes;
        }
        if !round.is_final {
            let slowest =
                |time: fn(&LaneTally) -> Duration| tallies.iter().map(time).max().unwrap_or(took);
            self.convergence.sample(RoundSample {
                bytes: round.sent_bytes,
                sending: slowest(|tally| tally.sending),
                pages: round.dirty_pages,
                scanning: slowest(|tally| tally.scanning),
            });
        }
        self.report.sent_bytes += round.sent_bytes;
        if let Some(timeline) = &mut self.timeline {
            timeline.mark_now("final-round");
        }
        self.report.rounds.push(round);
    }

    /// Collects what was written, and decides whether to go on.
    fn judge(&mut self) -> Event {
        if let Err(reason) = self.collect() {
            return self.stop(StayReason::Failed, &reason);
        }
        let dirty_pages = self.pending.count();
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
            round_trip: self.link.quality().round_trip,
            vcpus: self.offer.vcpus,
            digest_bytes: if self.full_digests() {
                self.offer.layout.bytes()
            } else {
                0
            },
            digest_threads: u32::from(self.report.lanes),
        });
        let predicted = self.prediction.total();
        if let Some(round) = self.report.rounds.last_mut() {
            round.predicted_blackout_ns = nanoseconds(predicted);
        }
        let limits = Limits {
            max_blackout: self.handle.max_blackout(),
            blackout_cap: self.blackout_cap(),
            max_rounds: self.settings.max_rounds,
            on_stall: self.settings.on_stall,
        };
        let rounds = u32::try_from(self.report.rounds.len()).unwrap_or(u32::MAX);
        match self.convergence.judge(rounds, predicted, limits) {
            Verdict::Continue => Event::Continue,
            Verdict::Switch => Event::Converged,
            Verdict::GiveIn => {
                let reason = format!(
                    "after {rounds} rounds the blackout would still take {:.1} ms, the budget is \
                     {:.1} ms (the guest dirties {:.0} MiB/s, the lanes move {:.0} MiB/s)",
                    predicted.as_secs_f64() * 1e3,
                    limits.max_blackout.as_secs_f64() * 1e3,
                    self.dirty_rate * PAGE_BYTES as f64 / f64::from(1 << 20),
                    self.convergence.goodput() / f64::from(1 << 20),
                );
                self.stop(StayReason::NotConverging, &reason)
            }
        }
    }

    /// Adds to the pending pages what the dirty sources report.
    fn collect(&mut self) -> Result<(), String> {
        let begin = Timestamp::now();
        for source in &self.sources {
            let collected = source.collect(&mut self.pending);
            collected.map_err(|error| format!("collecting ({}): {error}", source.name()))?;
        }
        self.collect_took = Timestamp::now().since(begin);
        Ok(())
    }

    /// Law 7: every writer stops, then what they wrote last is collected.
    fn pause(&mut self) -> Event {
        let begin = Timestamp::now();
        let deadline = Deadline::after(self.blackout_cap());
        self.pause_deadline = Some(deadline);
        let record = match self.guest.pause(deadline) {
            Ok(record) => record,
            Err(error) => {
                self.timeline = Some(Timeline::new(begin));
                return self.stop(StayReason::Failed, &format!("pausing the guest: {error}"));
            }
        };
        let first = record.parked.iter().min().copied().unwrap_or(begin);
        let mut timeline = Timeline::new(first);
        timeline.mark_now("park");
        self.parked = record.parked;
        let collected = self.collect();
        timeline.mark_now("collect");
        self.timeline = Some(timeline);
        match collected {
            Ok(()) => Event::Paused,
            Err(reason) => self.stop(StayReason::Failed, &reason),
        }
    }

    /// Saves device state, and collects what saving wrote.
    fn save(&mut self) -> Event {
        let saved = self
            .guest
            .save_state()
            .map_err(|error| format!("saving state: {error}"));
        let saved = saved.and_then(|state| {
            state
                .encode()
                .map_err(|error| format!("saving state: {error}"))
        });
        self.mark("save-state");
        let collected = saved.and_then(|state| {
            self.state = state;
            self.collect()
        });
        self.mark("collect-again");
        match collected {
            Ok(()) => Event::Saved {
                dirtied: self.pending.count() > 0,
            },
            Err(reason) => self.stop(StayReason::Failed, &reason),
        }
    }

    /// Waits until the destination has seen every lane's last fence.
    fn fence_lanes(&mut self) -> Option<Event> {
        self.tallies.clear();
        self.order(&Order::ConfirmFence);
        match self.next_event() {
            Event::RoundDone => {
                self.mark("fence");
                None
            }
            other => Some(other),
        }
    }

    fn send_prepare(&mut self) -> Option<Event> {
        let mut all_digests = Vec::new();
        if self.full_digests() {
            let threads = usize::from(self.report.lanes);
            let deadline = self
                .pause_deadline
                .unwrap_or_else(|| Deadline::after(Duration::ZERO));
            match digests(self.guest.memory(), threads, deadline) {
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
        let event = self.send(&Message::Prepare(prepare));
        self.mark("send-prepare");
        event
    }

    fn send_commit(&mut self) -> Option<Event> {
        let event = self.send(&Message::Commit);
        self.commit_sent = Some(Timestamp::now());
        self.mark("commit");
        event
    }

    /// Tells the destination what this side's frozen pages look like.
    fn verify(&mut self) -> Option<Event> {
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

    fn resume(&mut self) {
        // Once more: what failed may have been a thread that was slow to answer.
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
        self.pause_deadline = None;
    }

    /// Ends the lanes' threads and the tracking of writes.
    fn close_lanes(&mut self) {
        self.context.stop();
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

    fn mark(&mut self, part: &str) {
        if let Some(timeline) = &mut self.timeline {
            timeline.mark_now(part);
        }
    }

    // ---- what is told ----

    /// The destination's clock minus this side's.
    fn clock_offset_ns(&self) -> i64 {
        if self.same_clock {
            0
        } else {
            self.link.quality().clock_offset_ns
        }
    }

    fn blackout_cap(&self) -> Duration {
        let budget = self.handle.max_blackout();
        self.settings
            .blackout_cap
            .unwrap_or_else(|| budget.saturating_mul(CAP_FACTOR))
    }

    fn full_digests(&self) -> bool {
        let common = self
            .welcome
            .as_ref()
            .map_or(0, |welcome| welcome.capabilities);
        self.settings.verify == Verify::Full && common & capability::FULL_DIGESTS != 0
    }

    fn tell_progress(&mut self) {
        let now = Timestamp::now();
        let phase = match self.session.state() {
            State::Created | State::Greeting => Phase::Connecting,
            State::Opening => Phase::Preparing,
            State::Copying => Phase::Copying,
            State::Committed | State::Verifying => Phase::Verifying,
            // Nothing is told while the guest waits.
            _ => return,
        };
        if self.session.state() == State::Committed || now.since(self.told) < PROGRESS_INTERVAL {
            return;
        }
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
        });
    }

    /// Adds the destination's last parts, placed on the source's clock.
    fn close_timeline(&mut self) {
        let offset = self.clock_offset_ns();
        let (Some(timeline), Some(running)) = (&mut self.timeline, &self.running) else {
            return;
        };
        let here = |nanoseconds: u64| Timestamp(nanoseconds).shifted(offset.saturating_neg());
        // RUNNING is here: nothing of it can have happened later than now.
        let now = Timestamp::now();
        timeline.mark(
            "commit-on-link",
            Side::Link,
            here(running.commit_received_ns).min(now),
        );
        let last = running.running_ns.iter().max().copied();
        let last = last.map_or(now, here).min(now);
        timeline.mark("resume", Side::Destination, last);
        let begin = timeline.begin();
        let end = timeline.end();
        self.report.total_ns = nanoseconds(end.since(self.began));
        let vcpus_ns = if self.parked.len() == running.running_ns.len() {
            let pairs = self.parked.iter().zip(&running.running_ns);
            pairs
                .map(|(parked, running)| nanoseconds(here(*running).since(*parked)))
                .collect()
        } else {
            Vec::new()
        };
        self.report.blackout = Some(self.blackout_report(begin, end, vcpus_ns));
    }

    fn blackout_report(
        &self,
        begin: Timestamp,
        end: Timestamp,
        vcpus_ns: Vec<u64>,
    ) -> BlackoutReport {
        let round_trip = self.link.quality().round_trip.unwrap_or_default();
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
            clock_error_ns: if self.same_clock {
                0
            } else {
                nanoseconds(round_trip / 2)
            },
        }
    }

    fn finish(mut self) -> Report {
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
        report.wire_bytes = self.counters.iter().map(|lane| lane.wire_bytes).sum();
        let rounds_ns: u64 = report.rounds.iter().map(|round| round.duration_ns).sum();
        let sent = u128::from(report.sent_bytes) * 1_000_000_000;
        report.goodput_bytes_per_s =
            u64::try_from(sent / u128::from(rounds_ns.max(1))).unwrap_or(u64::MAX);
        report.outcome = match self.session.state() {
            State::Moved => Outcome::Moved,
            State::Unknown => Outcome::Unknown,
            State::Stayed(_) if self.not_resumed => Outcome::NotResumed,
            State::Stayed(StayReason::Cancelled) => Outcome::Cancelled,
            State::Stayed(StayReason::NotConverging) => Outcome::NotConverging,
            State::Stayed(StayReason::BlackoutCap) => Outcome::BlackoutCap,
            State::Stayed(StayReason::TimedOut) => Outcome::TimedOut,
            State::Stayed(StayReason::Refused) => Outcome::Refused,
            State::Stayed(StayReason::PeerFailed) => Outcome::PeerFailed,
            _ => Outcome::Failed,
        };
        report.reason = self.reason.take();
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
        report
    }

    fn report_verification(&mut self, report: &mut Report, now: Timestamp) {
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
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
