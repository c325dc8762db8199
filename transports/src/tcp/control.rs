//! The control channel over TCP.
//!
//! A frame is a payload length (u32), a kind (u16), zero (u16), all little-endian, and the payload.
//! TCP's own checksum covers it, and TLS will.

use std::io::{self, ErrorKind};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::preamble::{ANSWER_MAGIC, Answer, Preamble, take};
use super::{Options, socket};
use crate::control::{
    ControlChannel, ControlError, ControlReceiver, ControlSender, ControlStopper, Frame, FrameLimit,
};
use crate::deadline::Deadline;
use crate::lane::SessionId;

/// Bytes before a frame's payload.
const HEADER_BYTES: usize = 8;

/// A payload's buffer grows by at most this many bytes before they are there: so much can a peer
/// that announces and does not send make this side allocate.
const PAYLOAD_STEP_BYTES: usize = 64 << 10;

/// Connects to a destination and says that this is a session's control channel. `peer` is
/// `host:port`, IPv6 in brackets; a name's addresses are tried one after the other. Also returns
/// the address that answered: lanes go to the same.
///
/// The deadline holds for resolving the name too. The system's resolver can't be interrupted, so it
/// has a thread of its own, which outlives a call that ended before it.
///
/// # Errors
///
/// When no address can be reached by the deadline. That the peer turned the connection away, or is
/// something else, shows at the first `receive`.
pub fn dial_control(
    peer: &str,
    session: SessionId,
    options: &Options,
    deadline: Deadline,
) -> Result<(ControlChannel, SocketAddr), ControlError> {
    dial(peer, &Preamble::control(session), options, deadline)
}

/// Connects to a destination in order to ask what became of a session's guest. As [`dial_control`].
///
/// # Errors
///
/// As [`dial_control`].
pub fn dial_settling(
    peer: &str,
    session: SessionId,
    options: &Options,
    deadline: Deadline,
) -> Result<ControlChannel, ControlError> {
    let dialled = dial(peer, &Preamble::settling(session), options, deadline);
    Ok(dialled?.0)
}

fn dial(
    peer: &str,
    preamble: &Preamble,
    options: &Options,
    deadline: Deadline,
) -> Result<(ControlChannel, SocketAddr), ControlError> {
    let connect_error = |source| ControlError::Connect {
        peer: peer.to_owned(),
        source,
    };
    let (stream, address) =
        socket::connect_by_name(peer, options, deadline).map_err(connect_error)?;
    socket::write_all(&stream, &preamble.encode(), deadline).map_err(connect_error)?;
    Ok((control_channel(stream, options)?, address))
}

/// Makes a channel of a connection whose preamble was read (or sent) already.
///
/// # Errors
///
/// When the socket's options can't be set.
pub fn control_channel(
    stream: TcpStream,
    options: &Options,
) -> Result<ControlChannel, ControlError> {
    socket::configure(&stream, options).map_err(|source| ControlError::System {
        doing: "setting up the connection",
        source,
    })?;
    let shared = Arc::new(Connection {
        stream,
        stopped: AtomicBool::new(false),
    });
    Ok(ControlChannel {
        sender: Box::new(Sender {
            connection: Arc::clone(&shared),
            buffer: Vec::new(),
            failed: false,
        }),
        receiver: Box::new(Receiver {
            connection: Arc::clone(&shared),
            stall_limit: options.stall_limit,
            failed: false,
        }),
        stopper: shared,
    })
}

/// The socket of a channel. It lives until the last piece of the channel is gone.
struct Connection {
    stream: TcpStream,
    stopped: AtomicBool,
}

impl Connection {
    fn error(&self, source: io::Error, doing: &'static str, begun: Instant) -> ControlError {
        if self.stopped.load(Ordering::SeqCst) {
            ControlError::Stopped
        } else if socket::is_closed(&source) {
            ControlError::Closed
        } else if source.kind() == ErrorKind::TimedOut && source.raw_os_error().is_none() {
            ControlError::TimedOut {
                doing,
                waited: begun.elapsed(),
            }
        } else {
            ControlError::System { doing, source }
        }
    }
}

impl ControlStopper for Connection {
    fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes whoever waits; fails only where the connection is gone already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

struct Sender {
    connection: Arc<Connection>,
    buffer: Vec<u8>,
    failed: bool,
}

impl ControlSender for Sender {
    fn send(&mut self, frame: &Frame, deadline: Deadline) -> Result<(), ControlError> {
        let begun = Instant::now();
        let doing = "sending a message";
        if self.failed {
            return Err(self
                .connection
                .error(ErrorKind::BrokenPipe.into(), doing, begun));
        }
        let Ok(length) = u32::try_from(frame.payload.len()) else {
            return Err(ControlError::TooLong {
                kind: frame.kind,
                bytes: frame.payload.len() as u64,
                limit: u32::MAX,
            });
        };
        // One buffer, so that a frame is one packet where it fits into one.
        self.buffer.clear();
        self.buffer.extend(length.to_le_bytes());
        self.buffer.extend(frame.kind.to_le_bytes());
        self.buffer.extend([0, 0]);
        self.buffer.extend(&frame.payload);
        socket::write_all(&self.connection.stream, &self.buffer, deadline).map_err(|source| {
            // Part of the frame may have left: what follows would not be understood.
            self.failed = true;
            self.connection.error(source, doing, begun)
        })
    }
}

struct Receiver {
    connection: Arc<Connection>,
    stall_limit: Duration,
    failed: bool,
}

impl Receiver {
    /// Reads the rest of a frame whose first byte is there.
    fn receive_begun(&self, limit: FrameLimit) -> Result<Frame, ControlError> {
        let begun = Instant::now();
        let deadline = Deadline::after(self.stall_limit);
        let stream = &self.connection.stream;
        let error = |source: io::Error| {
            match self.connection.error(source, "receiving a message", begun) {
                // `TimedOut` would say that the channel is still good.
                ControlError::TimedOut { doing, .. } => ControlError::System {
                    doing,
                    source: io::Error::new(
                        ErrorKind::TimedOut,
                        format!(
                            "the peer began a message and did not end it within {} ms",
                            self.stall_limit.as_millis()
                        ),
                    ),
                },
                other => other,
            }
        };
        let mut header = [0; HEADER_BYTES];
        socket::read_exact(stream, &mut header, deadline).map_err(error)?;
        if header.starts_with(&ANSWER_MAGIC) {
            let reason = Answer::decode(header).and_then(Answer::reason);
            return Err(match reason {
                Some(reason) => ControlError::TurnedAway(reason),
                None => ControlError::NotDunlin("it answered as if to a lane".to_owned()),
            });
        }
        let mut rest = header.as_slice();
        let length = u32::from_le_bytes(take(&mut rest));
        let kind = u16::from_le_bytes(take(&mut rest));
        let reserved = u16::from_le_bytes(take(&mut rest));
        if reserved != 0 {
            return Err(ControlError::NotDunlin(format!(
                "a message's reserved field holds {reserved}"
            )));
        }
        let most = limit(kind).ok_or(ControlError::UnknownKind(kind))?;
        if length > most {
            return Err(ControlError::TooLong {
                kind,
                bytes: length.into(),
                limit: most,
            });
        }
        let length = length as usize;
        let mut payload = Vec::new();
        while payload.len() < length {
            let filled = payload.len();
            payload.resize(length.min(filled + PAYLOAD_STEP_BYTES), 0);
            let step = payload.get_mut(filled..).unwrap_or_default();
            socket::read_exact(stream, step, deadline).map_err(error)?;
        }
        Ok(Frame { kind, payload })
    }
}

impl ControlReceiver for Receiver {
    fn receive(&mut self, limit: FrameLimit, deadline: Deadline) -> Result<Frame, ControlError> {
        let begun = Instant::now();
        let doing = "waiting for a message";
        let connection = &self.connection;
        if self.failed {
            return Err(connection.error(ErrorKind::BrokenPipe.into(), doing, begun));
        }
        let ready = socket::wait_ready(&connection.stream, rustix::event::PollFlags::IN, deadline);
        match ready {
            Ok(true) => {
                let frame = self.receive_begun(limit);
                self.failed = frame.is_err();
                frame
            }
            Ok(false) => Err(connection.error(ErrorKind::TimedOut.into(), doing, begun)),
            Err(source) => {
                let error = connection.error(source, doing, begun);
                self.failed = true;
                Err(error)
            }
        }
    }
}
