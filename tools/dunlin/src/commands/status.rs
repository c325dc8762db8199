//! `dunlin status`: shows the guests of the runtime directory.

use std::io;

use dunlin_engine::records::directory::StateDirectory;
use serde::Serialize;

use crate::cli::looks::Status;
use crate::console;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::local::client::{ANSWER_MAX, Connection};
use crate::local::protocol::{GuestStatus, RecordStatus};
use crate::local::roll::roll;
use crate::render::{guests, palette::Palette};

/// All guests, and what is in doubt without a process, as JSON.
#[derive(Serialize)]
struct Guests {
    guests: Vec<GuestStatus>,
    in_doubt: Vec<RecordStatus>,
}

/// Shows one guest, or all.
pub(crate) fn run(arguments: &Status) -> Result<Exit, Failure> {
    let runtime = arguments.runtime.directory();
    let palette = Palette::of(&io::stdout());
    if let Some(name) = &arguments.name {
        let guest = Connection::open(&runtime, &name.0)?.status()?;
        if arguments.json {
            super::print_json(&guest)?;
        } else {
            super::print(&guests::full(&guest, palette))?;
        }
        return Ok(Exit::Done);
    }
    let roll = roll(&runtime, ANSWER_MAX)?;
    roll.failures.iter().for_each(console::warn);
    let found = roll.guests;
    let in_doubt = in_doubt(&arguments.state.directory());
    if arguments.json {
        let guests = Guests {
            guests: found,
            in_doubt,
        };
        super::print_json(&guests)?;
        return Ok(Exit::Done);
    }
    if found.is_empty() {
        super::print(&format!("no guests in {}\n", runtime.path().display()))?;
    } else {
        super::print(&guests::table(&found, palette))?;
    }
    super::print(&guests::records(&in_doubt, palette))?;
    Ok(Exit::Done)
}

/// The handovers whose process is gone and whose outcome nobody here knows. What can't be read is
/// told, and does not hide the rest.
fn in_doubt(records: &StateDirectory) -> Vec<RecordStatus> {
    let (found, damaged) = match records.records() {
        Ok(records) => records,
        Err(error) => (Vec::new(), vec![error]),
    };
    for error in damaged {
        console::warn(error);
    }
    found
        .iter()
        .filter(|found| found.is_in_doubt())
        .map(super::settle::status_of)
        .collect()
}
