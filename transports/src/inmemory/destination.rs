//! The destination's endpoint and lanes in memory.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::faults::{Faults, Place};
use super::network::{Ends, NO_LANE, Network, Verdict, lane_error, memory_error, pieces};
use super::registrations::{Registrations, Side};
use super::wire::{self, Message, Way, WireError};
use crate::deadline::Deadline;
use crate::lane::{
    self, DestinationLane, FenceNumber, Grant, LaneCounters, LaneError, LaneNumber, LaneObserver,
    LaneTicket, LaneToken, LaneWork, Observer, RegistrationCounters,
};
use crate::memory::{MemoryMap, Run};
use crate::prepared::{WriteGate, WriterPlace};
use crate::runtime;

/// The destination's side of a session's lanes.
pub struct DestinationEndpoint {
    network: Network,
    memory: MemoryMap,
    stopped: Arc<AtomicBool>,
    /// The queues of its lanes.
    queues: Mutex<Vec<u64>>,
    gate: Arc<WriteGate>,
    registrations: Registrations,
    used: Mutex<Vec<LaneToken>>,
    confirmed: Arc<Mutex<HashSet<LaneNumber>>>,
}

/// Where lanes listen, where they are named: nowhere that has to be said.
pub(super) const CONTACT: &[u8] = b"in memory";

impl DestinationEndpoint {
    pub(super) fn new(network: Network, memory: MemoryMap) -> Self {
        let faults = Arc::clone(&network.faults);
        Self {
            network,
            memory,
            stopped: Arc::default(),
            queues: Mutex::default(),
            gate: Arc::default(),
            registrations: Registrations::new(faults, Side::Destination),
            used: Mutex::default(),
            confirmed: Arc::default(),
        }
    }

    /// Judges a lane that asks to be let in; `Ok` takes its token.
    fn judge(&self, asks: &LaneTicket, tickets: &[LaneTicket]) -> Result<(), &'static str> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if !tickets.iter().any(|ticket| ticket.session == asks.session) {
            return Err("it is of another session");
        }
        let ticket = tickets.iter().find(|ticket| ticket.number == asks.number);
        let Some(ticket) = ticket else {
            return Err("no lane of this number is expected");
        };
        if !ticket.token.matches(&asks.token) {
            return Err("its token is not this lane's");
        }
        if used.iter().any(|token| token.matches(&asks.token)) {
            return Err("its token was used already");
        }
        used.push(asks.token.clone());
        Ok(())
    }
}

impl lane::DestinationEndpoint for DestinationEndpoint {
    fn transport(&self) -> &'static str {
        "in-memory"
    }

    fn mechanism(&self) -> String {
        "queues".to_owned()
    }

    fn prepare(&self, range: Run) -> Result<Grant, LaneError> {
        self.memory.check(range).map_err(memory_error)?;
        self.registrations.register(range)?;
        if !self.gate.prepare(range) {
            self.registrations.deregister(range, || true);
            return Err(LaneError::Stopped(NO_LANE));
        }
        Ok(Grant {
            range,
            key: Vec::new(),
        })
    }

    fn retire(&self, range: Run) -> Result<(), LaneError> {
        // A writer here only copies; there is nothing to interrupt.
        let close = || self.gate.retire(range, || ());
        if self.registrations.deregister(range, close) {
            return Ok(());
        }
        Err(LaneError::NotPrepared {
            lane: NO_LANE,
            run: range,
        })
    }

    fn has_registrations(&self) -> bool {
        self.registrations.are_there()
    }

    fn registrations(&self) -> RegistrationCounters {
        self.registrations.counters()
    }

    fn contact(&self) -> Vec<u8> {
        match self.network.faults.state().orders.are_lanes_named {
            true => CONTACT.to_vec(),
            false => Vec::new(),
        }
    }

    fn confirm(&self, lane: LaneNumber, identity: &[u8]) -> Result<(), LaneError> {
        let state = self.network.faults.state();
        let is_its_own = state.orders.impostor != Some(lane);
        let is_same = state.orders.identity(lane) == identity;
        drop(state);
        let mut confirmed = self.confirmed.lock();
        let confirmed = confirmed.as_mut().map_err(|_| LaneError::Stopped(lane))?;
        if is_same && is_its_own && confirmed.insert(lane) {
            return Ok(());
        }
        Err(LaneError::Protocol {
            lane,
            violation: "what is connected is not what the source named".to_owned(),
        })
    }

    fn accept_lane(
        &self,
        tickets: &[LaneTicket],
        deadline: Deadline,
    ) -> Result<Box<dyn DestinationLane>, LaneError> {
        let begun = runtime::now();
        let faults = &self.network.faults;
        let lane = tickets.first().map_or(NO_LANE, |ticket| ticket.number);
        let mut state = faults.state();
        loop {
            if self.stopped.load(Ordering::SeqCst) {
                return Err(LaneError::Stopped(lane));
            }
            if deadline.passed() {
                return Err(lane_error(
                    lane,
                    WireError::TimedOut,
                    "waiting for a lane",
                    begun,
                ));
            }
            let waiting =
                state.wires.requests.iter_mut().find(|request| {
                    request.network == self.network.id && request.verdict.is_none()
                });
            if let Some(request) = waiting {
                let asks = request.ticket.clone();
                let id = request.id;
                match self.judge(&asks, tickets) {
                    Err(reason) => request.verdict = Some(Verdict::Refused(reason)),
                    Ok(()) => {
                        drop(state);
                        let place = Place::Lane(asks.number);
                        let (to_destination, from_source) =
                            wire::open(faults, place, Way::ToDestination);
                        let (to_source, from_destination) =
                            wire::open(faults, place, Way::ToSource);
                        let mut state = faults.state();
                        let mut requests = state.wires.requests.iter_mut();
                        let source_ends = Ends {
                            outgoing: to_destination,
                            incoming: from_destination,
                        };
                        // A source that gave up meanwhile leaves its ends to be dropped, behind
                        // the lock: dropping one takes it.
                        let mut left_over = Some(source_ends);
                        if let Some(request) = requests.find(|request| request.id == id) {
                            request.verdict = left_over.take().map(Verdict::Accepted);
                        }
                        drop(state);
                        drop(left_over);
                        faults.state.notify_all();
                        let ends = Ends {
                            outgoing: to_source,
                            incoming: from_source,
                        };
                        ends.note(&self.queues);
                        let mut state = faults.state();
                        while state.orders.is_admission_held && !deadline.passed() {
                            state = faults.state.wait_timeout(state, deadline.remaining());
                        }
                        let is_held = state.orders.is_admission_held;
                        drop(state);
                        if is_held {
                            let late = WireError::TimedOut;
                            return Err(lane_error(lane, late, "waiting for a lane", begun));
                        }
                        return Ok(Box::new(Destination {
                            number: asks.number,
                            ends,
                            memory: self.memory.clone(),
                            stopped: Arc::clone(&self.stopped),
                            place: self.gate.add_writer(),
                            gate: Arc::clone(&self.gate),
                            faults: Arc::clone(faults),
                            confirmed: Arc::clone(&self.confirmed),
                            counters: LaneCounters::default(),
                            observer: Observer::default(),
                        }));
                    }
                }
                faults.state.notify_all();
                continue;
            }
            state = faults.state.wait_timeout(state, deadline.remaining());
        }
    }

    fn revoke_all(&self) -> Result<(), LaneError> {
        self.gate.revoke();
        self.stop();
        self.gate.wait_until_idle();
        match self.network.faults.state().orders.is_revoking_refused {
            false => Ok(()),
            true => Err(LaneError::System {
                lane: NO_LANE,
                doing: "taking write access away",
                source: std::io::Error::other("the device refuses"),
            }),
        }
    }

    fn stop(&self) {
        wire::stop(&self.network.faults, &self.stopped, &self.queues);
    }
}

struct Destination {
    number: LaneNumber,
    ends: Ends,
    memory: MemoryMap,
    stopped: Arc<AtomicBool>,
    gate: Arc<WriteGate>,
    place: WriterPlace,
    faults: Arc<Faults>,
    confirmed: Arc<Mutex<HashSet<LaneNumber>>>,
    counters: LaneCounters,
    observer: Observer,
}

impl Destination {
    /// Whether the lane may carry anything.
    fn is_confirmed(&self) -> bool {
        let confirmed = self
            .confirmed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        confirmed.contains(&self.number) || !self.faults.state().orders.are_lanes_named
    }

    fn write(&mut self, run: Run, bytes: Option<&[u8]>) -> Result<(), LaneError> {
        let lane = self.number;
        for piece in pieces(run) {
            let _permit = self
                .gate
                .enter(&self.place, std::iter::once(piece))
                .map_err(|run| LaneError::NotPrepared { lane, run })?;
            runtime::step();
            match bytes {
                Some(bytes) => self.memory.copy_in(piece, bytes),
                None => self.memory.fill_zero(piece),
            }
            .map_err(|source| LaneError::Memory { lane, source })?;
        }
        Ok(())
    }
}

impl DestinationLane for Destination {
    fn number(&self) -> LaneNumber {
        self.number
    }

    fn next_fence(&mut self, deadline: Deadline) -> Result<FenceNumber, LaneError> {
        let begun = runtime::now();
        let lane = self.number;
        loop {
            let message = self.ends.incoming.receive(deadline, &self.stopped);
            self.counters.submissions += 1;
            if message.is_ok() && !self.is_confirmed() {
                return Err(LaneError::Protocol {
                    lane,
                    violation: "it was used before it was confirmed".to_owned(),
                });
            }
            match message.map_err(|error| lane_error(lane, error, "waiting for a fence", begun))? {
                Message::Put { run, bytes } => {
                    let observed = self.observer.now();
                    self.write(run, Some(&bytes))?;
                    self.observer.done(LaneWork::Receive, observed);
                    self.counters.runs += 1;
                    self.counters.payload_bytes += run.bytes();
                    self.counters.wire_bytes += run.bytes();
                }
                Message::Zero { run } => {
                    self.write(run, None)?;
                    self.counters.zero_pages += u64::from(run.pages);
                }
                Message::Fence { number } => {
                    self.ends
                        .outgoing
                        .send(Message::Fence { number }, Some(deadline), &self.stopped)
                        .map_err(|error| lane_error(lane, error, "confirming a fence", begun))?;
                    return Ok(FenceNumber(number));
                }
                Message::Control { .. } => {
                    return Err(LaneError::Protocol {
                        lane,
                        violation: "a control message on a lane".to_owned(),
                    });
                }
            }
        }
    }

    fn counters(&self) -> Option<LaneCounters> {
        Some(self.counters)
    }

    fn observe(&mut self, observer: Box<dyn LaneObserver>) {
        self.observer.set(observer);
    }
}
