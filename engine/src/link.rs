//! The control connection while a session runs: sends messages, hands on what comes, and notices
//! when the peer has gone silent.
//!
//! One thread reads. It answers PINGs by itself, so that a side that is busy loading state or
//! hashing memory still counts as alive, and measures round trip and clock offset by its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use dunlin_transports::control::{
    ControlChannel, ControlError, ControlReceiver, ControlSender, ControlStopper,
};
use dunlin_transports::deadline::Deadline;
use dunlin_transports::runtime::{self, JoinHandle, SyncSender};

use crate::clock::Timestamp;
use crate::protocol::{Message, Ping, Pong, frame_limit};
use crate::telemetry::{ClockOffset, ClockRelation, Kept, Operation, RoundTrip};

/// How many times a silent peer is asked before it counts as gone.
const PINGS_PER_TIMEOUT: u32 = 5;

/// The first PINGs follow each other this fast, so that round trip and clock offset are known
/// before the first round is over.
const FIRST_PING_INTERVAL: Duration = Duration::from_millis(20);

/// How many PINGs are the first.
const FIRST_PINGS: u32 = 8;

/// How many of the last round trips decide what one takes in the pause: the least of them does, as
/// pages are in the others' way, and what else is on the processors.
const ROUND_TRIP_SAMPLES: usize = 16;

/// How often a sender looks whether the other one is done.
const SENDER_RETRY: Duration = Duration::from_micros(20);

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

/// What PINGs told.
struct Measured {
    /// What a round trip takes with nothing in its way: the last few decide.
    idle: Option<Duration>,
    clock: ClockOffset,
    recorder: Kept,
}

/// The connection to the peer while a session runs. Dropping it ends the connection.
pub(crate) struct Link {
    sender: SharedSender,
    stopper: Arc<dyn ControlStopper>,
    measured: Arc<Mutex<Measured>>,
    peer_timeout: Duration,
    reader: Option<JoinHandle<()>>,
}

/// Sends messages from another thread than the session's.
#[derive(Clone)]
pub(crate) struct Speaker {
    sender: SharedSender,
    peer_timeout: Duration,
}

impl Speaker {
    /// As [`Link::send`].
    ///
    /// # Errors
    ///
    /// As there.
    pub(crate) fn send(&self, message: &Message) -> Result<(), ControlError> {
        send(&self.sender, message, Deadline::after(self.peer_timeout))
    }
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
        recorder: Kept,
    ) -> std::io::Result<Self>
    where
        E: From<LinkEvent> + Send + 'static,
    {
        let sender: SharedSender = Arc::new(Mutex::new(channel.sender));
        let measured = Arc::new(Mutex::new(Measured {
            idle: None,
            clock: ClockOffset::new(),
            recorder,
        }));
        let mut reader = Reader {
            receiver: channel.receiver,
            sender: Arc::clone(&sender),
            measured: Arc::clone(&measured),
            peer_timeout,
            heard: Timestamp::now(),
            ping_due: match opening {
                Opening::Ours => None,
                Opening::Theirs => Some(Timestamp::now()),
            },
            pings: 0,
            last: [Duration::ZERO; ROUND_TRIP_SAMPLES],
            measured_count: 0,
        };
        let thread = runtime::spawn("dunlin-control", move || {
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
            measured,
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
        self.send_by(message, Deadline::after(self.peer_timeout))
    }

    /// Sends a message by a deadline that may be nearer.
    ///
    /// # Errors
    ///
    /// As for `send`.
    pub(crate) fn send_by(
        &self,
        message: &Message,
        deadline: Deadline,
    ) -> Result<(), ControlError> {
        send(
            &self.sender,
            message,
            deadline.earlier(Deadline::after(self.peer_timeout)),
        )
    }

    /// For another thread that has to say something.
    pub(crate) fn speaker(&self) -> Speaker {
        Speaker {
            sender: Arc::clone(&self.sender),
            peer_timeout: self.peer_timeout,
        }
    }

    /// Ends the connection: nothing is sent or heard over it any more.
    pub(crate) fn stop(&self) {
        self.stopper.stop();
    }

    /// What a round trip takes with nothing in its way: the last few decide.
    pub(crate) fn idle_round_trip(&self) -> Option<Duration> {
        self.measured().idle
    }

    /// How the peer's clock stands to this side's, as far as PINGs told by the moment `at`.
    pub(crate) fn clock_at(&self, at: Timestamp) -> Option<ClockRelation> {
        self.measured().clock.at(at)
    }

    /// Takes into account what a message and its answer told of the clocks.
    pub(crate) fn learn_clock(&self, round_trip: RoundTrip) {
        self.measured().clock.add(round_trip);
    }

    /// Nothing more is recorded.
    pub(crate) fn end_recording(&self) {
        self.measured().recorder.end();
    }

    fn measured(&self) -> MutexGuard<'_, Measured> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
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

fn send(sender: &SharedSender, message: &Message, deadline: Deadline) -> Result<(), ControlError> {
    let frame = message.to_frame();
    let begun = Timestamp::now();
    loop {
        match sender.try_lock() {
            Ok(mut sender) => return sender.send(&frame, deadline),
            Err(TryLockError::Poisoned(poisoned)) => {
                return poisoned.into_inner().send(&frame, deadline);
            }
            // The reading thread is in the middle of a PONG: microseconds, unless the peer takes
            // nothing.
            Err(TryLockError::WouldBlock) if deadline.passed() => {
                return Err(ControlError::TimedOut {
                    doing: "sending",
                    waited: Timestamp::now().since(begun),
                });
            }
            Err(TryLockError::WouldBlock) => runtime::sleep(SENDER_RETRY),
        }
    }
}

struct Reader {
    receiver: Box<dyn ControlReceiver>,
    sender: SharedSender,
    measured: Arc<Mutex<Measured>>,
    peer_timeout: Duration,
    heard: Timestamp,
    /// `None` until the peer was heard, where it may not be asked before.
    ping_due: Option<Timestamp>,
    pings: u32,
    /// The last round trips, and how many there were.
    last: [Duration; ROUND_TRIP_SAMPLES],
    measured_count: usize,
}

impl Reader {
    /// The next event that is not the connection's own business.
    fn next(&mut self) -> LinkEvent {
        loop {
            let now = Timestamp::now();
            if self.ping_due.is_some_and(|due| now >= due) {
                if let Err(error) = self.ping(now) {
                    return LinkEvent::Lost(error.to_string());
                }
                continue;
            }
            let silent = now.since(self.heard);
            let left = self.peer_timeout.saturating_sub(silent);
            let wait = self.ping_due.map_or(left, |due| due.since(now).min(left));
            let frame = match self.receiver.receive(frame_limit, Deadline::after(wait)) {
                Ok(frame) => frame,
                // Only who listened in vain may call the other silent: this process may have been
                // stopped for a while itself, with the peer's words waiting.
                Err(ControlError::TimedOut { .. }) if left.is_zero() => {
                    let silent = silent.as_millis();
                    return LinkEvent::Lost(format!("the peer was silent for {silent} ms"));
                }
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
        send(&self.sender, message, Deadline::after(self.peer_timeout))
    }

    fn measure(&mut self, pong: &Pong) {
        let received = self.heard;
        // A peer that makes times up only spoils its own figures.
        let round_trip = received.since(Timestamp(pong.ping_sent_ns));
        let slot = self.measured_count % ROUND_TRIP_SAMPLES;
        self.measured_count = self.measured_count.wrapping_add(1);
        if let Some(slot) = self.last.get_mut(slot) {
            *slot = round_trip;
        }
        let known = self.last.len().min(self.measured_count);
        let idle = self.last.iter().take(known).min().copied();
        let mut measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        measured.idle = idle;
        measured
            .recorder
            .took(Operation::ControlRoundTrip, round_trip);
        let answered = Timestamp(pong.answered_ns);
        measured.clock.add(RoundTrip {
            sent: Timestamp(pong.ping_sent_ns),
            received_there: answered,
            answered_there: answered,
            received,
        });
    }
}

#[cfg(test)]
mod tests {
    use dunlin_transports::inmemory::{Faults, control_pair};
    use dunlin_transports::runtime::sync_channel;

    use super::*;
    use crate::protocol::MessageKind;
    use crate::telemetry::{End, Shelf, Track};

    /// The side that begins would be turned away if a PING went before its HELLO.
    #[test]
    fn nothing_goes_before_the_first_word() {
        let limit = Duration::from_secs(30);
        let (ours, mut theirs) = control_pair(Faults::new());
        let (sender, _events) = sync_channel::<LinkEvent>(4);
        let recorder = Shelf::new(End::Source).recorder(Track::Control);
        let link = Link::start(ours, Opening::Ours, limit, sender, recorder).unwrap();
        let heard = theirs
            .receiver
            .receive(frame_limit, Deadline::after(10 * FIRST_PING_INTERVAL));
        assert!(matches!(heard, Err(ControlError::TimedOut { .. })));
        // Once the peer has spoken, it is asked.
        let ping = Message::Ping(Ping { sent_ns: 1 }).to_frame();
        theirs.sender.send(&ping, Deadline::after(limit)).unwrap();
        let kinds: Vec<_> = (0..2)
            .map(|_| {
                theirs
                    .receiver
                    .receive(frame_limit, Deadline::after(limit))
                    .unwrap()
                    .kind
            })
            .collect();
        assert!(
            kinds.contains(&MessageKind::Ping.number()),
            "neither of {kinds:?} asks"
        );
        drop(link);
    }
}
