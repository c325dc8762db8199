//! One side of a session, played by the test itself: a source or a destination that may say anything.

use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dunlin_engine::clock::Timestamp;
use dunlin_engine::destination::ReceiveSettings;
use dunlin_engine::protocol::{
    Counts, Grants, Hello, Message, MessageKind, Pong, Prepare, Ready, Running, VERSION_MAX,
    VERSION_MIN, Welcome, WireHost, WireLayout, capability, frame_limit,
};
use dunlin_engine::report::Report;
use dunlin_engine::session::Decision;
use dunlin_engine::settings::{MoveHandle, MoveSettings};
use dunlin_engine::state::{DeviceState, Section};
use dunlin_transports::control::{ControlChannel, ControlError, Frame};
use dunlin_transports::deadline::Deadline;
use dunlin_transports::inmemory::{self, Faults, Network, control_pair};
use dunlin_transports::lane::{
    DestinationEndpoint, DestinationLane, LaneNumber, LaneTicket, LaneToken, SessionId,
    SourceEndpoint, SourceLane,
};

use super::machine::{Hooks, Machine, Ownership, Room, Side};
use super::records::Records;
use super::session::{
    Home, PEER_TIMEOUT, ReceivedGuest, WATCHDOG, session_id, start_destination, start_source,
};

/// A side that says what the test wants.
pub(crate) struct ByHand {
    /// The connection.
    pub(crate) control: ControlChannel,
}

impl ByHand {
    /// Speaks on this connection.
    pub(crate) fn new(control: ControlChannel) -> Self {
        Self { control }
    }

    /// Says something. `false` when nobody listens any more.
    pub(crate) fn say(&mut self, message: &Message) -> bool {
        self.say_frame(&message.to_frame())
    }

    /// Says whatever bytes.
    pub(crate) fn say_frame(&mut self, frame: &Frame) -> bool {
        let deadline = Deadline::after(Duration::from_secs(5));
        self.control.sender.send(frame, deadline).is_ok()
    }

    /// The next message that is no PING or PONG, within five seconds; answers PINGs meanwhile.
    /// `None` when the connection is over or nothing came.
    pub(crate) fn hear(&mut self) -> Option<Message> {
        self.hear_by(Deadline::after(Duration::from_secs(5))).ok()
    }

    /// As `hear`, by a deadline, and why nothing came.
    pub(crate) fn hear_by(&mut self, deadline: Deadline) -> Result<Message, ControlError> {
        loop {
            let frame = self.control.receiver.receive(frame_limit, deadline)?;
            match Message::from_frame(&frame).expect("the engine sent what is no message") {
                Message::Ping(ping) => {
                    self.say(&Message::Pong(Pong {
                        ping_sent_ns: ping.sent_ns,
                        answered_ns: Timestamp::now().0,
                    }));
                }
                Message::Pong(_) => {}
                message => return Ok(message),
            }
        }
    }

    /// Waits for a message of a kind, and returns it.
    pub(crate) fn expect(&mut self, kind: MessageKind) -> Message {
        let heard = self.hear();
        match heard {
            Some(message) if message.kind() == kind => message,
            other => panic!("expected {kind:?}, heard {other:?}"),
        }
    }

    /// Ends the connection.
    pub(crate) fn hang_up(&mut self) {
        // One that leads nowhere takes its place; dropping a connection closes it.
        self.control = control_pair(Faults::new()).0;
    }

    /// Listens, and answers PINGs, until the other side says its last word or hangs up; what it said
    /// meanwhile. Fails when it does neither.
    pub(crate) fn hear_out(&mut self) -> Vec<Message> {
        let mut heard = Vec::new();
        let deadline = Deadline::after(Duration::from_secs(10));
        loop {
            match self.hear_by(deadline) {
                Ok(message) => {
                    let is_last = matches!(message, Message::Refused(_) | Message::Aborted(_));
                    heard.push(message);
                    if is_last {
                        // It waits for this side to have read it.
                        self.hang_up();
                    }
                }
                Err(ControlError::TimedOut { .. }) => panic!("the other side never hangs up"),
                Err(_) => return heard,
            }
        }
    }
}

/// A source played by the test, and the engine's destination.
pub(crate) struct SourceByHand {
    /// What the source says.
    pub(crate) by_hand: ByHand,
    /// The source's guest, as far as it has one: its memory.
    pub(crate) machine: Machine,
    /// Opens lanes.
    pub(crate) endpoint: inmemory::SourceEndpoint,
    /// The lanes' tickets, once there was a WELCOME.
    pub(crate) tickets: Vec<LaneTicket>,
    /// The network's faults.
    pub(crate) faults: Arc<Faults>,
    session: SessionId,
    received: Receiver<ReceivedGuest>,
    made: Arc<Mutex<Option<Machine>>>,
}

impl SourceByHand {
    /// A destination that waits for HELLO.
    pub(crate) fn new(region_pages: &[u64]) -> Self {
        Self::with(region_pages, Hooks::default(), |_| ())
    }

    /// As `new`, with the destination's hooks and settings.
    pub(crate) fn with(
        region_pages: &[u64],
        hooks: Hooks,
        change: impl FnOnce(&mut ReceiveSettings),
    ) -> Self {
        let ownership = Arc::new(Ownership::default());
        let machine = Machine::new(Side::Source, &ownership, region_pages, Hooks::default());
        // This source's guest does not run: what is asked here is what the destination does.
        machine.stand_still();
        let faults = Faults::new();
        let (control, there) = control_pair(Arc::clone(&faults));
        let network = Network::new(Arc::clone(&faults));
        let endpoint = network.source_endpoint(machine.memory().lane_map().clone());
        let made = Arc::new(Mutex::new(None));
        let room = Room {
            ownership,
            hooks: Some(hooks),
            create: None,
            made: Arc::clone(&made),
        };
        let mut settings = ReceiveSettings {
            peer_timeout: PEER_TIMEOUT,
            ..ReceiveSettings::default()
        };
        change(&mut settings);
        Self {
            by_hand: ByHand::new(control),
            machine,
            endpoint,
            tickets: Vec::new(),
            faults,
            session: session_id(),
            received: start_destination(there, network, room, settings, Records::new()),
            made,
        }
    }

    /// A HELLO that is in order.
    pub(crate) fn good_hello(&self, lanes: u16) -> Hello {
        let offer = self.machine.offer();
        Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            capabilities: capability::ALL,
            session: self.session.0.into(),
            uuid: offer.identity.uuid.into_bytes().into(),
            name: offer.identity.name.clone(),
            epoch: offer.identity.epoch,
            kind: offer.kind.clone(),
            vcpus: offer.vcpus,
            layout: WireLayout::new(&offer.layout),
            configuration: offer.configuration.encode().unwrap().into(),
            lanes,
            transport: "in-memory".to_owned(),
            host: WireHost::default(),
            peer_timeout_ms: 500,
        }
    }

    /// Says HELLO.
    pub(crate) fn hello(&mut self, lanes: u16) {
        let hello = self.good_hello(lanes);
        self.by_hand.say(&Message::Hello(Box::new(hello)));
    }

    /// Waits for WELCOME and opens the lanes.
    pub(crate) fn welcomed(&mut self) -> Vec<Box<dyn SourceLane>> {
        let Message::Welcome(welcome) = self.by_hand.expect(MessageKind::Welcome) else {
            panic!("not WELCOME");
        };
        self.endpoint
            .accept_grants(&welcome.grants.to_grants().unwrap())
            .unwrap();
        self.endpoint
            .accept_contact(welcome.contact().unwrap())
            .unwrap();
        for range in self.machine.memory().lane_map().whole() {
            self.endpoint.prepare(range).unwrap();
        }
        self.tickets = welcome.tickets(self.session, 64).unwrap();
        let deadline = Deadline::after(Duration::from_secs(5));
        let open = |ticket| self.endpoint.open_lane(ticket, deadline).unwrap();
        self.tickets.iter().map(open).collect()
    }

    /// Says PREPARE, with a state that loads.
    pub(crate) fn prepare(&mut self, fences: Vec<u64>, payload_bytes: u64) {
        let message = Message::Prepare(good_prepare(fences, payload_bytes));
        self.by_hand.say(&message);
    }

    /// The destination's machine.
    pub(crate) fn destination(&self) -> Machine {
        self.made
            .lock()
            .unwrap()
            .clone()
            .expect("no guest was made")
    }

    /// Whether a guest was made.
    pub(crate) fn has_made(&self) -> bool {
        self.made.lock().unwrap().is_some()
    }

    /// What the destination says in the end.
    pub(crate) fn ended(&self) -> ReceivedGuest {
        let ended = self.received.recv_timeout(WATCHDOG);
        ended.expect("the destination hangs or panicked")
    }
}

/// A PREPARE with a state that loads.
pub(crate) fn good_prepare(fences: Vec<u64>, payload_bytes: u64) -> Prepare {
    let mut section = Section::new("writer", 1);
    section.put_u64(1, 1);
    let mut state = DeviceState::new();
    state.push(section);
    Prepare {
        fences,
        counts: Counts {
            payload_bytes,
            zero_pages: 0,
        },
        digests: Vec::new(),
        state: state.encode().unwrap().into(),
        blackout_cap_ns: 200_000_000,
    }
}

/// A destination played by the test, and the engine's source.
pub(crate) struct DestinationByHand {
    /// What the destination says.
    pub(crate) by_hand: ByHand,
    /// The guest's home.
    pub(crate) machine: Machine,
    /// Steers the move.
    pub(crate) handle: Arc<MoveHandle>,
    /// The network's faults.
    pub(crate) faults: Arc<Faults>,
    endpoint: inmemory::DestinationEndpoint,
    there: Machine,
    report: Receiver<Report>,
}

impl DestinationByHand {
    /// A source that says HELLO.
    pub(crate) fn new(region_pages: &[u64], change: impl FnOnce(&mut MoveSettings)) -> Self {
        let ownership = Arc::new(Ownership::default());
        let machine = Machine::new(Side::Source, &ownership, region_pages, Hooks::default());
        let there = Machine::new(
            Side::Destination,
            &ownership,
            region_pages,
            Hooks::default(),
        );
        let faults = Faults::new();
        let (here, control) = control_pair(Arc::clone(&faults));
        let network = Network::new(Arc::clone(&faults));
        let endpoint = network.destination_endpoint(there.memory().lane_map().clone());
        let mut settings = super::session::settings();
        change(&mut settings);
        let handle = Arc::new(MoveHandle::new(&settings));
        machine.write_all(0..8, 1);
        Self {
            by_hand: ByHand::new(control),
            report: start_source(
                &machine,
                here,
                &network,
                Home {
                    settings,
                    own: Records::new(),
                    handle: Arc::clone(&handle),
                    supervisor: None,
                    decision: ("", Some(Decision::DiscardHere)),
                },
            ),
            machine,
            handle,
            faults,
            endpoint,
            there,
        }
    }

    /// Waits for HELLO.
    pub(crate) fn hello(&mut self) -> Hello {
        match self.by_hand.expect(MessageKind::Hello) {
            Message::Hello(hello) => *hello,
            other => panic!("{other:?}"),
        }
    }

    /// A WELCOME that is in order.
    pub(crate) fn good_welcome(&self, lanes: u8) -> Welcome {
        let ranges = self.there.memory().lane_map().whole();
        let grants: Vec<_> = ranges
            .into_iter()
            .map(|range| self.endpoint.prepare(range).unwrap())
            .collect();
        Welcome {
            version: VERSION_MAX,
            capabilities: capability::ALL & !capability::PREFAULT,
            tokens: (0..lanes).map(|lane| [lane; 32].into()).collect(),
            grants: Grants::new(&grants),
            host: WireHost::default(),
            mechanism: "by hand".to_owned(),
            contact: Some(self.endpoint.contact())
                .filter(|contact| !contact.is_empty())
                .map(Into::into),
            pin_budget_bytes: None,
            costs: None,
        }
    }

    /// Says WELCOME to two lanes and lets them in; takes what they carry.
    pub(crate) fn welcome(&mut self, hello: &Hello) {
        self.welcome_with(hello, |_| ());
    }

    /// As `welcome`, with something changed.
    pub(crate) fn welcome_with(&mut self, hello: &Hello, change: impl FnOnce(&mut Welcome)) {
        let mut welcome = self.good_welcome(2);
        change(&mut welcome);
        self.by_hand.say(&Message::Welcome(welcome));
        let ticket = |lane: u8| LaneTicket {
            session: hello.session_id(),
            number: LaneNumber(u16::from(lane)),
            token: LaneToken([lane; 32]),
        };
        let tickets = [ticket(0), ticket(1)];
        let soon = Deadline::after(Duration::from_secs(5));
        for _ in 0..2 {
            let mut lane: Box<dyn DestinationLane> =
                self.endpoint.accept_lane(&tickets, soon).unwrap();
            std::thread::spawn(
                move || {
                    while lane.next_fence(Deadline::after(WATCHDOG)).is_ok() {}
                },
            );
        }
    }

    /// Goes on up to PREPARE.
    pub(crate) fn prepared(&mut self) -> Prepare {
        let hello = self.hello();
        self.welcome(&hello);
        match self.by_hand.expect(MessageKind::Prepare) {
            Message::Prepare(prepare) => prepare,
            other => panic!("{other:?}"),
        }
    }

    /// Goes on up to COMMIT.
    pub(crate) fn committed(&mut self) {
        self.prepared();
        self.by_hand.say(&Message::Ready(Ready::default()));
        self.by_hand.expect(MessageKind::Commit);
    }

    /// Goes on until the source takes the guest for moved.
    pub(crate) fn moved(&mut self) {
        self.committed();
        self.by_hand.say(&Message::Running(Running::default()));
    }

    /// What the source tells in the end.
    pub(crate) fn ended(&self) -> Report {
        let ended = self.report.recv_timeout(WATCHDOG);
        ended.expect("the source hangs or panicked")
    }
}
