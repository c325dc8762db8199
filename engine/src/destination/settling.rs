//! A source in doubt asks what became of its guest. Whoever listens for guests answers, from the
//! records, also for guests whose process is gone.

use std::time::Duration;

use dunlin_transports::control::ControlChannel;
use dunlin_transports::deadline::Deadline;
use dunlin_transports::lane::SessionId;

use super::ReceiveError;
use crate::protocol::{Message, MessageKind, WireAnswer, frame_limit};
use crate::records::Archive;
use crate::records::verdict::Answer;

/// How one question was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// About which session.
    pub session: SessionId,
    /// What was said.
    pub answer: Answer,
    /// And why.
    pub words: String,
    /// Whether the source said that this settles it.
    pub is_settled: bool,
}

/// Answers one question that comes over `control`, a connection for settling under `session`, and
/// waits for the source to say that this settles it; each within `limit`.
///
/// # Errors
///
/// When the source asks nothing, or about another session than its connection named.
pub fn answer_doubt(
    mut control: ControlChannel,
    session: SessionId,
    archive: &dyn Archive,
    limit: Duration,
) -> Result<Asked, ReceiveError> {
    let deadline = Deadline::after(limit);
    let frame = control.receiver.receive(ask_limit, deadline)?;
    let Message::Ask(ask) = Message::from_frame(&frame)? else {
        return Err(ReceiveError::NotAsked(frame.kind));
    };
    let (asked, uuid, epoch) = ask.subject();
    if asked != session {
        return Err(ReceiveError::NotAsked(frame.kind));
    }
    let (answer, words) = archive.answer(uuid, session, epoch);
    let message = Message::Answer(WireAnswer::new(answer, &words));
    control
        .sender
        .send(&message.to_frame(), Deadline::after(limit))?;
    let settled = control
        .receiver
        .receive(settled_limit, Deadline::after(limit));
    // Without that word it asks again later, or the word was lost: the record is kept either way.
    let is_settled = settled.is_ok();
    if is_settled {
        archive.forget(uuid, session);
    }
    control.stopper.stop();
    Ok(Asked {
        session,
        answer,
        words,
        is_settled,
    })
}

/// So that a connection for settling carries nothing else: everything else is refused unread.
fn ask_limit(kind: u16) -> Option<u32> {
    limit_of(MessageKind::Ask, kind)
}

fn settled_limit(kind: u16) -> Option<u32> {
    limit_of(MessageKind::Settled, kind)
}

fn limit_of(expected: MessageKind, kind: u16) -> Option<u32> {
    (kind == expected.number())
        .then(|| frame_limit(kind))
        .flatten()
}
