//! The threads: running, parking, ending.
//!
//! An order is given under the lock and announced in an atomic, which the threads look at between
//! two pages; each tells under the lock where it stands. Threads are let run by one that has let go
//! of the lock: those that wake would wait for it, and behind each other's work.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use dunlin_engine::clock::Timestamp;
use dunlin_transports::deadline::Deadline;
use dunlin_transports::memory::MemoryError;
use thiserror::Error;

use super::program::Program;

/// What went wrong with the threads.
#[derive(Debug, Error)]
pub enum WriterError {
    /// A thread can't be made.
    #[error("the thread of vCPU {vcpu} can't be made: {source}")]
    Spawn {
        /// Whose.
        vcpu: u32,
        /// The system's reason.
        source: io::Error,
    },
    /// Some threads did not come to rest, or did not begin to run, in time.
    #[error("the threads of vCPUs {vcpus:?} did not {what} in time")]
    TimedOut {
        /// Whose.
        vcpus: Vec<usize>,
        /// What was waited for.
        what: &'static str,
    },
    /// A thread's pages are not there.
    #[error("the thread of vCPU {vcpu} ended: {source}")]
    Ended {
        /// Whose.
        vcpu: usize,
        /// Why.
        source: MemoryError,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Park,
    Run,
    End,
}

#[derive(Clone)]
enum Standing {
    /// Made, and not there yet.
    Begins,
    Parked(Timestamp),
    Running(Timestamp),
    Ended(MemoryError),
}

struct Board {
    order: Order,
    standings: Vec<Standing>,
    /// Whether any thread was ever let run.
    ran: bool,
}

struct Shared {
    /// Whether the order is to run; only written with the board locked.
    go_on: AtomicBool,
    board: Mutex<Board>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Board> {
        // The board is whole after each single assignment, whoever panicked meanwhile.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self, order: Order) {
        let mut board = self.lock();
        board.order = order;
        self.go_on.store(order == Order::Run, Ordering::Relaxed);
        drop(board);
        self.changed.notify_all();
    }

    /// Whoever waits is to be told afterwards.
    fn stand(board: &mut Board, index: usize, standing: Standing) {
        if let Some(place) = board.standings.get_mut(index) {
            *place = standing;
        }
    }

    /// A thread's whole life.
    fn live(&self, index: usize, program: &Program) {
        let mut board = self.lock();
        loop {
            Self::stand(&mut board, index, Standing::Parked(Timestamp::now()));
            self.changed.notify_all();
            while board.order == Order::Park {
                board = self
                    .changed
                    .wait(board)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            if board.order == Order::End {
                return;
            }
            board.ran = true;
            Self::stand(&mut board, index, Standing::Running(Timestamp::now()));
            drop(board);
            self.changed.notify_all();
            let outcome = program.run(&self.go_on);
            board = self.lock();
            if let Err(error) = outcome {
                Self::stand(&mut board, index, Standing::Ended(error));
                self.changed.notify_all();
                return;
            }
        }
    }

    /// Waits until `wanted` tells a time for every thread.
    fn wait_for(
        &self,
        what: &'static str,
        deadline: Deadline,
        wanted: fn(&Standing) -> Option<Timestamp>,
    ) -> Result<Vec<Timestamp>, WriterError> {
        let mut board = self.lock();
        loop {
            for (vcpu, standing) in board.standings.iter().enumerate() {
                if let Standing::Ended(error) = standing {
                    return Err(WriterError::Ended {
                        vcpu,
                        source: error.clone(),
                    });
                }
            }
            let times: Vec<_> = board.standings.iter().map(wanted).collect();
            if times.iter().all(Option::is_some) {
                return Ok(times.into_iter().flatten().collect());
            }
            let remaining = deadline.remaining();
            if remaining.is_zero() {
                let missing = times.iter().enumerate().filter(|(_, time)| time.is_none());
                return Err(WriterError::TimedOut {
                    vcpus: missing.map(|(vcpu, _)| vcpu).collect(),
                    what,
                });
            }
            (board, _) = self
                .changed
                .wait_timeout(board, remaining)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The writing threads of a guest. Dropping it ends and joins them.
pub(super) struct Writers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Writers {
    /// A thread for each program; they park at once.
    pub(super) fn spawn(programs: Vec<Program>) -> Result<Self, WriterError> {
        let shared = Arc::new(Shared {
            go_on: AtomicBool::new(false),
            board: Mutex::new(Board {
                order: Order::Park,
                standings: vec![Standing::Begins; programs.len()],
                ran: false,
            }),
            changed: Condvar::new(),
        });
        let mut writers = Self {
            shared,
            threads: Vec::new(),
        };
        for (index, program) in programs.into_iter().enumerate() {
            let shared = Arc::clone(&writers.shared);
            let vcpu = program.vcpu();
            let thread = std::thread::Builder::new()
                .name(format!("vcpu-{vcpu}"))
                .spawn(move || shared.live(index, &program))
                .map_err(|source| WriterError::Spawn { vcpu, source })?;
            writers.threads.push(thread);
        }
        Ok(writers)
    }

    /// Lets all run; returns when each began to (long ago, where it ran already).
    pub(super) fn run(&self, deadline: Deadline) -> Result<Vec<Timestamp>, WriterError> {
        self.shared.order(Order::Run);
        self.shared
            .wait_for("begin to run", deadline, |standing| match standing {
                Standing::Running(since) => Some(*since),
                _ => None,
            })
    }

    /// Parks all; returns when each came to rest. After an error, some may be parked, and the
    /// others will park when they get to it.
    pub(super) fn park(&self, deadline: Deadline) -> Result<Vec<Timestamp>, WriterError> {
        self.shared.order(Order::Park);
        self.shared.wait_for("park", deadline, parked_since)
    }

    /// Takes an order to run back; says whether any thread took it, or ran ever before. If not,
    /// none will.
    pub(super) fn withdraw(&self) -> bool {
        self.shared.order(Order::Park);
        // A thread looks at the order and begins under one lock, so nothing comes between.
        self.shared.lock().ran
    }

    /// Whether all are parked and stay so.
    pub(super) fn parked(&self) -> bool {
        let board = self.shared.lock();
        board.order == Order::Park
            && board
                .standings
                .iter()
                .all(|standing| parked_since(standing).is_some())
    }

    /// Whether all are running.
    pub(super) fn running(&self) -> bool {
        let board = self.shared.lock();
        board.order == Order::Run
            && board
                .standings
                .iter()
                .all(|standing| matches!(standing, Standing::Running(_)))
    }
}

#[cfg(test)]
impl Writers {
    /// Ends the threads as if each had lost its pages.
    pub(super) fn end_for_test(&mut self) {
        self.shared.order(Order::End);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        let mut board = self.shared.lock();
        board.standings.fill(Standing::Ended(MemoryError::TooLarge));
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.shared.order(Order::End);
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so on standard error; it writes no more, which is
            // all that is wanted here.
            let _ = thread.join();
        }
    }
}

fn parked_since(standing: &Standing) -> Option<Timestamp> {
    match standing {
        Standing::Parked(since) => Some(*since),
        _ => None,
    }
}
