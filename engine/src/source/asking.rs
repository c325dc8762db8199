//! One question to a destination's supervisor: what became of the guest?

use dunlin_transports::control::{ControlChannel, ControlError};
use dunlin_transports::deadline::Deadline;
use dunlin_transports::lane::SessionId;
use thiserror::Error;
use uuid::Uuid;

use crate::protocol::{Ask, Message, MessageError, MessageKind, frame_limit};
use crate::records::verdict::Answer;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum AskError {
    /// The connection failed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// What came is no answer.
    #[error("it broke the protocol: {0}")]
    Message(#[from] MessageError),
    /// Another message came.
    #[error("it said {0:?} instead of an answer")]
    NotAnswered(MessageKind),
}

/// An answer, and the connection that it came over.
pub struct Answered {
    /// What the destination says.
    pub answer: Answer,
    /// And why, in words; may be empty.
    pub reason: String,
    channel: ControlChannel,
}

impl Answered {
    /// The answer and its reason, for a person.
    pub fn words(&self) -> String {
        let words = self.answer.words();
        match self.reason.is_empty() {
            true => format!("the destination says: {words}"),
            false => format!("the destination says: {words} ({})", self.reason),
        }
    }

    /// Says that this settles it: nobody will ask again. A destination that does not hear it keeps
    /// its record.
    pub fn settle(mut self, deadline: Deadline) {
        let _ = self
            .channel
            .sender
            .send(&Message::Settled.to_frame(), deadline);
    }
}

/// Asks what became of a guest by a session that began at its epoch `epoch`. `channel` was made for
/// settling, under the session's id.
///
/// # Errors
///
/// When no answer came by the deadline.
pub fn ask(
    mut channel: ControlChannel,
    session: SessionId,
    uuid: Uuid,
    epoch: u64,
    deadline: Deadline,
) -> Result<Answered, AskError> {
    let question = Message::Ask(Ask::new(session, uuid, epoch));
    channel.sender.send(&question.to_frame(), deadline)?;
    let frame = channel.receiver.receive(answer_limit, deadline)?;
    match Message::from_frame(&frame)? {
        Message::Answer(answer) => Ok(Answered {
            answer: answer.answer()?,
            reason: answer.reason(),
            channel,
        }),
        other => Err(AskError::NotAnswered(other.kind())),
    }
}

/// So that a connection for settling carries nothing else.
fn answer_limit(kind: u16) -> Option<u32> {
    (kind == MessageKind::Answer.number())
        .then(|| frame_limit(kind))
        .flatten()
}
