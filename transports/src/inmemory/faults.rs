//! What a test orders, and what it may watch.
//!
//! An order holds from the moment it is given, from whatever thread, until it is taken back.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::registrations::Devices;
use super::wire::Wires;
use crate::lane::LaneNumber;
use crate::runtime::Monitor;

/// Where a fault acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// One lane, both directions.
    Lane(LaneNumber),
    /// The control channel, from the source to the destination.
    ControlToDestination,
    /// The control channel, from the destination to the source.
    ControlToSource,
    /// The control channel, both directions.
    Control,
    /// Everything between the two ends.
    All,
}

impl Place {
    /// Whether what passes at `at` (a lane or one direction of control) passes here.
    pub(super) fn covers(self, at: Self) -> bool {
        match self {
            Self::All => true,
            Self::Control => matches!(
                at,
                Self::Control | Self::ControlToDestination | Self::ControlToSource
            ),
            _ => self == at,
        }
    }
}

/// Something that passed from one end to the other: told to the hook when it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passage {
    /// Where: a lane, or one direction of control.
    pub place: Place,
    /// The payload's bytes: of a put, or of a control frame.
    pub bytes: u64,
    /// The kind of a control frame; `None` on a lane.
    pub control_kind: Option<u16>,
}

/// Called for each [`Passage`], on the sender's thread, without any lock held.
pub(super) type Hook = Arc<dyn Fn(Passage) + Send + Sync>;

struct Cut {
    place: Place,
    bytes_left: u64,
}

struct Corruption {
    place: Place,
    payloads_left: u64,
    offset: u64,
}

/// What is ordered now.
#[derive(Default)]
pub(super) struct Orders {
    delays: Vec<(Place, Duration)>,
    cuts: Vec<Cut>,
    corruptions: Vec<Corruption>,
    stalled: HashSet<LaneNumber>,
    silent: Vec<Place>,
    passed: Vec<(Place, u64, u64)>,
    pub(super) are_lanes_named: bool,
    pub(super) is_admission_held: bool,
    pub(super) is_revoking_refused: bool,
    pub(super) impostor: Option<LaneNumber>,
}

impl Orders {
    /// What the source says that a lane is: the lane's number, where lanes are named.
    pub(super) fn identity(&self, lane: LaneNumber) -> Vec<u8> {
        match self.are_lanes_named {
            true => lane.0.to_le_bytes().to_vec(),
            false => Vec::new(),
        }
    }

    pub(super) fn delay(&self, at: Place) -> Duration {
        let longest = self.delays.iter().filter(|(place, _)| place.covers(at));
        longest.map(|(_, delay)| *delay).max().unwrap_or_default()
    }

    pub(super) fn is_silent(&self, at: Place) -> bool {
        self.silent.iter().any(|place| place.covers(at))
    }

    pub(super) fn is_stalled(&self, at: Place) -> bool {
        matches!(at, Place::Lane(lane) if self.stalled.contains(&lane))
    }

    /// Counts a message against the cuts; `true` when a cut falls into it.
    pub(super) fn is_cut_by(&mut self, at: Place, bytes: u64) -> bool {
        let mut is_cut = false;
        for cut in self.cuts.iter_mut().filter(|cut| cut.place.covers(at)) {
            is_cut |= cut.bytes_left < bytes || cut.bytes_left == 0;
            cut.bytes_left = cut.bytes_left.saturating_sub(bytes);
        }
        is_cut
    }

    /// Whether a cut at this place has fallen already.
    pub(super) fn is_cut(&self, at: Place) -> bool {
        self.cuts
            .iter()
            .any(|cut| cut.place.covers(at) && cut.bytes_left == 0)
    }

    /// Flips a byte of a payload where that is ordered.
    pub(super) fn corrupt(&mut self, at: Place, payload: &mut [u8]) {
        let length = payload.len() as u64;
        if length == 0 {
            return;
        }
        self.corruptions.retain_mut(|corruption| {
            if !corruption.place.covers(at) {
                return true;
            }
            if corruption.payloads_left > 0 {
                corruption.payloads_left -= 1;
                return true;
            }
            if let Some(byte) = payload.get_mut((corruption.offset % length) as usize) {
                *byte ^= 0xff;
            }
            false
        });
    }

    pub(super) fn count(&mut self, at: Place, bytes: u64) {
        match self.passed.iter_mut().find(|(place, ..)| *place == at) {
            Some((_, messages, sum)) => {
                *messages += 1;
                *sum += bytes;
            }
            None => self.passed.push((at, 1, bytes)),
        }
    }
}

#[derive(Default)]
pub(super) struct State {
    pub(super) orders: Orders,
    pub(super) wires: Wires,
    pub(super) devices: Devices,
}

/// The faults of one network, and the network's state.
#[derive(Default)]
pub struct Faults {
    pub(super) state: Monitor<State>,
    hook: Mutex<Option<Hook>>,
}

impl fmt::Debug for Faults {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Faults").finish_non_exhaustive()
    }
}

impl Faults {
    /// No faults.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub(super) fn hook(&self) -> Option<Hook> {
        let hook = self.hook.lock().unwrap_or_else(PoisonError::into_inner);
        hook.clone()
    }

    fn order(&self, change: impl FnOnce(&mut Orders)) {
        change(&mut self.state().orders);
        self.state.notify_all();
    }

    /// The destination's device does not say that it took the source's access away.
    pub fn refuse_revoking(&self) {
        self.order(|orders| orders.is_revoking_refused = true);
    }

    /// Every message sent from now on takes `delay` longer. Zero ends it.
    pub fn delay(&self, place: Place, delay: Duration) {
        self.order(|orders| {
            orders.delays.retain(|(other, _)| *other != place);
            orders.delays.push((place, delay));
        });
    }

    /// After `bytes` more payload bytes the connection breaks: the message in which the border
    /// falls does not arrive, what was sent before does, and then both ends see it closed. Zero:
    /// at once.
    pub fn cut_after(&self, place: Place, bytes: u64) {
        self.order(|orders| {
            orders.cuts.push(Cut {
                place,
                bytes_left: bytes,
            });
        });
    }

    /// Takes away what is on its way now: it was sent, and never arrives. What follows does, unless
    /// the place is cut or silent.
    pub fn lose_in_flight(&self, place: Place) {
        self.state().wires.lose_in_flight(place);
        self.state.notify_all();
    }

    /// Flips the byte at `offset` (modulo the length) of the payload that follows after `skipped`
    /// others: of a put, or of a control frame.
    pub fn corrupt(&self, place: Place, skipped: u64, offset: u64) {
        self.order(|orders| {
            orders.corruptions.push(Corruption {
                place,
                payloads_left: skipped,
                offset,
            });
        });
    }

    /// Holds back all that a lane carries to the destination. Puts are still taken, with the bytes
    /// that the memory has at that moment, until the lane's queue is full.
    pub fn stall(&self, lane: LaneNumber) {
        self.order(|orders| {
            orders.stalled.insert(lane);
        });
    }

    /// Lets a stalled lane's messages arrive, in order.
    pub fn release(&self, lane: LaneNumber) {
        self.order(|orders| {
            orders.stalled.remove(&lane);
        });
    }

    /// Nothing arrives any more, and nobody is told: the connection stays open.
    pub fn silence(&self, place: Place) {
        self.order(|orders| orders.silent.push(place));
    }

    /// Ends a silence. What was sent meanwhile arrives now.
    pub fn end_silence(&self, place: Place) {
        self.order(|orders| orders.silent.retain(|other| *other != place));
    }

    /// Lanes have identities from now on, as those of a fabric have: the destination has a contact,
    /// and a lane that carries anything before it is confirmed breaks.
    pub fn name_lanes(&self) {
        self.order(|orders| orders.are_lanes_named = true);
    }

    /// Another one than the source's is connected as this lane.
    pub fn let_impostor_in(&self, lane: LaneNumber) {
        self.order(|orders| orders.impostor = Some(lane));
    }

    /// The source is told that its lanes are open, and the destination's `accept_lane` has not
    /// returned them yet.
    pub fn hold_admission(&self) {
        self.order(|orders| orders.is_admission_held = true);
    }

    /// Lets `accept_lane` return.
    pub fn end_hold_of_admission(&self) {
        self.order(|orders| orders.is_admission_held = false);
    }

    /// Calls `hook` for every message that is sent from now on, before it can arrive. It may give
    /// orders.
    pub fn watch(&self, hook: impl Fn(Passage) + Send + Sync + 'static) {
        *self.hook.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(hook));
    }

    /// How many messages were sent at a place.
    pub fn messages(&self, place: Place) -> u64 {
        let state = self.state();
        let passed = state.orders.passed.iter();
        passed
            .filter(|(at, ..)| place.covers(*at))
            .map(|(_, messages, _)| messages)
            .sum()
    }

    /// How many payload bytes were sent at a place.
    pub fn bytes(&self, place: Place) -> u64 {
        let state = self.state();
        let passed = state.orders.passed.iter();
        passed
            .filter(|(at, ..)| place.covers(*at))
            .map(|(_, _, bytes)| bytes)
            .sum()
    }

    /// How long a send may wait on a full queue: the stall limit of everything in memory.
    pub fn set_stall_limit(&self, limit: Duration) {
        self.state().wires.stall_limit = limit;
    }

    /// How many payload bytes may wait on one lane before a put blocks.
    pub fn set_queue_bytes_max(&self, bytes: u64) {
        self.state().wires.queue_bytes_max = bytes;
    }
}
