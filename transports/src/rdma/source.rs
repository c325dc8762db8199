//! The source's endpoint: registers what is sent, and connects lanes.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use super::connection::{Connection, Parts};
use super::error::RdmaError;
use super::grants::Grants;
use super::registrations::{OpenRanges, Registrar, SentPieces};
use super::sending::SendingLane;
use super::setup::{RESOLVE_LIMIT_MS, Role, Setup, Way, canonical, next_event};
use super::verbs::{
    Access, ConnectionEvent, ConnectionId, Device, EventChannel, EventKind, Libraries,
    MemoryRegion, ProtectionDomain, RegisterError,
};
use super::watch::Watch;
use super::wire::{self, PeerKey, Refusal};
use super::{LinkLayer, Options};
use crate::deadline::Deadline;
use crate::lane::{
    self, Grant, LaneError, LaneNumber, LaneTicket, RegistrationCounters, SourceLane,
};
use crate::memory::{HostMapping, MemoryMap, OwnedMapping, PAGE_BYTES, PageNumber, Run};
use crate::ranges::PreparedRanges;

/// The name of a lane where an endpoint's call concerns none.
const NO_LANE: LaneNumber = LaneNumber(0);

/// How many zeros are registered, and so how many one request writes at most: 256 KiB, above what a
/// NIC needs for its full rate, and little to pin.
pub(super) const ZERO_PAGES: u32 = 64;

/// How long the way to the peer is looked for when an endpoint is made.
const FIND_LIMIT: Duration = Duration::from_secs(5);

/// rdma_cm's reason for a rejection by nobody: no one listens at that port (`enum ib_cm_rej_reason`,
/// invalid service id).
const REJECTED_NOBODY_LISTENS: i32 = 8;

/// What an endpoint shares with its lanes.
pub(super) struct Shared {
    pub(super) watch: Arc<Watch>,
    pub(super) options: Options,
    pub(super) prepared: RwLock<PreparedRanges>,
    pub(super) grants: Grants,
    pub(super) sent: SentPieces,
    pub(super) zeros: MemoryRegion,
}

impl Shared {
    /// The first of `runs` that is not ready on both sides.
    pub(super) fn first_unready(&self, runs: &[Run]) -> Option<Run> {
        let prepared = self.prepared.read().unwrap_or_else(PoisonError::into_inner);
        let is_ready = |run: &&Run| prepared.contains(**run) && self.grants.covers(**run);
        runs.iter().find(|run| !is_ready(run)).copied()
    }
}

/// The source's side of a session's lanes.
pub struct SourceEndpoint {
    control: SocketAddr,
    contact: Mutex<Option<SocketAddr>>,
    libraries: &'static Libraries,
    device: Arc<Device>,
    link_layer: LinkLayer,
    domain: Arc<ProtectionDomain>,
    pub(super) shared: Arc<Shared>,
    offers: OpenRanges,
}

impl SourceEndpoint {
    /// An endpoint for a destination that answered the control connection at `control`: its device
    /// is the one that leads there. Waits some seconds at most.
    ///
    /// # Errors
    ///
    /// When a library, a device or a way to that address is missing; the reason to take another
    /// transport.
    pub fn new(
        control: SocketAddr,
        memory: MemoryMap,
        options: Options,
    ) -> Result<Self, RdmaError> {
        let libraries = Libraries::load()?;
        let control = canonical(control);
        let way = Way::to(libraries, control, &options, Deadline::after(FIND_LIMIT))?;
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
        let zeros = zeros(&domain).map_err(failed("registering zeros"))?;
        let watch = Watch::new(&device, way.port).map_err(failed("watching it"))?;
        let registrar = || Registrar::new(Arc::clone(&domain), memory.clone());
        let offers = OpenRanges::new(registrar(), Access::PeerReads);
        let shared = Shared {
            watch: Arc::new(watch),
            options,
            prepared: RwLock::default(),
            grants: Grants::default(),
            sent: SentPieces::new(registrar()),
            zeros,
        };
        Ok(Self {
            control,
            contact: Mutex::default(),
            libraries,
            device,
            link_layer,
            domain,
            shared: Arc::new(shared),
            offers,
        })
    }

    fn memory(&self) -> &MemoryMap {
        self.shared.sent.registrar().memory()
    }

    fn check(&self, range: Run) -> Result<(), LaneError> {
        self.memory()
            .check(range)
            .map_err(|source| LaneError::Memory {
                lane: NO_LANE,
                source,
            })
    }

    /// Connects, and shows the ticket.
    fn connect(
        &self,
        ticket: &LaneTicket,
        address: SocketAddr,
        deadline: Deadline,
    ) -> Result<Arc<Connection>, LaneError> {
        let lane = ticket.number;
        let options = &self.shared.options;
        let watch = &self.shared.watch;
        let system = |doing| {
            move |source| LaneError::System {
                lane,
                doing,
                source,
            }
        };
        let unreachable = |source| LaneError::Connect {
            lane,
            peer: address.to_string(),
            source,
        };
        let channel = EventChannel::new(self.libraries)
            .map_err(|error| RdmaError::NoConnectionManager(error).on(lane, "connecting"))?;
        let id = ConnectionId::new(&channel).map_err(system("connecting"))?;
        if let Some(class) = options.tos {
            id.set_traffic_class(class)
                .map_err(system("setting the traffic class"))?;
        }
        let step = |doing, expected| {
            let event = next_event(&channel, watch, lane, doing, deadline)?;
            if event.kind == expected {
                return Ok(());
            }
            Err(refusal(lane, address, &event))
        };
        id.resolve_address(options.bind, address, RESOLVE_LIMIT_MS)
            .map_err(unreachable)?;
        step("looking for the peer's address", EventKind::AddressResolved)?;
        id.resolve_route(RESOLVE_LIMIT_MS).map_err(unreachable)?;
        step("looking for the way to the peer", EventKind::RouteResolved)?;

        let setup = Setup {
            number: lane,
            role: Role::Source,
            device: &self.device,
            port: watch.port(),
            options,
            address,
        };
        let parts = Parts::new(&self.domain, SendingLane::REQUESTS)
            .map_err(system("making a queue pair"))?;
        setup.initialize(&parts, &id)?;
        let introduction = wire::introduction(ticket);
        id.connect(setup.parameters(&parts, &introduction))
            .map_err(unreachable)?;
        step("waiting to be let in", EventKind::Response)?;
        let connected = setup.make_ready(&parts, &id)?;
        id.establish().map_err(unreachable)?;
        let connection = Connection::new(lane, parts, id, connected, Arc::clone(watch));
        if !watch.add(&connection) {
            return Err(LaneError::Stopped(lane));
        }
        Ok(connection)
    }
}

/// What an event means that came where another one was hoped for.
fn refusal(lane: LaneNumber, address: SocketAddr, event: &ConnectionEvent) -> LaneError {
    let source = match event.kind {
        EventKind::Rejected => match Refusal::read(&event.private_data) {
            Some(reason) => return LaneError::Refused { lane, reason },
            None if event.status == REJECTED_NOBODY_LISTENS => io::Error::new(
                io::ErrorKind::ConnectionRefused,
                "no lane is expected there",
            ),
            None => event.reason(),
        },
        EventKind::Disconnected => return LaneError::Closed(lane),
        _ => event.reason(),
    };
    LaneError::Connect {
        lane,
        peer: address.to_string(),
        source,
    }
}

/// A range of zeros, for pages that are put as zero.
fn zeros(domain: &Arc<ProtectionDomain>) -> io::Result<MemoryRegion> {
    let bytes = u64::from(ZERO_PAGES) * PAGE_BYTES;
    let mapping: Arc<dyn HostMapping> = Arc::new(OwnedMapping::new(bytes)?);
    let memory = MemoryMap::new(vec![mapping]).map_err(io::Error::other)?;
    let range = Run {
        first: PageNumber(0),
        pages: ZERO_PAGES,
    };
    MemoryRegion::register(domain, &memory, range, Access::Send).map_err(|error| match error {
        RegisterError::Memory(error) => io::Error::other(error),
        RegisterError::System(error) => error,
    })
}

impl lane::SourceEndpoint for SourceEndpoint {
    fn transport(&self) -> &'static str {
        "rdma"
    }

    fn mechanism(&self) -> String {
        let (device, port) = (self.device.name(), self.shared.watch.port());
        format!("{device} port {port}, {}", self.link_layer)
    }

    /// Permits sending from a range. It is registered when a put needs it, or by `warm`.
    fn prepare(&self, range: Run) -> Result<(), LaneError> {
        self.check(range)?;
        let prepared = self.shared.prepared.write();
        prepared
            .unwrap_or_else(PoisonError::into_inner)
            .insert(range);
        Ok(())
    }

    fn retire(&self, range: Run) -> Result<(), LaneError> {
        let prepared = self.shared.prepared.write();
        let was_prepared = prepared
            .unwrap_or_else(PoisonError::into_inner)
            .remove(range);
        // An offer of the same range ends with it, if there is one.
        let was_offered = self.offers.close(range).is_ok();
        self.shared.sent.end(range);
        if was_prepared || was_offered {
            return Ok(());
        }
        Err(LaneError::NotPrepared {
            lane: NO_LANE,
            run: range,
        })
    }

    fn accept_grants(&self, grants: &[Grant]) -> Result<(), LaneError> {
        self.shared.grants.accept(self.memory(), grants, NO_LANE)
    }

    fn warm(&self, range: Run) -> Result<(), LaneError> {
        self.check(range)?;
        let prepared = self.shared.prepared.read();
        let is_prepared = prepared
            .unwrap_or_else(PoisonError::into_inner)
            .contains(range);
        if !is_prepared {
            return Err(LaneError::NotPrepared {
                lane: NO_LANE,
                run: range,
            });
        }
        self.shared.sent.warm(range)
    }

    fn accept_contact(&self, contact: &[u8]) -> Result<(), LaneError> {
        let Some(address) = wire::read_contact(contact, self.control) else {
            return Err(LaneError::Protocol {
                lane: NO_LANE,
                violation: format!(
                    "a contact of {} bytes that is none of RDMA's",
                    contact.len()
                ),
            });
        };
        *self.contact.lock().unwrap_or_else(PoisonError::into_inner) = Some(address);
        Ok(())
    }

    fn offer(&self, range: Run) -> Result<Grant, LaneError> {
        let region = self.offers.open(range)?;
        let key = PeerKey {
            key: region.remote_key(),
            address: region.address(),
        };
        Ok(Grant {
            range,
            key: key.encode(),
        })
    }

    fn has_registrations(&self) -> bool {
        true
    }

    fn registrations(&self) -> RegistrationCounters {
        let sent = self.shared.sent.registrar().counters();
        let offered = self.offers.registrar().counters();
        RegistrationCounters {
            made: sent.made + offered.made,
            ended: sent.ended + offered.ended,
            bytes: sent.bytes + offered.bytes,
        }
    }

    fn open_lane(
        &self,
        ticket: &LaneTicket,
        deadline: Deadline,
    ) -> Result<Box<dyn SourceLane>, LaneError> {
        let contact = *self.contact.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(address) = contact else {
            return Err(LaneError::Protocol {
                lane: ticket.number,
                violation: "the destination has not said where its lanes listen".to_owned(),
            });
        };
        let connection = self.connect(ticket, address, deadline)?;
        let shared = Arc::clone(&self.shared);
        Ok(Box::new(SendingLane::new(connection, shared)))
    }

    fn stop(&self) {
        self.shared.watch.stop();
    }
}

impl Drop for SourceEndpoint {
    fn drop(&mut self) {
        self.shared.watch.stop();
    }
}
