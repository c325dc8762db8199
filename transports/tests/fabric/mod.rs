//! The RDMA device of the machine that the tests run on, and sessions over it.

use std::net::{IpAddr, SocketAddr};

use dunlin_transports::conformance::{Harness, Pair};
use dunlin_transports::memory::MemoryMap;
use dunlin_transports::rdma::{self, DestinationEndpoint, Options, PollMode, SourceEndpoint};

/// Sessions over the first address of an RDMA device.
#[derive(Default)]
pub(crate) struct Fabric {
    pub(crate) poll: PollMode,
}

/// The first address of an RDMA device here.
pub(crate) fn address() -> Option<IpAddr> {
    let addresses = rdma::addresses().ok()?;
    addresses.first().map(|found| found.address)
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
        address().is_none().then(|| "no RDMA device".to_owned())
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
