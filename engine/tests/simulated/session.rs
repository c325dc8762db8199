//! Both sides of a move, on two threads, over the in-memory transport, with a watchdog.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dunlin_engine::destination::{
    Arrival, ReceiveError, ReceiveSettings, Received, read_hello, receive,
};
use dunlin_engine::guest::{Guest, GuestError};
use dunlin_engine::outside::Nothing;
use dunlin_engine::protocol::MessageKind;
use dunlin_engine::records::Role;
use dunlin_engine::report::{Outcome, Report};
use dunlin_engine::session::Decision;
use dunlin_engine::settings::{MoveHandle, MoveSettings};
use dunlin_engine::source::{Peer, migrate};
use dunlin_transports::control::ControlChannel;
use dunlin_transports::deadline::Deadline;
use dunlin_transports::inmemory::{Faults, Network, Passage, control_pair};
use dunlin_transports::lane::{DestinationEndpoint, SessionId};

use super::machine::{Hooks, Machine, Ownership, Room, Side, SimulatedGuest};
use super::records::{Asked, Person, Records, Supervisor};

/// How long either side may be silent. Short, so that a test of silence is; long enough for a host
/// that does several things at once.
pub(crate) const PEER_TIMEOUT: Duration = Duration::from_millis(500);

/// No scenario takes this long: past it, something waits without bound.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(25);

/// A move that is about to be made.
pub(crate) struct Session {
    /// The guest's home.
    pub(crate) source: Machine,
    /// The source's settings.
    pub(crate) settings: MoveSettings,
    /// The destination's settings.
    pub(crate) receive: ReceiveSettings,
    /// Steers the move.
    pub(crate) handle: Arc<MoveHandle>,
    /// The network's faults.
    pub(crate) faults: Arc<Faults>,
    /// What happens on the destination's machine.
    pub(crate) hooks: Hooks,
    /// Called before room is made for the guest.
    pub(crate) create: Option<Box<dyn FnOnce() -> Result<(), GuestError> + Send>>,
    /// The destination's machine, once it is made.
    pub(crate) destination: Arc<Mutex<Option<Machine>>>,
    /// The destination's records.
    pub(crate) records: Records,
    /// What a person decides, once these words are told while the owner is not known.
    pub(crate) decision: (&'static str, Option<Decision>),
}

/// What came of a move.
pub(crate) struct Ended {
    /// What the source tells.
    pub(crate) report: Report,
    /// What the destination says.
    pub(crate) received: ReceivedGuest,
    /// The guest's home.
    pub(crate) source: Machine,
    /// The destination's machine, where one was made.
    pub(crate) destination: Option<Machine>,
    /// What was asked of the source's journal.
    pub(crate) source_asked: Vec<Asked>,
    /// What was asked of the destination's.
    pub(crate) destination_asked: Vec<Asked>,
}

/// A session's id; another one each time.
pub(crate) fn session_id() -> SessionId {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut id = [0; 16];
    id[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::SeqCst).to_le_bytes());
    SessionId(id)
}

/// Settings for a short move over two lanes.
pub(crate) fn settings() -> MoveSettings {
    MoveSettings {
        // Every prediction is within it: a test of anything else than convergence takes one round.
        max_blackout: Duration::from_secs(3),
        blackout_cap: Some(Duration::from_secs(6)),
        lanes: Some(2),
        peer_timeout: PEER_TIMEOUT,
        ..MoveSettings::default()
    }
}

/// What a destination says in the end.
pub(crate) type ReceivedGuest = Result<Received<SimulatedGuest>, ReceiveError>;

/// What the source's side needs beside the guest.
pub(crate) struct Home {
    /// Its settings.
    pub(crate) settings: MoveSettings,
    /// Steers the move.
    pub(crate) handle: Arc<MoveHandle>,
    /// Its records.
    pub(crate) own: Records,
    /// Who is asked when the owner is not known.
    pub(crate) supervisor: Option<Records>,
    /// What a person decides then, once these words are told.
    pub(crate) decision: (&'static str, Option<Decision>),
}

/// Starts the engine's source on a thread of its own.
pub(crate) fn start_source(
    source: &Machine,
    control: ControlChannel,
    network: &Network,
    home: Home,
) -> Receiver<Report> {
    let (sender, report) = channel();
    let endpoint = network.source_endpoint(source.memory().lane_map().clone());
    let mut guest = source.guest();
    let identity = guest.offer().unwrap().identity;
    std::thread::spawn(move || {
        let session = session_id();
        let own = home.own;
        let peer = Peer {
            session,
            control,
            endpoint: Box::new(endpoint),
            journal: own.begin(Role::Source, identity.uuid, identity.epoch, session),
            reconnect: Box::new(Supervisor {
                session,
                records: home.supervisor,
            }),
            outside: Box::new(Nothing),
        };
        let (words, decision) = home.decision;
        let person = Person {
            handle: Arc::clone(&home.handle),
            words,
            decision,
        };
        let report = migrate(&mut guest, peer, &home.settings, &home.handle, &person);
        assert!(
            own.all().is_empty(),
            "a record without an end: {:?}",
            own.all()
        );
        let _ = sender.send(report);
    });
    report
}

/// Starts the engine's destination on a thread of its own.
pub(crate) fn start_destination(
    mut control: ControlChannel,
    network: Network,
    mut room: Room,
    settings: ReceiveSettings,
    records: Records,
) -> Receiver<ReceivedGuest> {
    let (sender, received) = channel();
    let receive_it = move || {
        let deadline = Deadline::after(settings.peer_timeout);
        let (hello, _) = read_hello(&mut control, deadline)?;
        let identity = hello.offer().identity.clone();
        let (uuid, epoch) = (identity.uuid, identity.epoch);
        let journal = records.begin(Role::Destination, uuid, epoch, hello.session());
        let endpoint = Box::new(move |memory| -> Result<Box<dyn DestinationEndpoint>, _> {
            Ok(Box::new(network.destination_endpoint(memory)))
        });
        let arrival = Arrival {
            control,
            hello,
            factory: &mut room,
            endpoint,
            journal,
            outside: Box::new(Nothing),
        };
        receive(arrival, &settings)
    };
    std::thread::spawn(move || {
        let _ = sender.send(receive_it());
    });
    received
}

impl Session {
    /// A move of a guest with regions of so many pages each; `hooks` are the source's.
    pub(crate) fn new(region_pages: &[u64], hooks: Hooks) -> Self {
        let ownership = Arc::new(Ownership::default());
        Self::of(Machine::new(Side::Source, &ownership, region_pages, hooks))
    }

    /// A move of a guest that exists, on fresh connections.
    pub(crate) fn of(source: Machine) -> Self {
        let settings = settings();
        Self {
            source,
            handle: Arc::new(MoveHandle::new(&settings)),
            settings,
            receive: ReceiveSettings {
                peer_timeout: PEER_TIMEOUT,
                ..ReceiveSettings::default()
            },
            faults: Faults::new(),
            hooks: Hooks::default(),
            create: None,
            destination: Arc::default(),
            records: Records::new(),
            decision: ("", None),
        }
    }

    /// Changes the source's settings.
    pub(crate) fn set(&mut self, change: impl FnOnce(&mut MoveSettings)) {
        change(&mut self.settings);
        self.handle = Arc::new(MoveHandle::new(&self.settings));
    }

    /// Does something when a control message of a kind is about to be sent.
    pub(crate) fn at(&self, kind: MessageKind, act: impl Fn(&Faults) + Send + Sync + 'static) {
        let faults = Arc::downgrade(&self.faults);
        self.faults.watch(move |passage: Passage| {
            if passage.control_kind == Some(kind.number())
                && let Some(faults) = faults.upgrade()
            {
                act(&faults);
            }
        });
    }

    /// Makes the move, to its end on both sides.
    pub(crate) fn run(self) -> Ended {
        let Self {
            source,
            settings,
            receive: receive_settings,
            handle,
            faults,
            hooks,
            create,
            destination,
            records,
            decision,
        } = self;
        let (source_control, destination_control) = control_pair(Arc::clone(&faults));
        let network = Network::new(faults);
        let (own, asked) = (Records::new(), Arc::clone(&records.asked));
        let home = Home {
            own: own.clone(),
            settings,
            handle,
            supervisor: Some(records.clone()),
            decision,
        };
        let report = start_source(&source, source_control, &network, home);
        let room = Room {
            ownership: Arc::clone(source.ownership()),
            hooks: Some(hooks),
            create,
            made: Arc::clone(&destination),
        };
        let received = start_destination(
            destination_control,
            network,
            room,
            receive_settings,
            records,
        );
        let report = report
            .recv_timeout(WATCHDOG)
            .expect("the source hangs or panicked");
        let received = received.recv_timeout(WATCHDOG);
        let received = received.expect("the destination hangs or panicked");
        let made = destination.lock().unwrap().take();
        let ended = Ended {
            report,
            received,
            source,
            destination: made,
            source_asked: own.asked.lock().unwrap().clone(),
            destination_asked: asked.lock().unwrap().clone(),
        };
        ended.check();
        ended
    }
}

impl Ended {
    /// What holds for every move, whatever happens: one owner at most, and both sides say what is.
    fn check(&self) {
        let told = format!("{:?}: {:?}", self.report.outcome, self.report.reason);
        let ownership = self.source.ownership();
        assert!(!ownership.both_ran(), "both ran the guest; {told}");
        let here = ownership.runs(Side::Source);
        let there = ownership.runs(Side::Destination);
        match self.report.outcome {
            Outcome::Moved | Outcome::MovedUnverified => {
                assert!(!here && there, "moved, but it does not run there; {told}");
            }
            Outcome::DiscardedByHand => assert!(!here, "discarded, but it runs here; {told}"),
            _ => assert!(here && !there, "it should have stayed; {told}"),
        }
        assert_eq!(
            there,
            self.received.is_ok(),
            "the destination's word is wrong; {told}"
        );
        if self.report.outcome != Outcome::Moved {
            let reason = self.report.reason.as_deref().unwrap_or_default();
            assert!(!reason.is_empty(), "no reason is told; {told}");
        }
        if !there && let Some(destination) = &self.destination {
            assert!(destination.is_discarded(), "not discarded; {told}");
        }
    }

    /// The destination's machine.
    pub(crate) fn destination(&self) -> &Machine {
        self.destination.as_ref().expect("no guest was made")
    }

    /// Asserts that the guest moved, with all of its memory.
    pub(crate) fn assert_moved(&self) {
        assert_eq!(
            self.report.outcome,
            Outcome::Moved,
            "{:?}; the destination: {:?}",
            self.report.reason,
            self.received.as_ref().err()
        );
        let different = self.source.differences(self.destination());
        assert!(different.is_empty(), "pages differ: {different:?}");
        assert_eq!(self.destination().epoch(), self.source.epoch() + 1);
    }

    /// Asserts that the guest stayed for this reason, runs, and can be moved all the same now: on
    /// fresh connections, without the hooks that the first move had.
    pub(crate) fn assert_stayed(&self, outcome: Outcome) {
        assert_eq!(self.report.outcome, outcome, "{:?}", self.report.reason);
        self.source.disarm();
        Session::of(self.source.clone()).run().assert_moved();
    }

    /// Asserts that the reason that is told has these words in it.
    pub(crate) fn assert_reason(&self, words: &str) {
        let reason = self.report.reason.as_deref().unwrap_or_default();
        assert!(reason.contains(words), "'{words}' is not in '{reason}'");
    }
}
