//! The guest's end of its control socket: bounded connections, one thread each.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::line::{LineError, LineReader, REQUEST_BYTES_MAX, write_line};
use super::protocol::{self, Request, Response};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::places::{ACCEPT_REST, Place, Places};

/// The most connections at a time: people and monitors, not crowds. Each costs a thread.
const CONNECTIONS_MAX: usize = 32;

/// How long a connection may be quiet between requests, so that forgotten ones don't fill the
/// places.
const QUIET_MAX: Duration = Duration::from_secs(60);

/// How long a client may take nothing of what it is told.
const WRITE_MAX: Duration = Duration::from_secs(10);

/// Answers requests.
pub(crate) trait Handler: Send + Sync + 'static {
    /// Answers one request. An error means that the client is gone.
    fn handle(&self, request: Request, client: &mut Client<'_>) -> io::Result<()>;
}

/// Whom an answer goes to.
pub(crate) struct Client<'a> {
    stream: &'a UnixStream,
}

impl Client<'_> {
    /// Sends one response.
    pub(crate) fn send(&mut self, response: &Response) -> io::Result<()> {
        let mut stream = self.stream;
        write_line(&mut stream, response)
    }

    /// Whether the client hung up, as far as can be told without waiting.
    pub(crate) fn is_gone(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, poll};
        let mut watched = [PollFd::new(self.stream, PollFlags::RDHUP)];
        let now = rustix::event::Timespec::default();
        match poll(&mut watched, Some(&now)) {
            Ok(0) | Err(_) => false,
            Ok(_) => true,
        }
    }
}

/// Serves a control socket on a thread of its own, for as long as the process lives.
///
/// # Errors
///
/// When the thread can't be made.
pub(crate) fn serve(listener: UnixListener, handler: Arc<dyn Handler>) -> Result<(), Failure> {
    thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || accept(&listener, &handler))
        .map(|_| ())
        .map_err(|error| Failure::system("the control thread", error))
}

fn accept(listener: &UnixListener, handler: &Arc<dyn Handler>) {
    let places = Places::new(CONNECTIONS_MAX);
    loop {
        let Ok((stream, _)) = listener.accept() else {
            thread::sleep(ACCEPT_REST);
            continue;
        };
        let place = places.take();
        let handler = Arc::clone(handler);
        // Where no thread can be made, the closure and with it the connection is dropped.
        let _ = thread::Builder::new()
            .name("control-client".to_owned())
            .spawn(move || {
                // A client that does not read or hangs up is its own loss.
                let _ = attend(&stream, place.as_ref(), handler.as_ref());
            });
    }
}

fn attend(stream: &UnixStream, place: Option<&Place>, handler: &dyn Handler) -> io::Result<()> {
    stream.set_read_timeout(Some(QUIET_MAX))?;
    stream.set_write_timeout(Some(WRITE_MAX))?;
    let mut client = Client { stream };
    if place.is_none() {
        return client.send(&Response::error(
            Exit::Conflict,
            format!("{CONNECTIONS_MAX} connections are open already; try again"),
        ));
    }
    if !is_own(stream) {
        return client.send(&Response::error(
            Exit::Local,
            "only the guest's own user may speak here",
        ));
    }
    let mut lines = LineReader::new(stream, REQUEST_BYTES_MAX);
    loop {
        let line = match lines.next_line() {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(()),
            Err(error @ LineError::TooLong(_)) => {
                return client.send(&Response::error(Exit::Usage, error.to_string()));
            }
            Err(LineError::Stream(error)) => return Err(error),
        };
        match protocol::decode(&line) {
            Ok(request) => handler.handle(request, &mut client)?,
            Err(reason) => client.send(&Response::error(Exit::Usage, reason))?,
        }
    }
}

/// Whether the other end is this user's, or root's.
fn is_own(stream: &UnixStream) -> bool {
    rustix::net::sockopt::socket_peercred(stream)
        .is_ok_and(|peer| peer.uid == rustix::process::geteuid() || peer.uid.is_root())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};

    use super::*;

    struct Echo;

    impl Handler for Echo {
        fn handle(&self, _request: Request, client: &mut Client<'_>) -> io::Result<()> {
            client.send(&Response::Done)
        }
    }

    fn serving() -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        serve(UnixListener::bind(&path).unwrap(), Arc::new(Echo)).unwrap();
        (directory, path)
    }

    fn line(stream: &UnixStream) -> String {
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line
    }

    #[test]
    fn garbage_gets_an_error_and_the_connection_lives_on() {
        let (_keep, path) = serving();
        let mut stream = UnixStream::connect(path).unwrap();
        stream.write_all(b"\x00\xffgarbage\n").unwrap();
        assert!(line(&stream).contains("not JSON"));
        stream
            .write_all(b"{\"v\":1,\"request\":\"cancel\"}\n")
            .unwrap();
        assert_eq!(line(&stream), "{\"response\":\"done\"}\n");
    }

    #[test]
    fn an_endless_line_ends_the_connection() {
        let (_keep, path) = serving();
        let mut stream = UnixStream::connect(path).unwrap();
        let piece = [b'x'; 1 << 16];
        // The server stops reading past its limit and hangs up.
        while stream.write_all(&piece).is_ok() {}
    }

    #[test]
    fn a_crowd_is_told_so() {
        let (_keep, path) = serving();
        let mut crowd = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream
                .write_all(b"{\"v\":1,\"request\":\"cancel\"}\n")
                .unwrap();
            assert!(line(&stream).contains("done"));
            crowd.push(stream);
        }
        let late = UnixStream::connect(&path).unwrap();
        assert!(line(&late).contains("connections are open already"));
    }
}
