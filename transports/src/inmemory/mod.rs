//! Both ends of a session in one process, with faults that a test orders.
//!
//! | room | what is in it |
//! |---|---|
//! | [`faults`](Faults) | what a test orders: delays, cuts, stalls, silence, flipped bytes |
//! | `wire` | bounded queues between the ends, on which the faults act |
//! | [`Network`] | what joins the two endpoints of a session |
//! | `registrations` | devices that register memory, where a test orders them |
//! | `source`, `destination` | the endpoints and lanes |
//! | `control` | the control channel |
//!
//! A put captures the source's bytes when it is put, and writes them on the destination only when
//! the message arrives there. So an order that is wrong on a real network (an old copy on a slow
//! lane that lands on a newer one) is wrong here too.
//!
//! All state is behind one lock: slow, but a test that fails here fails for its own reasons.

use std::sync::Arc;

use crate::memory::MemoryMap;

mod control;
mod destination;
mod faults;
mod network;
mod registrations;
mod source;
mod wire;

pub use control::control_pair;
pub use destination::DestinationEndpoint;
pub use faults::{Faults, Passage, Place};
pub use network::Network;
pub use registrations::Side;
pub use source::SourceEndpoint;

/// Both endpoints of one session, joined by a network with these faults.
pub fn pair(
    source_memory: MemoryMap,
    destination_memory: MemoryMap,
    faults: Arc<Faults>,
) -> (SourceEndpoint, DestinationEndpoint) {
    let network = Network::new(faults);
    (
        network.source_endpoint(source_memory),
        network.destination_endpoint(destination_memory),
    )
}
