//! RDMA on this machine, for scenarios: which addresses lead over it, what it holds, and the wire
//! below it.
//!
//! | room | what is in it |
//! |---|---|
//! | here | [`Ends`]: the two addresses of a move |
//! | [`held`] | pinned memory, queue pairs, registrations: and that none of it is left |
//! | [`wire`] | taking the link of a software device down, and mending it |

pub mod held;
pub mod wire;

use std::net::IpAddr;

/// The addresses of the two ends of a move over RDMA; on a host with one device both are its.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Where lanes start from.
    pub source: IpAddr,
    /// Where the receiver listens.
    pub destination: IpAddr,
}

impl Ends {
    /// Those that the environment names (tests/softroce/tests.sh); `None`, and says so, where there
    /// are none.
    pub fn here() -> Option<Self> {
        let address = |name: &str| std::env::var(name).ok()?.parse().ok();
        let ends = || {
            Some(Self {
                source: address("RDMA_IPV4_A")?,
                destination: address("RDMA_IPV4_B")?,
            })
        };
        let ends = ends();
        if ends.is_none() {
            println!("skipped: no RDMA device: RDMA_IPV4_A and RDMA_IPV4_B name no addresses");
        }
        ends
    }

    /// Where a receiver is told to listen, for a free port.
    pub fn listen(&self, scheme: &str) -> String {
        format!("{scheme}://{}", authority(self.destination, 0))
    }

    /// The receiver at `port`, as `send` is told.
    pub fn to(&self, scheme: &str, port: u16) -> String {
        format!("{scheme}://{}", authority(self.destination, port))
    }
}

fn authority(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}
