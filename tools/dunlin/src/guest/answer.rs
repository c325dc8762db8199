//! Answers what is asked over the control socket.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use super::board::{Board, EndAnswer};
use super::watch::{News, Watch};
use crate::failure::Failure;
use crate::local::protocol::{GuestState, MoveOrder, Request, Response};
use crate::local::server::{Client, Handler};

/// What the thread that owns the guest is told.
#[derive(Debug)]
pub(crate) enum Event {
    /// Move the guest; the board says already that it moves.
    Move(Box<MoveOrder>),
    /// End the guest; the board agreed.
    End,
}

/// How often a watcher without news is looked after, so that one who left is let go.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// How long a request to move a guest waits for the guest to be here.
const ARRIVAL_TIME_MAX: Duration = Duration::from_secs(3);

/// How often it looks.
const ARRIVAL_INTERVAL: Duration = Duration::from_millis(10);

/// Answers requests from the board, and passes on what the guest's owner has to do.
pub(crate) struct Answers {
    /// What is known.
    pub(crate) board: Arc<Board>,
    /// Whoever owns the guest.
    pub(crate) owner: Sender<Event>,
}

impl Handler for Answers {
    fn handle(&self, request: Request, client: &mut Client<'_>) -> io::Result<()> {
        // The process does not end before this is answered.
        let _attendance = self.board.attend();
        let done = match request {
            Request::Status {} => {
                let guest = Box::new(self.board.status());
                return client.send(&Response::Status { guest });
            }
            Request::Send { order } => return self.begin(order, client),
            Request::Watch {} => {
                return match self.board.watch() {
                    Ok(watch) => tell(watch, client),
                    Err(failure) => client.send(&refusal(failure)),
                };
            }
            Request::Cancel {} => self.board.handle().map(|handle| handle.cancel()),
            Request::Set {
                max_blackout_ns,
                max_bandwidth_bytes_per_s,
            } => self.board.handle().map(|handle| {
                if let Some(budget) = max_blackout_ns {
                    handle.set_max_blackout(Duration::from_nanos(budget));
                }
                if let Some(rate) = max_bandwidth_bytes_per_s {
                    handle.set_max_bandwidth((rate != 0).then_some(rate));
                }
            }),
            Request::Settle { decision, fenced } => self.board.decide(decision, &fenced),
            Request::Stop { force } => self.end(force),
        };
        client.send(&match done {
            Ok(()) => Response::Done,
            Err(failure) => refusal(failure),
        })
    }
}

impl Answers {
    /// Asks for the guest's end.
    ///
    /// # Errors
    ///
    /// When the board does not agree.
    pub(crate) fn end(&self, force: bool) -> Result<(), Failure> {
        if self.board.request_end(force)? == EndAnswer::Now {
            // The owner is gone only when the process is about to end.
            let _ = self.owner.send(Event::End);
        }
        Ok(())
    }

    fn begin(&self, order: Box<MoveOrder>, client: &mut Client<'_>) -> io::Result<()> {
        self.await_arrival();
        let begun = self
            .board
            .begin_move(&order)
            .and_then(|_| self.board.watch());
        let watch = match begun {
            Ok(watch) => watch,
            Err(failure) => return client.send(&refusal(failure)),
        };
        // The owner outlives every move that the board let begin.
        let _ = self.owner.send(Event::Move(order));
        client.send(&Response::Accepted)?;
        tell(watch, client)
    }
}

impl Answers {
    /// Waits a moment for a guest that is starting or about to arrive: its source may have been
    /// told that it runs here before this process has put its affairs in order.
    fn await_arrival(&self) {
        let deadline = Instant::now() + ARRIVAL_TIME_MAX;
        let is_coming = || {
            let state = self.board.status().state;
            matches!(state, GuestState::Starting | GuestState::Incoming)
        };
        while is_coming() && Instant::now() < deadline {
            std::thread::sleep(ARRIVAL_INTERVAL);
        }
    }
}

fn refusal(failure: Failure) -> Response {
    Response::error(failure.exit, failure.message)
}

fn tell(mut watch: Watch, client: &mut Client<'_>) -> io::Result<()> {
    loop {
        match watch.next(WATCH_INTERVAL) {
            News::Note(text) => client.send(&Response::Note { text })?,
            News::Progress(progress) => client.send(&Response::Progress { progress })?,
            News::InDoubt(reason) => client.send(&Response::InDoubt { reason })?,
            News::Over(report) => {
                return client.send(&Response::Report {
                    report: Box::new(report.as_ref().clone()),
                });
            }
            News::Nothing if client.is_gone() => {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            News::Nothing => {}
        }
    }
}
