//! HELLO: reading it, checking it, and saying no.

use std::time::Duration;

use dunlin_transports::control::{ControlChannel, ControlError, Frame};
use dunlin_transports::deadline::Deadline;
use dunlin_transports::lane::SessionId;

use super::ReceiveError;
use crate::guest::GuestOffer;
use crate::protocol::{self, Message, MessageKind, Refused, common_version, frame_limit};

/// How long a refused source is given to read why.
const REFUSAL_TIME: Duration = Duration::from_secs(1);

/// A checked HELLO: every value in it is within this side's bounds, and there is a version that
/// both sides speak.
#[derive(Clone, Debug)]
pub struct Hello {
    pub(super) message: protocol::Hello,
    pub(super) version: u16,
    offer: GuestOffer,
}

impl Hello {
    /// The HELLO in a frame.
    ///
    /// # Errors
    ///
    /// When it is another message, or a value is out of bounds, or there is no common version.
    pub fn from_frame(frame: &Frame) -> Result<Self, ReceiveError> {
        if frame.kind != MessageKind::Hello.number() {
            return Err(ReceiveError::NotHello(frame.kind));
        }
        let Message::Hello(message) = Message::from_frame(frame)? else {
            return Err(ReceiveError::NotHello(frame.kind));
        };
        let (min, max) = (message.version_min, message.version_max);
        let version = common_version(min, max).ok_or(ReceiveError::Version { min, max })?;
        let offer = message.offer()?;
        Ok(Self {
            message: *message,
            version,
            offer,
        })
    }

    /// What the guest is and needs.
    pub fn offer(&self) -> &GuestOffer {
        &self.offer
    }

    /// The session's id.
    pub fn session(&self) -> SessionId {
        self.message.session_id()
    }

    /// Over which transport the source wants its lanes.
    pub fn transport(&self) -> &str {
        &self.message.transport
    }
}

/// Waits for a connection's HELLO. The frame is returned as well, so that it can be handed to
/// another process. Frames that are no HELLO are refused by their length and kind already.
///
/// # Errors
///
/// When none came by the deadline, or it is not acceptable. The source has then been told why.
pub fn read_hello(
    control: &mut ControlChannel,
    deadline: Deadline,
) -> Result<(Hello, Frame), ReceiveError> {
    let only_hello = |kind| {
        let is_hello = kind == MessageKind::Hello.number();
        is_hello.then(|| frame_limit(kind)).flatten()
    };
    let frame = control.receiver.receive(only_hello, deadline)?;
    match Hello::from_frame(&frame) {
        Ok(hello) => Ok((hello, frame)),
        Err(error) => {
            refuse(control, &error.to_string());
            Err(error)
        }
    }
}

/// Tells a source why it can't come, and ends the connection. Takes a second at most.
pub fn refuse(control: &mut ControlChannel, reason: &str) {
    let deadline = Deadline::after(REFUSAL_TIME);
    let frame = Message::Refused(Refused::new(reason)).to_frame();
    if control.sender.send(&frame, deadline).is_ok() {
        // Closing with bytes unread would make the kernel drop what was just sent.
        while let Ok(_) | Err(ControlError::UnknownKind(_)) =
            control.receiver.receive(frame_limit, deadline)
        {
            if deadline.passed() {
                break;
            }
        }
    }
    control.stopper.stop();
}
