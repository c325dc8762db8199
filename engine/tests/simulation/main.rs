//! Whole moves under a seed: the engine's own code, with its own threads, over the in-memory
//! transport, in virtual time, with faults. A seed is one schedule: the same guest, the same
//! faults, the same order of every step, each time.
//!
//! | room | what is in it |
//! |---|---|
//! | `ledger` | who ran the guest when, and what its memory is: the truth |
//! | `guest` | the guest |
//! | `network` | connections between the hosts |
//! | `disk` | the records of moves, on a disk |
//! | `hosts` | what runs on them: VMMs, the supervisor |
//! | `stage` | hosts, processes, and the agenda of what is still to befall them |
//! | `faults` | the vocabulary of faults |
//! | `plan` | what a seed says: settings, and which faults when |
//! | `scenario` | one schedule |
//! | `judgement` | what came of it, and what must hold in its end |
//! | `runner` | many schedules, in processes of their own |
//! | `telling` | what is told of them |

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that meets an impossible value should stop there and say so"
)]

mod disk;
mod faults;
mod guest;
mod hosts;
mod judgement;
mod ledger;
mod network;
mod plan;
mod runner;
mod scenario;
mod stage;
mod telling;

use std::process::ExitCode;

fn main() -> ExitCode {
    match runner::Flags::parse(std::env::args().skip(1)) {
        Ok(flags) => runner::run(&flags),
        Err(words) => {
            eprintln!("{words}\n{}", runner::USAGE);
            ExitCode::from(2)
        }
    }
}
