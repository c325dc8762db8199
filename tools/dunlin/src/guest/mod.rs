//! The process of one guest: owns the machine, answers over the control socket, moves the guest.
//!
//! | room | what is in it |
//! |---|---|
//! | here | the loop of the thread that owns the machine |
//! | [`board`] | what is known of the guest, for everyone who asks |
//! | [`answer`] | answers to requests |
//! | [`watch`] | those who look at the board |
//! | [`departure`] | the guest leaves |
//! | [`hooks`] | commands for what the guest holds outside of this host |
//! | [`logged`] | logs of a move |
//! | [`metrics`] | what is told to Prometheus |
//! | [`milestones`] | stopping at a point of a move, for tests |
//! | [`trace_file`] | where the guest's dirty pages are written down |

pub(crate) mod answer;
pub(crate) mod board;
pub(crate) mod departure;
pub(crate) mod hooks;
mod logged;
mod metrics;
pub(crate) mod milestones;
mod trace_file;
pub(crate) mod watch;

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use dunlin_engine::guest::{Guest, GuestOffer};
use dunlin_engine::records::directory::StateDirectory;
use dunlin_engine::report::Report;
use dunlin_vmm::machine::{Gauge, Machine};

use self::answer::{Answers, Event};
use self::board::{Board, Facts};
use crate::cli::HookChoices;
use crate::console;
use crate::failure::Failure;
use crate::local::protocol::{GuestState, MoveOrder};
use crate::local::server::serve;
use crate::metrics::Port;
use crate::render::palette::Palette;
use crate::render::receipt::headline;
use crate::signals;

/// How often the machine is looked after.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// How long a process stays after its guest, so that everyone gets their answer and the report.
const FAREWELL_MAX: Duration = Duration::from_secs(5);

/// What a guest's process needs for handovers.
#[derive(Clone, Debug)]
pub(crate) struct Provisions {
    /// Where its records are.
    pub(crate) records: StateDirectory,
    /// What acquires and releases what it holds outside.
    pub(crate) hooks: HookChoices,
}

/// The desk of a guest's process: the board, and the queue of what its owner has to do.
pub(crate) struct Desk {
    board: Arc<Board>,
    answers: Arc<Answers>,
    events: Receiver<Event>,
    provisions: Provisions,
}

/// How a guest's stay ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stay {
    /// It was ended here.
    Ended,
    /// It runs elsewhere.
    Moved,
    /// It was in doubt, and a person decided that it is not kept here.
    Discarded,
}

impl Desk {
    /// A desk for a guest that does not run yet: it is starting, or it is on its way here.
    pub(crate) fn new(facts: Facts, state: GuestState, provisions: Provisions) -> Self {
        let board = Arc::new(Board::new(facts, state));
        let (owner, events) = mpsc::channel();
        let answers = Arc::new(Answers {
            board: Arc::clone(&board),
            owner,
        });
        Self {
            board,
            answers,
            events,
            provisions,
        }
    }

    /// Opens the control socket to everyone.
    ///
    /// # Errors
    ///
    /// When a thread can't be made.
    pub(crate) fn open(&self, listener: UnixListener) -> Result<(), Failure> {
        serve(listener, Arc::clone(&self.answers) as _)
    }

    /// Answers Prometheus.
    ///
    /// # Errors
    ///
    /// When a thread can't be made.
    pub(crate) fn tell_metrics(&self, port: Port) -> Result<(), Failure> {
        port.answer(Arc::clone(&self.board) as _)
    }

    /// Lets signals end the guest. Until then they end the process, as where nothing is to lose.
    ///
    /// # Errors
    ///
    /// When a thread can't be made.
    pub(crate) fn heed_signals(&self) -> Result<(), Failure> {
        let answers = Arc::clone(&self.answers);
        signals::on_each(move |_| match answers.end(false) {
            Ok(()) if answers.board.status().move_under_way.is_some() => {
                console::warn("the move is being cancelled; then the guest ends");
            }
            Ok(()) => {}
            Err(failure) => console::warn(failure),
        })
    }

    /// The guest runs here from now on, though its source has not let go of it yet. What is asked
    /// of it meanwhile waits for [`Desk::keep`].
    pub(crate) fn entered(&self, epoch: u64, gauge: Gauge) {
        self.board.enters(epoch, gauge);
    }

    /// Runs the guest until it is ended or was moved away; says so to `leaves` before anyone is
    /// waited for.
    ///
    /// # Errors
    ///
    /// When the guest stops by itself.
    pub(crate) fn keep(
        &self,
        mut machine: Machine,
        leaves: impl FnOnce(&Stay),
    ) -> Result<Stay, Failure> {
        let offer = machine
            .offer()
            .map_err(|error| Failure::system("the guest can't be described", error))?;
        let backing = machine
            .guest_memory()
            .layout()
            .regions()
            .first()
            .map_or("", |region| region.backing.name());
        let facts = Facts::of(&offer, backing);
        self.board
            .runs(facts, offer.identity.epoch, machine.gauge());
        let stay = self.look_after(&mut machine, &offer);
        if let Ok(stay) = &stay {
            leaves(stay);
        }
        // The memory is given back before anyone is waited for.
        drop(machine);
        self.board.see_all_off(FAREWELL_MAX);
        stay
    }

    fn look_after(&self, machine: &mut Machine, offer: &GuestOffer) -> Result<Stay, Failure> {
        loop {
            match self.events.recv_timeout(LOOK_INTERVAL) {
                Ok(Event::Move(order)) => self.depart(machine, offer, &order),
                Ok(Event::End) | Err(RecvTimeoutError::Disconnected) => return Ok(Stay::Ended),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Some(warning) = machine.take_warning() {
                console::warn(format_args!("guest '{}': {warning}", offer.identity.name));
            }
            match self.board.state() {
                GuestState::Moved => return Ok(Stay::Moved),
                GuestState::Discarded => return Ok(Stay::Discarded),
                GuestState::Ending => return Ok(Stay::Ended),
                GuestState::Running if !machine.running() => {
                    let reason = machine.crashed();
                    return Err(Failure::local(format!(
                        "guest '{}' stopped by itself: {}",
                        offer.identity.name,
                        reason.unwrap_or_else(|| "its threads ended".to_owned())
                    )));
                }
                _ => {}
            }
        }
    }

    fn depart(&self, machine: &mut Machine, offer: &GuestOffer, order: &MoveOrder) {
        // The board let the move begin, so there is a handle.
        let Ok(handle) = self.board.handle() else {
            return;
        };
        let report = departure::depart(
            machine,
            offer,
            order,
            &self.provisions,
            &handle,
            self.board.as_ref(),
        );
        let announcement = announcement(&report, &order.to);
        // First the guest's affairs, then the talk of them: the stream may be slow.
        self.board.end_move(report);
        console::tell(announcement);
    }
}

fn announcement(report: &Report, to: &str) -> String {
    let headline = headline(report, Palette::of(&std::io::stdout()));
    let reason = report.reason.as_deref().unwrap_or_default();
    if report.outcome.moved() {
        format!("{headline}; it runs at {to}")
    } else {
        format!("{headline}: {reason}")
    }
}
