//! The first bytes on every connection, and the answer to them.
//!
//! ```text
//! offset  bytes
//!      0      8  magic: "DUNLIN\r\n"  (a text protocol's mangling of line ends breaks it)
//!      8      2  protocol version
//!     10      2  kind: 1 control, 2 lane, 3 settling, 4 byte stream (reserved)
//!     12      2  lane number; zero unless a lane
//!     14      2  zero
//!     16     16  session id
//!     32     32  the lane's token; zero unless a lane
//! ```
//! All numbers are little-endian. A lane is answered, and so is whatever is turned away, with
//! ```text
//!      0      4  magic: "DNLA"
//!      4      2  0 accepted, else a [`Refusal`]
//!      6      1  the answering side's protocol version
//!      7      1  of a lane that is let in: which compressed frames it takes (bit 0 LZ4, bit 1 zstd)
//! ```
//! Before there were any, the version had both of the last bytes. It is 1 to this day, so that an
//! answer from then reads as one that takes none; and a source from then does not look at the two.

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use thiserror::Error;

use super::compression::CodecSet;
use super::socket;
use crate::deadline::Deadline;
use crate::lane::{LaneNumber, LaneTicket, LaneToken, SessionId};

/// Bytes in a preamble.
pub const PREAMBLE_BYTES: usize = 64;

/// The version of what follows a preamble. Another one is refused.
pub const PROTOCOL_VERSION: u16 = 1;

/// The same, as an answer says it.
const ANSWER_VERSION: u8 = PROTOCOL_VERSION.to_le_bytes()[0];

const MAGIC: [u8; 8] = *b"DUNLIN\r\n";

/// Bytes in an answer.
pub(super) const ANSWER_BYTES: usize = 8;

/// An answer's first bytes. Read as a control frame's length they are beyond any limit, so that a
/// refused control connection can tell an answer from a frame.
pub(super) const ANSWER_MAGIC: [u8; 4] = *b"DNLA";

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionKind {
    /// The control channel of a session.
    Control,
    /// A lane.
    Lane,
    /// A control channel on which a source in doubt asks what became of its guest.
    Settling,
}

impl ConnectionKind {
    fn code(self) -> u16 {
        match self {
            Self::Control => 1,
            Self::Lane => 2,
            Self::Settling => 3,
        }
    }
}

/// The first bytes on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preamble {
    /// What the connection is for.
    pub kind: ConnectionKind,
    /// The session that it belongs to.
    pub session: SessionId,
    /// The lane's number; zero unless a lane.
    pub lane: LaneNumber,
    /// The lane's token; zero unless a lane.
    pub token: LaneToken,
}

/// Why a connection's first bytes were not taken.
#[derive(Debug, Error)]
pub enum PreambleError {
    /// They are not this protocol's.
    #[error("the peer's first bytes are not those of Dunlin's protocol")]
    NotDunlin,
    /// They are of another version.
    #[error("the peer speaks version {0} of the protocol, this side speaks {PROTOCOL_VERSION}")]
    Version(u16),
    /// A kind that is reserved for later versions.
    #[error("the peer asks for {0}, which this version does not offer")]
    Reserved(&'static str),
    /// A kind that is not known.
    #[error("the peer asks for a connection of unknown kind {0}")]
    UnknownKind(u16),
    /// A field that must be zero is not, or a lane's number is out of bounds.
    #[error("the preamble's {field} is {value}, which is not valid")]
    Field {
        /// Which field.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
    /// Not all of it came by the deadline.
    #[error("the peer did not send its first {PREAMBLE_BYTES} bytes in time")]
    TimedOut,
    /// The connection failed or was closed.
    #[error("reading a connection's first bytes: {0}")]
    System(#[from] io::Error),
}

/// Why a connection was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Another protocol version.
    #[error("the other side speaks another version of the protocol")]
    Version,
    /// A kind of connection that is not offered.
    #[error("the other side does not offer this kind of connection")]
    Kind,
    /// The session is not known (any more).
    #[error("the session is not known there")]
    Session,
    /// The lane's number is not expected.
    #[error("no lane of this number is expected there")]
    Lane,
    /// The token is not the lane's, or it was used already.
    #[error("the lane's token is not valid, or was used already")]
    Token,
    /// The other side has no room for one more connection now.
    #[error("the other side is busy")]
    Busy,
}

impl Refusal {
    const ALL: [Self; 6] = [
        Self::Version,
        Self::Kind,
        Self::Session,
        Self::Lane,
        Self::Token,
        Self::Busy,
    ];

    fn code(self) -> u16 {
        match self {
            Self::Version => 1,
            Self::Kind => 2,
            Self::Session => 3,
            Self::Lane => 4,
            Self::Token => 5,
            Self::Busy => 6,
        }
    }
}

/// What the other side said to a preamble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Accepted {
        /// The compressed frames that the lane takes.
        takes: CodecSet,
    },
    Refused(Refusal),
    /// A refusal that this version does not know.
    RefusedOtherwise(u16),
}

impl Answer {
    pub(super) fn encode(self) -> [u8; ANSWER_BYTES] {
        let (code, takes) = match self {
            Self::Accepted { takes } => (0, takes.encode()),
            Self::Refused(refusal) => (refusal.code(), 0),
            Self::RefusedOtherwise(code) => (code, 0),
        };
        let mut bytes = [0; ANSWER_BYTES];
        let fields = ANSWER_MAGIC
            .into_iter()
            .chain(code.to_le_bytes())
            .chain([ANSWER_VERSION, takes]);
        bytes
            .iter_mut()
            .zip(fields)
            .for_each(|(to, from)| *to = from);
        bytes
    }

    /// `None` when the bytes are no answer.
    pub(super) fn decode(bytes: [u8; ANSWER_BYTES]) -> Option<Self> {
        let [m0, m1, m2, m3, c0, c1, _, takes] = bytes;
        if [m0, m1, m2, m3] != ANSWER_MAGIC {
            return None;
        }
        let code = u16::from_le_bytes([c0, c1]);
        let refusal = Refusal::ALL
            .into_iter()
            .find(|refusal| refusal.code() == code);
        Some(match (code, refusal) {
            (0, _) => Self::Accepted {
                takes: CodecSet::decode(takes),
            },
            (_, Some(refusal)) => Self::Refused(refusal),
            (code, None) => Self::RefusedOtherwise(code),
        })
    }

    /// Why, where it is a refusal.
    pub(super) fn reason(self) -> Option<String> {
        match self {
            Self::Accepted { .. } => None,
            Self::Refused(refusal) => Some(refusal.to_string()),
            Self::RefusedOtherwise(code) => Some(format!("for a reason of unknown number {code}")),
        }
    }
}

impl Preamble {
    /// For a session's control channel.
    pub fn control(session: SessionId) -> Self {
        Self {
            kind: ConnectionKind::Control,
            session,
            lane: LaneNumber(0),
            token: LaneToken([0; 32]),
        }
    }

    /// For asking what became of a session's guest.
    pub fn settling(session: SessionId) -> Self {
        Self {
            kind: ConnectionKind::Settling,
            ..Self::control(session)
        }
    }

    /// For a lane.
    pub fn lane(ticket: &LaneTicket) -> Self {
        Self {
            kind: ConnectionKind::Lane,
            session: ticket.session,
            lane: ticket.number,
            token: ticket.token.clone(),
        }
    }

    /// The bytes on the wire.
    pub fn encode(&self) -> [u8; PREAMBLE_BYTES] {
        let mut bytes = [0; PREAMBLE_BYTES];
        let fields = MAGIC
            .into_iter()
            .chain(PROTOCOL_VERSION.to_le_bytes())
            .chain(self.kind.code().to_le_bytes())
            .chain(self.lane.0.to_le_bytes())
            .chain([0, 0])
            .chain(self.session.0)
            .chain(self.token.0);
        bytes
            .iter_mut()
            .zip(fields)
            .for_each(|(to, from)| *to = from);
        bytes
    }

    /// Reads the bytes on the wire.
    ///
    /// # Errors
    ///
    /// When they are not a valid preamble of this version.
    pub fn decode(bytes: &[u8; PREAMBLE_BYTES]) -> Result<Self, PreambleError> {
        let mut rest = bytes.as_slice();
        if take::<8>(&mut rest) != MAGIC {
            return Err(PreambleError::NotDunlin);
        }
        let version = u16::from_le_bytes(take(&mut rest));
        if version != PROTOCOL_VERSION {
            return Err(PreambleError::Version(version));
        }
        let kind = match u16::from_le_bytes(take(&mut rest)) {
            1 => ConnectionKind::Control,
            2 => ConnectionKind::Lane,
            3 => ConnectionKind::Settling,
            4 => return Err(PreambleError::Reserved("a byte stream")),
            unknown => return Err(PreambleError::UnknownKind(unknown)),
        };
        let lane = u16::from_le_bytes(take(&mut rest));
        let reserved = u16::from_le_bytes(take(&mut rest));
        let session = SessionId(take(&mut rest));
        let token = LaneToken(take(&mut rest));
        let invalid = |field, value| Err(PreambleError::Field { field, value });
        if reserved != 0 {
            return invalid("reserved field", reserved.into());
        }
        match kind {
            ConnectionKind::Control | ConnectionKind::Settling if lane != 0 => {
                invalid("lane number", lane.into())
            }
            ConnectionKind::Lane if lane >= crate::lane::LANES_MAX => {
                invalid("lane number", lane.into())
            }
            _ => Ok(Self {
                kind,
                session,
                lane: LaneNumber(lane),
                token,
            }),
        }
    }
}

/// The next `N` bytes; zeros beyond the end, which the callers' fixed lengths exclude.
pub(super) fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    match rest.split_first_chunk::<N>() {
        Some((head, tail)) => {
            *rest = tail;
            *head
        }
        None => [0; N],
    }
}

/// Reads a connection's first bytes; all of them must be there by the deadline. A peer that asks
/// for what is not offered here is told so.
///
/// # Errors
///
/// When they are not a valid preamble or not there in time. Drop the connection.
pub fn read_preamble(stream: &TcpStream, deadline: Deadline) -> Result<Preamble, PreambleError> {
    let mut bytes = [0; PREAMBLE_BYTES];
    socket::read_exact(stream, &mut bytes, deadline).map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => PreambleError::TimedOut,
        _ => error.into(),
    })?;
    let preamble = Preamble::decode(&bytes);
    match &preamble {
        Err(PreambleError::Version(_)) => refuse(stream, Refusal::Version),
        Err(PreambleError::Reserved(_) | PreambleError::UnknownKind(_)) => {
            refuse(stream, Refusal::Kind);
        }
        _ => {}
    }
    preamble
}

/// Tells a peer why its connection is turned away. Best effort, and at once: drop the connection
/// afterwards.
pub fn refuse(stream: &TcpStream, refusal: Refusal) {
    let _ = answer(stream, Answer::Refused(refusal));
    let _ = stream.shutdown(std::net::Shutdown::Write);
}

/// Sends the answer to a preamble. It is not waited for: an answer is the first that is sent, so it
/// fits into the socket's buffer whatever the peer does.
pub(super) fn answer(stream: &TcpStream, answer: Answer) -> io::Result<()> {
    socket::write_all(stream, &answer.encode(), Deadline::after(Duration::ZERO))
}

#[cfg(test)]
mod tests;
