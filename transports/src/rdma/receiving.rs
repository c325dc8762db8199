//! The destination's end of a lane: sees fences, says so, and fetches.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::connection::{Connection, FENCES_IN_FLIGHT_MAX};
use super::destination::Shared;
use super::outbox::Outbox;
use super::pieces::Cutter;
use super::verbs::{Completion, CompletionStatus, Transfer};
use super::waiting::{Pause, Waiter};
use super::wire::Message;
use crate::deadline::Deadline;
use crate::lane::{
    DestinationLane, DeviceCounters, FenceNumber, LaneCounters, LaneError, LaneNumber,
};
use crate::memory::Run;

/// The destination's end of a lane.
pub(super) struct ReceivingLane {
    connection: Arc<Connection>,
    shared: Arc<Shared>,
    outbox: Outbox,
    /// Fences that were seen and not answered yet, with the receives that they came in.
    seen: VecDeque<(u64, Completion)>,
    /// The number of the last one that was seen.
    last_seen: u64,
    failed: bool,
}

impl ReceivingLane {
    /// The length of a lane's queue of requests: a word for each fence, and reads.
    pub(super) const REQUESTS: u32 = 2 * FENCES_IN_FLIGHT_MAX;

    pub(super) fn new(connection: Arc<Connection>, shared: Arc<Shared>) -> Self {
        let device = shared.ranges.registrar().domain().device();
        let depth = Self::REQUESTS.min(device.limits().requests_max);
        let outbox = Outbox::new(depth, connection.window());
        Self {
            connection,
            shared,
            outbox,
            seen: VecDeque::new(),
            last_seen: 0,
            failed: false,
        }
    }

    fn fail(&mut self, error: LaneError) -> LaneError {
        self.failed = true;
        if self.shared.watch.is_stopped() {
            return LaneError::Stopped(self.connection.number());
        }
        error
    }

    fn system(&mut self, doing: &'static str, source: std::io::Error) -> LaneError {
        let lane = self.connection.number();
        self.fail(LaneError::System {
            lane,
            doing,
            source,
        })
    }

    fn check(&self) -> Result<(), LaneError> {
        let lane = self.connection.number();
        if let Some(ended) = self.shared.watch.ended(lane) {
            return Err(ended);
        }
        if self.failed {
            return Err(LaneError::Closed(lane));
        }
        Ok(())
    }

    /// Takes what has completed. Returns whether anything had.
    fn progress(&mut self) -> Result<bool, LaneError> {
        let mut failed: Option<Completion> = None;
        let outbox = &mut self.outbox;
        let sent = self.connection.poll_sends(|completion| {
            if completion.status == CompletionStatus::SUCCESS {
                outbox.complete(completion.id);
            } else if failed.is_none_or(|first| first.status == CompletionStatus::FLUSHED) {
                failed = Some(completion);
            }
        });
        let sent = sent.map_err(|error| self.system("polling for completions", error))?;
        self.outbox.count_completions(sent);
        let mut arrived: Vec<Completion> = Vec::new();
        let taken = self
            .connection
            .poll_receives(|completion| arrived.push(completion));
        let taken = taken.map_err(|error| self.system("polling for fences", error))?;
        self.outbox.count_completions(taken);
        for completion in arrived {
            if completion.status != CompletionStatus::SUCCESS {
                // Fences that came before are still good.
                failed = failed.or(Some(completion));
                break;
            }
            let expected = self.last_seen + 1;
            match self.connection.message(completion) {
                Some(Message::Fence(number)) if number == expected => {
                    self.seen.push_back((number, completion));
                    self.last_seen = number;
                }
                other => {
                    let lane = self.connection.number();
                    return Err(self.fail(LaneError::Protocol {
                        lane,
                        violation: format!("{other:?} where fence {expected} was due"),
                    }));
                }
            }
        }
        match failed {
            Some(failed) if self.seen.is_empty() => {
                let error = self.connection.failure(failed, "waiting for a fence");
                Err(self.fail(error))
            }
            _ => Ok(sent + taken > 0),
        }
    }

    /// Waits until `is_over` or the deadline.
    fn wait_until(
        &mut self,
        is_over: impl Fn(&Self) -> bool,
        doing: &'static str,
        deadline: Deadline,
    ) -> Result<(), LaneError> {
        let begun = Instant::now();
        let mut waiter = Waiter::new(self.shared.options.poll);
        let mut ended = None;
        while !is_over(self) {
            self.check()?;
            if self.progress()? {
                waiter.found();
                continue;
            }
            if let Some(ended) = ended {
                return Err(self.fail(ended));
            }
            match waiter.pause(&self.connection, deadline) {
                Ok(Pause::Look) => {}
                Ok(Pause::Ended(error)) => ended = Some(error),
                Ok(Pause::TimedOut) => {
                    return Err(LaneError::Stalled {
                        lane: self.connection.number(),
                        doing,
                        waited: begun.elapsed(),
                    });
                }
                Err(error) => return Err(self.fail(error)),
            }
        }
        Ok(())
    }

    fn post(&mut self) -> Result<(), LaneError> {
        let posted = self.outbox.post(&self.connection);
        posted.map_err(|error| self.system("posting requests", error))
    }

    /// Adds a request, once there is room for it.
    fn push(
        &mut self,
        transfer: Transfer,
        bytes: u64,
        wanted: bool,
        deadline: Deadline,
    ) -> Result<(), LaneError> {
        if !self.outbox.has_room(bytes) {
            self.post()?;
            self.wait_until(
                |lane| lane.outbox.has_room(bytes),
                "waiting for requests under way",
                deadline,
            )?;
        }
        self.outbox.push(transfer, bytes, wanted);
        Ok(())
    }

    /// Cuts a run at the borders of both sides' registrations, into reads.
    fn reads(&self, run: Run) -> Result<Vec<(Transfer, u64)>, LaneError> {
        let lane = self.connection.number();
        let memory = self.shared.ranges.registrar().memory();
        memory
            .check(run)
            .map_err(|source| LaneError::Memory { lane, source })?;
        let (own, peer) = (self.shared.ranges.view(), self.shared.offers.view());
        let mut cutter = Cutter::new(|page| own.at(page), |page| peer.at(page));
        let mut reads = Vec::new();
        let mut rest = run;
        while rest.pages > 0 {
            let piece = cutter.next(&mut rest, self.outbox.request_pages());
            let piece = piece.ok_or(LaneError::NotPrepared { lane, run })?;
            let read = Transfer::Read {
                into: piece.own,
                from_address: piece.peer_address,
                from_key: piece.peer_key,
            };
            reads.push((read, u64::from(piece.own.bytes)));
        }
        Ok(reads)
    }
}

impl DestinationLane for ReceivingLane {
    fn number(&self) -> LaneNumber {
        self.connection.number()
    }

    fn next_fence(&mut self, deadline: Deadline) -> Result<FenceNumber, LaneError> {
        // Where fences come quickly nothing is waited for, and the device would not be heard.
        self.shared.watch.look();
        self.check()?;
        self.wait_until(
            |lane| !lane.seen.is_empty(),
            "waiting for a fence",
            deadline,
        )?;
        self.check()?;
        let Some((number, received)) = self.seen.pop_front() else {
            return Err(self.fail(LaneError::Closed(self.connection.number())));
        };
        // Its buffer first: the word lets the source send another fence.
        if let Err(error) = self.connection.post_receive(received.id) {
            return Err(self.system("posting a receive", error));
        }
        let sending = self.connection.sending(number, Message::Word(number));
        let sending = sending.map_err(|error| self.system("writing a message", error))?;
        self.push(sending, 0, true, deadline)?;
        self.post()?;
        Ok(FenceNumber(number))
    }

    /// The source's device writes past this side's hands.
    fn counters(&self) -> Option<LaneCounters> {
        None
    }

    fn get(&mut self, runs: &[Run], deadline: Deadline) -> Result<(), LaneError> {
        self.check()?;
        let reads: Result<Vec<_>, _> = runs.iter().map(|run| self.reads(*run)).collect();
        for (read, bytes) in reads?.into_iter().flatten() {
            self.push(read, bytes, false, deadline)?;
        }
        let posted = self.outbox.post_announced(&self.connection);
        posted.map_err(|error| self.system("posting requests", error))?;
        self.wait_until(|lane| lane.outbox.is_idle(), "fetching pages", deadline)
            .map_err(|error| self.fail(error))
    }

    fn device_counters(&self) -> DeviceCounters {
        self.outbox.counters()
    }
}
