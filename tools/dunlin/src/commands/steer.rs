//! `dunlin cancel`, `dunlin set`, `dunlin stop`: one request, one answer.

use std::time::Duration;

use crate::cli::looks::Stop;
use crate::cli::moves::{Cancel, Set};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::local::client::Connection;
use crate::local::protocol::{GuestState, Request, Response, nanoseconds};
use crate::local::runtime_dir::RuntimeDir;

/// How often it is looked whether a guest is gone.
const GONE_INTERVAL: Duration = Duration::from_millis(20);

/// How long a guest's process may take to end: a move under way ends first, and its memory is
/// given back.
const GONE_MAX: Duration = Duration::from_secs(60);

/// Ends the move of a guest.
pub(crate) fn cancel(arguments: &Cancel) -> Result<Exit, Failure> {
    let runtime = arguments.runtime.directory();
    ask(&runtime, &arguments.name.0, &Request::Cancel {})
}

/// Changes the move of a guest.
pub(crate) fn set(arguments: &Set) -> Result<Exit, Failure> {
    let request = Request::Set {
        max_blackout_ns: arguments.max_blackout.map(nanoseconds),
        max_bandwidth_bytes_per_s: arguments.max_bandwidth,
    };
    ask(&arguments.runtime.directory(), &arguments.name.0, &request)
}

/// Ends a guest, and waits until its process is gone.
pub(crate) fn stop(arguments: &Stop) -> Result<Exit, Failure> {
    let runtime = arguments.runtime.directory();
    stop_guest(&runtime, &arguments.name.0, arguments.force)?;
    Ok(Exit::Done)
}

/// Ends a guest, and waits until its process is gone.
pub(super) fn stop_guest(runtime: &RuntimeDir, name: &str, force: bool) -> Result<(), Failure> {
    ask(runtime, name, &Request::Stop { force })?;
    let mut waited = Duration::ZERO;
    while runtime.is_taken(name) {
        let status = Connection::open(runtime, name).and_then(|mut guest| guest.status());
        if status.is_ok_and(|status| status.state == GuestState::Moved) {
            return Err(Failure::new(
                Exit::Conflict,
                format!("guest '{name}' was past its give-up: it runs at its destination now"),
            ));
        }
        if waited >= GONE_MAX {
            return Err(Failure::local(format!(
                "guest '{name}' was asked to end and is still there after {} s",
                GONE_MAX.as_secs()
            )));
        }
        std::thread::sleep(GONE_INTERVAL);
        waited += GONE_INTERVAL;
    }
    Ok(())
}

fn ask(runtime: &RuntimeDir, name: &str, request: &Request) -> Result<Exit, Failure> {
    let mut connection = Connection::open(runtime, name)?;
    match connection.ask(request)? {
        Response::Done => Ok(Exit::Done),
        _ => Err(connection.unexpected()),
    }
}
