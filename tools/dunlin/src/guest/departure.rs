//! A guest leaves: reaches the destination, and lets the engine move it.

use std::net::SocketAddr;
use std::time::Instant;

use dunlin_engine::guest::GuestOffer;
use dunlin_engine::records::{Durability, Entry, Journal, Role, Subject};
use dunlin_engine::report::{Outcome, Report};
use dunlin_engine::settings::{MoveHandle, MoveSettings};
use dunlin_engine::source::{MoveObserver, Peer, Reconnect, migrate};
use dunlin_transports::control::{ControlChannel, ControlError};
use dunlin_transports::deadline::Deadline;
use dunlin_transports::lane::{SessionId, SourceEndpoint};
use dunlin_transports::tcp::{
    Compression, CompressionError, Mechanism, Options, SourceEndpoint as TcpEndpoint, ZeroCopy,
    dial_control, dial_settling,
};
use dunlin_vmm::dirty_trace::{RecordedGuest, Recorder};
use dunlin_vmm::machine::Machine;
use uuid::Uuid;

use super::Provisions;
use super::hooks::Hooks;
use super::logged::Logged;
use super::trace_file::TraceFile;
use crate::cli::endpoint::{Endpoint, Scheme};
use crate::fabric;
use crate::local::protocol::{IoChoice, MoveOrder, ZeroCopyChoice};

/// Moves the guest as ordered. Returns when the move is over, one way or the other.
///
/// Where the transport is left to this side it is RDMA, and TCP where that fails before the first
/// page.
pub(crate) fn depart(
    machine: &mut Machine,
    offer: &GuestOffer,
    order: &MoveOrder,
    provisions: &Provisions,
    handle: &MoveHandle,
    observer: &dyn MoveObserver,
) -> Report {
    let begun = Instant::now();
    let settings = order.settings();
    let endpoint: Endpoint = match order.to.parse() {
        Ok(endpoint) => endpoint,
        Err(reason) => {
            let reason = format!("'{}': {reason}", order.to);
            return Report::not_started(offer, Outcome::Failed, reason);
        }
    };
    let trace = match order
        .dirty_trace
        .as_deref()
        .map(TraceFile::open)
        .transpose()
    {
        Ok(trace) => trace.map(|file| (file, Recorder::new(machine.guest_memory().layout()))),
        Err(reason) => return Report::not_started(offer, Outcome::Failed, reason),
    };
    let departure = Departure {
        offer,
        order,
        endpoint,
        provisions,
        observer,
        recorder: trace.as_ref().map(|(_, recorder)| recorder),
    };
    let report = departure.by_any_transport(machine, settings, handle, begun);
    if let Some((file, recorder)) = trace {
        observer.note(&file.write(recorder.finish()));
    }
    report
}

/// What a move is made from, beside the guest.
struct Departure<'a> {
    offer: &'a GuestOffer,
    order: &'a MoveOrder,
    endpoint: Endpoint,
    provisions: &'a Provisions,
    observer: &'a dyn MoveObserver,
    /// What records the guest's dirty pages, if anything does.
    recorder: Option<&'a Recorder>,
}

impl Departure<'_> {
    /// Moves the guest over the transport that was asked for; where that is left to this side, RDMA,
    /// and TCP where RDMA fails before the first page.
    fn by_any_transport(
        &self,
        machine: &mut Machine,
        mut settings: MoveSettings,
        handle: &MoveHandle,
        begun: Instant,
    ) -> Report {
        let peer = match self.reach(machine, self.endpoint.scheme) {
            Ok(peer) => peer,
            Err((outcome, reason)) => return Report::not_started(self.offer, outcome, reason),
        };
        let may_be_another =
            self.endpoint.scheme == Scheme::Auto && peer.endpoint.transport() == fabric::TRANSPORT;
        let report = self.migrate(machine, peer, &settings, handle);
        if !may_be_another || !report.another_transport_may_do || handle.cancelled() {
            return report;
        }
        let what = match report.outcome {
            Outcome::Refused => "the destination refused rdma",
            _ => "rdma failed",
        };
        let reason = report.reason.as_deref().unwrap_or_default();
        let reason = reason.strip_prefix("refused: ").unwrap_or(reason);
        self.observer
            .note(&format!("auto: using tcp, as {what}: {reason}"));
        settings.timeout = settings
            .timeout
            .map(|limit| limit.saturating_sub(begun.elapsed()));
        // A session of its own: nobody at the destination expects a second try of the first.
        match self.reach(machine, Scheme::Tcp) {
            Ok(peer) => self.migrate(machine, peer, &settings, handle),
            Err((outcome, reason)) => Report::not_started(self.offer, outcome, reason),
        }
    }

    /// Moves the guest to a destination that was reached.
    fn migrate(
        &self,
        machine: &mut Machine,
        peer: Peer,
        settings: &MoveSettings,
        handle: &MoveHandle,
    ) -> Report {
        let guest = &self.offer.identity.name;
        let transport = peer.endpoint.transport();
        let to = &self.order.to;
        let logged = Logged::begin(self.observer, peer.session, guest, to, transport);
        let report = match self.recorder {
            None => migrate(machine, peer, settings, handle, &logged),
            Some(recorder) => {
                let mut recorded = RecordedGuest::new(machine, recorder);
                migrate(&mut recorded, peer, settings, handle, &logged)
            }
        };
        logged.over(&report);
        report
    }

    /// Connects to the destination, for lanes over this transport.
    fn reach(&self, machine: &Machine, scheme: Scheme) -> Result<Peer, (Outcome, String)> {
        let (offer, order) = (self.offer, self.order);
        let options = options(order).map_err(|error| (Outcome::Failed, error.to_string()))?;
        let subject = Subject {
            uuid: offer.identity.uuid,
            name: offer.identity.name.clone(),
            epoch: offer.identity.epoch,
            // 122 random bits of a version 4 UUID: chosen by this side, guessed by nobody.
            session: SessionId(Uuid::new_v4().into_bytes()),
            role: Role::Source,
            peer: self.endpoint.to_string(),
        };
        // Before anything is said to anyone: a move that can't be recorded does not begin.
        let mut journal = self.provisions.records.begin(&subject).map_err(|error| {
            let reason = format!("the move can't be recorded, so it does not begin: {error}");
            (Outcome::Failed, reason)
        })?;
        let deadline = Deadline::after(order.settings().peer_timeout);
        let authority = self.endpoint.authority();
        let dialled = dial_control(&authority, subject.session, &options, deadline)
            .map_err(|error| (Outcome::PeerFailed, unreachable(&error, &self.endpoint)));
        let reached = dialled.and_then(|(control, address)| {
            let lanes = self.lanes(machine, address, scheme, &options);
            lanes
                .map(|lanes| (control, address, lanes))
                .map_err(|reason| (Outcome::Failed, reason))
        });
        let (control, address, lanes) = reached.inspect_err(|(_, reason)| {
            // Nobody heard of the session; at worst the record is found again, and means nothing.
            let deadline = Deadline::after(order.settings().peer_timeout);
            let _ = journal.add(Entry::Stayed, reason, Durability::Plain, deadline);
        })?;
        Ok(Peer {
            session: subject.session,
            control,
            endpoint: lanes,
            journal: Box::new(journal),
            reconnect: Box::new(Redial {
                address,
                authority,
                tries: 0,
                session: subject.session,
                options,
            }),
            outside: Box::new(Hooks {
                choices: self.provisions.hooks.clone(),
                epoch: subject.epoch,
                subject,
            }),
        })
    }

    /// What opens the lanes to a destination that was reached at `address`.
    fn lanes(
        &self,
        machine: &Machine,
        address: SocketAddr,
        scheme: Scheme,
        options: &Options,
    ) -> Result<Box<dyn SourceEndpoint>, String> {
        let memory = machine.guest_memory().lane_map().clone();
        let tcp = |memory| Box::new(TcpEndpoint::new(address, memory, options.clone()));
        if scheme == Scheme::Tcp {
            return Ok(tcp(memory));
        }
        let order = self.order;
        let rdma = fabric::source(
            address,
            memory.clone(),
            &order.rdma,
            order.bind,
            options.tos,
        );
        match rdma {
            Ok(lanes) => {
                if scheme == Scheme::Auto {
                    let note = format!("auto: using rdma, {}", lanes.mechanism());
                    self.observer.note(&note);
                }
                if options.compression != Compression::Off {
                    self.observer
                        .note("nothing is compressed: --compress is for lanes over TCP");
                }
                Ok(lanes)
            }
            Err(reason) if scheme == Scheme::Auto => {
                self.observer
                    .note(&format!("auto: using tcp, as there is no rdma: {reason}"));
                Ok(tcp(memory))
            }
            Err(reason) => Err(reason),
        }
    }
}

/// How often a destination is looked for under its name instead of where it answered before: one
/// time in so many.
const NAME_EVERY: u32 = 10;

/// Reaches the destination's supervisor again.
struct Redial {
    /// Where it answered before.
    address: SocketAddr,
    authority: String,
    tries: u32,
    session: SessionId,
    options: Options,
}

impl Reconnect for Redial {
    fn reconnect(&mut self, deadline: Deadline) -> Result<ControlChannel, ControlError> {
        self.tries = self.tries.wrapping_add(1);
        // The name may have been given to another host since, and asking for it can hang: it is
        // asked for now and then only.
        let peer = match self.tries % NAME_EVERY {
            0 => self.authority.clone(),
            _ => self.address.to_string(),
        };
        dial_settling(&peer, self.session, &self.options, deadline)
    }
}

fn options(order: &MoveOrder) -> Result<Options, CompressionError> {
    Ok(Options {
        bind: order.bind,
        tos: order.dscp.map(|dscp| (dscp & 0x3f) << 2),
        mechanism: match order.io {
            IoChoice::Auto => Mechanism::Auto,
            IoChoice::IoUring => Mechanism::IoUring,
            IoChoice::Writev => Mechanism::Plain,
        },
        zero_copy: match order.zero_copy {
            ZeroCopyChoice::Auto => ZeroCopy::Auto,
            ZeroCopyChoice::Off => ZeroCopy::Off,
        },
        compression: order.compress.parse()?,
        ..Options::default()
    })
}

fn unreachable(error: &ControlError, endpoint: &Endpoint) -> String {
    format!("{error}; does 'dunlin receive' listen at {endpoint}?")
}
