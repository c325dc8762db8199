//! Peers that break the protocol, for which the lane traits are not enough: these tests give the
//! device requests of their own. They need an RDMA device; without one each says so.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::connection::Connection;
use super::verbs::{Completion, CompletionStatus, LocalPiece, Request, RequestList, Transfer};
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

/// A device of this host; says so if there is none.
fn device() -> Option<DeviceAddress> {
    let found = super::addresses().ok().unwrap_or_default();
    if found.is_empty() {
        println!("skipped: no RDMA device");
    }
    found.into_iter().next()
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
        Some(session)
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
        let grant = destination.prepare(run(0, PAGES)).unwrap();
        source.accept_grants(&[grant]).unwrap();
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
        Ok(Self {
            source,
            destination,
            source_memory,
            destination_memory,
            source_lane,
            destination_lane,
        })
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
    let mut list = RequestList::new(transfers.len());
    for (id, transfer) in transfers.iter().enumerate() {
        list.push(Request {
            id: id as u64,
            transfer: *transfer,
            signalled: true,
        });
    }
    end.pair().post(&mut list).unwrap();
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

/// Posts one request and sees that the peer's device refuses it; returns how.
fn refused(end: &Connection, transfer: Transfer) -> CompletionStatus {
    post(end, &[transfer]);
    let status = completions(end, 1).first().unwrap().status;
    assert_ne!(status, CompletionStatus::SUCCESS, "{transfer:?}");
    status
}
