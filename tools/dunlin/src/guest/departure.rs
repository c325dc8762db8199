//! A guest leaves: reaches the destination, and lets the engine move it.

use dunlin_engine::guest::GuestOffer;
use dunlin_engine::report::{Outcome, Report};
use dunlin_engine::settings::MoveHandle;
use dunlin_engine::source::{MoveObserver, Peer, migrate};
use dunlin_transports::control::ControlError;
use dunlin_transports::deadline::Deadline;
use dunlin_transports::lane::SessionId;
use dunlin_transports::tcp::{Mechanism, Options, SourceEndpoint, dial_control};
use dunlin_vmm::machine::Machine;
use uuid::Uuid;

use crate::cli::endpoint::Endpoint;
use crate::local::protocol::{IoChoice, MoveOrder};

/// Moves the guest as ordered. Returns when the move is over, one way or the other.
pub(crate) fn depart(
    machine: &mut Machine,
    offer: &GuestOffer,
    order: &MoveOrder,
    handle: &MoveHandle,
    observer: &dyn MoveObserver,
) -> Report {
    let settings = order.settings();
    let peer = match reach(machine, order, observer) {
        Ok(peer) => peer,
        Err((outcome, reason)) => return Report::not_started(offer, outcome, reason),
    };
    migrate(machine, peer, &settings, handle, observer)
}

fn reach(
    machine: &Machine,
    order: &MoveOrder,
    observer: &dyn MoveObserver,
) -> Result<Peer, (Outcome, String)> {
    let endpoint: Endpoint = order
        .to
        .parse()
        .map_err(|reason| (Outcome::Failed, format!("'{}': {reason}", order.to)))?;
    if let Some(note) = endpoint.choice_note() {
        observer.note(note);
    }
    let options = options(order);
    // 122 random bits of a version 4 UUID: chosen by this side, guessed by nobody.
    let session = SessionId(Uuid::new_v4().into_bytes());
    let deadline = Deadline::after(order.settings().peer_timeout);
    let (control, address) = dial_control(&endpoint.authority(), session, &options, deadline)
        .map_err(|error| (Outcome::PeerFailed, unreachable(&error, &endpoint)))?;
    let memory = machine.guest_memory().lane_map().clone();
    let endpoint = Box::new(SourceEndpoint::new(address, memory, options));
    Ok(Peer {
        session,
        control,
        endpoint,
    })
}

fn options(order: &MoveOrder) -> Options {
    Options {
        bind: order.bind,
        tos: order.dscp.map(|dscp| (dscp & 0x3f) << 2),
        mechanism: match order.io {
            IoChoice::Auto => Mechanism::Auto,
            IoChoice::IoUring => Mechanism::IoUring,
            IoChoice::Writev => Mechanism::Plain,
        },
        ..Options::default()
    }
}

fn unreachable(error: &ControlError, endpoint: &Endpoint) -> String {
    format!("{error}; does 'dunlin receive' listen at {endpoint}?")
}
