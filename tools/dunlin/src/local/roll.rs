//! The guests of a runtime directory, each asked how it is.

use std::time::Duration;

use super::client::Connection;
use super::protocol::{GuestStatus, Request, Response};
use super::runtime_dir::RuntimeDir;
use crate::failure::Failure;

/// The guests that answered, and why others did not.
#[derive(Default)]
pub(crate) struct Roll {
    /// Those that answered, by name.
    pub(crate) guests: Vec<GuestStatus>,
    /// What went wrong with others.
    pub(crate) failures: Vec<Failure>,
}

/// Asks each guest; each may take `limit` to answer.
///
/// # Errors
///
/// When the directory can't be read.
pub(crate) fn roll(runtime: &RuntimeDir, limit: Duration) -> Result<Roll, Failure> {
    let mut roll = Roll::default();
    for name in runtime.names()? {
        // A socket that nobody answers at is left over; its name is free.
        if !runtime.is_taken(&name) {
            continue;
        }
        match ask(runtime, &name, limit) {
            Ok(guest) => roll.guests.push(guest),
            // It may have ended between the two looks.
            Err(_) if !runtime.is_taken(&name) => {}
            Err(failure) => roll.failures.push(failure),
        }
    }
    Ok(roll)
}

fn ask(runtime: &RuntimeDir, name: &str, limit: Duration) -> Result<GuestStatus, Failure> {
    let mut connection = Connection::open(runtime, name)?;
    connection.answer_within(Some(limit))?;
    match connection.ask(&Request::Status {})? {
        Response::Status { guest } => Ok(*guest),
        _ => Err(connection.unexpected()),
    }
}
