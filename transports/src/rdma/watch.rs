//! What ends every lane of an endpoint: a stop from this side, or an event of the device.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::connection::Connection;
use super::error::RdmaError;
use super::verbs::{Device, DeviceEvent};
use crate::deadline::Deadline;
use crate::lane::{LaneError, LaneNumber};

/// Waits until one of the descriptors is readable or the deadline has passed, whichever is first; a
/// signal may end the wait early.
pub(super) fn wait_readable<const N: usize>(
    descriptors: [BorrowedFd<'_>; N],
    until: Deadline,
) -> io::Result<()> {
    let mut polled =
        descriptors.map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN));
    let limit = Timespec::try_from(until.remaining()).map_err(io::Error::other)?;
    match poll(&mut polled, Some(&limit)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Watches over an endpoint's lanes.
pub(super) struct Watch {
    device: Arc<Device>,
    port: u8,
    /// Readable for good once anything has ended the lanes.
    alarm: OwnedFd,
    stopped: AtomicBool,
    trouble: OnceLock<DeviceEvent>,
    connections: Mutex<Vec<Weak<Connection>>>,
}

impl Watch {
    pub(super) fn new(device: &Arc<Device>, port: u8) -> io::Result<Self> {
        Ok(Self {
            device: Arc::clone(device),
            port,
            alarm: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            stopped: AtomicBool::new(false),
            trouble: OnceLock::new(),
            connections: Mutex::default(),
        })
    }

    /// The device's port that the endpoint's lanes use.
    pub(super) fn port(&self) -> u8 {
        self.port
    }

    fn raise_alarm(&self) {
        // Full means that it is readable already.
        let _ = rustix::io::write(&self.alarm, &1_u64.to_ne_bytes());
    }

    /// Adds a lane's connection; `false` once stopped.
    pub(super) fn add(&self, connection: &Arc<Connection>) -> bool {
        let mut connections = self
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        connections.retain(|connection| connection.strong_count() > 0);
        connections.push(Arc::downgrade(connection));
        // Behind the push: a stop that comes now finds the connection or shows here.
        !self.is_stopped()
    }

    /// The lanes' connections that are there.
    pub(super) fn connections(&self) -> Vec<Arc<Connection>> {
        let connections = self
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        connections.iter().filter_map(Weak::upgrade).collect()
    }

    /// Lets nothing go on: every wait ends, every lane's queue pair is ended. Returns the
    /// connections, for what else is to be done with them. The peer is told by `stop`, which takes
    /// the connection manager some milliseconds.
    pub(super) fn end_pairs(&self) -> Vec<Arc<Connection>> {
        self.stopped.store(true, Ordering::SeqCst);
        self.raise_alarm();
        let connections = self.connections();
        for connection in &connections {
            let _ = connection.end_pair();
        }
        connections
    }

    /// Lets nothing go on, and tells the peer.
    pub(super) fn stop(&self) {
        for connection in self.end_pairs() {
            connection.end();
        }
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Notes what the device said, if it ends lanes.
    pub(super) fn note(&self, event: DeviceEvent) {
        let is_trouble = match event {
            DeviceEvent::CompletionQueueError
            | DeviceEvent::QueuePairFatal
            | DeviceEvent::QueuePairRequestError
            | DeviceEvent::QueuePairAccessError
            | DeviceEvent::DeviceFatal => true,
            DeviceEvent::PortDown(port) => port == self.port,
            DeviceEvent::PortUp(_) | DeviceEvent::Other(_) => false,
        };
        if is_trouble && self.trouble.set(event).is_ok() {
            self.raise_alarm();
        }
    }

    /// Takes what the device has to say.
    pub(super) fn look(&self) {
        loop {
            match self.device.take_event() {
                Ok(Some(event)) => self.note(event),
                Ok(None) => break,
                // It has nobody behind it any more.
                Err(_) => {
                    self.note(DeviceEvent::DeviceFatal);
                    break;
                }
            }
        }
    }

    /// Why no lane may go on, if there is a reason.
    pub(super) fn ended(&self, lane: LaneNumber) -> Option<LaneError> {
        if self.is_stopped() {
            return Some(LaneError::Stopped(lane));
        }
        Some(self.trouble()?.on(lane, "using the device"))
    }

    /// What the device has said that ends lanes, if it did.
    pub(super) fn trouble(&self) -> Option<RdmaError> {
        let event = self.trouble.get()?;
        Some(match event {
            DeviceEvent::PortDown(port) => RdmaError::PortDown {
                device: self.device.name().to_owned(),
                port: *port,
            },
            event => RdmaError::Event {
                device: self.device.name().to_owned(),
                event: event.to_string(),
            },
        })
    }

    /// Waits for one of the descriptors, the alarm, or an event of the device.
    pub(super) fn wait(&self, others: [BorrowedFd<'_>; 2], until: Deadline) -> io::Result<()> {
        let [first, second] = others;
        let all = [first, second, self.alarm.as_fd(), self.device.events()];
        wait_readable(all, until)
    }
}
