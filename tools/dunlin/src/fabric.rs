//! RDMA as this program has it: the one room that knows whether it was built in.

use std::net::{IpAddr, SocketAddr};

use dunlin_transports::lane::{DestinationEndpoint, LaneError, SourceEndpoint};
use dunlin_transports::memory::MemoryMap;

use crate::cli::rdma::RdmaChoices;

/// The transport's name on the wire and in reports.
pub(crate) const TRANSPORT: &str = "rdma";

/// A port of an RDMA device that is up, and what is known of it.
pub(crate) struct Port {
    /// The device's name.
    pub(crate) device: String,
    /// An IP address by which it is reached.
    pub(crate) address: IpAddr,
    /// The device, the port, and what its link is.
    pub(crate) words: String,
}

#[cfg(feature = "rdma")]
mod built_in {
    use dunlin_transports::rdma::{self, Options, PollMode};

    use super::*;
    use crate::cli::rdma::PollChoice;

    pub(super) fn options(
        choices: &RdmaChoices,
        bind: Option<IpAddr>,
        traffic_class: Option<u8>,
    ) -> Options {
        let defaults = Options::default();
        Options {
            device: choices.device.clone(),
            port: choices.port,
            gid_index: choices.gid_index,
            bind,
            tos: choices.traffic_class.or(traffic_class),
            service_level: choices.service_level,
            pkey_index: choices.pkey_index,
            ack_timeout: choices.ack_timeout,
            window_bytes: choices.window,
            poll: match choices.poll {
                None | Some(PollChoice::Adaptive) => defaults.poll,
                Some(PollChoice::Spin) => PollMode::Spin,
                Some(PollChoice::Event) => PollMode::Event,
            },
            stall_limit: defaults.stall_limit,
            on_demand_paging: choices.on_demand_paging,
        }
    }

    pub(super) fn devices() -> Result<Vec<String>, String> {
        rdma::devices().map_err(|error| error.to_string())
    }

    pub(super) fn ports() -> Result<Vec<Port>, String> {
        let addresses = rdma::addresses().map_err(|error| error.to_string())?;
        let port = |place: rdma::DeviceAddress| Port {
            words: format!(
                "{} port {}, {}: {}",
                place.device, place.port, place.link_layer, place.address
            ),
            address: place.address,
            device: place.device,
        };
        Ok(addresses.into_iter().map(port).collect())
    }
}

/// What a build without RDMA says.
#[cfg(not(feature = "rdma"))]
const NOT_BUILT: &str = "this build has no RDMA (cargo feature `rdma`); use tcp://";

/// The source's endpoint for a destination that answered at `control`. `traffic_class` holds where
/// the choices name none.
///
/// # Errors
///
/// Why there is no RDMA to there.
#[cfg(feature = "rdma")]
pub(crate) fn source(
    control: SocketAddr,
    memory: MemoryMap,
    choices: &RdmaChoices,
    bind: Option<IpAddr>,
    traffic_class: Option<u8>,
) -> Result<Box<dyn SourceEndpoint>, String> {
    let options = built_in::options(choices, bind, traffic_class);
    dunlin_transports::rdma::SourceEndpoint::new(control, memory, options)
        .map(|endpoint| Box::new(endpoint) as Box<dyn SourceEndpoint>)
        .map_err(|error| error.to_string())
}

#[cfg(not(feature = "rdma"))]
pub(crate) fn source(
    _control: SocketAddr,
    _memory: MemoryMap,
    _choices: &RdmaChoices,
    _bind: Option<IpAddr>,
    _traffic_class: Option<u8>,
) -> Result<Box<dyn SourceEndpoint>, String> {
    Err(NOT_BUILT.to_owned())
}

/// The destination's endpoint for a control connection that arrived at `local`.
///
/// # Errors
///
/// Why there is no RDMA at that address.
#[cfg(feature = "rdma")]
pub(crate) fn destination(
    local: SocketAddr,
    memory: MemoryMap,
    choices: &RdmaChoices,
) -> Result<Box<dyn DestinationEndpoint>, LaneError> {
    let options = built_in::options(choices, None, None);
    dunlin_transports::rdma::DestinationEndpoint::new(local, memory, options)
        .map(|endpoint| Box::new(endpoint) as Box<dyn DestinationEndpoint>)
        .map_err(|error| LaneError::Unavailable {
            transport: TRANSPORT,
            source: error.into(),
        })
}

#[cfg(not(feature = "rdma"))]
pub(crate) fn destination(
    _local: SocketAddr,
    _memory: MemoryMap,
    _choices: &RdmaChoices,
) -> Result<Box<dyn DestinationEndpoint>, LaneError> {
    Err(LaneError::Unavailable {
        transport: TRANSPORT,
        source: NOT_BUILT.into(),
    })
}

/// This host's RDMA devices, whether their ports are up or not.
///
/// # Errors
///
/// Why there are none to look at.
#[cfg(feature = "rdma")]
pub(crate) fn devices() -> Result<Vec<String>, String> {
    built_in::devices()
}

#[cfg(not(feature = "rdma"))]
pub(crate) fn devices() -> Result<Vec<String>, String> {
    Err(NOT_BUILT.to_owned())
}

/// Ports of this host's RDMA devices that lanes can use.
///
/// # Errors
///
/// Why there are none to look at.
#[cfg(feature = "rdma")]
pub(crate) fn ports() -> Result<Vec<Port>, String> {
    built_in::ports()
}

#[cfg(not(feature = "rdma"))]
pub(crate) fn ports() -> Result<Vec<Port>, String> {
    Err(NOT_BUILT.to_owned())
}
