//! The source's endpoint: registers what is sent, and connects lanes.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::connection::{Connection, Parts};
use super::error::RdmaError;
use super::grants::Grants;
use super::nearness::processors_near;
use super::registrations::{OpenRanges, Registrar};
use super::sending::SendingLane;
use super::setup::{CONNECT_TRIES, Role, Setup, next_event};
use super::verbs::{
    Access, ConnectionEvent, ConnectionId, Device, EventChannel, EventKind, Libraries,
    MemoryRegion, ProtectionDomain, RegisterError,
};
use super::watch::Watch;
use super::way::{RESOLVE_LIMIT_MS, Way, canonical};
use super::wire::{self, Refusal};
use super::{LinkLayer, Options};
use crate::deadline::Deadline;
use crate::lane::{
    self, Grant, LaneError, LaneNumber, LaneTicket, RegistrationCounters, SourceLane,
};
use crate::memory::{HostMapping, MemoryMap, OwnedMapping, PAGE_BYTES, PageNumber, Run};

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
    pub(super) grants: Grants,
    /// What may be sent from.
    pub(super) sent: OpenRanges,
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
    /// For its lanes; `None` once there will be none any more.
    zeros: Mutex<Option<Arc<MemoryRegion>>>,
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
        let mut access = Access::Send;
        if options.on_demand_paging {
            let lack = device.lacks_for_paging();
            if let Some(lack) = lack.map_err(failed("asking whether it can page on demand"))? {
                let device = device.name().to_owned();
                return Err(RdmaError::NoPagingOnDemand { device, lack });
            }
            access = Access::SendOnDemand;
        }
        let domain =
            ProtectionDomain::new(&device).map_err(failed("making a protection domain"))?;
        let zeros = zeros(&domain).map_err(failed("registering zeros"))?;
        let watch = Watch::new(&device, way.port).map_err(failed("watching it"))?;
        // One for both, so that what it counts is all that is pinned at a time.
        let registrar = Arc::new(Registrar::new(Arc::clone(&domain), memory));
        let offers = OpenRanges::new(Arc::clone(&registrar), Access::PeerReads);
        let shared = Shared {
            watch: Arc::new(watch),
            options,
            grants: Grants::default(),
            sent: OpenRanges::new(registrar, access),
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
            zeros: Mutex::new(Some(Arc::new(zeros))),
        })
    }

    fn zeros(&self) -> MutexGuard<'_, Option<Arc<MemoryRegion>>> {
        self.zeros.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn memory(&self) -> &MemoryMap {
        self.shared.sent.registrar().memory()
    }

    /// Connects, and shows the ticket.
    fn connect(
        &self,
        ticket: &LaneTicket,
        address: SocketAddr,
        deadline: Deadline,
    ) -> Result<Arc<Connection>, LaneError> {
        for _ in 1..CONNECT_TRIES {
            match self.try_to_connect(ticket, address, deadline) {
                Err(LaneError::Connect { source, .. })
                    if source.kind() == io::ErrorKind::AddrInUse && !deadline.passed() => {}
                connected => return connected,
            }
        }
        self.try_to_connect(ticket, address, deadline)
    }

    fn try_to_connect(
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
        let connected = id
            .connect(setup.parameters(&parts, &introduction))
            .map_err(unreachable)
            .and_then(|()| step("waiting to be let in", setup.answer()))
            .and_then(|()| setup.make_ready(&parts, &id, unreachable));
        let connected = match connected {
            Ok(connected) => connected,
            Err(error) => {
                setup.abandon(parts, id);
                return Err(error);
            }
        };
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

    /// Registers the range, to be sent from: this pins it, and makes present what was not, unless
    /// its pages are fetched on demand.
    fn prepare(&self, range: Run) -> Result<(), LaneError> {
        self.shared.sent.open(range).map(drop)
    }

    fn retire(&self, range: Run) -> Result<(), LaneError> {
        let retired = self.shared.sent.close(range);
        let is_prepared = !matches!(retired, Err(LaneError::NotPrepared { .. }));
        if is_prepared {
            self.shared.grants.forget(range);
        }
        // An offer of the same range ends with it, if there is one.
        match self.offers.close(range) {
            Err(LaneError::NotPrepared { .. }) => retired,
            offered if is_prepared => retired.and(offered),
            offered => offered,
        }
    }

    fn accept_grants(&self, grants: &[Grant]) -> Result<(), LaneError> {
        self.shared.grants.accept(self.memory(), grants, NO_LANE)
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
        let key = self.offers.open(range)?.encode();
        Ok(Grant { range, key })
    }

    fn has_registrations(&self) -> bool {
        true
    }

    fn registrations(&self) -> RegistrationCounters {
        self.shared.sent.registrar().counters()
    }

    fn near_cpus(&self) -> Vec<usize> {
        processors_near(self.device.name())
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
        let zeros = self.zeros().clone();
        let zeros = zeros.ok_or(LaneError::Stopped(ticket.number))?;
        let connection = self.connect(ticket, address, deadline)?;
        let shared = Arc::clone(&self.shared);
        Ok(Box::new(SendingLane::new(connection, shared, zeros)))
    }

    fn trouble(&self) -> Option<String> {
        let watch = &self.shared.watch;
        watch.look();
        watch.trouble().map(|trouble| trouble.to_string())
    }

    fn stop(&self) {
        self.shared.watch.stop();
    }

    fn retire_all(&self) {
        self.stop();
        self.shared.sent.close_all();
        self.offers.close_all();
        self.zeros().take();
    }
}

impl Drop for SourceEndpoint {
    fn drop(&mut self) {
        self.shared.watch.stop();
    }
}
