//! A guest leaves: reaches the destination, and lets the engine move it.

use dunlin_engine::guest::GuestOffer;
use dunlin_engine::records::{Durability, Entry, Journal, Role, Subject};
use dunlin_engine::report::{Outcome, Report};
use dunlin_engine::settings::MoveHandle;
use dunlin_engine::source::{MoveObserver, Peer, Reconnect, migrate};
use dunlin_transports::control::{ControlChannel, ControlError};
use dunlin_transports::deadline::Deadline;
use dunlin_transports::lane::SessionId;
use dunlin_transports::tcp::{Mechanism, Options, SourceEndpoint, dial_control, dial_settling};
use dunlin_vmm::machine::Machine;
use uuid::Uuid;

use super::Provisions;
use super::hooks::Hooks;
use crate::cli::endpoint::Endpoint;
use crate::local::protocol::{IoChoice, MoveOrder};

/// Moves the guest as ordered. Returns when the move is over, one way or the other.
pub(crate) fn depart(
    machine: &mut Machine,
    offer: &GuestOffer,
    order: &MoveOrder,
    provisions: &Provisions,
    handle: &MoveHandle,
    observer: &dyn MoveObserver,
) -> Report {
    let settings = order.settings();
    let peer = match reach(machine, offer, order, provisions, observer) {
        Ok(peer) => peer,
        Err((outcome, reason)) => return Report::not_started(offer, outcome, reason),
    };
    migrate(machine, peer, &settings, handle, observer)
}

fn reach(
    machine: &Machine,
    offer: &GuestOffer,
    order: &MoveOrder,
    provisions: &Provisions,
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
    let subject = Subject {
        uuid: offer.identity.uuid,
        name: offer.identity.name.clone(),
        epoch: offer.identity.epoch,
        // 122 random bits of a version 4 UUID: chosen by this side, guessed by nobody.
        session: SessionId(Uuid::new_v4().into_bytes()),
        role: Role::Source,
        peer: endpoint.to_string(),
    };
    // Before anything is said to anyone: a move that can't be recorded does not begin.
    let mut journal = provisions.records.begin(&subject).map_err(|error| {
        let reason = format!("the move can't be recorded, so it does not begin: {error}");
        (Outcome::Failed, reason)
    })?;
    let deadline = Deadline::after(order.settings().peer_timeout);
    let authority = endpoint.authority();
    let dialled = dial_control(&authority, subject.session, &options, deadline);
    let (control, address) = match dialled {
        Ok(dialled) => dialled,
        Err(error) => {
            let reason = unreachable(&error, &endpoint);
            // Nobody heard of the session; at worst the record is found again, and means nothing.
            let _ = journal.add(Entry::Stayed, &reason, Durability::Plain, deadline);
            return Err((Outcome::PeerFailed, reason));
        }
    };
    let memory = machine.guest_memory().lane_map().clone();
    Ok(Peer {
        session: subject.session,
        control,
        endpoint: Box::new(SourceEndpoint::new(address, memory, options.clone())),
        journal: Box::new(journal),
        reconnect: Box::new(Redial {
            authority,
            session: subject.session,
            options,
        }),
        outside: Box::new(Hooks {
            choices: provisions.hooks.clone(),
            epoch: subject.epoch,
            subject,
        }),
    })
}

/// Reaches the destination's supervisor again.
struct Redial {
    authority: String,
    session: SessionId,
    options: Options,
}

impl Reconnect for Redial {
    fn reconnect(&mut self, deadline: Deadline) -> Result<ControlChannel, ControlError> {
        dial_settling(&self.authority, self.session, &self.options, deadline)
    }
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
