//! Lanes over RDMA: writes from guest memory to guest memory, with no copy on the way.
//!
//! | room | what is in it |
//! |---|---|
//! | `verbs` | the safe layer over libibverbs and librdmacm, and all of the `unsafe` |
//! | `error` | why RDMA can't be used, and the way out |
//! | `wire` | what both ends say to each other in bytes |
//! | `registrations` | memory registered with the device, on either side |
//! | `grants` | what the peer lets be written or read |
//! | `pieces` | cutting runs where a registration of either side ends |
//! | `nearness` | which processors are near a device |
//! | `watch` | what ends every lane of an endpoint: a stop, an event of the device |
//! | `connection` | one connected queue pair, its queues and its messages |
//! | `way` | how an address leads to a device |
//! | `setup` | how a queue pair becomes connected, and with which settings |
//! | `waiting` | waiting for completions: spinning, then sleeping |
//! | `outbox` | requests under way, and how many more may be |
//! | [`source`], `sending` | the endpoint and the lanes that send |
//! | [`destination`], `receiving` | the endpoint and the lanes that receive |
//!
//! The way of a page: a run is cut at the borders of both sides' registrations and at
//! [`REQUEST_BYTES_MAX`]; each piece is one RDMA write, straight out of the source's guest memory
//! into the destination's. The pieces of a put are posted as one chain with one doorbell; one in
//! some asks for a completion. A fence is a message behind the writes on the same queue pair, and
//! is seen by the destination as a completed receive; between two of them writes may pass each other
//! (relaxed ordering), so no page is put twice there.
//!
//! # Pages of zeros
//!
//! They are written from a registered range of zeros, and so cost the link what other pages cost.
//! The engine puts as zero only what the destination may hold otherwise: pages that were sent before
//! and became zero since. The other way would be a bitmap of them over control, and a thread of the
//! destination that clears them. `bench/src/bin/rdma_zeros.rs` measures both. On a virtual machine
//! with 2 cores one thread cleared 64 MiB of cold pages at 11 GB/s, side by side or scattered (93 µs
//! a MiB; 4 to 6 GB/s, and up to 250 µs, where others used the cores), bitmap and round trip over
//! loopback included. A write of a MiB takes 84 µs of a link with 12.5 GB/s (100 Gb/s), and no time
//! of any processor. So the two cross near 11 GB/s, some 90 Gb/s: faster links are better served by
//! writes, at 5 GB/s (40 Gb/s) a bitmap would take half of the time for these pages, at 3 GB/s (25
//! Gb/s) a quarter to a third.
//!
//! It stays a write, since a bitmap is better only on slower links, and there for few pages; and
//! since it has a price everywhere. It takes 0.1 s of the destination's processor for each GiB,
//! which in the pause is what the guest waits for. And words over control keep no order with the
//! lanes: what is cleared late would take a page that was put since, so each round needed one more
//! exchange between the fences of all lanes and the first put of the next round.
//!
//! There is one protection domain for each endpoint, so for each session: a key of one session
//! opens nothing in another.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use crate::memory::PAGE_BYTES;

pub mod destination;
pub mod source;

mod connection;
mod error;
mod grants;
mod nearness;
mod outbox;
mod pieces;
mod receiving;
mod registrations;
mod sending;
mod setup;
mod verbs;
mod waiting;
mod watch;
mod way;
mod wire;

#[cfg(test)]
mod tests;

pub use destination::DestinationEndpoint;
pub use error::RdmaError;
pub use source::SourceEndpoint;

/// The most bytes of one RDMA write. Far beyond where a NIC reaches its full rate (some 64 KiB), and
/// short enough that what follows on the lane waits less than 0.1 ms at 100 Gb/s.
pub const REQUEST_BYTES_MAX: u32 = 1 << 20;

/// The fewest bytes that [`Options::window_bytes`] allows under way: two pages, so that one is under
/// way while the other completes.
pub const WINDOW_BYTES_MIN: u64 = 2 * PAGE_BYTES;

/// And the most: a fence waits for all that is ahead of it, which is 86 ms at 100 Gb/s.
pub const WINDOW_BYTES_MAX: u64 = 1 << 30;

/// How a lane waits for its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollMode {
    /// Looks again and again: the shortest wait, for a whole processor.
    Spin,
    /// Sleeps until the device interrupts.
    Event,
    /// Spins for a while, then sleeps.
    Adaptive {
        /// For how long.
        spin: Duration,
    },
}

impl Default for PollMode {
    fn default() -> Self {
        // What one write of `REQUEST_BYTES_MAX` takes at 100 Gb/s is 84 µs, an interrupt and a
        // wake-up 5 to 20 µs: on a link that moves, the spin finds what it waits for.
        Self::Adaptive {
            spin: Duration::from_micros(50),
        }
    }
}

/// What an operator may decide about RDMA.
///
/// Device, port and GID index follow from the address that is dialled or listened at. Naming them
/// here is a demand: where another one leads there, the endpoint or the lane is an error. So is
/// asking an iWARP device for what iWARP does not have: GID index, service level, partition key, and
/// a time limit for acknowledgements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The device, like `mlx5_0`; `None`: whichever leads to the peer.
    pub device: Option<String>,
    /// Its port, counted from 1; `None`: whichever leads to the peer.
    pub port: Option<u8>,
    /// The entry of the port's table of addresses; `None`: whichever goes with the IP address.
    pub gid_index: Option<u8>,
    /// The local address that lanes start from; `None`: the system's choice.
    pub bind: Option<IpAddr>,
    /// The traffic class of the packets (RoCE and iWARP: the byte of `IP_TOS`, DSCP in its upper six
    /// bits); `None`: the system's. Over iWARP it is the source's packets that bear it, if the
    /// driver marks them (siw does not).
    pub tos: Option<u8>,
    /// The service level (InfiniBand) or priority (RoCE); `None`: the route's.
    pub service_level: Option<u8>,
    /// The entry of the port's table of partition keys; `None`: the route's.
    pub pkey_index: Option<u16>,
    /// When a packet that is not acknowledged is sent again: after 4.096 µs times two to this power;
    /// devices may take up to four times as long. `None`: 14. Over iWARP it is TCP that repeats.
    pub ack_timeout: Option<u8>,
    /// Whether the source's memory is paged on demand: registered, and not pinned; the device
    /// fetches what it sends when it comes to it. For guests that do not fit into what may be
    /// pinned, on devices that can; each page that is not at hand costs the lane a fault of some
    /// 10 µs to 1 ms. The destination's memory never is: what a peer may write is pinned.
    pub on_demand_paging: bool,
    /// How many bytes may be under way on a lane, within [`WINDOW_BYTES_MIN`] and
    /// [`WINDOW_BYTES_MAX`]; a request has half of it at most. `None`: as the device bears, which is
    /// 32 MiB, and with rxe 4 MiB, or 48 packets before Linux 6.12.
    pub window_bytes: Option<u64>,
    /// How lanes wait for the device.
    pub poll: PollMode,
    /// How long a lane may move nothing in the middle of something.
    pub stall_limit: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            device: None,
            port: None,
            gid_index: None,
            bind: None,
            tos: None,
            service_level: None,
            pkey_index: None,
            ack_timeout: None,
            on_demand_paging: false,
            window_bytes: None,
            poll: PollMode::default(),
            // As for TCP: longer than any pause that a working link shows.
            stall_limit: Duration::from_secs(10),
        }
    }
}

/// What carries a port's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkLayer {
    /// InfiniBand.
    InfiniBand,
    /// Ethernet: RDMA over Converged Ethernet.
    Ethernet,
    /// TCP: iWARP.
    Iwarp,
}

impl fmt::Display for LinkLayer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::InfiniBand => "InfiniBand",
            Self::Ethernet => "RoCE",
            Self::Iwarp => "iWARP",
        })
    }
}

/// The most entries of a port's table of addresses that are looked at. Tables are long (rxe's has
/// 1,024) and filled from the front.
const ADDRESSES_MAX: u8 = 64;

/// A port of an RDMA device of this host, and an IP address by which it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceAddress {
    /// The device, like `mlx5_0`.
    pub device: String,
    /// Its port, counted from 1.
    pub port: u8,
    /// The address's place in the port's table; 0 where it is in none (InfiniBand, iWARP).
    pub gid_index: u8,
    /// The address. Link-local ones are left out.
    pub address: IpAddr,
    /// What carries its packets.
    pub link_layer: LinkLayer,
}

/// The names of this host's RDMA devices, whether their ports are up or not.
///
/// # Errors
///
/// When a library is missing or the system does not tell.
pub fn devices() -> Result<Vec<String>, RdmaError> {
    verbs::Device::names(verbs::Libraries::load()?)
}

/// Where this host's RDMA devices are reached: ports that are up and have an IP address (RoCE,
/// InfiniBand with IP over it, iWARP). Devices of kinds that lanes can't use are left out.
///
/// # Errors
///
/// When a library is missing or the system does not tell.
pub fn addresses() -> Result<Vec<DeviceAddress>, RdmaError> {
    let libraries = verbs::Libraries::load()?;
    let mut addresses: Vec<DeviceAddress> = Vec::new();
    for name in verbs::Device::names(libraries)? {
        let device = match verbs::Device::open(libraries, &name) {
            Err(RdmaError::DeviceKind { .. }) => continue,
            device => device?,
        };
        for port in 1..=device.limits().ports {
            let state = device.port(port)?;
            if !state.is_active {
                continue;
            }
            let found = match (device.kind(), state.link_layer) {
                (verbs::DeviceKind::InfiniBand, LinkLayer::Ethernet) => {
                    addresses_in_table(&device, port, state.global_ids)
                }
                _ => addresses_bound_to(libraries, &name, port)?,
            };
            addresses.extend(found.into_iter().map(|(gid_index, address)| DeviceAddress {
                device: name.clone(),
                port,
                gid_index,
                address,
                link_layer: state.link_layer,
            }));
        }
    }
    Ok(addresses)
}

/// The IP addresses in a port's table of so many entries, with their places.
fn addresses_in_table(device: &verbs::Device, port: u8, entries: u32) -> Vec<(u8, IpAddr)> {
    let entries = u8::try_from(entries).unwrap_or(u8::MAX);
    let entries = 0..entries.min(ADDRESSES_MAX);
    let address = |gid_index| {
        // An entry that is not in use may be an error, or all zero.
        let id = device.global_id(port, gid_index).ok()?;
        let address = Ipv6Addr::from(id.0);
        let is_used = !address.is_unspecified() && !address.is_unicast_link_local();
        is_used.then(|| (gid_index, address.to_canonical()))
    };
    entries.filter_map(address).collect()
}

/// This host's IP addresses that rdma_cm finds on a port: an iWARP port's table has none, and what
/// is in an InfiniBand port's are no IP addresses.
fn addresses_bound_to(
    libraries: &'static verbs::Libraries,
    device: &str,
    port: u8,
) -> Result<Vec<(u8, IpAddr)>, RdmaError> {
    let no_manager = RdmaError::NoConnectionManager;
    let channel = verbs::EventChannel::new(libraries).map_err(no_manager)?;
    let mut found = Vec::new();
    for address in verbs::local_addresses().map_err(RdmaError::Addresses)? {
        let id = verbs::ConnectionId::new(&channel).map_err(no_manager)?;
        // Most addresses are on no RDMA device, which is an error here.
        let is_its = !address.is_loopback()
            && id.bind(address).is_ok()
            && id
                .device()
                .is_some_and(|way| way == (device.to_owned(), port));
        if is_its {
            found.push((0, address));
        }
    }
    Ok(found)
}
