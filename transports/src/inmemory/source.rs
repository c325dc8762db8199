//! The source's endpoint and lanes in memory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::destination::CONTACT;
use super::faults::Faults;
use super::network::{
    Ends, NEXT_ID, NO_LANE, Network, Request, Verdict, lane_error, memory_error, pieces,
};
use super::registrations::{Registrations, Side};
use super::wire::{self, Message, WireError};
use crate::deadline::{Deadline, StallWatch};
use crate::lane::{
    self, FenceNumber, Grant, LaneCounters, LaneError, LaneNumber, LaneObserver, LaneTicket,
    LaneWork, Observer, RegistrationCounters, SourceLane,
};
use crate::memory::{MemoryMap, Run};
use crate::prepared::{Ready, SourceRanges};
use crate::published::View;
use crate::runtime;

/// The source's side of a session's lanes.
pub struct SourceEndpoint {
    network: Network,
    memory: MemoryMap,
    stopped: Arc<AtomicBool>,
    /// The queues of its lanes.
    queues: Mutex<Vec<u64>>,
    ranges: Arc<SourceRanges>,
    registrations: Registrations,
    has_contact: AtomicBool,
}

impl SourceEndpoint {
    pub(super) fn new(network: Network, memory: MemoryMap) -> Self {
        let faults = Arc::clone(&network.faults);
        Self {
            network,
            memory,
            stopped: Arc::default(),
            queues: Mutex::default(),
            ranges: Arc::default(),
            registrations: Registrations::new(faults, Side::Source),
            has_contact: AtomicBool::new(false),
        }
    }
}

impl lane::SourceEndpoint for SourceEndpoint {
    fn transport(&self) -> &'static str {
        "in-memory"
    }

    fn mechanism(&self) -> String {
        "queues".to_owned()
    }

    fn prepare(&self, range: Run) -> Result<(), LaneError> {
        self.memory.check(range).map_err(memory_error)?;
        self.registrations.register(range)?;
        self.ranges.prepare(range);
        Ok(())
    }

    fn retire(&self, range: Run) -> Result<(), LaneError> {
        let close = || self.ranges.retire(range);
        if self.registrations.deregister(range, close) {
            return Ok(());
        }
        Err(LaneError::NotPrepared {
            lane: NO_LANE,
            run: range,
        })
    }

    fn accept_grants(&self, grants: &[Grant]) -> Result<(), LaneError> {
        for grant in grants {
            self.memory.check(grant.range).map_err(memory_error)?;
            self.ranges.grant(grant.range);
        }
        Ok(())
    }

    fn has_registrations(&self) -> bool {
        self.registrations.are_there()
    }

    fn registrations(&self) -> RegistrationCounters {
        self.registrations.counters()
    }

    fn accept_contact(&self, contact: &[u8]) -> Result<(), LaneError> {
        let is_named = self.network.faults.state().orders.are_lanes_named;
        if contact != if is_named { CONTACT } else { &[] } {
            return Err(LaneError::Protocol {
                lane: NO_LANE,
                violation: format!("a contact of {} bytes", contact.len()),
            });
        }
        self.has_contact.store(is_named, Ordering::SeqCst);
        Ok(())
    }

    fn open_lane(
        &self,
        ticket: &LaneTicket,
        deadline: Deadline,
    ) -> Result<Box<dyn SourceLane>, LaneError> {
        let begun = runtime::now();
        let faults = &self.network.faults;
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let mut state = faults.state();
        if state.orders.are_lanes_named && !self.has_contact.load(Ordering::SeqCst) {
            return Err(LaneError::Protocol {
                lane: ticket.number,
                violation: "it was opened without a contact".to_owned(),
            });
        }
        state.wires.requests.push(Request {
            id,
            network: self.network.id,
            ticket: ticket.clone(),
            verdict: None,
        });
        faults.state.notify_all();
        let verdict = loop {
            let requests = &mut state.wires.requests;
            let mine = requests.iter().position(|request| request.id == id);
            if let Some(mine) = mine
                && let Some(verdict) = requests.get_mut(mine).and_then(|mine| mine.verdict.take())
            {
                requests.swap_remove(mine);
                break Ok(verdict);
            }
            let ended = if self.stopped.load(Ordering::SeqCst) {
                Some(WireError::Stopped)
            } else {
                deadline.passed().then_some(WireError::TimedOut)
            };
            if let Some(ended) = ended {
                if let Some(mine) = mine {
                    requests.swap_remove(mine);
                }
                break Err(ended);
            }
            state = faults.state.wait_timeout(state, deadline.remaining());
        };
        drop(state);
        let lane = ticket.number;
        match verdict.map_err(|error| lane_error(lane, error, "opening", begun))? {
            Verdict::Refused(reason) => Err(LaneError::Refused {
                lane,
                reason: reason.to_owned(),
            }),
            Verdict::Accepted(ends) => {
                ends.note(&self.queues);
                Ok(Box::new(Source {
                    number: lane,
                    ends,
                    faults: Arc::clone(faults),
                    memory: self.memory.clone(),
                    stopped: Arc::clone(&self.stopped),
                    ranges: Arc::clone(&self.ranges),
                    ready: View::default(),
                    counters: LaneCounters::default(),
                    fences: 0,
                    confirmed: 0,
                    observer: Observer::default(),
                }))
            }
        }
    }

    fn stop(&self) {
        wire::stop(&self.network.faults, &self.stopped, &self.queues);
    }

    fn retire_all(&self) {
        self.stop();
        self.registrations.deregister_all();
    }
}

struct Source {
    number: LaneNumber,
    ends: Ends,
    faults: Arc<Faults>,
    memory: MemoryMap,
    stopped: Arc<AtomicBool>,
    ranges: Arc<SourceRanges>,
    ready: View<Ready>,
    counters: LaneCounters,
    fences: u64,
    confirmed: u64,
    observer: Observer,
}

impl Source {
    fn check(&mut self, runs: &[Run]) -> Result<(), LaneError> {
        let lane = self.number;
        for run in runs {
            self.memory
                .check(*run)
                .map_err(|source| LaneError::Memory { lane, source })?;
        }
        match self.ranges.first_unready(&mut self.ready, runs) {
            Some(run) => Err(LaneError::NotPrepared { lane, run }),
            None => Ok(()),
        }
    }

    fn send(&mut self, message: Message) -> Result<(), LaneError> {
        let begun = runtime::now();
        self.counters.submissions += 1;
        self.ends
            .outgoing
            .send(message, None, &self.stopped)
            .map_err(|error| lane_error(self.number, error, "sending", begun))
    }
}

impl SourceLane for Source {
    fn number(&self) -> LaneNumber {
        self.number
    }

    fn put(&mut self, runs: &[Run]) -> Result<(), LaneError> {
        self.check(runs)?;
        let lane = self.number;
        for run in runs {
            self.counters.runs += 1;
            for piece in pieces(*run) {
                let observed = self.observer.now();
                let mut bytes = vec![0; piece.bytes() as usize];
                self.memory
                    .copy_out(piece, &mut bytes)
                    .map_err(|source| LaneError::Memory { lane, source })?;
                self.send(Message::Put { run: piece, bytes })?;
                self.counters.payload_bytes += piece.bytes();
                self.counters.wire_bytes += piece.bytes();
                let bytes = piece.bytes();
                self.observer.done(LaneWork::Put { bytes }, observed);
            }
        }
        Ok(())
    }

    fn put_zero(&mut self, runs: &[Run]) -> Result<(), LaneError> {
        self.check(runs)?;
        for run in runs {
            self.send(Message::Zero { run: *run })?;
            self.counters.zero_pages += u64::from(run.pages);
        }
        Ok(())
    }

    fn fence(&mut self) -> Result<FenceNumber, LaneError> {
        let number = self.fences + 1;
        self.send(Message::Fence { number })?;
        self.fences = number;
        Ok(FenceNumber(number))
    }

    fn wait_fence(&mut self, number: FenceNumber, stall_limit: Duration) -> Result<(), LaneError> {
        let mut watch = StallWatch::new(stall_limit);
        let mut waiting = self.ends.outgoing.waiting();
        let lane = self.number;
        if number.0 > self.fences {
            return Err(LaneError::Protocol {
                lane,
                violation: format!("{number} was never sent, so nobody can confirm it"),
            });
        }
        while self.confirmed < number.0 {
            let look = watch.next_look();
            let error = match self.ends.incoming.receive(look, &self.stopped) {
                Ok(Message::Fence { number }) => {
                    self.confirmed = number;
                    watch.is_stalled(true);
                    continue;
                }
                Ok(_) => continue,
                Err(error) => error,
            };
            let waiting_now = self.ends.outgoing.waiting();
            let has_moved = std::mem::replace(&mut waiting, waiting_now) != waiting_now;
            if error != WireError::TimedOut || watch.is_stalled(has_moved) {
                let since = watch.since();
                return Err(lane_error(lane, error, "waiting for a fence", since));
            }
        }
        Ok(())
    }

    fn counters(&self) -> LaneCounters {
        self.counters
    }

    fn observe(&mut self, observer: Box<dyn LaneObserver>) {
        self.observer.set(observer);
    }

    fn identity(&self) -> Vec<u8> {
        self.faults.state().orders.identity(self.number)
    }
}
