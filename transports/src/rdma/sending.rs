//! The source's end of a lane: writes to the destination's memory, and waits for its word.

use std::sync::Arc;
use std::time::Duration;

use super::connection::{Connection, FENCES_IN_FLIGHT_MAX};
use super::outbox::Outbox;
use super::source::{Shared, ZERO_PAGES};
use super::verbs::{Completion, CompletionStatus, Transfer};
use super::waiting::{Pause, Waiter};
use super::wire::Message;
use crate::deadline::StallWatch;
use crate::lane::{DeviceCounters, FenceNumber, LaneCounters, LaneError, LaneNumber, SourceLane};
use crate::memory::{PAGE_BYTES, PageNumber, Run};

/// The source's end of a lane.
pub(super) struct SendingLane {
    connection: Arc<Connection>,
    shared: Arc<Shared>,
    outbox: Outbox,
    /// Pieces of the run that is being put; keeps its memory.
    pieces: Vec<(Transfer, u64)>,
    /// Receives that completed; keeps its memory.
    arrived: Vec<Completion>,
    counters: LaneCounters,
    fences: u64,
    confirmed: u64,
    failed: bool,
}

impl SendingLane {
    /// The length of a lane's queue of requests. Single pages of 4 KiB that fill what may be under
    /// way would be 8,192; a queue of 1,024 (64 to 128 KiB of device memory) keeps 4 MiB of those
    /// under way, more than a path holds.
    pub(super) const REQUESTS: u32 = 1024;

    pub(super) fn new(connection: Arc<Connection>, shared: Arc<Shared>) -> Self {
        let device = shared.sent.registrar().domain().device();
        let depth = Self::REQUESTS.min(device.limits().requests_max);
        let outbox = Outbox::new(depth, connection.window());
        Self {
            connection,
            shared,
            outbox,
            pieces: Vec::new(),
            arrived: Vec::new(),
            counters: LaneCounters::default(),
            fences: 0,
            confirmed: 0,
            failed: false,
        }
    }

    fn fail(&mut self, error: LaneError) -> LaneError {
        self.failed = true;
        let lane = self.connection.number();
        if self.shared.watch.is_stopped() {
            return LaneError::Stopped(lane);
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

    fn check(&self, runs: &[Run]) -> Result<(), LaneError> {
        let lane = self.connection.number();
        if let Some(ended) = self.shared.watch.ended(lane) {
            return Err(ended);
        }
        if self.failed {
            return Err(LaneError::Closed(lane));
        }
        let memory = self.shared.sent.registrar().memory();
        for run in runs {
            memory
                .check(*run)
                .map_err(|source| LaneError::Memory { lane, source })?;
        }
        match self.shared.first_unready(runs) {
            Some(run) => Err(LaneError::NotPrepared { lane, run }),
            None => Ok(()),
        }
    }

    /// Takes what has completed. Returns whether anything had.
    fn progress(&mut self) -> Result<bool, LaneError> {
        let mut failed: Option<Completion> = None;
        let outbox = &mut self.outbox;
        let sent = self.connection.poll_sends(|completion| {
            if completion.status == CompletionStatus::SUCCESS {
                outbox.complete(completion.id);
            } else if failed.is_none_or(|first| first.status == CompletionStatus::FLUSHED) {
                // The first that was not just flushed behind another one says why.
                failed = Some(completion);
            }
        });
        let sent = sent.map_err(|error| self.system("polling for completions", error))?;
        self.outbox.count_completions(sent);
        if let Some(failed) = failed {
            let error = self
                .connection
                .failure(failed, "writing to the destination");
            return Err(self.fail(error));
        }
        let words = self.take_words()?;
        Ok(sent + words > 0)
    }

    /// Takes the destination's words. Returns how many came.
    fn take_words(&mut self) -> Result<usize, LaneError> {
        let mut arrived = std::mem::take(&mut self.arrived);
        arrived.clear();
        let taken = self
            .connection
            .poll_receives(|completion| arrived.push(completion));
        let taken = taken.map_err(|error| self.system("polling for words", error))?;
        self.outbox.count_completions(taken);
        for completion in &arrived {
            if completion.status != CompletionStatus::SUCCESS {
                let error = self
                    .connection
                    .failure(*completion, "waiting for the destination's word");
                return Err(self.fail(error));
            }
            let expected = self.confirmed + 1;
            match self.connection.message(*completion) {
                Some(Message::Word(number)) if number == expected && number <= self.fences => {
                    self.confirmed = number;
                }
                other => {
                    let lane = self.connection.number();
                    let fences = self.fences;
                    return Err(self.fail(LaneError::Protocol {
                        lane,
                        violation: format!(
                            "{other:?} where the word for fence {expected} of {fences} was due"
                        ),
                    }));
                }
            }
            if let Err(error) = self.connection.post_receive(completion.id) {
                return Err(self.system("posting a receive", error));
            }
        }
        self.arrived = arrived;
        Ok(taken)
    }

    /// Waits until `is_over`, for as long as something completes now and then.
    fn wait_until(
        &mut self,
        is_over: impl Fn(&Self) -> bool,
        doing: &'static str,
        stall_limit: Duration,
    ) -> Result<(), LaneError> {
        let lane = self.connection.number();
        let mut stall = StallWatch::new(stall_limit);
        let mut waiter = Waiter::new(self.shared.options.poll);
        let mut ended = None;
        let mut look = stall.next_look();
        while !is_over(self) {
            if self.progress()? {
                stall.is_stalled(true);
                waiter.found();
                look = stall.next_look();
                continue;
            }
            if let Some(ended) = ended {
                return Err(self.fail(ended));
            }
            match waiter.pause(&self.connection, look) {
                Ok(Pause::Look) => {}
                Ok(Pause::Ended(error)) => ended = Some(error),
                Ok(Pause::TimedOut) if stall.is_stalled(false) => {
                    return Err(LaneError::Stalled {
                        lane,
                        doing,
                        waited: stall.since().elapsed(),
                    });
                }
                Ok(Pause::TimedOut) => look = stall.next_look(),
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
    fn push(&mut self, transfer: Transfer, bytes: u64, wanted: bool) -> Result<(), LaneError> {
        if !self.outbox.has_room(bytes) {
            self.post()?;
            let limit = self.shared.options.stall_limit;
            let waited = self.wait_until(
                |lane| lane.outbox.has_room(bytes),
                "writing to the destination",
                limit,
            );
            // Half a put is of no use to anybody.
            waited.map_err(|error| self.fail(error))?;
        }
        self.outbox.push(transfer, bytes, wanted);
        Ok(())
    }

    /// Cuts a run at the borders of both sides' registrations and at `pages_max`, and adds a write
    /// for each piece.
    fn add(&mut self, run: Run, pages_max: u32, zero: bool) -> Result<(), LaneError> {
        let mut pieces = std::mem::take(&mut self.pieces);
        pieces.clear();
        let mut failed = None;
        let shared = Arc::clone(&self.shared);
        let granted = shared.grants.cut(run, |granted| {
            let mut done = 0;
            while done < granted.run.pages && failed.is_none() {
                let first = PageNumber(granted.run.first.0 + u64::from(done));
                let wanted = (granted.run.pages - done).min(pages_max);
                let from = if zero {
                    Ok(shared.zeros.piece(PageNumber(0), wanted))
                } else {
                    shared.sent.of(first).map(|region| {
                        let left = region.range().end().0.saturating_sub(first.0);
                        let pages = wanted.min(u32::try_from(left).unwrap_or(u32::MAX));
                        region.piece(first, pages)
                    })
                };
                match from {
                    Ok(from) => {
                        let to_address = granted.address + u64::from(done) * PAGE_BYTES;
                        let write = Transfer::Write {
                            from,
                            to_address,
                            to_key: granted.key,
                        };
                        pieces.push((write, u64::from(from.bytes)));
                        done += from.bytes / PAGE_BYTES as u32;
                    }
                    Err(error) => failed = Some(error),
                }
            }
        });
        let lane = self.connection.number();
        if granted.is_none() {
            failed.get_or_insert(LaneError::NotPrepared { lane, run });
        }
        let pushed = match failed {
            // Part of the put may have left.
            Some(error) => Err(self.fail(error)),
            None => pieces
                .iter()
                .try_for_each(|(write, bytes)| self.push(*write, *bytes, false)),
        };
        self.pieces = pieces;
        pushed
    }
}

impl SourceLane for SendingLane {
    fn number(&self) -> LaneNumber {
        self.connection.number()
    }

    fn put(&mut self, runs: &[Run]) -> Result<(), LaneError> {
        self.check(runs)?;
        for run in runs {
            self.add(*run, self.outbox.request_pages(), false)?;
            self.counters.runs += 1;
            self.counters.payload_bytes += run.bytes();
            self.counters.wire_bytes += run.bytes();
        }
        self.post()
    }

    fn put_zero(&mut self, runs: &[Run]) -> Result<(), LaneError> {
        self.check(runs)?;
        for run in runs {
            self.add(*run, ZERO_PAGES.min(self.outbox.request_pages()), true)?;
            self.counters.zero_pages += u64::from(run.pages);
            self.counters.wire_bytes += run.bytes();
        }
        self.post()
    }

    fn fence(&mut self) -> Result<FenceNumber, LaneError> {
        // Where all goes well nothing is waited for, and the device would not be heard.
        self.shared.watch.look();
        self.check(&[])?;
        let limit = self.shared.options.stall_limit;
        let in_flight = u64::from(FENCES_IN_FLIGHT_MAX);
        // Each has a buffer at the destination; one more would find none.
        self.wait_until(
            |lane| lane.fences - lane.confirmed < in_flight,
            "waiting for earlier fences",
            limit,
        )?;
        let number = self.fences + 1;
        let sending = self.connection.sending(number, Message::Fence(number));
        let sending = sending.map_err(|error| self.system("writing a message", error))?;
        self.push(sending, 0, true)?;
        self.post()?;
        self.counters.wire_bytes += super::wire::MESSAGE_BYTES as u64;
        self.fences = number;
        Ok(FenceNumber(number))
    }

    fn wait_fence(&mut self, number: FenceNumber, stall_limit: Duration) -> Result<(), LaneError> {
        if number.0 > self.fences {
            return Err(LaneError::Protocol {
                lane: self.connection.number(),
                violation: format!("{number} was never sent, so nobody can confirm it"),
            });
        }
        if self.confirmed < number.0 {
            self.check(&[])?;
        }
        self.wait_until(
            |lane| lane.confirmed >= number.0,
            "waiting for a fence",
            stall_limit,
        )
    }

    fn counters(&self) -> LaneCounters {
        LaneCounters {
            submissions: self.outbox.counters().doorbells,
            ..self.counters
        }
    }

    fn identity(&self) -> Vec<u8> {
        self.connection.identity().to_vec()
    }

    fn device_counters(&self) -> DeviceCounters {
        self.outbox.counters()
    }
}
