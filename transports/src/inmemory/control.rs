//! The control channel in memory.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::faults::{Faults, Place};
use super::wire::{self, Message, Way, WireEnd, WireError};
use crate::control::{
    ControlChannel, ControlError, ControlReceiver, ControlSender, ControlStopper, Frame, FrameLimit,
};
use crate::deadline::Deadline;
use crate::runtime;

struct Stopper {
    faults: Arc<Faults>,
    stopped: AtomicBool,
    queues: Mutex<Vec<u64>>,
}

impl ControlStopper for Stopper {
    fn stop(&self) {
        wire::stop(&self.faults, &self.stopped, &self.queues);
    }
}

struct Sender {
    end: WireEnd,
    stopper: Arc<Stopper>,
}

struct Receiver {
    end: WireEnd,
    stopper: Arc<Stopper>,
}

fn control_error(error: WireError, doing: &'static str, begun: Instant) -> ControlError {
    match error {
        WireError::Closed => ControlError::Closed,
        WireError::Stopped => ControlError::Stopped,
        WireError::TimedOut => ControlError::TimedOut {
            doing,
            waited: runtime::elapsed(begun),
        },
    }
}

impl ControlSender for Sender {
    fn send(&mut self, frame: &Frame, deadline: Deadline) -> Result<(), ControlError> {
        let begun = runtime::now();
        let frame = frame.clone();
        self.end
            .send(
                Message::Control { frame },
                Some(deadline),
                &self.stopper.stopped,
            )
            .map_err(|error| control_error(error, "sending a message", begun))
    }
}

impl ControlReceiver for Receiver {
    fn receive(&mut self, limit: FrameLimit, deadline: Deadline) -> Result<Frame, ControlError> {
        let begun = runtime::now();
        let message = self
            .end
            .receive(deadline, &self.stopper.stopped)
            .map_err(|error| control_error(error, "waiting for a message", begun))?;
        let Message::Control { frame } = message else {
            return Err(ControlError::Closed);
        };
        let most = limit(frame.kind).ok_or(ControlError::UnknownKind(frame.kind))?;
        if frame.payload.len() as u64 > u64::from(most) {
            return Err(ControlError::TooLong {
                kind: frame.kind,
                bytes: frame.payload.len() as u64,
                limit: most,
            });
        }
        Ok(frame)
    }
}

/// A control channel: the source's end, then the destination's.
pub fn control_pair(faults: Arc<Faults>) -> (ControlChannel, ControlChannel) {
    let (to_destination, from_source) =
        wire::open(&faults, Place::ControlToDestination, Way::ToDestination);
    let (to_source, from_destination) = wire::open(&faults, Place::ControlToSource, Way::ToSource);
    let channel = |outgoing: WireEnd, incoming: WireEnd| {
        let stopper = Arc::new(Stopper {
            faults: Arc::clone(&faults),
            stopped: AtomicBool::new(false),
            queues: Mutex::new(vec![outgoing.queue(), incoming.queue()]),
        });
        ControlChannel {
            sender: Box::new(Sender {
                end: outgoing,
                stopper: Arc::clone(&stopper),
            }),
            receiver: Box::new(Receiver {
                end: incoming,
                stopper: Arc::clone(&stopper),
            }),
            stopper,
        }
    };
    (
        channel(to_destination, from_destination),
        channel(to_source, from_source),
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(10))
    }

    fn frame(kind: u16, bytes: usize) -> Frame {
        Frame {
            kind,
            payload: vec![7; bytes],
        }
    }

    fn limit(kind: u16) -> Option<u32> {
        (kind == 1).then_some(16)
    }

    #[test]
    fn frames_pass_both_ways_within_their_limits() {
        let (mut source, mut destination) = control_pair(Faults::new());
        source.sender.send(&frame(1, 3), soon()).unwrap();
        destination.sender.send(&frame(1, 4), soon()).unwrap();
        assert_eq!(
            destination.receiver.receive(limit, soon()).unwrap(),
            frame(1, 3)
        );
        assert_eq!(source.receiver.receive(limit, soon()).unwrap(), frame(1, 4));

        source.sender.send(&frame(1, 17), soon()).unwrap();
        assert!(matches!(
            destination.receiver.receive(limit, soon()),
            Err(ControlError::TooLong {
                bytes: 17,
                limit: 16,
                ..
            })
        ));
        source.sender.send(&frame(2, 0), soon()).unwrap();
        assert!(matches!(
            destination.receiver.receive(limit, soon()),
            Err(ControlError::UnknownKind(2))
        ));
    }

    #[test]
    fn silence_keeps_the_connection_and_a_cut_ends_it() {
        let faults = Faults::new();
        let (mut source, mut destination) = control_pair(Arc::clone(&faults));
        faults.silence(Place::ControlToDestination);
        source.sender.send(&frame(1, 3), soon()).unwrap();
        let short = Deadline::after(Duration::from_millis(20));
        assert!(matches!(
            destination.receiver.receive(limit, short),
            Err(ControlError::TimedOut { .. })
        ));
        faults.end_silence(Place::ControlToDestination);
        assert_eq!(
            destination.receiver.receive(limit, soon()).unwrap(),
            frame(1, 3)
        );

        faults.cut_after(Place::Control, 5);
        source.sender.send(&frame(1, 3), soon()).unwrap();
        assert!(matches!(
            source.sender.send(&frame(1, 3), soon()),
            Err(ControlError::Closed)
        ));
        assert_eq!(
            destination.receiver.receive(limit, soon()).unwrap(),
            frame(1, 3)
        );
        assert!(matches!(
            destination.receiver.receive(limit, soon()),
            Err(ControlError::Closed)
        ));
        assert!(matches!(
            source.receiver.receive(limit, soon()),
            Err(ControlError::Closed)
        ));
    }

    #[test]
    fn a_byte_is_flipped_where_ordered() {
        let faults = Faults::new();
        let (mut source, mut destination) = control_pair(Arc::clone(&faults));
        faults.corrupt(Place::ControlToDestination, 1, 2);
        for _ in 0..3 {
            source.sender.send(&frame(1, 3), soon()).unwrap();
        }
        let received: Vec<_> = (0..3)
            .map(|_| destination.receiver.receive(limit, soon()).unwrap().payload)
            .collect();
        assert_eq!(received, [vec![7; 3], vec![7, 7, 7 ^ 0xff], vec![7; 3]]);
        assert_eq!(faults.messages(Place::Control), 3);
        assert_eq!(faults.bytes(Place::ControlToDestination), 9);
    }

    #[test]
    fn stop_ends_a_wait() {
        let (source, _destination) = control_pair(Faults::new());
        let ControlChannel {
            mut receiver,
            stopper,
            ..
        } = source;
        let waiter = std::thread::spawn(move || receiver.receive(limit, soon()));
        stopper.stop();
        assert!(matches!(waiter.join().unwrap(), Err(ControlError::Stopped)));
    }
}
