//! `dunlin run`: a guest in the foreground.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use dunlin_engine::layout::Backing;
use dunlin_engine::records::directory::StateDirectory;
use dunlin_engine::records::{Role, Subject};
use dunlin_transports::lane::SessionId;
use dunlin_vmm::dirty_trace::DirtyTrace;
use dunlin_vmm::machine::{Machine, MachineKind};
use dunlin_vmm::size::format_size;
use dunlin_vmm::spec::GuestSpec;
use dunlin_vmm::workload::fill::bytes_taken;
use dunlin_vmm::workload::{Pattern, Workload};
use uuid::Uuid;

use crate::cli::guest::{Run, Serial};
use crate::cli::values::GuestKind;
use crate::console;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::guest::board::Facts;
use crate::guest::hooks::Hooks;
use crate::guest::{Desk, Provisions};
use crate::local::client::Connection;
use crate::local::protocol::GuestState;
use crate::local::runtime_dir::RuntimeDir;
use crate::local::state_dir;
use crate::metrics::Port;
use crate::supervisor::ledger;

/// A guest's first epoch.
const FIRST_EPOCH: u64 = 1;

/// Runs a guest until it ends or was moved away.
pub(crate) fn run(arguments: &Run) -> Result<Exit, Failure> {
    if arguments.with_parent {
        super::end_with_parent()?;
    }
    let runtime = arguments.runtime.directory();
    runtime.prepare()?;
    let name = &arguments.name.0;
    let provisions = Provisions {
        records: arguments.state.directory(),
        hooks: arguments.hooks.clone(),
    };
    state_dir::prepare(&provisions.records)?;
    let metrics = Port::open(arguments.metrics)?;
    let (_claim, listener) = runtime.claim(name)?;
    let serial = serial(&arguments.serial)?;
    let trace = arguments
        .replay
        .as_deref()
        .map(|path| trace(path, arguments))
        .transpose()?;
    let kind = match trace {
        None => kind(arguments.guest),
        Some(_) => MachineKind::Process,
    };
    let workload = match trace {
        None => arguments.workload.clone(),
        Some(_) => replayed(),
    };
    let spec = GuestSpec {
        name: name.clone(),
        uuid: arguments.uuid.unwrap_or_else(Uuid::new_v4),
        memory_bytes: arguments.memory,
        vcpus: arguments.vcpus,
        backing: arguments.memory_backing.into(),
        workload,
        tracking: arguments.dirty_tracking.into(),
    };
    // Without this, a guest that is too large is ended by the kernel while its memory is filled.
    let taken = bytes_taken(&spec.workload, spec.memory_bytes, spec.backing);
    ledger::has_room(taken, spec.backing == Backing::Hugetlb)
        .map_err(|shortage| Failure::local(format!("guest '{name}' can't start: {shortage}")))?;
    let facts = Facts {
        name: name.clone(),
        uuid: spec.uuid.to_string(),
        kind: kind.name().to_owned(),
        memory_bytes: spec.memory_bytes,
        backing: spec.backing.name().to_owned(),
        vcpus: spec.vcpus,
    };
    // To fill the memory takes its time, and a guest that does not answer looks dead.
    let desk = Desk::new(facts, GuestState::Starting, provisions.clone());
    desk.open(listener)?;
    if let Some(port) = metrics {
        desk.tell_metrics(port)?;
    }
    // Behind that, so that of two twins that start at once each sees the other.
    if let Some(uuid) = arguments.uuid {
        refuse_twin(&runtime, name, uuid)?;
        refuse_given_up(&provisions.records, uuid)?;
    }
    let machine = match trace {
        None => Machine::start(kind, &spec, serial),
        Some(trace) => Machine::replay(&spec, trace, serial),
    };
    let machine =
        machine.map_err(|error| Failure::system(format!("guest '{name}' can't start"), error))?;
    desk.heed_signals()?;
    console::tell(format_args!(
        "{name} runs: {} of {} memory, {} vcpus, {}; control socket {}",
        format_size(spec.memory_bytes),
        spec.backing.name(),
        spec.vcpus,
        kind.name(),
        runtime.socket(name).display()
    ));
    let identity = Subject {
        uuid: spec.uuid,
        name: name.clone(),
        epoch: FIRST_EPOCH,
        session: SessionId([0; 16]),
        role: Role::Source,
        peer: String::new(),
    };
    let mut hooks = Hooks {
        choices: provisions.hooks,
        epoch: identity.epoch,
        subject: identity,
    };
    super::see_off(desk.keep(machine, |_| ()), name, &mut hooks)
}

/// The trace that is replayed, which has to be of a guest with as much memory.
fn trace(path: &Path, arguments: &Run) -> Result<DirtyTrace, Failure> {
    let usage =
        |words: String| Failure::new(Exit::Usage, format!("--replay {}: {words}", path.display()));
    if arguments.guest == GuestKind::Kvm {
        return Err(usage(
            "only guests of threads replay; leave --guest out".to_owned(),
        ));
    }
    let trace = DirtyTrace::read(path).map_err(|error| usage(error.to_string()))?;
    if trace.memory_bytes() != arguments.memory {
        let memory = format_size(trace.memory_bytes());
        return Err(usage(format!("it is of a guest with --memory {memory}")));
    }
    Ok(trace)
}

/// The workload of a guest that replays. Nothing in it is zero, so that all of it is carried.
fn replayed() -> Workload {
    Workload {
        pattern: Pattern::Replay,
        hot_bytes: 0,
        zero_percent: 0,
        ..Workload::default()
    }
}

/// Refuses a UUID whose guest was handed over from here, while it is not known whether it runs
/// elsewhere.
fn refuse_given_up(records: &StateDirectory, uuid: Uuid) -> Result<(), Failure> {
    let found = records
        .of_guest(uuid)
        .map_err(|error| Failure::local(error.to_string()))?;
    match found.iter().find(|found| found.may_be_given_up()) {
        None => Ok(()),
        Some(found) => Err(Failure::new(
            Exit::Conflict,
            format!(
                "guest {uuid} was handed over to {} and may run there: 'dunlin settle {uuid}' asks",
                found.subject.peer
            ),
        )),
    }
}

/// Refuses a UUID that another guest here has. Guests that are about to be gone don't count, and
/// those that don't answer can't be asked.
fn refuse_twin(runtime: &RuntimeDir, own_name: &str, uuid: Uuid) -> Result<(), Failure> {
    let text = uuid.to_string();
    for name in runtime.names()? {
        if name == own_name || !runtime.is_taken(&name) {
            continue;
        }
        let status = Connection::open(runtime, &name).and_then(|mut guest| guest.status());
        let is_twin = status.is_ok_and(|status| {
            status.uuid == text
                && !matches!(
                    status.state,
                    GuestState::Moved | GuestState::Ending | GuestState::Discarded
                )
        });
        if is_twin {
            return Err(Failure::new(
                Exit::Conflict,
                format!(
                    "a guest with UUID {uuid} is already here, named '{name}'; without --uuid a new one is drawn"
                ),
            ));
        }
    }
    Ok(())
}

/// What runs the guest, where the choice is left to this host.
pub(super) fn kind(chosen: GuestKind) -> MachineKind {
    match chosen {
        GuestKind::Kvm => MachineKind::Kvm,
        GuestKind::Process => MachineKind::Process,
        GuestKind::Auto if MachineKind::kvm_is_usable() => MachineKind::Kvm,
        GuestKind::Auto => MachineKind::Process,
    }
}

fn serial(chosen: &Serial) -> Result<Box<dyn Write + Send>, Failure> {
    Ok(match chosen {
        Serial::Null => Box::new(io::sink()),
        Serial::Stdout => Box::new(io::stdout()),
        Serial::File(path) => Box::new(File::create(path).map_err(|error| {
            Failure::system(format!("the serial port's file {}", path.display()), error)
        })?),
    })
}
