//! The source's end of a lane: writes to the destination's memory, and waits for its word.
//!
//! # Law of this room
//!
//! **A fence is over when the destination's word is here and the fence's own request has completed.**
//! The word says that all before the fence is in the destination's memory. The completion says that
//! this side's device is through with it: an acknowledgement may be lost while the word arrives, and
//! then the device reads the same memory again when its retry timer fires. Until a request has
//! completed its memory stays registered (ibv_post_send(3)); who was told that a fence is over may
//! deregister.
//!
//! Over iWARP a request completes once TCP has it, and siw has TCP read some memory only when it is
//! sent, or sent again. There it is the word that says both: it comes on the same TCP connection,
//! with the acknowledgement of all that it answers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::connection::{Connection, FENCES_IN_FLIGHT_MAX};
use super::outbox::Outbox;
use super::pieces::Cutter;
use super::source::{Shared, ZERO_PAGES};
use super::verbs::{Completion, CompletionStatus, LocalPiece, MemoryRegion, Transfer};
use super::waiting::{Pause, Waiter};
use super::wire::Message;
use crate::deadline::StallWatch;
use crate::lane::{
    DeviceCounters, FenceNumber, LaneCounters, LaneError, LaneNumber, LaneObserver, SourceLane,
};
use crate::memory::{PageNumber, Run};

/// How many pieces of a put are cut at a time: some µs in which a range that is prepared or retired
/// elsewhere waits to be noted, and more than a chunk of the engine's has.
const PIECES_MAX: usize = 512;

/// What a put writes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The runs' bytes.
    Bytes,
    /// Zeros.
    Zeros,
}

/// The source's end of a lane.
pub(super) struct SendingLane {
    connection: Arc<Connection>,
    shared: Arc<Shared>,
    /// What pages are put as zero from.
    zeros: Arc<MemoryRegion>,
    outbox: Outbox,
    /// Pieces of the runs that are being put; keeps its memory.
    pieces: Vec<(Transfer, u64)>,
    /// Receives that completed; keeps its memory.
    arrived: Vec<Completion>,
    counters: LaneCounters,
    fences: u64,
    confirmed: u64,
    /// The requests of the last fences, those that have not completed: at most
    /// [`FENCES_IN_FLIGHT_MAX`].
    fences_under_way: VecDeque<u64>,
    failed: bool,
}

impl SendingLane {
    /// The length of a lane's queue of requests. Single pages of 4 KiB that fill what may be under
    /// way would be 8,192; a queue of 1,024 (64 to 128 KiB of device memory) keeps 4 MiB of those
    /// under way, more than a path holds.
    pub(super) const REQUESTS: u32 = 1024;

    pub(super) fn new(
        connection: Arc<Connection>,
        shared: Arc<Shared>,
        zeros: Arc<MemoryRegion>,
    ) -> Self {
        let device = shared.sent.registrar().domain().device();
        let depth = Self::REQUESTS.min(device.limits().requests_max);
        let outbox = Outbox::new(depth, connection.window());
        Self {
            connection,
            shared,
            zeros,
            outbox,
            pieces: Vec::new(),
            arrived: Vec::new(),
            counters: LaneCounters::default(),
            fences: 0,
            confirmed: 0,
            fences_under_way: VecDeque::new(),
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
                // The first that was not just flushed behind another one says why.
                failed = Some(completion);
            }
        });
        let sent = sent.map_err(|error| self.system("polling for completions", error))?;
        self.outbox.count_completions(sent);
        while let Some(request) = self.fences_under_way.front() {
            if !self.outbox.has_completed(*request) {
                break;
            }
            self.fences_under_way.pop_front();
        }
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

    /// The number of the last fence that is over: confirmed and completed, as those before it.
    fn settled(&self) -> u64 {
        let under_way = self.fences_under_way.len() as u64;
        self.confirmed.min(self.fences.saturating_sub(under_way))
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

    /// Adds a request, once there is room for it. Returns its number.
    fn push(&mut self, transfer: Transfer, bytes: u64, wanted: bool) -> Result<u64, LaneError> {
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
        Ok(self.outbox.push(transfer, bytes, wanted))
    }

    /// Adds writes for all runs.
    fn add(&mut self, runs: &[Run], kind: Kind) -> Result<(), LaneError> {
        let lane = self.connection.number();
        let mut pieces = std::mem::take(&mut self.pieces);
        let mut rest = runs.iter().copied();
        let mut run = None;
        let mut has_begun = false;
        loop {
            pieces.clear();
            let cut = self.cut(&mut run, &mut rest, kind, &mut pieces);
            if let Err(run) = cut {
                let error = LaneError::NotPrepared { lane, run };
                // A put that has half left is of no use to anybody.
                return Err(if has_begun { self.fail(error) } else { error });
            }
            if pieces.is_empty() {
                break;
            }
            has_begun = true;
            for (write, bytes) in &pieces {
                self.push(*write, *bytes, false)?;
            }
        }
        self.pieces = pieces;
        Ok(())
    }

    /// Cuts runs at the borders of both sides' registrations, until there are [`PIECES_MAX`] or all
    /// are done. What is left of the run that was begun is in `run`.
    ///
    /// # Errors
    ///
    /// A run that is not prepared and granted as a whole.
    fn cut(
        &self,
        run: &mut Option<Run>,
        runs: &mut impl Iterator<Item = Run>,
        kind: Kind,
        pieces: &mut Vec<(Transfer, u64)>,
    ) -> Result<(), Run> {
        // Held for as long as this takes, some µs; nothing is posted or waited for meanwhile.
        let (own, peer) = (self.shared.sent.view(), self.shared.grants.view());
        let mut cutter = Cutter::new(|page| own.at(page), |page| peer.at(page));
        let (pages_max, zero) = match kind {
            Kind::Bytes => (self.outbox.request_pages(), None),
            Kind::Zeros => (
                self.outbox.request_pages().min(ZERO_PAGES),
                Some(self.zeros.piece(PageNumber(0), ZERO_PAGES)),
            ),
        };
        while pieces.len() < PIECES_MAX {
            let Some(mut rest) = run.take().or_else(|| runs.next()) else {
                break;
            };
            let piece = cutter.next(&mut rest, pages_max).ok_or(rest)?;
            let bytes = piece.own.bytes;
            let from = zero.map_or(piece.own, |zero| LocalPiece { bytes, ..zero });
            let write = Transfer::Write {
                from,
                to_address: piece.peer_address,
                to_key: piece.peer_key,
            };
            pieces.push((write, u64::from(bytes)));
            *run = (rest.pages > 0).then_some(rest);
        }
        Ok(())
    }
}

impl SourceLane for SendingLane {
    fn number(&self) -> LaneNumber {
        self.connection.number()
    }

    fn put(&mut self, runs: &[Run]) -> Result<(), LaneError> {
        self.check(runs)?;
        self.add(runs, Kind::Bytes)?;
        for run in runs {
            self.counters.runs += 1;
            self.counters.payload_bytes += run.bytes();
            self.counters.wire_bytes += run.bytes();
        }
        self.post()
    }

    fn put_zero(&mut self, runs: &[Run]) -> Result<(), LaneError> {
        self.check(runs)?;
        self.add(runs, Kind::Zeros)?;
        for run in runs {
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
        // Each has a buffer at the destination; one more would find none. And where the device takes
        // no message in the request itself, each has a place on this side until it has completed.
        self.wait_until(
            |lane| lane.fences - lane.settled() < in_flight,
            "waiting for earlier fences",
            limit,
        )?;
        let number = self.fences + 1;
        let sending = self.connection.sending(number, Message::Fence(number));
        let sending = sending.map_err(|error| self.system("writing a message", error))?;
        let request = self.push(sending, 0, true)?;
        self.post()?;
        self.counters.wire_bytes += super::wire::MESSAGE_BYTES as u64;
        self.fences = number;
        self.fences_under_way.push_back(request);
        Ok(FenceNumber(number))
    }

    fn wait_fence(&mut self, number: FenceNumber, stall_limit: Duration) -> Result<(), LaneError> {
        if number.0 > self.fences {
            return Err(LaneError::Protocol {
                lane: self.connection.number(),
                violation: format!("{number} was never sent, so nobody can confirm it"),
            });
        }
        if self.settled() < number.0 {
            self.check(&[])?;
        }
        self.wait_until(
            |lane| lane.settled() >= number.0,
            "waiting for a fence",
            stall_limit,
        )
    }

    fn look(&mut self) -> Result<(), LaneError> {
        self.shared.watch.look();
        self.check(&[])
    }

    fn counters(&self) -> LaneCounters {
        LaneCounters {
            submissions: self.outbox.counters().doorbells,
            ..self.counters
        }
    }

    fn observe(&mut self, observer: Box<dyn LaneObserver>) {
        self.outbox.observer.set(observer);
    }

    fn identity(&self) -> Vec<u8> {
        self.connection.identity().to_vec()
    }

    fn device_counters(&self) -> DeviceCounters {
        self.outbox.counters()
    }
}
