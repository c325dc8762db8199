//! Performs the session's actions and turns what happens into its events.
//!
//! | room | what is in it |
//! |---|---|
//! | here | which action is performed where |
//! | `opening` | making room for the guest, WELCOME, and starting the session's threads |
//! | `happenings` | messages, lanes and time become events |
//! | `lanes` | tokens, grants, letting lanes in, a thread for each |
//! | `loading` | checking PREPARE, loading state, comparing pages |
//! | `measuring` | what this side tells of how long things took |
//! | `ranges` | memory that is registered while the move runs |
//! | `owning` | this side's record, and what the guest holds outside |
//! | `prefault` | backing memory: all of it beforehand, or ahead of the lanes |

mod happenings;
mod lanes;
mod loading;
mod measuring;
mod opening;
mod owning;
mod prefault;
mod ranges;

use std::collections::VecDeque;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use dunlin_transports::deadline::Deadline;
use dunlin_transports::lane::{
    DestinationEndpoint, DestinationLane, FenceNumber, Grant, LaneCounters, LaneError, LaneNumber,
    LaneTicket, LaneToken,
};
use dunlin_transports::memory::{MemoryMap, PAGE_BYTES, PageNumber, Run};
use dunlin_transports::runtime::{self, Receiver, Scope, SyncSender, sync_channel};

use self::lanes::{EndedLanes, PREPARERS_MAX};
pub(super) use self::opening::receive;
use self::prefault::Ahead;
use self::ranges::{OpenRanges, Pool};
use super::{Arrival, Hello, ReceiveError, ReceiveSettings, Received};
use crate::affinity::{lane_cpus, pin_current_thread};
use crate::clock::{Timestamp, boot_id};
use crate::digest::{digest_count, digests};
use crate::guest::{GuestError, GuestFactory, IncomingGuest, RunError};
use crate::host::this_host;
use crate::link::{Link, LinkEvent, Opening};
use crate::milestone::Milestone;
use crate::outside::{Outside, ReleaseReason};
use crate::planted;
use crate::protocol::{
    Abort, Grants, Lanes, Message, MessageKind, Prepare, Ready, Refused, Running, VERIFY_PAGES_MAX,
    Verified, VerifyPages, Welcome, WireCosts, WireHost, WireRegistrations, capability,
};
use crate::records::{Durability, Entry, Journal};
use crate::session::DestinationSession;
use crate::session::destination::{Action, Event, State};
use crate::settings::{VERIFY_PACE, VERIFY_TIME_BASE};
use crate::state::DeviceState;
use crate::telemetry::{
    Counter, End, Gauge, Kept, Moment, Operation, Recorder, Shelf, SpanName, Track, wire,
};

/// How often a waiting destination looks at the time.
const TICK: Duration = Duration::from_millis(20);

/// The longest cap that a source may ask this side to wait for. An hour of pause is no live
/// migration any more.
const BLACKOUT_CAP_MAX: Duration = Duration::from_secs(60 * 60);

/// How long a page that is just being written is waited for when it is compared.
const SETTLE_TIME: Duration = Duration::from_millis(500);

/// How long the guest is given to measure its own pause.
const GUEST_PAUSE_TIME: Duration = Duration::from_secs(1);

/// How long the source is given to read the last word.
const LAST_WORD_TIME: Duration = Duration::from_secs(1);

/// How many messages may wait for this side: a few, so that a source that talks faster than it is
/// listened to is held up by its connection, not by this side's memory.
const INPUTS_WAITING: usize = 16;

/// How many wrong pages are told of.
const EXAMPLES_MAX: usize = 8;

/// What reaches the session's thread.
enum Input {
    Link(LinkEvent),
    LaneOpen(LaneNumber),
    Fence {
        lane: LaneNumber,
        number: FenceNumber,
        counters: Option<LaneCounters>,
    },
    LaneFailed(LaneError),
    /// Ranges were registered or deregistered.
    RangesDone,
    RangeFailed(LaneError),
}

impl From<LinkEvent> for Input {
    fn from(event: LinkEvent) -> Self {
        Self::Link(event)
    }
}

struct Destination<'a, F: GuestFactory> {
    hello: &'a Hello,
    endpoint: &'a dyn DestinationEndpoint,
    settings: &'a ReceiveSettings,
    /// Before the link, so that it is dropped first: the link's thread may be waiting for room.
    inputs: Receiver<Input>,
    link: Link,
    /// Whether the link is of no use any more.
    lost: bool,
    factory: &'a mut F,
    journal: Box<dyn Journal>,
    outside: Box<dyn Outside>,
    guest: Option<F::Guest>,
    session: DestinationSession,
    /// Why the move is ending, where it is not going well: the first reason counts.
    reason: Option<String>,
    broken: Option<GuestError>,
    began: Timestamp,
    /// Which lanes are here.
    open: Vec<bool>,
    ended: &'a EndedLanes,
    /// What LANES said, until it was compared.
    identities: Option<Lanes>,
    pool: &'a Pool,
    /// Where memory is registered: what is open.
    ranges: Option<OpenRanges<'a>>,
    /// Where memory is backed ahead of the lanes.
    ahead: Option<Ahead<'a>>,
    /// When all lanes have to be here, once LANES is.
    naming_limit: Option<Deadline>,
    /// The last fence seen on each lane.
    seen: Vec<u64>,
    /// What each lane carried when that fence was seen; `None` where the lane can't tell.
    counters: Vec<Option<LaneCounters>>,
    prepare: Option<Prepare>,
    prepare_received: Timestamp,
    /// How long after PREPARE the source's word is waited for.
    handover_limit: Duration,
    ready: Ready,
    running: Running,
    claims: Option<VerifyPages>,
    verified: Verified,
    running_since: Option<Timestamp>,
    /// Whether RELEASED came.
    source_knows: bool,
    /// Whether the record says that the guest runs here.
    has_recorded_running: bool,
    recorder: Kept,
    shelf: Shelf,
}

impl<F: GuestFactory> Destination<'_, F> {
    fn run(
        mut self,
        lanes_started: std::io::Result<()>,
    ) -> Result<Received<F::Guest>, ReceiveError> {
        let mut events = VecDeque::new();
        if let Err(error) = lanes_started {
            events.push_back(self.failed(&format!("starting a thread: {error}")));
        }
        while !self.session.is_over() {
            let event = match events.pop_front() {
                Some(event) => event,
                None => self.next_event(),
            };
            let actions = self.session.on(event);
            if matches!(self.session.state(), State::Aborting | State::Aborted) {
                // Whatever has no reason by now is a message that is in order, out of turn.
                self.because(&format!("the source may not say {event:?} now"));
            }
            for action in actions {
                let event = self.perform(action);
                let is_unrevoked = action == Action::RevokeAccess && event.is_some();
                events.extend(event);
                // Law 9: READY, which comes next, would be untrue.
                if is_unrevoked {
                    break;
                }
            }
        }
        self.finish()
    }

    fn perform(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::ConfirmLanes => {
                self.naming_limit = Some(Deadline::after(self.settings.peer_timeout));
                self.confirm_lanes()
            }
            Action::SendLanesConfirmed => self.send(&Message::LanesConfirmed),
            Action::OpenRanges => self.open_ranges(),
            Action::CloseRanges => self.close_ranges(),
            Action::TellRanges => self.tell_ranges(),
            Action::Load => self.load(),
            Action::Acquire => Some(self.acquire()),
            Action::RevokeAccess => {
                // Law 9: from here on nothing of the source's reaches this memory.
                planted::delay("destination:revoke-access");
                let revoked = self.endpoint.revoke_all();
                self.ready.revoked_ns = Timestamp::now().0;
                revoked.err().map(|error| self.failed(&error.to_string()))
            }
            Action::SendReady => {
                planted::delay("link:ready-on-link");
                let lost = self.send(&Message::Ready(self.ready.clone()));
                self.factory.reached(Milestone::ReadySent);
                lost
            }
            Action::RecordOwnership => Some(self.record_ownership()),
            Action::RecordAborted => Some(self.record_aborted()),
            Action::RecordNotCome => {
                self.record_not_come();
                None
            }
            Action::RecordRunning => {
                let epoch = self.epoch();
                self.factory.entered(epoch);
                self.record_running();
                // Now, before comparing memory competes with the guest for the processors.
                self.verified.guest_visible_ns = self
                    .guest
                    .as_mut()
                    .and_then(|guest| guest.guest_visible_pause(Deadline::after(GUEST_PAUSE_TIME)))
                    .map(|pause| u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX));
                None
            }
            Action::RecordBroken => {
                self.record_broken();
                None
            }
            Action::RecordReleased => {
                self.record_released();
                None
            }
            Action::Run => Some(self.enter()),
            Action::SendRunning => {
                let lost = self.send(&Message::Running(self.running.clone()));
                self.factory.reached(Milestone::RunningSent);
                lost
            }
            Action::CheckPages => self.check_pages(),
            Action::SendVerified => {
                self.verified.registrations = self.registrations();
                self.verified.recording = self.recording().map(Into::into);
                self.send(&Message::Verified(self.verified.clone()))
            }
            Action::SendAborted => {
                // First of all: nothing more is pinned for a session that has failed.
                self.stop_helpers();
                let reason = self.reason.clone().unwrap_or_default();
                let aborted = Message::Aborted(Abort::new(&reason));
                // Even where the connection counts as lost: a peer that said something wrong can
                // still be told, and one behind its give-up is waiting for just this word.
                let told = self.link.send_by(&aborted, Deadline::after(LAST_WORD_TIME));
                if told.is_ok() && !self.lost {
                    self.endpoint.stop();
                    linger(&self.inputs);
                }
                None
            }
            Action::CloseLanes => {
                self.stop_helpers();
                self.endpoint.stop();
                self.ended.free();
                None
            }
            Action::Discard => {
                self.guest = None;
                None
            }
            Action::ReleaseOutside => {
                self.release_outside();
                None
            }
        }
    }

    fn send(&mut self, message: &Message) -> Option<Event> {
        let error = self.link.send(message).err()?;
        Some(self.lost(&error.to_string()))
    }

    fn enter(&mut self) -> Event {
        let epoch = self.epoch();
        let Some(guest) = self.guest.as_mut() else {
            return Event::NeverEntered;
        };
        let begun = Timestamp::now();
        planted::delay("destination:resume");
        match guest.run(epoch) {
            Ok(record) => {
                self.recorder.done(Operation::Resume, Moment::at(begun));
                for (vcpu, running) in (0..).zip(&record.running) {
                    let (begun, running) = (Moment::at(begun), Moment::at(*running));
                    let track = Track::Vcpu(vcpu);
                    self.recorder
                        .span_of(track, SpanName::VcpuEnter, begun, running);
                }
                self.running.running_ns = record.running.iter().map(|time| time.0).collect();
                self.running_since = Some(Timestamp::now());
                self.factory.reached(Milestone::Entered);
                Event::Entered
            }
            Err(RunError::NeverEntered(error)) => {
                self.because(&format!("the guest could not be run: {error}"));
                Event::NeverEntered
            }
            Err(RunError::MayHaveRun(error)) => {
                self.broken = Some(error);
                Event::NotEntered
            }
        }
    }

    fn epoch(&self) -> u64 {
        // HELLO was refused if this could overflow.
        self.hello.offer().identity.epoch.saturating_add(1)
    }

    /// Ends the threads that register or back memory, each once it is done with what it does.
    fn stop_helpers(&self) {
        self.pool.stop();
        self.ahead.iter().for_each(Ahead::stop);
    }

    fn finish(mut self) -> Result<Received<F::Guest>, ReceiveError> {
        self.stop_helpers();
        self.endpoint.stop();
        let epoch = self.epoch();
        match (self.session.state(), self.guest.take(), self.broken.take()) {
            (State::Released, Some(guest), _) => {
                self.insist_on_running();
                self.factory.reached(Milestone::Ended);
                Ok(Received {
                    guest,
                    epoch,
                    journal: self.journal,
                    source_knows: self.source_knows,
                    outside: self.outside,
                    checked_pages: self.verified.checked,
                    different_pages: self.verified.different,
                })
            }
            (State::Broken, _, Some(error)) => Err(ReceiveError::Broken(error)),
            _ => Err(ReceiveError::Aborted(self.reason.unwrap_or_default())),
        }
    }
}

/// Waits for the peer to hang up, a moment at most: closing with bytes unread would make the kernel
/// drop the last word.
fn linger(inputs: &Receiver<Input>) {
    let deadline = Deadline::after(LAST_WORD_TIME);
    while let Ok(input) = inputs.recv_timeout(deadline.remaining()) {
        // A peer that goes on talking is not waited for either.
        if matches!(input, Input::Link(LinkEvent::Lost(_))) || deadline.passed() {
            return;
        }
    }
}
