//! A command's end of a guest's control socket.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::line::{LineError, LineReader, RESPONSE_BYTES_MAX, write_line};
use super::protocol::{self, GuestStatus, Request, Response};
use super::runtime_dir::RuntimeDir;
use crate::exit::Exit;
use crate::failure::Failure;

/// How long a guest's process may take to answer a question that it can answer at once.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(5);

/// A connection to a guest's process.
pub(crate) struct Connection {
    name: String,
    lines: LineReader<UnixStream>,
}

impl Connection {
    /// Connects to a guest of the runtime directory.
    ///
    /// # Errors
    ///
    /// [`Exit::NoGuest`] when there is no such guest, or its process is dead. [`Exit::Local`] when
    /// others can write to the directory: what listens there need not be a guest's process.
    pub(crate) fn open(runtime: &RuntimeDir, name: &str) -> Result<Self, Failure> {
        runtime.check_if_there()?;
        let socket = runtime.socket(name);
        let stream = UnixStream::connect(&socket).map_err(|error| {
            let directory = runtime.path().display();
            let message = match error.kind() {
                io::ErrorKind::NotFound => format!(
                    "there is no guest '{name}' in {directory}; 'dunlin status' lists those that are there, --runtime-dir names another place"
                ),
                io::ErrorKind::ConnectionRefused => format!(
                    "the process of guest '{name}' is gone; its socket {} is stale",
                    socket.display()
                ),
                _ => format!("guest '{name}' can't be reached at {}: {error}", socket.display()),
            };
            Failure::new(Exit::NoGuest, message)
        })?;
        let connection = Self {
            name: name.to_owned(),
            lines: LineReader::new(stream, RESPONSE_BYTES_MAX),
        };
        connection.answer_within(Some(ANSWER_MAX))?;
        Ok(connection)
    }

    /// Sets how long `receive` waits; `None`: without end, for a move's next word.
    pub(crate) fn answer_within(&self, limit: Option<Duration>) -> Result<(), Failure> {
        let stream = self.lines.stream();
        stream
            .set_read_timeout(limit)
            .and_then(|()| stream.set_write_timeout(Some(ANSWER_MAX)))
            .map_err(|error| Failure::system("the control connection", error))
    }

    /// Sends a request.
    ///
    /// # Errors
    ///
    /// When the guest's process does not take it.
    pub(crate) fn send(&mut self, request: &Request) -> Result<(), Failure> {
        let value = protocol::encode(request)
            .map_err(|error| Failure::system("the request can't be written", error))?;
        let mut stream = self.lines.stream();
        write_line(&mut stream, &value).map_err(|error| self.lost(&error))
    }

    /// The next response; `None` when `limit` of [`Connection::answer_within`] passed first.
    ///
    /// # Errors
    ///
    /// When the process says that something failed, hangs up, or says what is no response.
    pub(crate) fn receive(&mut self) -> Result<Option<Response>, Failure> {
        let line = match self.lines.next_line() {
            Ok(Some(line)) => line,
            Ok(None) => {
                return Err(Failure::new(
                    Exit::NoGuest,
                    format!("the process of guest '{}' ended or hung up", self.name),
                ));
            }
            Err(LineError::Stream(error)) if is_timeout(&error) => return Ok(None),
            Err(LineError::Stream(error)) => return Err(self.lost(&error)),
            Err(LineError::TooLong(_)) => {
                return Err(Failure::new(
                    Exit::NoGuest,
                    format!(
                        "guest '{}' answered with a line that does not end",
                        self.name
                    ),
                ));
            }
        };
        match serde_json::from_slice(&line) {
            Ok(Response::Error { kind, message }) => Err(protocol::failure(&kind, message)),
            Ok(response) => Ok(Some(response)),
            Err(error) => Err(Failure::new(
                Exit::NoGuest,
                format!(
                    "the process of guest '{}' speaks another version of the protocol: {error}",
                    self.name
                ),
            )),
        }
    }

    /// Asks, and waits for the one answer.
    ///
    /// # Errors
    ///
    /// As for `send` and `receive`, or when no answer comes in time.
    pub(crate) fn ask(&mut self, request: &Request) -> Result<Response, Failure> {
        self.send(request)?;
        self.receive()?.ok_or_else(|| {
            Failure::new(
                Exit::NoGuest,
                format!(
                    "the process of guest '{}' does not answer within {} s",
                    self.name,
                    ANSWER_MAX.as_secs()
                ),
            )
        })
    }

    /// Asks how the guest is.
    ///
    /// # Errors
    ///
    /// As for `ask`.
    pub(crate) fn status(&mut self) -> Result<GuestStatus, Failure> {
        match self.ask(&Request::Status {})? {
            Response::Status { guest } => Ok(*guest),
            _ => Err(self.unexpected()),
        }
    }

    /// The failure for an answer that does not belong to the question.
    pub(crate) fn unexpected(&self) -> Failure {
        Failure::new(
            Exit::NoGuest,
            format!(
                "guest '{}' answered something else than it was asked",
                self.name
            ),
        )
    }

    fn lost(&self, error: &io::Error) -> Failure {
        Failure::new(
            Exit::NoGuest,
            format!("the connection to guest '{}' was lost: {error}", self.name),
        )
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}
