//! The messages: their kinds, and their frames.

use dunlin_transports::control::Frame;
use minicbor::{Decode, Encode};
use thiserror::Error;

use super::body::{
    Abort, Ask, Grants, Hello, Lanes, Ping, Pong, Prepare, Ranges, Ready, Refused, Running,
    Verified, VerifyPages, Welcome, WireAnswer,
};
use crate::layout::LayoutError;
use crate::state::StateError;

/// What is wrong with a message.
#[derive(Debug, Error)]
pub enum MessageError {
    /// There is no message of this number.
    #[error("there is no message number {0}")]
    UnknownKind(u16),
    /// Its bytes are not the message's.
    #[error("message {kind:?} can't be read: {reason}")]
    Malformed {
        /// Which message.
        kind: MessageKind,
        /// What is wrong.
        reason: String,
    },
    /// A value in it is out of bounds.
    #[error("message {kind:?}: {reason}")]
    OutOfBounds {
        /// Which message.
        kind: MessageKind,
        /// Which value, and its bound.
        reason: String,
    },
    /// The layout that it describes is not one.
    #[error("the peer's layout: {0}")]
    Layout(#[from] LayoutError),
    /// The state that it carries is not one.
    #[error("the peer's state: {0}")]
    State(#[from] StateError),
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $number:literal,)*) => {
        /// The messages' numbers on the wire. 26 to 29 are kept for what registration may yet
        /// need, 33 to 39 for opaque byte streams.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum MessageKind {
            $($(#[$doc])* $kind,)*
        }

        impl MessageKind {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// The number on the wire.
            pub fn number(self) -> u16 {
                match self { $(Self::$kind => $number,)* }
            }

            /// The kind of a number; `None` when there is none.
            pub fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$kind),)* _ => None }
            }
        }
    };
}

kinds! {
    /// Source: who wants to come, and what it needs.
    Hello = 1,
    /// Destination: come in, this way.
    Welcome = 2,
    /// Destination: no, and why.
    Refused = 3,
    /// Either: are you there?
    Ping = 4,
    /// Either: yes.
    Pong = 5,
    /// Source: all is sent; check and load it.
    Prepare = 6,
    /// Destination: it is loaded, and nothing of yours can reach it any more.
    Ready = 7,
    /// Source: it is yours.
    Commit = 8,
    /// Destination: it runs.
    Running = 9,
    /// Source: freed here.
    Released = 10,
    /// Source: forget it.
    Abort = 11,
    /// Destination: discarded here, and a COMMIT would be refused.
    Aborted = 12,
    /// Source: what some of my pages look like.
    VerifyPages = 13,
    /// Source: those were all.
    VerifyEnd = 14,
    /// Destination: how they compared.
    Verified = 15,
    /// Source: all lanes are open, and these they are.
    Lanes = 20,
    /// Destination: these they are here too; put.
    LanesConfirmed = 21,
    /// Source: register these ranges for my writes.
    Open = 22,
    /// Destination: these are, with these keys.
    Grants = 23,
    /// Source: nothing of mine goes there any more; deregister them.
    Close = 24,
    /// Destination: they are.
    Closed = 25,
    /// Source: these ranges will be written soon; back them with memory if you like.
    Prefault = 26,
    /// Source, in doubt, to the destination's supervisor: what became of the guest?
    Ask = 30,
    /// Supervisor: this.
    Answer = 31,
    /// Source: the session is settled here, nobody will ask any more.
    Settled = 32,
}

/// One message.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// See [`MessageKind::Hello`].
    Hello(Box<Hello>),
    /// See [`MessageKind::Welcome`].
    Welcome(Welcome),
    /// See [`MessageKind::Refused`].
    Refused(Refused),
    /// See [`MessageKind::Ping`].
    Ping(Ping),
    /// See [`MessageKind::Pong`].
    Pong(Pong),
    /// See [`MessageKind::Prepare`].
    Prepare(Prepare),
    /// See [`MessageKind::Ready`].
    Ready(Ready),
    /// See [`MessageKind::Commit`].
    Commit,
    /// See [`MessageKind::Running`].
    Running(Running),
    /// See [`MessageKind::Released`].
    Released,
    /// See [`MessageKind::Abort`].
    Abort(Abort),
    /// See [`MessageKind::Aborted`].
    Aborted(Abort),
    /// See [`MessageKind::VerifyPages`].
    VerifyPages(VerifyPages),
    /// See [`MessageKind::VerifyEnd`].
    VerifyEnd,
    /// See [`MessageKind::Verified`].
    Verified(Verified),
    /// See [`MessageKind::Lanes`].
    Lanes(Lanes),
    /// See [`MessageKind::LanesConfirmed`].
    LanesConfirmed,
    /// See [`MessageKind::Open`].
    Open(Ranges),
    /// See [`MessageKind::Grants`].
    Grants(Grants),
    /// See [`MessageKind::Close`].
    Close(Ranges),
    /// See [`MessageKind::Closed`].
    Closed(Ranges),
    /// See [`MessageKind::Prefault`].
    Prefault(Ranges),
    /// See [`MessageKind::Ask`].
    Ask(Ask),
    /// See [`MessageKind::Answer`].
    Answer(WireAnswer),
    /// See [`MessageKind::Settled`].
    Settled,
}

impl Message {
    /// Its kind.
    pub fn kind(&self) -> MessageKind {
        match self {
            Self::Hello(_) => MessageKind::Hello,
            Self::Welcome(_) => MessageKind::Welcome,
            Self::Refused(_) => MessageKind::Refused,
            Self::Ping(_) => MessageKind::Ping,
            Self::Pong(_) => MessageKind::Pong,
            Self::Prepare(_) => MessageKind::Prepare,
            Self::Ready(_) => MessageKind::Ready,
            Self::Commit => MessageKind::Commit,
            Self::Running(_) => MessageKind::Running,
            Self::Released => MessageKind::Released,
            Self::Abort(_) => MessageKind::Abort,
            Self::Aborted(_) => MessageKind::Aborted,
            Self::VerifyPages(_) => MessageKind::VerifyPages,
            Self::VerifyEnd => MessageKind::VerifyEnd,
            Self::Verified(_) => MessageKind::Verified,
            Self::Lanes(_) => MessageKind::Lanes,
            Self::LanesConfirmed => MessageKind::LanesConfirmed,
            Self::Open(_) => MessageKind::Open,
            Self::Grants(_) => MessageKind::Grants,
            Self::Close(_) => MessageKind::Close,
            Self::Closed(_) => MessageKind::Closed,
            Self::Prefault(_) => MessageKind::Prefault,
            Self::Ask(_) => MessageKind::Ask,
            Self::Answer(_) => MessageKind::Answer,
            Self::Settled => MessageKind::Settled,
        }
    }

    /// Its frame.
    pub fn to_frame(&self) -> Frame {
        let payload = match self {
            Self::Hello(body) => encoded(body.as_ref()),
            Self::Welcome(body) => encoded(body),
            Self::Refused(body) => encoded(body),
            Self::Ping(body) => encoded(body),
            Self::Pong(body) => encoded(body),
            Self::Prepare(body) => encoded(body),
            Self::Ready(body) => encoded(body),
            Self::Running(body) => encoded(body),
            Self::Abort(body) | Self::Aborted(body) => encoded(body),
            Self::VerifyPages(body) => encoded(body),
            Self::Verified(body) => encoded(body),
            Self::Lanes(body) => encoded(body),
            Self::Open(body) | Self::Close(body) | Self::Closed(body) | Self::Prefault(body) => {
                encoded(body)
            }
            Self::Grants(body) => encoded(body),
            Self::Ask(body) => encoded(body),
            Self::Answer(body) => encoded(body),
            Self::Commit
            | Self::Released
            | Self::VerifyEnd
            | Self::LanesConfirmed
            | Self::Settled => Vec::new(),
        };
        Frame {
            kind: self.kind().number(),
            payload,
        }
    }

    /// The message in a frame.
    ///
    /// # Errors
    ///
    /// When the frame's bytes are not the message that its kind names. Values are checked where
    /// they are used, against what they are used for.
    pub fn from_frame(frame: &Frame) -> Result<Self, MessageError> {
        let kind =
            MessageKind::from_number(frame.kind).ok_or(MessageError::UnknownKind(frame.kind))?;
        let bytes = frame.payload.as_slice();
        Ok(match kind {
            MessageKind::Hello => Self::Hello(Box::new(decoded(kind, bytes)?)),
            MessageKind::Welcome => Self::Welcome(decoded(kind, bytes)?),
            MessageKind::Refused => Self::Refused(decoded(kind, bytes)?),
            MessageKind::Ping => Self::Ping(decoded(kind, bytes)?),
            MessageKind::Pong => Self::Pong(decoded(kind, bytes)?),
            MessageKind::Prepare => Self::Prepare(decoded(kind, bytes)?),
            MessageKind::Ready => Self::Ready(decoded(kind, bytes)?),
            MessageKind::Commit => Self::Commit,
            MessageKind::Running => Self::Running(decoded(kind, bytes)?),
            MessageKind::Released => Self::Released,
            MessageKind::Abort => Self::Abort(decoded(kind, bytes)?),
            MessageKind::Aborted => Self::Aborted(decoded(kind, bytes)?),
            MessageKind::VerifyPages => Self::VerifyPages(decoded(kind, bytes)?),
            MessageKind::VerifyEnd => Self::VerifyEnd,
            MessageKind::Verified => Self::Verified(decoded(kind, bytes)?),
            MessageKind::Lanes => Self::Lanes(decoded(kind, bytes)?),
            MessageKind::LanesConfirmed => Self::LanesConfirmed,
            MessageKind::Open => Self::Open(decoded(kind, bytes)?),
            MessageKind::Grants => Self::Grants(decoded(kind, bytes)?),
            MessageKind::Close => Self::Close(decoded(kind, bytes)?),
            MessageKind::Closed => Self::Closed(decoded(kind, bytes)?),
            MessageKind::Prefault => Self::Prefault(decoded(kind, bytes)?),
            MessageKind::Ask => Self::Ask(decoded(kind, bytes)?),
            MessageKind::Answer => Self::Answer(decoded(kind, bytes)?),
            MessageKind::Settled => Self::Settled,
        })
    }
}

fn encoded<T: Encode<()>>(body: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    match minicbor::encode(body, &mut bytes) {
        Ok(()) => bytes,
        // Writing into a `Vec` can't fail, and no field's encoder has an error of its own.
        Err(_) => Vec::new(),
    }
}

fn decoded<'b, T: Decode<'b, ()>>(kind: MessageKind, bytes: &'b [u8]) -> Result<T, MessageError> {
    minicbor::decode(bytes).map_err(|error| MessageError::Malformed {
        kind,
        reason: error.to_string(),
    })
}
