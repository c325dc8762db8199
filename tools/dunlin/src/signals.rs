//! Signals that ask this process to end: SIGINT, SIGTERM, SIGHUP.

use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::failure::Failure;

/// Calls `act` for each signal, on a thread of its own. The signals' usual effect is gone from now
/// on.
///
/// # Errors
///
/// When the system refuses.
pub(crate) fn on_each(mut act: impl FnMut(i32) + Send + 'static) -> Result<(), Failure> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
        .map_err(|error| Failure::system("signals can't be handled", error))?;
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || signals.forever().for_each(&mut act))
        .map(|_| ())
        .map_err(|error| Failure::system("the thread for signals", error))
}
