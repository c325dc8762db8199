//! `dunlin incoming`: the process of a guest that `receive` lets in. Its standard input is the
//! socket to the supervisor.

mod serial_file;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use dunlin_engine::destination::{Arrival, Hello, ReceiveSettings, receive, refuse};
use dunlin_engine::guest::{GuestError, GuestFactory, GuestOffer};
use dunlin_engine::layout::Backing;
use dunlin_engine::milestone::Milestone;
use dunlin_engine::outside::Outside;
use dunlin_engine::records::{Durability, Entry, Journal, Role, Subject};
use dunlin_transports::control::ControlStopper;
use dunlin_transports::deadline::Deadline;
use dunlin_transports::lane::DestinationEndpointFactory;
use dunlin_transports::tcp::{
    DestinationEndpoint as TcpEndpoint, IncomingLane, Options, Preamble, control_channel,
};
use dunlin_vmm::machine::{Gauge, Machine, MachineFactory};
use dunlin_vmm::memory::{comes_in_huge_pages, keep_to_small_pages};
use rustix::process::{Signal, getpid, kill_process};
use tracing::{info, warn};

use self::serial_file::SerialFile;
use crate::cli::guest::Incoming;
use crate::cli::values::Prefault;
use crate::console;
use crate::exit::Exit;
use crate::fabric;
use crate::failure::Failure;
use crate::guest::board::Facts;
use crate::guest::hooks::Hooks;
use crate::guest::milestones::Stopper;
use crate::guest::{Desk, Provisions, Stay};
use crate::local::protocol::GuestState;
use crate::local::runtime_dir::NameClaim;
use crate::supervisor::handoff::{Parcel, Word, say, take};

/// How long a record's last entry may take: the guest is gone already.
const RECORD_MAX: Duration = Duration::from_secs(5);

/// Takes a guest in, and runs it until it ends or was moved on.
pub(crate) fn run(arguments: &Incoming) -> Result<Exit, Failure> {
    // A session of its own: a Ctrl-C meant for the supervisor does not reach the guest. Fails only
    // for the leader of a process group, which is apart from the supervisor's already.
    let _ = rustix::process::setsid();
    if let Some(leash) = arguments.leash {
        end_with(leash)?;
    }
    let socket = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map(UnixStream::from)
        .map_err(|error| Failure::system("the socket to the supervisor", error))?;
    match arrive(arguments, &socket) {
        Ok(arrived) => {
            let word = Word::Arrived {
                epoch: arrived.epoch,
                source_knows: arrived.source_knows,
            };
            // A supervisor that is gone by now is no reason to give the guest up.
            let _ = say(&socket, &word);
            console::tell(format_args!("{} runs here", arguments.name.0));
            let Arrived {
                desk,
                machine,
                mut journal,
                mut outside,
                ..
            } = arrived;
            let source_knows = arrived.source_knows;
            let stay = desk.keep(machine, |stay| {
                if source_knows {
                    return;
                }
                let words = match stay {
                    Stay::Moved => "it was moved on",
                    Stay::Ended | Stay::Discarded => "it was ended here",
                };
                // Where this fails, a source in doubt is told that the guest is gone, and no more.
                let deadline = Deadline::after(RECORD_MAX);
                let _ = journal.add(Entry::Ended, words, Durability::Durable, deadline);
            });
            super::see_off(stay, &arguments.name.0, outside.as_mut())
        }
        Err(failure) => {
            let word = Word::Failed {
                reason: failure.message.clone(),
            };
            let _ = say(&socket, &word);
            Err(failure)
        }
    }
}

/// Ends this process, as a signal would, when nobody can write to a pipe any more: whoever held the
/// other end is gone, however it went.
fn end_with(leash: u32) -> Result<(), Failure> {
    let failed = |error| Failure::system(format!("the leash, descriptor {leash}"), error);
    // Opened anew, since a number alone is nothing that can be owned (proc(5), `/proc/pid/fd`).
    let mut pipe = File::open(format!("/proc/self/fd/{leash}")).map_err(failed)?;
    thread::Builder::new()
        .name("leash".to_owned())
        .spawn(move || {
            // Nothing is ever written.
            let _ = io::copy(&mut pipe, &mut io::sink());
            // A process may always signal itself.
            let _ = kill_process(getpid(), Signal::TERM);
        })
        .map(|_| ())
        .map_err(failed)
}

struct Arrived {
    desk: Desk,
    machine: Machine,
    epoch: u64,
    journal: Box<dyn Journal>,
    source_knows: bool,
    outside: Box<dyn Outside>,
    _claim: NameClaim,
}

fn arrive(arguments: &Incoming, socket: &UnixStream) -> Result<Arrived, Failure> {
    let broken = |what: &str| Failure::local(format!("the supervisor {what}"));
    let parcel = take(socket).map_err(|error| Failure::system("the supervisor", error))?;
    let Some(Parcel::Control { stream, hello }) = parcel else {
        return Err(broken("gave no control connection"));
    };
    // The address that the source has dialled: a device that has it leads back.
    let local = stream
        .local_addr()
        .map_err(|error| Failure::system("the control connection's address", error))?;
    let mut control = control_channel(stream, &Options::default())
        .map_err(|error| Failure::new(Exit::PeerFailed, error.to_string()))?;
    // The supervisor has checked the same bytes.
    let hello = Hello::from_frame(&hello)
        .map_err(|error| Failure::new(Exit::PeerFailed, error.to_string()))?;

    let session = hello.session();
    let guest = arguments.name.0.as_str();
    let peer = arguments.peer.as_str();
    let transport = hello.transport();
    info!(%session, side = "destination", guest, peer, transport, "the move begins");
    let prepared = prepare(arguments, &hello);
    let Prepared {
        claim,
        desk,
        serial,
        journal,
        outside,
    } = match prepared {
        Ok(prepared) => prepared,
        Err(failure) => {
            refuse(&mut control, &failure.message);
            return Err(failure);
        }
    };
    let arrived = Arc::new(AtomicBool::new(false));
    let (sender, lanes) = channel();
    pass_lanes_on(
        socket,
        sender,
        Arc::clone(&control.stopper),
        Arc::clone(&arrived),
    )?;
    let backing = backing(arguments, hello.offer());
    let options = Options {
        // Measured: small pages of private memory gain by it, those of a memfd do not, and huge
        // pages lose, as they leave the cache before their data comes.
        prefault: arguments.prefault == Prefault::Auto
            && backing == Some(Backing::Anonymous)
            && !comes_in_huge_pages(Backing::Anonymous),
        ..Options::default()
    };
    let rdma = (hello.transport() == fabric::TRANSPORT).then(|| arguments.rdma.clone());
    let endpoint: DestinationEndpointFactory = Box::new(move |memory| match rdma {
        Some(choices) => fabric::destination(local, memory, &choices),
        None => Ok(Box::new(TcpEndpoint::new(memory, lanes, options)) as _),
    });
    let mut factory = Announcing {
        factory: MachineFactory::new(
            arguments.memory_backing.backing(),
            arguments.dirty_tracking.into(),
            serial,
        ),
        socket,
        desk: &desk,
        gauge: None,
        stopper: Stopper::from_environment(),
        small_pages: arguments.prefault == Prefault::Off,
    };
    let settings = ReceiveSettings {
        prefault_all: arguments.prefault == Prefault::On,
        prefault_ahead: arguments.prefault == Prefault::Auto,
        pin_budget: arguments.rdma.pin_budget.unwrap_or_default(),
        ..ReceiveSettings::default()
    };
    let arrival = Arrival {
        control,
        hello,
        factory: &mut factory,
        endpoint,
        journal,
        outside,
    };
    let received = receive(arrival, &settings)
        .inspect_err(
            |error| warn!(%session, side = "destination", %error, "the guest did not come"),
        )
        .map_err(|error| Failure::new(Exit::PeerFailed, error.to_string()))?;
    arrived.store(true, Ordering::Release);
    let (epoch, source_knows) = (received.epoch, received.source_knows);
    info!(%session, side = "destination", guest, epoch, source_knows, "the guest runs here");
    Ok(Arrived {
        desk,
        machine: received.guest,
        epoch: received.epoch,
        journal: received.journal,
        source_knows: received.source_knows,
        outside: received.outside,
        _claim: claim,
    })
}

/// What backs the guest's memory here.
fn backing(arguments: &Incoming, offer: &GuestOffer) -> Option<Backing> {
    let offered = || offer.layout.regions().first().map(|region| region.backing);
    arguments.memory_backing.backing().or_else(offered)
}

struct Prepared {
    claim: NameClaim,
    desk: Desk,
    serial: Box<dyn Write + Send>,
    journal: Box<dyn Journal>,
    outside: Box<dyn Outside>,
}

fn prepare(arguments: &Incoming, hello: &Hello) -> Result<Prepared, Failure> {
    let offer = hello.offer();
    let name = &arguments.name.0;
    if offer.identity.name != *name {
        return Err(Failure::local(format!(
            "the guest's name is '{}', its process was made for '{name}'",
            offer.identity.name
        )));
    }
    let (claim, listener) = arguments.runtime.directory().claim(name)?;
    let serial = SerialFile::open(&arguments.serial).map_err(|error| {
        let path = arguments.serial.display();
        Failure::system(format!("the serial port's file {path}"), error)
    })?;
    let backing = backing(arguments, offer).map_or("", |backing| backing.name());
    let provisions = Provisions {
        records: arguments.state.directory(),
        hooks: arguments.hooks.clone(),
    };
    let subject = Subject {
        uuid: offer.identity.uuid,
        name: name.clone(),
        epoch: offer.identity.epoch,
        session: hello.session(),
        role: Role::Destination,
        peer: arguments.peer.clone(),
    };
    let journal = provisions
        .records
        .begin(&subject)
        .map_err(|error| Failure::local(format!("the move can't be recorded here: {error}")))?;
    let outside = Hooks {
        choices: arguments.hooks.clone(),
        epoch: subject.epoch.saturating_add(1),
        subject,
    };
    let desk = Desk::new(Facts::of(offer, backing), GuestState::Incoming, provisions);
    desk.open(listener)?;
    desk.heed_signals()?;
    Ok(Prepared {
        claim,
        desk,
        serial: Box::new(serial),
        journal: Box::new(journal),
        outside: Box::new(outside),
    })
}

/// Takes lanes from the supervisor on a thread of its own, for as long as there is one. When the
/// supervisor goes before the guest is here, the move ends.
fn pass_lanes_on(
    socket: &UnixStream,
    lanes: Sender<IncomingLane>,
    control: Arc<dyn ControlStopper>,
    arrived: Arc<AtomicBool>,
) -> Result<(), Failure> {
    let failed = |error| Failure::system("the thread that takes lanes", error);
    let socket = socket.try_clone().map_err(failed)?;
    thread::Builder::new()
        .name("lanes".to_owned())
        .spawn(move || {
            while let Ok(Some(parcel)) = take(&socket) {
                let Parcel::Lane { stream, preamble } = parcel else {
                    continue;
                };
                let Ok(preamble) = preamble.as_slice().try_into() else {
                    continue;
                };
                // The supervisor has read it; what it got wrong is dropped here.
                let Ok(preamble) = Preamble::decode(preamble) else {
                    continue;
                };
                if lanes.send(IncomingLane { stream, preamble }).is_err() {
                    // The move is over: lanes that come now are nobody's.
                    continue;
                }
            }
            if !arrived.load(Ordering::Acquire) {
                control.stop();
            }
        })
        .map(|_| ())
        .map_err(failed)
}

/// A factory that tells the supervisor once memory is allocated, and everyone else once the guest
/// runs here.
struct Announcing<'a> {
    factory: MachineFactory,
    socket: &'a UnixStream,
    desk: &'a Desk,
    gauge: Option<Gauge>,
    stopper: Stopper,
    /// Whether its memory shall come in small pages.
    small_pages: bool,
}

impl GuestFactory for Announcing<'_> {
    type Guest = Machine;

    fn create(&mut self, offer: &GuestOffer) -> Result<Machine, GuestError> {
        let machine = self.factory.create(offer)?;
        if self.small_pages {
            keep_to_small_pages(machine.guest_memory());
        }
        say(self.socket, &Word::MemoryAllocated)
            .map_err(|error| GuestError::new("the supervisor is gone", error))?;
        self.gauge = Some(machine.gauge());
        Ok(machine)
    }

    fn released(&mut self) {
        // A supervisor that does not hear it releases once more.
        let _ = say(self.socket, &Word::OutsideReleased);
    }

    fn reached(&mut self, milestone: Milestone) {
        self.stopper.reached(milestone);
    }

    fn entered(&mut self, epoch: u64) {
        if let Some(gauge) = self.gauge.take() {
            self.desk.entered(epoch, gauge);
        }
    }
}
