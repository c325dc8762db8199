//! `dunlin top`: guests and moves, live.

use std::io;

use crate::cli::looks::Top;
use crate::console;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::local::client::ANSWER_MAX;
use crate::local::roll::roll;
use crate::render::palette::Palette;
use crate::top::{show, snapshot};

/// Shows the screen, or prints one snapshot.
pub(super) fn run(arguments: &Top) -> Result<Exit, Failure> {
    let runtime = arguments.runtime.directory();
    if !arguments.once {
        show(runtime, arguments.interval)?;
        return Ok(Exit::Done);
    }
    let roll = roll(&runtime, ANSWER_MAX)?;
    roll.failures.iter().for_each(console::warn);
    if roll.guests.is_empty() {
        super::print(&format!("no guests in {}\n", runtime.path().display()))?;
    } else {
        let palette = Palette::of(&io::stdout());
        super::print(&snapshot::text(&roll.guests, palette))?;
    }
    Ok(Exit::Done)
}
