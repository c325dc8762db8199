//! The RDMA device of the machine that the tests run on, and sessions over it.

// Each test program uses some of this.
#![allow(dead_code)]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use dunlin_transports::conformance::{Harness, Pair};
use dunlin_transports::deadline::Deadline;
use dunlin_transports::lane::{LaneError, LaneNumber, LaneTicket, LaneToken, SessionId};
use dunlin_transports::memory::{
    HostMapping, MemoryMap, OwnedMapping, PAGE_BYTES, PageNumber, Run,
};
use dunlin_transports::rdma::{
    self, DestinationEndpoint, LinkLayer, Options, PollMode, SourceEndpoint,
};

/// The two ends of a session, which may be the same.
pub(crate) struct Ends {
    pub(crate) source: IpAddr,
    pub(crate) source_device: String,
    pub(crate) destination: IpAddr,
    pub(crate) destination_device: String,
    pub(crate) link_layer: LinkLayer,
}

impl Ends {
    /// Those that the environment names, by IPv4 or IPv6; else the first address of a device here.
    pub(crate) fn of(version: &str) -> Option<Self> {
        // Why there is none (no library, no module) is of no interest here.
        let addresses = rdma::addresses().ok()?;
        let named = |end: &str| {
            let name = std::env::var(format!("RDMA_{version}_{end}")).ok()?;
            let address: IpAddr = name.parse().ok()?;
            addresses.iter().find(|found| found.address == address)
        };
        let any = || {
            let is_wanted =
                |found: &&rdma::DeviceAddress| found.address.is_ipv6() == (version == "IPV6");
            addresses.iter().find(is_wanted)
        };
        let source = named("A").or_else(any)?;
        let destination = named("B").unwrap_or(source);
        Some(Self {
            source: source.address,
            source_device: source.device.clone(),
            destination: destination.address,
            destination_device: destination.device.clone(),
            link_layer: source.link_layer,
        })
    }

    /// The ends on this machine; says so if there are none.
    pub(crate) fn here() -> Option<Self> {
        let ends = Self::of("IPV4");
        if ends.is_none() {
            println!("skipped: no RDMA device");
        }
        ends
    }
}

/// For what should happen: long, so that a slow machine fails nothing.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn soon() -> Deadline {
    Deadline::after(PATIENCE)
}

pub(crate) fn run(first: u64, pages: u32) -> Run {
    Run {
        first: PageNumber(first),
        pages,
    }
}

/// Memory of one region, no page of which is zero or like another.
pub(crate) fn memory(pages: u64) -> MemoryMap {
    let mapping: Arc<dyn HostMapping> = Arc::new(OwnedMapping::new(pages * PAGE_BYTES).unwrap());
    let memory = MemoryMap::new(vec![mapping]).unwrap();
    for page in 0..pages {
        let words =
            (0..PAGE_BYTES / 8).flat_map(|word| (page << 12 | word | 1 << 40).to_le_bytes());
        let bytes: Vec<u8> = words.collect();
        memory.copy_in(run(page, 1), &bytes).unwrap();
    }
    memory
}

pub(crate) fn ticket() -> LaneTicket {
    LaneTicket {
        session: SessionId([5; 16]),
        number: LaneNumber(0),
        token: LaneToken([6; 32]),
    }
}

fn options(ends: &Ends) -> Options {
    Options {
        bind: Some(ends.source),
        ..Options::default()
    }
}

fn destination_with(ends: &Ends, memory: MemoryMap, options: Options) -> DestinationEndpoint {
    let control = SocketAddr::new(ends.destination, 7471);
    DestinationEndpoint::new(control, memory, options).unwrap()
}

/// The source of a session; its control would have gone to the usual port, the contact has that of
/// the lanes.
fn source_with(ends: &Ends, memory: MemoryMap, options: Options) -> SourceEndpoint {
    let control = SocketAddr::new(ends.destination, 7471);
    SourceEndpoint::new(control, memory, options).unwrap()
}

pub(crate) fn destination(ends: &Ends, memory: MemoryMap) -> DestinationEndpoint {
    destination_with(ends, memory, options(ends))
}

pub(crate) fn source(ends: &Ends, memory: MemoryMap) -> SourceEndpoint {
    source_with(ends, memory, options(ends))
}

/// Sessions of the suite.
#[derive(Default)]
pub(crate) struct Fabric {
    pub(crate) poll: PollMode,
    pub(crate) is_ipv6: bool,
}

impl Fabric {
    fn version(&self) -> &'static str {
        if self.is_ipv6 { "IPV6" } else { "IPV4" }
    }
}

impl Harness for Fabric {
    fn name(&self) -> String {
        format!("rdma, {:?}, {}", self.poll, self.version())
    }

    fn unavailable(&self) -> Option<String> {
        let is_there = Ends::of(self.version()).is_some();
        (!is_there).then(|| "no RDMA device".to_owned())
    }

    fn pair(&self, source: MemoryMap, destination: MemoryMap) -> Pair {
        let ends = Ends::of(self.version()).unwrap();
        let options = Options {
            poll: self.poll,
            ..options(&ends)
        };
        let destination = destination_with(&ends, destination, options.clone());
        Pair {
            source: Box::new(source_with(&ends, source, options)),
            destination: Box::new(destination),
            keep: Box::new(()),
        }
    }
}

/// The network interface that a device is made of; `None` unless both are software: nobody's way to
/// this machine.
pub(crate) fn interface(device: &str) -> Option<String> {
    let parent = format!("/sys/class/infiniband/{device}/parent");
    let interface = std::fs::read_to_string(parent).ok()?.trim().to_owned();
    let hardware = format!("/sys/class/net/{interface}/device");
    (!std::path::Path::new(&hardware).exists()).then_some(interface)
}

/// Does something until it fails; it has to, before long.
pub(crate) fn until_error(mut step: impl FnMut() -> Result<(), LaneError>) -> LaneError {
    let deadline = soon();
    loop {
        if let Err(error) = step() {
            return error;
        }
        assert!(!deadline.passed(), "it goes on as if nothing were");
    }
}
