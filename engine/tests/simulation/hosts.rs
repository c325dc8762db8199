//! What runs on the two hosts: the source's VMM with its guest, the supervisor on the destination,
//! and the VMM that it starts for a guest that comes. All of a move that they do is the engine's.

use std::sync::{Arc, Mutex};

use dunlin_engine::destination::{
    Arrival, Hello, ReceiveError, Received, answer_doubt, read_hello, receive, refuse,
};
use dunlin_engine::guest::{Guest, GuestError};
use dunlin_engine::milestone::Milestone;
use dunlin_engine::outside::{Outside, ReleaseReason};
use dunlin_engine::records::{JournalError, Role, Subject};
use dunlin_engine::report::{Outcome, Progress, Report};
use dunlin_engine::settings::{MoveHandle, MoveSettings};
use dunlin_engine::source::{MoveObserver, Peer, Reconnect, migrate};
use dunlin_transports::control::{ControlChannel, ControlError};
use dunlin_transports::deadline::Deadline;
use dunlin_transports::lane::DestinationEndpoint;
use dunlin_transports::runtime::{self, Receiver, Sender, channel, spawn};

use super::disk::Book;
use super::faults::Who;
use super::guest::{Machine, Room, SimulatedGuest};
use super::ledger::Side;
use super::network::{Incoming, Purpose};
use super::plan::{Plan, blackout_cap};
use super::stage::{Call, Moment, Stage};

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

/// Tells a client of the move, who may be gone, and the stage.
struct Client {
    told: Mutex<Sender<String>>,
    stage: Stage,
}

impl MoveObserver for Client {
    fn progress(&self, progress: &Progress) {
        self.note(&format!("round {}", progress.round));
    }

    fn note(&self, note: &str) {
        // Sending may pass the baton on: not with the lock held.
        let sender = self.told.lock().unwrap().clone();
        let _ = sender.send(note.to_owned());
    }

    fn in_doubt(&self, reason: &str) {
        self.stage.world().note(|| format!("in doubt: {reason}"));
        self.note(reason);
    }

    fn reached(&self, milestone: Milestone) {
        match milestone {
            // The cap holds up to here.
            Milestone::GivenUp => self.stage.ledger().limit_pause(None),
            Milestone::InDoubt => self.stage.in_doubt(),
            _ => {}
        }
        self.stage.passes(Moment::Reaches(milestone));
    }
}

/// Reaches the supervisor again.
struct Again(Stage);

impl Reconnect for Again {
    fn reconnect(&mut self, deadline: Deadline) -> Result<ControlChannel, ControlError> {
        let process = self.0.alive(Who::Source).ok_or(ControlError::Stopped)?;
        let connected = self.0.wire().connect(process, Purpose::Settle, deadline);
        connected.map(|(control, _)| control)
    }
}

/// What the guest holds outside, as the ledger knows it.
struct Holdings(Stage, Side);

impl Outside for Holdings {
    fn acquire(&mut self, _deadline: Deadline) -> Result<(), GuestError> {
        let Self(stage, side) = self;
        stage.called(*side, Call::Acquire);
        if let Some(words) = stage.take_failure(*side, Call::Acquire) {
            return Err(GuestError::message(words));
        }
        stage.ledger().hold(*side, true);
        Ok(())
    }

    fn release(&mut self, _reason: ReleaseReason) -> Result<(), GuestError> {
        self.0.ledger().hold(self.1, false);
        Ok(())
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
        let guest = machine.guest();
        self.stage.show_source(&machine);
        machine.start();
        runtime::sleep(plan.run_up);
        self.run_move(guest, told, &plan.settings);
    }

    /// Moves a guest that stayed once more, now that nothing is wrong; `false` where it is gone.
    pub(crate) fn start_again(&self) -> bool {
        let mut results = self.results.lock().unwrap();
        let guest = results.kept.take();
        let (Some(guest), Some(process)) = (guest, self.stage.alive(Who::Source)) else {
            return false;
        };
        *results = Results::default();
        drop(results);
        *self.made.lock().unwrap() = None;
        self.stage.world().note(|| "once more".to_owned());
        let settings = self.plan.lenient();
        self.stage.ledger().begin_another(blackout_cap(&settings));
        let handle = MoveHandle::new(&settings);
        self.stage.begin_another(Arc::new(handle));
        let hosts = self.clone();
        let (told, _) = channel();
        let work = move || hosts.run_move(guest, told, &settings);
        let world = self.stage.world();
        world.spawn_in(process, "move", work).unwrap();
        true
    }

    fn run_move(&self, mut guest: SimulatedGuest, told: Sender<String>, settings: &MoveSettings) {
        let client = Client {
            told: Mutex::new(told),
            stage: self.stage.clone(),
        };
        let report = self.send_away(&mut guest, client, settings);
        self.stage.world().note(|| match &report {
            Some(report) => format!("source: {:?}, {:?}", report.outcome, report.reason),
            None => "source: nobody was reached".to_owned(),
        });
        let is_away =
            |report: &Report| report.outcome.moved() || report.outcome == Outcome::DiscardedByHand;
        let is_moved = report.as_ref().is_some_and(is_away);
        let mut results = self.results.lock().unwrap();
        results.report = report;
        if !is_moved {
            results.kept = Some(guest);
        }
        drop(results);
        self.stage.done(Side::Source);
    }

    fn send_away(
        &self,
        guest: &mut SimulatedGuest,
        client: Client,
        settings: &MoveSettings,
    ) -> Option<Report> {
        let process = self.stage.alive(Who::Source)?;
        let deadline = Deadline::after(settings.peer_timeout);
        let connected = self.stage.wire().connect(process, Purpose::Move, deadline);
        let (control, network) = connected.ok()?;
        let journal = self.begin_record(Role::Source, guest).ok()?;
        let lanes = guest.machine().memory().lane_map().clone();
        let peer = Peer {
            session: self.stage.session(),
            control,
            endpoint: Box::new(network.source_endpoint(lanes)),
            journal: Box::new(journal),
            reconnect: Box::new(Again(self.stage.clone())),
            outside: Box::new(Holdings(self.stage.clone(), Side::Source)),
        };
        let handle = self.stage.handle();
        Some(migrate(guest, peer, settings, &handle, &client))
    }

    fn begin_record(&self, role: Role, guest: &SimulatedGuest) -> Result<Book, JournalError> {
        let identity = Guest::offer(guest).unwrap().identity;
        self.begin(role, identity.uuid, identity.epoch)
    }

    fn begin(&self, role: Role, uuid: uuid::Uuid, epoch: u64) -> Result<Book, JournalError> {
        let subject = Subject {
            uuid,
            name: "simulated".to_owned(),
            epoch,
            session: self.stage.session(),
            role,
            peer: "the other one".to_owned(),
        };
        let side = match role {
            Role::Source => Side::Source,
            Role::Destination => Side::Destination,
        };
        self.stage.disk(side).begin(&subject, &self.stage)
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
                    Purpose::Settle => hosts.answer(incoming),
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
        let work = move || hosts.run_destination(incoming, hello);
        let world = self.stage.world();
        world.spawn_in(process, "receive", work).unwrap();
    }

    /// Answers a source in doubt from the records.
    fn answer(&self, incoming: Incoming) {
        let disk = self.stage.disk(Side::Destination);
        let limit = self.plan.receive.peer_timeout;
        let asked = answer_doubt(incoming.control, self.stage.session(), disk, limit);
        self.stage.world().note(|| format!("supervisor: {asked:?}"));
    }

    fn run_destination(&self, incoming: Incoming, hello: Hello) {
        let Incoming {
            mut control,
            network,
            ..
        } = incoming;
        let identity = hello.offer().identity.clone();
        let begun = self.begin(Role::Destination, identity.uuid, identity.epoch);
        let arrived = match begun {
            Err(error) => {
                refuse(&mut control, &error.to_string());
                Err(ReceiveError::Refused(error.to_string()))
            }
            Ok(journal) => {
                let endpoint = Box::new(move |memory| -> Result<Box<dyn DestinationEndpoint>, _> {
                    Ok(Box::new(network.destination_endpoint(memory)))
                });
                let mut room = Room {
                    shape: self.plan.shape.clone(),
                    stage: self.stage.clone(),
                    ledger: self.stage.ledger().clone(),
                    made: Arc::clone(&self.made),
                };
                let arrival = Arrival {
                    control,
                    hello,
                    factory: &mut room,
                    endpoint,
                    journal: Box::new(journal),
                    outside: Box::new(Holdings(self.stage.clone(), Side::Destination)),
                };
                receive(arrival, &self.plan.receive)
            }
        };
        self.stage.world().note(|| match &arrived {
            Ok(received) => format!("destination: epoch {} is here", received.epoch),
            Err(error) => format!("destination: {error}"),
        });
        self.results.lock().unwrap().arrived = Some(arrived);
        self.stage.done(Side::Destination);
    }
}
