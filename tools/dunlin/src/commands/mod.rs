//! What each command does.
//!
//! | room | what is in it |
//! |---|---|
//! | [`run`] | a guest in the foreground |
//! | [`incoming`] | the process of a guest that is let in |
//! | [`receive`] | waiting for guests |
//! | [`send`] | asking a guest to move, and watching |
//! | [`report`] | a move's report, looked at again |
//! | [`report_file`] | the files that a move's report goes to |
//! | [`settle`] | settling who owns a guest |
//! | [`steer`] | `cancel`, `set`, `stop` |
//! | [`status`] | showing guests |
//! | [`top`] | showing guests and moves, live |
//! | [`demo`] | a move on this machine, told as a story |
//! | [`mod@bench`] | measuring moves, comparing results |
//! | [`doctor`] | what this host can do |

mod bench;
mod demo;
pub(crate) mod doctor;
mod incoming;
mod receive;
mod report;
mod report_file;
mod run;
mod send;
mod settle;
mod status;
mod steer;
mod top;

use std::io::{self, Write};

use clap::CommandFactory;
use serde::Serialize;

use dunlin_engine::outside::{Outside, ReleaseReason};

use crate::cli::looks::Completions;
use crate::cli::{Cli, Command};
use crate::console;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::guest::Stay;

/// Does what the command line says.
pub(crate) fn perform(command: &Command) -> Result<Exit, Failure> {
    match command {
        Command::Run(arguments) => run::run(arguments),
        Command::Send(arguments) => send::run(arguments),
        Command::Receive(arguments) => receive::run(arguments),
        Command::Status(arguments) => status::run(arguments),
        Command::Top(arguments) => top::run(arguments),
        Command::Report(arguments) => report::run(arguments),
        Command::Cancel(arguments) => steer::cancel(arguments),
        Command::Set(arguments) => steer::set(arguments),
        Command::Stop(arguments) => steer::stop(arguments),
        Command::Settle(arguments) => settle::run(arguments),
        Command::Demo(arguments) => demo::run(arguments),
        Command::Bench(arguments) => bench::run(arguments),
        Command::Doctor(arguments) => doctor::run(arguments),
        Command::Completions(arguments) => completions(arguments),
        Command::Incoming(arguments) => incoming::run(arguments),
    }
}

fn completions(arguments: &Completions) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    let mut command = Cli::command();
    clap_complete::generate(arguments.shell, &mut command, "dunlin", &mut script);
    print_bytes(&script)?;
    Ok(Exit::Done)
}

/// Prints a result. A reader that went away (`| head`) is no failure.
fn print(text: &str) -> Result<(), Failure> {
    print_bytes(text.as_bytes())
}

fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    match output.write_all(bytes).and_then(|()| output.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::system("standard output", error))
        }
        _ => Ok(()),
    }
}

/// Prints a result as JSON.
fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    print(&json(value)?)
}

fn json(value: &impl Serialize) -> Result<String, Failure> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::system("the result as JSON", error))?;
    text.push('\n');
    Ok(text)
}

/// Says how a guest's stay ended, and has what it held outside released where it ended here.
fn see_off(
    stay: Result<Stay, Failure>,
    name: &str,
    outside: &mut dyn Outside,
) -> Result<Exit, Failure> {
    match &stay {
        Ok(Stay::Ended) => console::tell(format_args!("{name} ended")),
        // The engine has had it released.
        Ok(Stay::Moved | Stay::Discarded) => return Ok(Exit::Done),
        Err(_) => {}
    }
    if let Err(error) = outside.release(ReleaseReason::Ended) {
        console::warn(format_args!("guest '{name}': {error}"));
    }
    stay.map(|_| Exit::Done)
}

/// Lets the system end this process when the one that started it ends.
fn end_with_parent() -> Result<(), Failure> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
        .map_err(|error| Failure::system("the parent can't be watched", error))
}
