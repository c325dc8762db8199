//! The network between the two hosts: connections to the supervisor, and what becomes of them when
//! a process at an end of them dies or the network is cut in two.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dunlin_engine::protocol::MessageKind;
use dunlin_transports::control::{ControlChannel, ControlError};
use dunlin_transports::deadline::Deadline;
use dunlin_transports::inmemory::{Faults, Network, Passage, Place, control_pair};
use dunlin_transports::lane::LaneNumber;
use dunlin_transports::runtime::{self, Monitor, simulation::ProcessId};

/// How often a connection that nobody answers is tried again (a SYN, in a network of its own time).
const SYN_INTERVAL: Duration = Duration::from_millis(50);

/// What a connection is made for, as its preamble says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A move.
    Move,
    /// Asking what became of one.
    Settle,
}

/// A connection that the supervisor has not taken yet.
pub(crate) struct Incoming {
    /// What it is for.
    pub(crate) purpose: Purpose,
    /// The destination's end.
    pub(crate) control: ControlChannel,
    /// Where its lanes come from.
    pub(crate) network: Network,
    /// Which connection it is, for [`Wire::hand_over`].
    pub(crate) number: usize,
}

struct Connection {
    faults: Arc<Faults>,
    /// The process at the source's end, and the one at the destination's.
    ends: [ProcessId; 2],
}

/// Who listens.
#[derive(Default)]
struct Listener {
    process: Option<ProcessId>,
    backlog: VecDeque<Incoming>,
}

#[derive(Default)]
struct Conditions {
    /// What is silent: nothing gets through there.
    silent: Vec<Place>,
    /// How long a message takes.
    latency: Duration,
    /// How much longer on each lane: they may take different ways.
    lanes: Vec<Duration>,
    /// Whether both sides register memory.
    registers: bool,
    connections: Vec<Connection>,
}

type Watch = Arc<dyn Fn(Passage, Option<MessageKind>) + Send + Sync>;

/// The network between the hosts. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Wire {
    conditions: Arc<Mutex<Conditions>>,
    listener: Arc<Monitor<Listener>>,
    watch: Arc<Mutex<Option<Watch>>>,
}

impl Wire {
    /// A network in which a message takes `latency`, and longer by so much on each lane; and devices
    /// at both ends that register memory, if it `registers`.
    pub(crate) fn new(latency: Duration, lanes: &[Duration], registers: bool) -> Self {
        let conditions = Conditions {
            latency,
            lanes: lanes.to_vec(),
            registers,
            ..Conditions::default()
        };
        Self {
            conditions: Arc::new(Mutex::new(conditions)),
            listener: Arc::default(),
            watch: Arc::default(),
        }
    }

    fn conditions(&self) -> MutexGuard<'_, Conditions> {
        self.conditions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `watch` for each message that is about to be sent on any connection made from now on.
    pub(crate) fn watch(&self, watch: Watch) {
        *self.watch.lock().unwrap() = Some(watch);
    }

    // ---- connecting ----

    /// Connects a process to the supervisor.
    pub(crate) fn connect(
        &self,
        process: ProcessId,
        purpose: Purpose,
        deadline: Deadline,
    ) -> Result<(ControlChannel, Network), ControlError> {
        let unreachable = |kind: std::io::ErrorKind| ControlError::Connect {
            peer: "the destination".to_owned(),
            source: kind.into(),
        };
        let latency = self.conditions().latency;
        runtime::sleep(2 * latency);
        while !self.conditions().silent.is_empty() {
            if deadline.passed() {
                return Err(unreachable(std::io::ErrorKind::TimedOut));
            }
            runtime::sleep(SYN_INTERVAL.min(deadline.remaining()));
        }
        let mut listener = self.listener.lock();
        let Some(supervisor) = listener.process else {
            return Err(unreachable(std::io::ErrorKind::ConnectionRefused));
        };
        let faults = Faults::new();
        faults.delay(Place::All, latency);
        if self.conditions().registers {
            faults.register_memory();
        }
        for (lane, longer) in (0..).map(LaneNumber).zip(&self.conditions().lanes) {
            faults.delay(Place::Lane(lane), latency + *longer);
        }
        if let Some(watch) = self.watch.lock().unwrap().clone() {
            faults.watch(move |passage| {
                let kind = passage.control_kind.and_then(MessageKind::from_number);
                watch(passage, kind);
            });
        }
        let (ours, theirs) = control_pair(Arc::clone(&faults));
        let network = Network::new(Arc::clone(&faults));
        let mut conditions = self.conditions();
        conditions.connections.push(Connection {
            faults,
            ends: [process, supervisor],
        });
        listener.backlog.push_back(Incoming {
            purpose,
            control: theirs,
            network: network.clone(),
            number: conditions.connections.len() - 1,
        });
        drop((conditions, listener));
        self.listener.notify_all();
        Ok((ours, network))
    }

    /// Lets a process listen.
    pub(crate) fn listen(&self, process: ProcessId) {
        self.listener.lock().process = Some(process);
    }

    /// Waits for the next connection.
    pub(crate) fn accept(&self) -> Incoming {
        let mut listener = self.listener.lock();
        loop {
            match listener.backlog.pop_front() {
                Some(incoming) => return incoming,
                None => listener = self.listener.wait(listener),
            }
        }
    }

    /// A connection's end on the destination is another process's from now on.
    pub(crate) fn hand_over(&self, number: usize, process: ProcessId) {
        if let Some(connection) = self.conditions().connections.get_mut(number) {
            connection.ends[1] = process;
        }
    }

    // ---- what befalls it ----

    /// A process died: its kernel closes its connections, and nobody listens for it any more.
    pub(crate) fn hang_up(&self, process: ProcessId) {
        self.close_listener(process);
        for faults in self.of(process) {
            faults.cut_after(Place::All, 0);
        }
    }

    /// A host died: nobody closes anything. What it sent already arrives.
    pub(crate) fn fall_silent(&self, process: ProcessId) {
        self.close_listener(process);
        for faults in self.of(process) {
            faults.silence(Place::All);
        }
    }

    /// A host is back: whoever still has a connection to what ran there is told that there is none.
    pub(crate) fn reset(&self, is_dead: impl Fn(ProcessId) -> bool) {
        let conditions = self.conditions();
        let connections = conditions.connections.iter();
        let broken =
            connections.filter(|connection| connection.ends.iter().any(|end| is_dead(*end)));
        let broken: Vec<_> = broken
            .map(|connection| Arc::clone(&connection.faults))
            .collect();
        drop(conditions);
        for faults in broken {
            faults.lose_in_flight(Place::All);
            faults.end_silence(Place::All);
            faults.cut_after(Place::All, 0);
        }
    }

    fn close_listener(&self, process: ProcessId) {
        let mut listener = self.listener.lock();
        if listener.process == Some(process) {
            listener.process = None;
            // Dropped behind the lock: each is an end of a connection.
            let backlog = std::mem::take(&mut listener.backlog);
            drop(listener);
            drop(backlog);
        }
    }

    fn of(&self, process: ProcessId) -> Vec<Arc<Faults>> {
        let conditions = self.conditions();
        let connections = conditions.connections.iter();
        let of_process = connections.filter(|connection| connection.ends.contains(&process));
        of_process
            .map(|connection| Arc::clone(&connection.faults))
            .collect()
    }

    /// Every connection's faults.
    pub(crate) fn all(&self) -> Vec<Arc<Faults>> {
        let conditions = self.conditions();
        let connections = conditions.connections.iter();
        connections
            .map(|connection| Arc::clone(&connection.faults))
            .collect()
    }

    /// Nothing gets through at a place, on every connection, and no new one is made.
    pub(crate) fn silence(&self, place: Place) {
        self.conditions().silent.push(place);
        for faults in self.all() {
            faults.silence(place);
        }
    }

    /// What was silenced is heard again.
    pub(crate) fn end_silence(&self, place: Place) {
        let mut conditions = self.conditions();
        let silent = conditions.silent.iter().position(|other| *other == place);
        if let Some(silent) = silent {
            conditions.silent.remove(silent);
        }
        let is_over = !conditions.silent.contains(&place);
        drop(conditions);
        for faults in self.all().iter().filter(|_| is_over) {
            faults.end_silence(place);
        }
    }

    /// Messages take at least so long at a place, on every connection there is.
    pub(crate) fn delay(&self, place: Place, by: Duration) {
        for faults in self.all() {
            faults.delay(place, by);
        }
    }

    /// Messages take as long as ever at a place.
    pub(crate) fn end_delay(&self, place: Place) {
        let conditions = self.conditions();
        let longer = match place {
            Place::Lane(lane) => conditions.lanes.get(usize::from(lane.0)).copied(),
            _ => None,
        };
        let latency = conditions.latency + longer.unwrap_or_default();
        drop(conditions);
        self.delay(place, latency);
    }
}
