//! The control connection while a session runs: sends messages, hands on what comes, and notices
//! when the peer has gone silent.
//!
//! One thread reads. It answers PINGs by itself, so that a side that is busy loading state or
//! hashing memory still counts as alive, and measures round trip and clock offset by its own.

use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use dunlin_transports::control::{
    ControlChannel, ControlError, ControlReceiver, ControlSender, ControlStopper,
};
use dunlin_transports::deadline::Deadline;

use crate::clock::Timestamp;
use crate::protocol::{Message, Ping, Pong, frame_limit};

/// How many times a silent peer is asked before it counts as gone.
const PINGS_PER_TIMEOUT: u32 = 5;

/// The first PINGs follow each other this fast, so that round trip and clock offset are known
/// before the first round is over.
const FIRST_PING_INTERVAL: Duration = Duration::from_millis(20);

/// How many PINGs are the first.
const FIRST_PINGS: u32 = 8;

/// Whose word comes first on the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// This side's HELLO: nothing goes before it, so PINGs wait until the peer was heard.
    Ours,
    /// The peer's, which was read already.
    Theirs,
}

/// What the connection has to tell.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// The peer said something.
    Message(Box<Message>),
    /// The connection is of no use any more, and why. The last event.
    Lost(String),
}

/// Round trip and clock offset, from PINGs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LinkQuality {
    /// The shortest round trip seen.
    pub(crate) round_trip: Option<Duration>,
    /// The peer's clock minus this side's, from the sample with the shortest round trip; off by
    /// half that round trip at most.
    pub(crate) clock_offset_ns: i64,
}

/// The connection to the peer while a session runs. Dropping it ends the connection.
pub(crate) struct Link {
    sender: SharedSender,
    stopper: Arc<dyn ControlStopper>,
    quality: Arc<Mutex<LinkQuality>>,
    peer_timeout: Duration,
    reader: Option<JoinHandle<()>>,
}

type SharedSender = Arc<Mutex<Box<dyn ControlSender>>>;

impl Link {
    /// Takes the channel over. Every message but PING and PONG goes to `events`; a full queue there
    /// holds the peer up.
    ///
    /// # Errors
    ///
    /// When the reading thread can't be started.
    pub(crate) fn start<E>(
        channel: ControlChannel,
        opening: Opening,
        peer_timeout: Duration,
        events: SyncSender<E>,
    ) -> std::io::Result<Self>
    where
        E: From<LinkEvent> + Send + 'static,
    {
        let sender: SharedSender = Arc::new(Mutex::new(channel.sender));
        let quality = Arc::new(Mutex::new(LinkQuality::default()));
        let mut reader = Reader {
            receiver: channel.receiver,
            sender: Arc::clone(&sender),
            quality: Arc::clone(&quality),
            peer_timeout,
            heard: Timestamp::now(),
            ping_due: match opening {
                Opening::Ours => None,
                Opening::Theirs => Some(Timestamp::now()),
            },
            pings: 0,
        };
        let thread = std::thread::Builder::new()
            .name("dunlin-control".to_owned())
            .spawn(move || {
                loop {
                    let event = reader.next();
                    let last = matches!(event, LinkEvent::Lost(_));
                    if events.send(event.into()).is_err() || last {
                        return;
                    }
                }
            })?;
        Ok(Self {
            sender,
            stopper: channel.stopper,
            quality,
            peer_timeout,
            reader: Some(thread),
        })
    }

    /// Sends a message, within the time that a peer may be silent.
    ///
    /// # Errors
    ///
    /// When it could not be sent whole; the connection is of no use then.
    pub(crate) fn send(&self, message: &Message) -> Result<(), ControlError> {
        send(&self.sender, message, self.peer_timeout)
    }

    /// What is known of the connection.
    pub(crate) fn quality(&self) -> LinkQuality {
        *self.quality.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(reader) = self.reader.take() {
            // The reader ends soon after the stop; it can't panic with anything worth telling.
            let _ = reader.join();
        }
    }
}

fn send(
    sender: &SharedSender,
    message: &Message,
    peer_timeout: Duration,
) -> Result<(), ControlError> {
    let frame = message.to_frame();
    let mut sender = sender.lock().unwrap_or_else(PoisonError::into_inner);
    sender.send(&frame, Deadline::after(peer_timeout))
}

struct Reader {
    receiver: Box<dyn ControlReceiver>,
    sender: SharedSender,
    quality: Arc<Mutex<LinkQuality>>,
    peer_timeout: Duration,
    heard: Timestamp,
    /// `None` until the peer was heard, where it may not be asked before.
    ping_due: Option<Timestamp>,
    pings: u32,
}

impl Reader {
    /// The next event that is not the connection's own business.
    fn next(&mut self) -> LinkEvent {
        loop {
            let now = Timestamp::now();
            let silent = now.since(self.heard);
            if silent >= self.peer_timeout {
                return LinkEvent::Lost(format!(
                    "the peer was silent for {} ms",
                    silent.as_millis()
                ));
            }
            if self.ping_due.is_some_and(|due| now >= due) {
                if let Err(error) = self.ping(now) {
                    return LinkEvent::Lost(error.to_string());
                }
                continue;
            }
            let left = self.peer_timeout - silent;
            let wait = self.ping_due.map_or(left, |due| due.since(now).min(left));
            let frame = match self.receiver.receive(frame_limit, Deadline::after(wait)) {
                Ok(frame) => frame,
                Err(ControlError::TimedOut { .. }) => continue,
                Err(error) => return LinkEvent::Lost(error.to_string()),
            };
            self.heard = Timestamp::now();
            self.ping_due = self.ping_due.or(Some(self.heard));
            match Message::from_frame(&frame) {
                Ok(Message::Ping(ping)) => {
                    let pong = Pong {
                        ping_sent_ns: ping.sent_ns,
                        answered_ns: Timestamp::now().0,
                    };
                    if let Err(error) = self.say(&Message::Pong(pong)) {
                        return LinkEvent::Lost(error.to_string());
                    }
                }
                Ok(Message::Pong(pong)) => self.measure(&pong),
                Ok(message) => return LinkEvent::Message(Box::new(message)),
                Err(error) => {
                    return LinkEvent::Lost(format!("the peer broke the protocol: {error}"));
                }
            }
        }
    }

    fn ping(&mut self, now: Timestamp) -> Result<(), ControlError> {
        let interval = if self.pings < FIRST_PINGS {
            FIRST_PING_INTERVAL.min(self.peer_timeout / PINGS_PER_TIMEOUT)
        } else {
            self.peer_timeout / PINGS_PER_TIMEOUT
        };
        self.pings = self.pings.saturating_add(1);
        let due = now.0.saturating_add(interval.as_nanos() as u64);
        self.ping_due = Some(Timestamp(due));
        self.say(&Message::Ping(Ping {
            sent_ns: Timestamp::now().0,
        }))
    }

    fn say(&self, message: &Message) -> Result<(), ControlError> {
        send(&self.sender, message, self.peer_timeout)
    }

    fn measure(&self, pong: &Pong) {
        let received = self.heard;
        // A peer that makes times up only spoils its own figures.
        let round_trip = received.since(Timestamp(pong.ping_sent_ns));
        let middle = received.0.saturating_sub(round_trip.as_nanos() as u64 / 2);
        let mut quality = self.quality.lock().unwrap_or_else(PoisonError::into_inner);
        if quality
            .round_trip
            .is_none_or(|shortest| round_trip <= shortest)
        {
            quality.round_trip = Some(round_trip);
            quality.clock_offset_ns = pong.answered_ns.wrapping_sub(middle) as i64;
        }
    }
}
