//! `dunlin status`: shows the guests of the runtime directory.

use std::io;

use serde::Serialize;

use crate::cli::looks::Status;
use crate::console;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::local::client::Connection;
use crate::local::protocol::GuestStatus;
use crate::render::{guests, palette::Palette};

/// All guests, as JSON.
#[derive(Serialize)]
struct Guests {
    guests: Vec<GuestStatus>,
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
    let mut found = Vec::new();
    for name in runtime.names()? {
        // A socket that nobody answers at is left over; its name is free.
        if !runtime.is_taken(&name) {
            continue;
        }
        match Connection::open(&runtime, &name).and_then(|mut guest| guest.status()) {
            Ok(guest) => found.push(guest),
            // It may have ended between the two looks.
            Err(_) if !runtime.is_taken(&name) => {}
            Err(failure) => console::warn(failure),
        }
    }
    if arguments.json {
        super::print_json(&Guests { guests: found })?;
    } else if found.is_empty() {
        super::print(&format!("no guests in {}\n", runtime.path().display()))?;
    } else {
        super::print(&guests::table(&found, palette))?;
    }
    Ok(Exit::Done)
}
