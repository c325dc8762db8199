//! `dunlin`: moves running KVM virtual machines between hosts.
//!
//! | room | what is in it |
//! |---|---|
//! | [`mod@bench`] | measuring moves: the matrix, its passes, what its figures say |
//! | [`cli`] | the command line |
//! | [`commands`] | what each command does |
//! | [`guest`] | the process of one guest |
//! | [`supervisor`] | the process that waits for guests |
//! | [`local`] | the runtime directory, the control sockets and what is said over them |
//! | [`render`] | how things look on a terminal |
//! | [`metrics`] | what Prometheus is told |
//! | [`logs`] | logs, for those who ask for them |
//! | [`page`] | a move as a page of HTML |
//! | [`top`] | guests and moves, live |
//! | [`fabric`] | RDMA, where it is built in |
//! | [`output_file`] | files that results go to |
//! | [`places`] | how many may connect at a time |
//! | [`exit`] | exit codes |
//! | [`failure`] | why a command did not do what it was asked |
//! | [`console`] | what a process says of itself |
//! | [`signals`] | being asked to end |

#![forbid(unsafe_code)]
// The macros panic when the stream fails, and a guest must outlive its operator's terminal.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod cli;
mod commands;
mod console;
mod exit;
mod fabric;
mod failure;
mod guest;
mod local;
mod logs;
mod metrics;
mod output_file;
mod page;
mod places;
mod render;
mod signals;
mod supervisor;
mod top;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::exit::Exit;
use crate::failure::Failure;

fn main() -> ExitCode {
    logs::begin();
    let (outcome, json) = match cli::Cli::try_parse() {
        Ok(cli) => (commands::perform(&cli.command), cli.command.wants_json()),
        Err(error) => return usage(&error),
    };
    let exit = match outcome {
        Ok(exit) => exit,
        Err(failure) => {
            if json {
                console::tell(failure.json());
            } else {
                console::warn(&failure);
            }
            failure.exit
        }
    };
    ExitCode::from(exit.code())
}

/// Help, the version, or what is wrong with the command line. Whoever asks for JSON gets the
/// latter as JSON too.
fn usage(error: &clap::Error) -> ExitCode {
    let asked_for = matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    );
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if asks_for_json(&arguments) && !asked_for {
        let text = error.render().to_string();
        console::tell(Failure::new(Exit::Usage, text.trim()).json());
    } else {
        // A terminal that is gone can't be told.
        let _ = error.print();
    }
    ExitCode::from(if asked_for { Exit::Done } else { Exit::Usage }.code())
}

/// Whether a command line that can't be read asks for JSON on standard output. Where `--json` names
/// a file, it does not.
fn asks_for_json(arguments: &[OsString]) -> bool {
    let has = |wanted: &str| arguments.iter().any(|argument| argument == wanted);
    let names_a_file = match arguments.first().and_then(|command| command.to_str()) {
        Some("demo") => true,
        Some("bench") => !has("compare"),
        _ => false,
    };
    has("--json") && !names_a_file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_asked_for_where_the_flag_has_no_file() {
        for (line, expected) in [
            ("send vm1 --json", true),
            ("send vm1", false),
            ("demo --json report.json", false),
            ("bench --json result.json", false),
            ("bench compare a b --json", true),
            ("--json", true),
        ] {
            let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            assert_eq!(asks_for_json(&arguments), expected, "{line}");
        }
    }
}
