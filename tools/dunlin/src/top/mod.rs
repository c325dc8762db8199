//! `dunlin top`: the guests of this host and their moves, on a screen of their own.
//!
//! | room | what is in it |
//! |---|---|
//! | here | the terminal, the keys, the loop |
//! | [`sampler`] | asks the guests, on a thread of its own |
//! | [`view`] | what is known, and what is chosen |
//! | [`screen`] | the table, and the row of keys |
//! | [`details`] | one guest in full |
//! | [`snapshot`] | the same as plain text, once |

mod details;
mod sampler;
mod screen;
pub(crate) mod snapshot;
mod view;

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use self::sampler::Sampler;
use self::view::View;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::local::runtime_dir::RuntimeDir;
use crate::signals;

/// How long a key is waited for before it is looked what the sampler has.
const KEY_MAX: Duration = Duration::from_millis(100);

/// Shows the screen until somebody has seen enough.
///
/// # Errors
///
/// [`Exit::Usage`] where there is no terminal.
pub(crate) fn show(runtime: RuntimeDir, interval: Duration) -> Result<(), Failure> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(Failure::new(
            Exit::Usage,
            "top needs a terminal; --once prints a snapshot without one",
        ));
    }
    let ended = Arc::new(AtomicBool::new(false));
    let end = Arc::clone(&ended);
    signals::on_each(move |_| end.store(true, Ordering::Relaxed))?;
    let mut view = View::new(runtime.path());
    let sampler = Sampler::start(runtime, interval)?;
    let mut terminal =
        ratatui::try_init().map_err(|error| Failure::system("the terminal", error))?;
    let shown = keep_showing(&mut terminal, &mut view, &sampler, &ended);
    ratatui::restore();
    shown.map_err(|error| Failure::system("the terminal", error))
}

fn keep_showing(
    terminal: &mut DefaultTerminal,
    view: &mut View,
    sampler: &Sampler,
    ended: &AtomicBool,
) -> io::Result<()> {
    while !ended.load(Ordering::Relaxed) {
        while let Some(sample) = sampler.next() {
            view.take(sample);
        }
        terminal.draw(|frame| screen::draw(frame, view))?;
        if event::poll(KEY_MAX)?
            && let Event::Key(key) = event::read()?
            && key.kind != KeyEventKind::Release
            && !heed(key, view)
        {
            return Ok(());
        }
    }
    Ok(())
}

/// Does what a key says; false: to end.
fn heed(key: KeyEvent, view: &mut View) -> bool {
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
        KeyCode::Char('q') => return false,
        KeyCode::Esc if view.is_in_full => view.is_in_full = false,
        KeyCode::Esc => return false,
        KeyCode::Up | KeyCode::Char('k') => view.choose_before(),
        KeyCode::Down | KeyCode::Char('j') => view.choose_next(),
        KeyCode::Home | KeyCode::Char('g') => view.choose_first(),
        KeyCode::End | KeyCode::Char('G') => view.choose_last(),
        KeyCode::Enter | KeyCode::Char(' ') => view.is_in_full = !view.is_in_full,
        _ => {}
    }
    true
}
