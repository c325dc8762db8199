//! The RDMA device of the machine that the tests run on, and sessions over it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use dunlin_transports::conformance::{Harness, Pair};
use dunlin_transports::memory::MemoryMap;
use dunlin_transports::rdma::{self, DestinationEndpoint, Options, PollMode, SourceEndpoint};

/// Sessions over the first device that has an IPv4 address.
#[derive(Default)]
pub(crate) struct Fabric {
    pub(crate) poll: PollMode,
}

/// The first IPv4 address of a port of an RDMA device. The system lists each port's addresses in
/// the form of IPv6.
pub(crate) fn address() -> Result<IpAddr, String> {
    let devices = rdma::devices().map_err(|error| error.to_string())?;
    let mapped = devices.iter().flat_map(|device| {
        let table = format!("/sys/class/infiniband/{device}/ports/1/gids");
        (0..16).filter_map(move |index| {
            let entry = std::fs::read_to_string(format!("{table}/{index}")).ok()?;
            let address: Ipv6Addr = entry.trim().parse().ok()?;
            address.to_ipv4_mapped().map(IpAddr::V4)
        })
    });
    let mut mapped = mapped;
    mapped.next().ok_or_else(|| "no RDMA device".to_owned())
}

impl Fabric {
    fn options(&self) -> Options {
        Options {
            poll: self.poll,
            ..Options::default()
        }
    }
}

impl Harness for Fabric {
    fn name(&self) -> String {
        format!("rdma, {:?}", self.poll)
    }

    fn unavailable(&self) -> Option<String> {
        // Why there is none (no library, no module) is of no interest here.
        address().err().map(|_| "no RDMA device".to_owned())
    }

    fn pair(&self, source: MemoryMap, destination: MemoryMap) -> Pair {
        let address = address().unwrap();
        let destination = DestinationEndpoint::new(address, destination, self.options()).unwrap();
        // Where control would have been answered; the contact has the lanes' port.
        let control = SocketAddr::new(address, 7471);
        let source = SourceEndpoint::new(control, source, self.options()).unwrap();
        Pair {
            source: Box::new(source),
            destination: Box::new(destination),
            keep: Box::new(()),
        }
    }
}
