//! The destination's endpoint: opens memory to the source's writes, lets lanes in, and takes write
//! access away.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::connection::{Connection, Parts};
use super::error::RdmaError;
use super::grants::Grants;
use super::nearness::processors_near;
use super::receiving::ReceivingLane;
use super::registrations::{OpenRanges, Registrar};
use super::setup::{CONNECT_TRIES, Role, Setup, next_event};
use super::verbs::{
    Access, ConnectionId, Device, DeviceKind, EventChannel, EventKind, Libraries, ProtectionDomain,
};
use super::watch::Watch;
use super::way::{Way, canonical};
use super::wire::{self, Refusal};
use super::{LinkLayer, Options};
use crate::deadline::Deadline;
use crate::lane::{
    self, DestinationLane, Grant, LANES_MAX, LaneError, LaneNumber, LaneTicket, LaneToken,
    RegistrationCounters,
};
use crate::memory::{MemoryMap, Run};

/// The name of a lane where an endpoint's call concerns none.
const NO_LANE: LaneNumber = LaneNumber(0);

/// How many requests for connections wait in the kernel; those beyond are turned away there.
const BACKLOG: u16 = LANES_MAX;

/// For how long `revoke_all` looks whether the device is through with what had come before the queue
/// pairs were ended. By then it takes nothing new; a hardware device is through already, a software
/// device within the copying of one packet. One that is not by then ends the move, so the
/// limit is far beyond that, for hosts that do several things at once.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// For how long `revoke_all` lets words for fences that were seen go out before it ends the queue
/// pairs: the source may wait for them. A fabric's round trip takes some µs, a software device's in
/// an emulated machine some 100; a source that does not take its word by then does without. Over
/// iWARP they are out once TCP has them, which sends what it has before it ends a connection.
const WORDS_LIMIT: Duration = Duration::from_millis(2);

/// What an endpoint shares with its lanes.
pub(super) struct Shared {
    pub(super) watch: Arc<Watch>,
    pub(super) options: Options,
    pub(super) ranges: OpenRanges,
    pub(super) offers: Grants,
}

/// The destination's side of a session's lanes.
pub struct DestinationEndpoint {
    listener: ConnectionId,
    address: SocketAddr,
    device: Arc<Device>,
    link_layer: LinkLayer,
    domain: Arc<ProtectionDomain>,
    libraries: &'static Libraries,
    pub(super) shared: Arc<Shared>,
    used: Mutex<Vec<LaneToken>>,
    /// Over iWARP, whether memory was opened to the lanes.
    is_opened: Mutex<bool>,
}

impl DestinationEndpoint {
    /// An endpoint that listens for lanes at the address of `local`, where the control connection
    /// arrived. The system chooses the port, which `contact` names.
    ///
    /// # Errors
    ///
    /// When a library is missing, or no device has that address.
    pub fn new(local: SocketAddr, memory: MemoryMap, options: Options) -> Result<Self, RdmaError> {
        let libraries = Libraries::load()?;
        let no_manager = RdmaError::NoConnectionManager;
        let channel = EventChannel::new(libraries).map_err(no_manager)?;
        let mut address = canonical(local);
        address.set_port(0);
        let listen = || {
            let listener = ConnectionId::new(&channel).map_err(no_manager)?;
            let listening = listener.listen(address, BACKLOG);
            listening.map_err(|source| RdmaError::NoRoute { address, source })?;
            Ok(listener)
        };
        let mut listener = listen();
        for _ in 1..CONNECT_TRIES {
            match &listener {
                Err(RdmaError::NoRoute { source, .. })
                    if source.kind() == io::ErrorKind::AddrInUse =>
                {
                    listener = listen();
                }
                _ => break,
            }
        }
        let listener = listener?;
        let way = Way::of(libraries, &listener, address, &options)?;
        let (device, link_layer) = (way.device, way.link_layer);
        let failed = |doing| {
            let device = device.name().to_owned();
            move |source| RdmaError::Device {
                device,
                doing,
                source,
            }
        };
        let domain =
            ProtectionDomain::new(&device).map_err(failed("making a protection domain"))?;
        let watch = Watch::new(&device, way.port).map_err(failed("watching it"))?;
        let registrar = Arc::new(Registrar::new(Arc::clone(&domain), memory));
        address.set_port(listener.port());
        Ok(Self {
            listener,
            address,
            domain,
            libraries,
            shared: Arc::new(Shared {
                watch: Arc::new(watch),
                options,
                ranges: OpenRanges::new(registrar, Access::PeerWrites),
                offers: Grants::default(),
            }),
            device,
            link_layer,
            used: Mutex::default(),
            is_opened: Mutex::default(),
        })
    }

    /// Law 9 over iWARP, where a queue pair that is connected takes whatever the peer has a key for:
    /// memory is opened only while every lane that is here was confirmed, and once it is no lane is
    /// let in any more. So there is never a lane that nobody has vouched for beside memory that it
    /// could write. What is returned keeps the other of the two waiting.
    fn keep_apart(&self) -> Option<MutexGuard<'_, bool>> {
        let is_iwarp = self.device.kind() == DeviceKind::Iwarp;
        is_iwarp.then(|| {
            self.is_opened
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        })
    }

    /// Judges a request for a connection. Accepting uses the token up.
    fn judge(&self, shown: &[u8], tickets: &[LaneTicket]) -> Result<LaneNumber, Refusal> {
        let shown = wire::read_introduction(shown).ok_or(Refusal::Version)?;
        if !tickets.iter().any(|ticket| ticket.session == shown.session) {
            return Err(Refusal::Session);
        }
        let expected =
            |ticket: &&LaneTicket| ticket.session == shown.session && ticket.number == shown.number;
        let ticket = tickets.iter().find(expected).ok_or(Refusal::Lane)?;
        if !ticket.token.matches(&shown.token) {
            return Err(Refusal::Token);
        }
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.iter().any(|token| token.matches(&shown.token)) {
            return Err(Refusal::Token);
        }
        used.push(shown.token);
        Ok(ticket.number)
    }

    /// Connects a queue pair to the one that asks.
    fn admit(&self, lane: LaneNumber, id: ConnectionId) -> Result<Arc<Connection>, LaneError> {
        let is_opened = self.keep_apart();
        if is_opened.as_ref().is_some_and(|is_opened| **is_opened) {
            // The peer may have gone meanwhile; then nobody hears this.
            let _ = id.reject(&Refusal::Failed.encode());
            return Err(LaneError::Protocol {
                lane,
                violation: "it came when memory was open to the session's lanes already".to_owned(),
            });
        }
        let system = |doing| {
            move |source| LaneError::System {
                lane,
                doing,
                source,
            }
        };
        // Its events go to the lane, not to whoever waits for the next one.
        let channel = EventChannel::new(self.libraries).map_err(system("letting the lane in"))?;
        let id = id
            .move_to(&channel)
            .map_err(system("letting the lane in"))?;
        let setup = Setup {
            number: lane,
            role: Role::Destination,
            device: &self.device,
            port: self.shared.watch.port(),
            options: &self.shared.options,
            address: self.address,
        };
        let connected = Parts::new(&self.domain, ReceivingLane::REQUESTS)
            .map_err(system("making a queue pair"))
            .and_then(|parts| {
                setup.initialize(&parts, &id)?;
                let connected = setup.make_ready(&parts, &id, system("letting the lane in"))?;
                id.accept(setup.parameters(&parts, &[]))
                    .map_err(system("letting the lane in"))?;
                Ok((parts, connected))
            });
        let (parts, connected) = match connected {
            Ok(connected) => connected,
            Err(error) => {
                // The peer may have gone meanwhile; then nobody hears this.
                let _ = id.reject(&Refusal::Failed.encode());
                return Err(error);
            }
        };
        let watch = Arc::clone(&self.shared.watch);
        let connection = Connection::new(lane, parts, id, connected, watch);
        if !self.shared.watch.add(&connection) {
            return Err(LaneError::Stopped(lane));
        }
        Ok(connection)
    }
}

impl lane::DestinationEndpoint for DestinationEndpoint {
    fn transport(&self) -> &'static str {
        "rdma"
    }

    fn mechanism(&self) -> String {
        let (device, port) = (self.device.name(), self.shared.watch.port());
        format!("{device} port {port}, {}", self.link_layer)
    }

    /// Registers the range for the source's writes: this pins it. Several threads may prepare
    /// ranges that do not overlap, side by side.
    fn prepare(&self, range: Run) -> Result<Grant, LaneError> {
        if let Some(mut is_opened) = self.keep_apart() {
            let connections = self.shared.watch.connections();
            if let Some(stranger) = connections.iter().find(|lane| !lane.is_confirmed()) {
                return Err(LaneError::Protocol {
                    lane: stranger.number(),
                    violation: "memory was to be opened before it was confirmed".to_owned(),
                });
            }
            *is_opened = true;
        }
        let key = self.shared.ranges.open(range)?.encode();
        Ok(Grant { range, key })
    }

    /// Ends the registrations of a range, which has to consist of ranges as they were prepared: a
    /// registration can't be cut.
    fn retire(&self, range: Run) -> Result<(), LaneError> {
        self.shared.ranges.close(range)
    }

    fn contact(&self) -> Vec<u8> {
        wire::contact(self.address)
    }

    fn confirm(&self, lane: LaneNumber, identity: &[u8]) -> Result<(), LaneError> {
        let connections = self.shared.watch.connections();
        let connection = connections
            .iter()
            .find(|connection| connection.number() == lane);
        let Some(connection) = connection else {
            return Err(LaneError::Protocol {
                lane,
                violation: "it was named over control, and is not connected".to_owned(),
            });
        };
        if connection.identity() != identity {
            connection.end();
            return Err(LaneError::Protocol {
                lane,
                violation: "what is connected is not what the source named over control: somebody \
                            else may have taken its place"
                    .to_owned(),
            });
        }
        match connection.let_peer_write(self.device.kind()) {
            Ok(true) => Ok(()),
            Ok(false) => Err(LaneError::Protocol {
                lane,
                violation: "it was named over control twice".to_owned(),
            }),
            Err(source) => Err(LaneError::System {
                lane,
                doing: "opening memory to the lane",
                source,
            }),
        }
    }

    fn confirms_before_opening(&self) -> bool {
        self.device.kind() == DeviceKind::Iwarp
    }

    fn accept_offers(&self, offers: &[Grant]) -> Result<(), LaneError> {
        let memory = self.shared.ranges.registrar().memory();
        self.shared.offers.accept(memory, offers, NO_LANE)
    }

    fn has_registrations(&self) -> bool {
        true
    }

    fn registrations(&self) -> RegistrationCounters {
        self.shared.ranges.registrar().counters()
    }

    fn near_cpus(&self) -> Vec<usize> {
        processors_near(self.device.name())
    }

    fn accept_lane(
        &self,
        tickets: &[LaneTicket],
        deadline: Deadline,
    ) -> Result<Box<dyn DestinationLane>, LaneError> {
        let begun = Instant::now();
        let lane = tickets.first().map_or(NO_LANE, |ticket| ticket.number);
        loop {
            let channel = self.listener.channel();
            let watch = &self.shared.watch;
            let event = next_event(channel, watch, lane, "waiting for a lane", deadline)?;
            match event.kind {
                EventKind::Request => {
                    let Some(id) = event.request else { continue };
                    match self.judge(&event.private_data, tickets) {
                        Ok(number) => {
                            let connection = self.admit(number, id)?;
                            let shared = Arc::clone(&self.shared);
                            return Ok(Box::new(ReceivingLane::new(connection, shared)));
                        }
                        // Whoever asked may have gone meanwhile; then nobody hears this.
                        Err(refusal) => drop(id.reject(&refusal.encode())),
                    }
                }
                EventKind::DeviceRemoved => {
                    return Err(LaneError::System {
                        lane,
                        doing: "waiting for a lane",
                        source: io::Error::other("the RDMA device was removed"),
                    });
                }
                _ => {}
            }
            // Also where lanes that are turned away come without end.
            if deadline.passed() {
                return Err(LaneError::Stalled {
                    lane,
                    doing: "waiting for a lane",
                    waited: begun.elapsed(),
                });
            }
        }
    }

    /// Ends the queue pair of every lane. Memory stays registered, and pinned, until the endpoint is
    /// dropped, and the peer is told by `stop`: both take their time, and are for when the guest
    /// runs.
    fn revoke_all(&self) -> Result<(), LaneError> {
        self.shared.ranges.refuse_more();
        let wait = |limit, connections: &[Arc<Connection>], is_over: fn(&Connection) -> bool| {
            let limit = Deadline::after(limit);
            connections
                .iter()
                .find(|connection| {
                    while !is_over(connection) {
                        if limit.passed() {
                            return true;
                        }
                        std::thread::yield_now();
                    }
                    false
                })
                .map(|connection| connection.number())
        };
        let watch = &self.shared.watch;
        // Words that do not go out cost the source a wait, and nothing else.
        let _ = wait(WORDS_LIMIT, &watch.connections(), Connection::is_sent);
        let connections = watch.end_pairs();
        for connection in connections
            .iter()
            .filter(|connection| !connection.has_ended())
        {
            connection.end_pair().map_err(|source| LaneError::System {
                lane: connection.number(),
                doing: "taking the peer's write access away",
                source,
            })?;
        }
        if self.device.kind() == DeviceKind::Iwarp {
            // There is nothing to wait for. siw ends a pair under the lock that it writes under
            // (`siw_qp_llp_data_ready`, Linux, siw_qp.c), other drivers when the device has answered.
            // And siw never completes a receive that a lane posts meanwhile.
            return Ok(());
        }
        // From here on the devices take nothing; the wait is for what they had taken before.
        match wait(DRAIN_LIMIT, &connections, Connection::is_drained) {
            None => Ok(()),
            Some(lane) => Err(LaneError::Stalled {
                lane,
                doing: "waiting for the device to be through with what the peer wrote",
                waited: DRAIN_LIMIT,
            }),
        }
    }

    fn trouble(&self) -> Option<String> {
        let watch = &self.shared.watch;
        watch.look();
        watch.trouble().map(|trouble| trouble.to_string())
    }

    fn stop(&self) {
        self.shared.watch.stop();
    }
}

impl Drop for DestinationEndpoint {
    fn drop(&mut self) {
        self.shared.watch.stop();
    }
}
