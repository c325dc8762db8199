//! What runs on the two hosts: the source's VMM with its guest, the supervisor on the destination,
//! and the VMM that it starts for a guest that comes. All of a move that they do is the engine's.

use std::sync::{Arc, Mutex};

use dunlin_engine::destination::{ReceiveError, Received, read_hello, receive};
use dunlin_engine::report::{Progress, Report};
use dunlin_engine::source::{MoveObserver, Peer, migrate};
use dunlin_transports::deadline::Deadline;
use dunlin_transports::lane::{DestinationEndpoint, SessionId};
use dunlin_transports::runtime::{self, Receiver, Sender, channel, spawn};

use super::faults::Who;
use super::guest::{Machine, Room, SimulatedGuest};
use super::ledger::Side;
use super::network::{Incoming, Purpose};
use super::plan::Plan;
use super::stage::Stage;

/// The session's id.
const SESSION: SessionId = SessionId([5; 16]);

/// What came of a guest that was sent.
pub(crate) type Arrived = Result<Received<SimulatedGuest>, ReceiveError>;

/// What the scenario sees of it all.
#[derive(Default)]
pub(crate) struct Results {
    /// What the source told.
    pub(crate) report: Option<Report>,
    /// The source's guest, as long as its process keeps it.
    pub(crate) kept: Option<SimulatedGuest>,
    /// What came of it on the destination.
    pub(crate) arrived: Option<Arrived>,
}

/// Both hosts. Clones are the same ones.
#[derive(Clone)]
pub(crate) struct Hosts {
    /// Where it happens.
    pub(crate) stage: Stage,
    /// What the seed says.
    pub(crate) plan: Arc<Plan>,
    /// What came of it.
    pub(crate) results: Arc<Mutex<Results>>,
    /// The machine that was made on the destination.
    pub(crate) made: Arc<Mutex<Option<Machine>>>,
}

/// Tells a client of the move, who may be gone.
struct Client(Mutex<Sender<String>>);

impl MoveObserver for Client {
    fn progress(&self, progress: &Progress) {
        self.note(&format!("round {}", progress.round));
    }

    fn note(&self, note: &str) {
        // Sending may pass the baton on: not with the lock held.
        let sender = self.0.lock().unwrap().clone();
        let _ = sender.send(note.to_owned());
    }
}

impl Hosts {
    // ---- the source ----

    /// Starts the VMM with its guest, which is moved once it has run for a while.
    pub(crate) fn start_source(&self) {
        let (told, hears) = channel::<String>();
        let send = self.stage.add_process(Who::Send);
        let world = self.stage.world();
        let client = move |hears: Receiver<String>| while hears.recv().is_ok() {};
        world.spawn_in(send, "send", move || client(hears)).unwrap();
        let hosts = self.clone();
        let process = self.stage.add_process(Who::Source);
        let work = move || hosts.run_source(told);
        world.spawn_in(process, "move", work).unwrap();
    }

    fn run_source(&self, told: Sender<String>) {
        let plan = &self.plan;
        let machine = Machine::new(Side::Source, &plan.shape, &self.stage, self.stage.ledger());
        let mut guest = machine.guest();
        machine.start();
        runtime::sleep(plan.run_up);
        let report = self.send_away(&mut guest, Client(Mutex::new(told)));
        self.stage.world().note(|| match &report {
            Some(report) => format!("source: {:?}, {:?}", report.outcome, report.reason),
            None => "source: nobody was reached".to_owned(),
        });
        let is_moved = report.as_ref().is_some_and(|report| report.outcome.moved());
        let mut results = self.results.lock().unwrap();
        results.report = report;
        if !is_moved {
            results.kept = Some(guest);
        }
        drop(results);
        self.stage.done(Side::Source);
    }

    fn send_away(&self, guest: &mut SimulatedGuest, client: Client) -> Option<Report> {
        let process = self.stage.alive(Who::Source)?;
        let deadline = Deadline::after(self.plan.settings.peer_timeout);
        let connected = self.stage.wire().connect(process, Purpose::Move, deadline);
        let (control, network) = connected.ok()?;
        let lanes = guest.machine().memory().lane_map().clone();
        let peer = Peer {
            session: SESSION,
            control,
            endpoint: Box::new(network.source_endpoint(lanes)),
        };
        let (settings, handle) = (&self.plan.settings, self.stage.handle());
        Some(migrate(guest, peer, settings, handle, &client))
    }

    // ---- the destination ----

    /// Starts the supervisor, at first or again.
    pub(crate) fn start_supervisor(&self) {
        let process = self.stage.add_process(Who::Supervisor);
        self.stage.wire().listen(process);
        let hosts = self.clone();
        let work = move || {
            loop {
                let incoming = hosts.stage.wire().accept();
                let hosts = hosts.clone();
                let admit = move || match incoming.purpose {
                    Purpose::Move => hosts.admit(incoming),
                    Purpose::Settle => {}
                };
                spawn("connection", admit).unwrap();
            }
        };
        let world = self.stage.world();
        world.spawn_in(process, "supervisor", work).unwrap();
    }

    /// Reads HELLO, and starts a VMM for the guest.
    fn admit(&self, mut incoming: Incoming) {
        let deadline = Deadline::after(self.plan.receive.peer_timeout);
        let hello = match read_hello(&mut incoming.control, deadline) {
            Ok((hello, _)) => hello,
            Err(error) => {
                self.stage.world().note(|| format!("supervisor: {error}"));
                return;
            }
        };
        let process = self.stage.add_process(Who::Destination);
        self.stage.wire().hand_over(incoming.number, process);
        let hosts = self.clone();
        let Incoming {
            control, network, ..
        } = incoming;
        let work = move || {
            let endpoint = Box::new(move |memory| -> Result<Box<dyn DestinationEndpoint>, _> {
                Ok(Box::new(network.destination_endpoint(memory)))
            });
            let mut room = Room {
                shape: hosts.plan.shape.clone(),
                stage: hosts.stage.clone(),
                ledger: hosts.stage.ledger().clone(),
                made: Arc::clone(&hosts.made),
            };
            let arrived = receive(control, hello, &mut room, endpoint, &hosts.plan.receive);
            hosts.stage.world().note(|| match &arrived {
                Ok(received) => format!("destination: epoch {} is here", received.epoch),
                Err(error) => format!("destination: {error}"),
            });
            hosts.results.lock().unwrap().arrived = Some(arrived);
            hosts.stage.done(Side::Destination);
        };
        let world = self.stage.world();
        world.spawn_in(process, "receive", work).unwrap();
    }
}
