//! Performs the session's actions and turns what happens into its events.
//!
//! | room | what is in it |
//! |---|---|
//! | here | the mover: what it holds, and which action is performed where |
//! | `happenings` | messages, lanes, time and the operator become events |
//! | `copying` | the guest runs: greeting, lanes, rounds |
//! | `opening` | ranges of memory that are registered while the move runs |
//! | `handing_over` | the guest is paused, and what follows |
//! | `in_doubt` | the connection was lost behind the give-up: holding the guest, asking |
//! | `measuring` | what this thread records of how long things take |
//! | `recording` | this side's record, and what the guest holds outside |
//! | `telling` | progress and the report |

mod copying;
mod handing_over;
mod happenings;
mod in_doubt;
mod measuring;
mod opening;
mod recording;
mod telling;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use dunlin_transports::deadline::Deadline;
use dunlin_transports::lane::{
    DeviceCounters, Grant, LANES_MAX, LaneCounters, RegistrationCounters, SourceEndpoint,
    SourceLane,
};
use dunlin_transports::memory::{PAGE_BYTES, Run};
use dunlin_transports::runtime::{
    self, Receiver, Scope, Sender, SyncSender, channel, sync_channel,
};

use self::in_doubt::Doubt;
use self::opening::Opener;
use super::blackout::Timeline;
use super::convergence::{Circumstances, Convergence, Limits, Prediction, RoundSample, Verdict};
use super::lanes::{self, LaneBytes, LaneContext, LaneDone, LaneTally, Order, Round, Sharing};
use super::prefault::Telling;
use super::window::{self, Unopened, WalkOrder, Window, WindowDone};
use super::{MoveObserver, Peer, Reconnect};
use crate::affinity::{lane_cpus, pin_current_thread};
use crate::chunk::{CHUNK_PAGES, Chunk, ChunkCursor, ChunkPlan, share_by_bytes};
use crate::clock::{Timestamp, boot_id};
use crate::digest::digests;
use crate::dirty::{DirtyBitmap, DirtySource};
use crate::guest::{Guest, GuestOffer, HandoverCosts};
use crate::host::this_host;
use crate::link::{Link, LinkEvent, Opening};
use crate::milestone::Milestone;
use crate::outside::{Outside, ReleaseReason};
use crate::planted;
use crate::protocol::{
    Abort, Counts, Hello, Lanes, Message, MessageKind, Prepare, Ready, Running, VERIFY_PAGES_MAX,
    VERSION_MAX, VERSION_MIN, Verified, VerifyPages, Welcome, WireCosts, WireHost, WireLayout,
    capability,
};
use crate::records::verdict::Answer;
use crate::records::{Durability, Entry, Journal};
use crate::report::{
    BlackoutReport, DeviceReport, Hosts, InDoubtReport, LaneProgress, Outcome, Phase, Progress,
    RegisteredReport, RegistrationReport, Report, RoundReport, Side, VerificationReport,
};
use crate::session::source::{Action, Event, State};
use crate::session::{Decision, SourceSession, StayReason};
use crate::settings::{MoveHandle, MoveSettings, VERIFY_PACE, VERIFY_TIME_BASE, Verify};
use crate::telemetry::{
    ClockRelation, Counter, End, Gauge, Kept, Kind, Moment, MoveTelemetry, Operation, Recording,
    RoundTrip, Shelf, Sides, SpanName, Track, wire,
};
use crate::untouched::Untouched;

/// How often a waiting source looks at what nobody tells it: a cancel, a deadline.
const TICK: Duration = Duration::from_millis(5);

/// How long a destination's last word is waited for once a lane has failed. It was sent before the
/// lane ended, and the guest may be waiting.
const LAST_WORD_TIME: Duration = Duration::from_millis(20);

/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// The cap, where none was given, as a multiple of the budget.
const CAP_FACTOR: u32 = 10;

/// How many operations of one pause are noted: some six, or a few more where state is collected
/// from many sources.
const NOTED_MAX: usize = 32;

/// How many lanes `auto` opens at most: QEMU and Cloud Hypervisor both measured most of the gain by
/// then on 100 Gb/s, and each lane costs the host a core while it runs.
const LANES_AUTO_MAX: usize = 8;

/// What reaches the session's thread.
enum Input {
    Link(LinkEvent),
    Lane(LaneDone),
    Window(WindowDone),
}

impl From<LinkEvent> for Input {
    fn from(event: LinkEvent) -> Self {
        Self::Link(event)
    }
}

impl From<WindowDone> for Input {
    fn from(done: WindowDone) -> Self {
        Self::Window(done)
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
    let Peer {
        session,
        control,
        endpoint,
        mut journal,
        mut reconnect,
        mut outside,
    } = peer;
    let mut not_begun = |offer: &GuestOffer, error: String| {
        // The record has its first entry already, and nobody will ask for it.
        let deadline = Deadline::after(settings.peer_timeout);
        let _ = journal.add(Entry::Stayed, &error, Durability::Plain, deadline);
        Report::not_started(offer, Outcome::Failed, error)
    };
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
            return not_begun(&offer, error.to_string());
        }
    };
    let (inputs_sender, inputs) = sync_channel(64 + usize::from(LANES_MAX));
    let shelf = Shelf::new(End::Source);
    let link = Link::start(
        control,
        Opening::Ours,
        settings.peer_timeout,
        inputs_sender.clone(),
        shelf.reader(),
    );
    let link = match link {
        Ok(link) => link,
        Err(error) => return not_begun(&offer, error.to_string()),
    };
    let sources = guest.dirty_sources();
    let context = LaneContext::new(
        guest.memory().lane_map().clone(),
        Untouched::new(guest.memory()),
        sources.clone(),
        handle,
        settings.peer_timeout,
    );
    let ended = runtime::scope(|scope| {
        let mover = Mover {
            scope,
            report: Report::not_started(&offer, Outcome::Failed, ""),
            guest,
            offer,
            session_id: session,
            endpoint: endpoint.as_ref(),
            journal: journal.as_mut(),
            reconnect: reconnect.as_mut(),
            outside: outside.as_mut(),
            settings,
            handle,
            observer,
            context: &context,
            sources,
            inputs,
            link,
            inputs_sender,
            orders: Vec::new(),
            opening: None,
            telling: None,
            grants: Vec::new(),
            closed: Vec::new(),
            session: SourceSession::new(),
            reason: None,
            began: Timestamp::now(),
            convergence: Convergence::default(),
            prediction: Prediction::default(),
            pending: DirtyBitmap::new(0),
            collect_took: Duration::ZERO,
            record_takes: None,
            round_begin: Timestamp::now(),
            spare: VecDeque::new(),
            shared_round: None,
            round: None,
            tallies: Vec::new(),
            counters: Vec::new(),
            device: Vec::new(),
            fences: Vec::new(),
            identities: Vec::new(),
            naming_limit: None,
            dirty_rate: 0.0,
            told: Timestamp::now(),
            lanes_told: [0; LANES_MAX as usize],
            timeline: None,
            pause_deadline: None,
            parked: Vec::new(),
            leaving: Duration::ZERO,
            state: Vec::new(),
            welcome: None,
            same_clock: false,
            ready: None,
            running: None,
            verified: None,
            not_resumed: false,
            prepare_sent: None,
            commit_begun: None,
            commit_sent: None,
            running_heard: Timestamp::now(),
            verify_begin: None,
            verified_at: None,
            doubt: None,
            has_recorded_end: false,
            link_is_lost: false,
            verified_recording: None,
            noted: Vec::with_capacity(NOTED_MAX),
            recorder: shelf.recorder(Track::Control),
            shelf: shelf.clone(),
        };
        mover.run()
    });
    let mut report = ended.report;
    if cfg!(feature = "telemetry") {
        // All threads have ended, so all recorders are here.
        let here = shelf.merge(Deadline::after(Duration::ZERO));
        report.telemetry = Some(MoveTelemetry::new(here, ended.there, ended.clock));
    }
    report
}

/// What is left of a move.
struct Ended {
    report: Report,
    /// What the destination recorded, where it told.
    there: Option<Recording>,
    clock: Option<ClockRelation>,
}

struct Mover<'scope, 'env> {
    scope: Scope<'scope, 'env>,
    guest: &'env mut dyn Guest,
    offer: GuestOffer,
    session_id: dunlin_transports::lane::SessionId,
    endpoint: &'env dyn SourceEndpoint,
    journal: &'env mut dyn Journal,
    reconnect: &'env mut dyn Reconnect,
    outside: &'env mut dyn Outside,
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
    /// Where memory is registered: what is open, and who opens it.
    opening: Option<Opener>,
    /// Who tells the destination what comes next, in the first round.
    telling: Option<Telling>,
    /// What GRANTS and CLOSED said, until it was taken in.
    grants: Vec<Grant>,
    closed: Vec<Run>,
    session: SourceSession,
    /// Why the move is ending, where it is not going well: the first reason counts.
    reason: Option<String>,
    began: Timestamp,
    convergence: Convergence,
    prediction: Prediction,
    /// Pages that are dirty and in no round yet.
    pending: DirtyBitmap,
    collect_took: Duration,
    /// What an entry in this side's record takes.
    record_takes: Option<Duration>,
    round_begin: Timestamp,
    /// Bitmaps of the guest's size, so that none is made or freed while the guest is paused.
    spare: VecDeque<DirtyBitmap>,
    /// What the lanes work on.
    shared_round: Option<Arc<Round>>,
    /// The round that is under way.
    round: Option<RoundReport>,
    /// What lanes have said of it so far.
    tallies: Vec<LaneTally>,
    /// What each lane carried, as of its last word.
    counters: Vec<LaneCounters>,
    /// What each lane asked of its device, as of its last word.
    device: Vec<DeviceCounters>,
    /// The last fence of each lane.
    fences: Vec<u64>,
    /// Which connection each lane is, until it was said.
    identities: Vec<Vec<u8>>,
    /// When the destination has to have confirmed the lanes.
    naming_limit: Option<Deadline>,
    /// Pages a second that the guest dirtied in the last round.
    dirty_rate: f64,
    told: Timestamp,
    /// What each lane had put when progress was told the last time.
    lanes_told: [u64; LANES_MAX as usize],
    timeline: Option<Timeline>,
    /// The cap's end, once the guest is being paused.
    pause_deadline: Option<Deadline>,
    parked: Vec<Timestamp>,
    /// From the order to pause until the first vCPU was parked.
    leaving: Duration,
    state: Vec<u8>,
    welcome: Option<Welcome>,
    /// Whether the destination runs on this very boot of this host, and so shares its clock.
    same_clock: bool,
    ready: Option<Ready>,
    running: Option<Running>,
    verified: Option<Verified>,
    /// The guest could be run neither there nor here.
    not_resumed: bool,
    /// When PREPARE began to go out.
    prepare_sent: Option<Timestamp>,
    /// When COMMIT began to go out.
    commit_begun: Option<Timestamp>,
    commit_sent: Option<Timestamp>,
    /// When RUNNING came.
    running_heard: Timestamp,
    verify_begin: Option<Timestamp>,
    /// When VERIFIED came.
    verified_at: Option<Timestamp>,
    /// Once it is not known who owns the guest.
    doubt: Option<Doubt>,
    /// Whether this side's record has its end.
    has_recorded_end: bool,
    /// Whether the connection is of no use any more.
    link_is_lost: bool,
    /// What the destination recorded, as it said it.
    verified_recording: Option<Vec<u8>>,
    /// Operations of the pause, until it is over.
    noted: Vec<(Operation, Moment, Moment)>,
    recorder: Kept,
    /// Where the recorders of the other threads come from.
    shelf: Shelf,
    report: Report,
}

impl Mover<'_, '_> {
    fn run(mut self) -> Ended {
        let mut events = VecDeque::from([Event::Begin]);
        while !self.session.is_over() {
            let event = match events.pop_front() {
                Some(event) => event,
                None => self.next_event(),
            };
            let actions = self.session.on(event);
            if matches!(self.session.state(), State::Stayed(_) | State::InDoubt) {
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
            Action::SendLanes => self.send_lanes(),
            Action::StartRound => {
                self.start_round();
                None
            }
            Action::Judge => Some(self.judge()),
            Action::OpenPending => self.open_pending(),
            Action::AcceptGrants => self.accept_grants(),
            Action::AcceptClosed => self.accept_closed(),
            Action::Pause => Some(self.pause()),
            Action::StartFinalRound => {
                self.start_final_round();
                None
            }
            Action::Save => Some(self.save()),
            Action::CollectAgain => Some(self.collect_again()),
            Action::FenceLanes => self.fence_lanes(),
            Action::SendPrepare => self.send_prepare(),
            Action::RecordGiveUp => Some(self.record_give_up()),
            Action::SendCommit => self.send_commit(),
            Action::Verify => self.verify(),
            Action::SendReleased => {
                self.record_verified();
                self.observer.reached(Milestone::Verified);
                // The guest is the destination's whether or not this word arrives. Who hears it
                // forgets the move: it must not, where it is all that can end this side's record.
                if self.has_recorded_end {
                    self.send_released();
                }
                self.observer.reached(Milestone::Released);
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
            Action::RecordStayed => {
                self.record_end(Entry::Stayed);
                None
            }
            Action::RecordReleased => {
                self.record_end(Entry::Released);
                None
            }
            Action::SyncRecord => {
                self.sync_record();
                None
            }
            Action::RecordDecision(decision) => self.record_decision(decision),
            Action::ReleaseOutside => {
                self.release_outside();
                None
            }
            Action::Hold => {
                self.hold();
                None
            }
            Action::Ask => Some(self.ask()),
            Action::TellSettled => {
                self.tell_settled();
                None
            }
        }
    }

    /// A destination that does not hear it keeps a record that nobody needs; so where the connection
    /// is gone, it is told on a new one. Once: the guest is well there either way.
    fn send_released(&mut self) {
        let is_sent = !self.link_is_lost && self.link.send(&Message::Released).is_ok();
        if !is_sent && let Ok(answered) = self.ask_now() {
            answered.settle(Deadline::after(self.settings.peer_timeout));
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
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
