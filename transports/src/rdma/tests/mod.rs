//! Peers that break the protocol, for which the lane traits are not enough: these tests give the
//! device requests of their own. They need an RDMA device; without one each says so.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::connection::Connection;
use super::verbs::{
    Completion, CompletionStatus, DeviceKind, LocalPiece, Request, RequestList, Transfer,
};
use super::{DestinationEndpoint, DeviceAddress, Options, RdmaError, SourceEndpoint};
use crate::conformance::Pinned;
use crate::deadline::Deadline;
use crate::lane::{
    self, DestinationEndpoint as _, DestinationLane, LaneNumber, LaneTicket, LaneToken, SessionId,
    SourceEndpoint as _, SourceLane,
};
use crate::memory::{HostMapping, MemoryMap, OwnedMapping, PAGE_BYTES, PageNumber, Run};

mod devices;
mod events;
mod messages;
mod reaching;

/// For what should happen: long, so that a slow machine fails nothing.
const PATIENCE: Duration = Duration::from_secs(30);

const NUMBER: LaneNumber = LaneNumber(3);

fn soon() -> Deadline {
    Deadline::after(PATIENCE)
}

fn run(first: u64, pages: u32) -> Run {
    Run {
        first: PageNumber(first),
        pages,
    }
}

fn memory(pages: u64, byte: u8) -> MemoryMap {
    let mapping: Arc<dyn HostMapping> = Arc::new(OwnedMapping::new(pages * PAGE_BYTES).unwrap());
    let memory = MemoryMap::new(vec![mapping]).unwrap();
    let bytes = vec![byte; (pages * PAGE_BYTES) as usize];
    memory.copy_in(run(0, pages as u32), &bytes).unwrap();
    memory
}

fn bytes(memory: &MemoryMap) -> Vec<u8> {
    let mut bytes = vec![0; (memory.page_span() * PAGE_BYTES) as usize];
    let whole = run(0, memory.page_span() as u32);
    memory.copy_out(whole, &mut bytes).unwrap();
    bytes
}

/// One lane between two endpoints of this process.
struct Session {
    source: SourceEndpoint,
    destination: DestinationEndpoint,
    source_memory: MemoryMap,
    destination_memory: MemoryMap,
    source_lane: Box<dyn SourceLane>,
    destination_lane: Box<dyn DestinationLane>,
}

const PAGES: u32 = 64;

/// The device whose IPv4 address the environment names, else one of this host; says so if there is
/// none.
fn device() -> Option<DeviceAddress> {
    let found = super::addresses().ok().unwrap_or_default();
    if found.is_empty() {
        println!("skipped: no RDMA device");
    }
    let named = std::env::var("RDMA_IPV4_A").unwrap_or_default();
    let named = named.parse::<IpAddr>().ok();
    let is_named = |device: &&DeviceAddress| Some(device.address) == named;
    found.iter().find(is_named).or(found.first()).cloned()
}

impl Session {
    /// A session whose lane is open and not confirmed; `None` without a device.
    fn unconfirmed() -> Option<Self> {
        Some(Self::at(device()?.address))
    }

    /// A session with all memory prepared and granted.
    fn new() -> Option<Self> {
        let session = Self::unconfirmed()?;
        let identity = session.source_lane.identity();
        session.destination.confirm(NUMBER, &identity).unwrap();
        if session.is_iwarp() {
            session.open_memory();
        }
        Some(session)
    }

    /// Lets the source write all of the destination's memory.
    fn open_memory(&self) {
        let grant = self.destination.prepare(run(0, PAGES)).unwrap();
        self.source.accept_grants(&[grant]).unwrap();
    }

    fn is_iwarp(&self) -> bool {
        let domain = self.source.shared.sent.registrar().domain();
        domain.device().kind() == DeviceKind::Iwarp
    }

    fn at(address: IpAddr) -> Self {
        Self::with(address, Options::default()).unwrap()
    }

    /// An error where the device has not what the options ask for.
    fn with(address: IpAddr, options: Options) -> Result<Self, RdmaError> {
        let (source_memory, destination_memory) =
            (memory(PAGES.into(), 1), memory(PAGES.into(), 2));
        let control = SocketAddr::new(address, 7471);
        let destination =
            DestinationEndpoint::new(control, destination_memory.clone(), options.clone()).unwrap();
        let source = SourceEndpoint::new(control, source_memory.clone(), options)?;
        source.accept_contact(&destination.contact()).unwrap();
        source.prepare(run(0, PAGES)).unwrap();
        let ticket = LaneTicket {
            session: SessionId([1; 16]),
            number: NUMBER,
            token: LaneToken([2; 32]),
        };
        let (source_lane, destination_lane) = std::thread::scope(|scope| {
            let accepting = scope.spawn(|| {
                let tickets = std::slice::from_ref(&ticket);
                destination.accept_lane(tickets, soon()).unwrap()
            });
            let opened = source.open_lane(&ticket, soon()).unwrap();
            (opened, accepting.join().unwrap())
        });
        let session = Self {
            source,
            destination,
            source_memory,
            destination_memory,
            source_lane,
            destination_lane,
        };
        // Over iWARP that is not to be had before the lane is confirmed.
        if !session.is_iwarp() {
            session.open_memory();
        }
        Ok(session)
    }

    fn source_end(&self) -> Arc<Connection> {
        self.source.shared.watch.connections().pop().unwrap()
    }

    fn destination_end(&self) -> Arc<Connection> {
        self.destination.shared.watch.connections().pop().unwrap()
    }

    /// The source's memory, as its own requests name it.
    fn own_piece(&self, bytes: u32) -> LocalPiece {
        let view = self.source.shared.sent.view();
        let region = view.region(PageNumber(0)).unwrap();
        LocalPiece {
            address: region.address(),
            bytes,
            key: region.local_key(),
        }
    }

    /// Address and key of the destination's memory.
    fn target(&self) -> (u64, u32) {
        let view = self.destination.shared.ranges.view();
        let region = view.region(PageNumber(0)).unwrap();
        (region.address(), region.remote_key())
    }

    fn assert_untouched(&self) {
        assert!(
            bytes(&self.destination_memory)
                .iter()
                .all(|byte| *byte == 2)
        );
    }
}

/// Posts requests past all bookkeeping.
fn post(end: &Connection, transfers: &[Transfer]) {
    assert!(try_to_post(end, transfers), "they were not taken");
}

/// The same, where the pair may have failed; says whether it took them.
fn try_to_post(end: &Connection, transfers: &[Transfer]) -> bool {
    let mut list = RequestList::new(transfers.len());
    for (id, transfer) in transfers.iter().enumerate() {
        list.push(Request {
            id: id as u64,
            transfer: *transfer,
            signalled: true,
        });
    }
    end.pair().post(&mut list).is_ok()
}

/// The ends of so many requests; panics if they don't come.
fn completions(end: &Connection, count: usize) -> Vec<Completion> {
    let mut all = Vec::new();
    let deadline = soon();
    while all.len() < count {
        assert!(!deadline.passed(), "{} of {count} completed", all.len());
        end.poll_sends(|completion| all.push(completion)).unwrap();
        std::thread::yield_now();
    }
    all
}

/// The end of one request. `None` where the connection ended without it: siw says nothing of what is
/// posted to a pair that has failed already.
fn completion(end: &Connection) -> Option<CompletionStatus> {
    let deadline = soon();
    loop {
        let has_ended = end.look().is_some();
        let mut status = None;
        end.poll_sends(|completion| status = status.or(Some(completion.status)))
            .unwrap();
        if status.is_some() || has_ended {
            return status;
        }
        assert!(!deadline.passed(), "it neither completes nor ends");
        std::thread::yield_now();
    }
}

/// Waits until this end knows that its connection is over.
fn await_end(end: &Connection) {
    let deadline = soon();
    while end.look().is_none() {
        assert!(!deadline.passed(), "the connection goes on");
        std::thread::yield_now();
    }
}

/// Posts one request and sees that the peer's device refuses it; returns how.
fn refused(end: &Connection, transfer: Transfer) -> CompletionStatus {
    post(end, &[transfer]);
    let status = completions(end, 1).first().unwrap().status;
    assert_ne!(status, CompletionStatus::SUCCESS, "{transfer:?}");
    status
}
