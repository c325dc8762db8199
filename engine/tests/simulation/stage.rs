//! Where a schedule happens: two hosts, their processes and what connects them, and the agenda of
//! what is still to befall them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dunlin_engine::milestone::Milestone;
use dunlin_engine::protocol::MessageKind;
use dunlin_engine::records::Entry;
use dunlin_engine::records::verdict::Evidence;
use dunlin_engine::session::Decision;
use dunlin_engine::settings::MoveHandle;
use dunlin_transports::lane::SessionId;
use dunlin_transports::runtime::Monitor;
use dunlin_transports::runtime::simulation::{HostId, ProcessId, World};

use super::disk::Disk;
use super::faults::{Fault, Planned, Undo, Who};
use super::guest::{EPOCH, Machine};
use super::ledger::{Ledger, Side};
use super::network::Wire;

/// By how much the hosts' clocks differ: what takes one for the other is found out.
const CLOCKS_APART: Duration = Duration::from_secs(5000);

/// What the engine, or a factory, asks of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Call {
    /// Make room.
    Create,
    /// Stop every writer.
    Pause,
    /// Save its state.
    Save,
    /// Let it go on.
    Resume,
    /// Load its state.
    Load,
    /// Acquire what it holds outside of its host.
    Acquire,
    /// Enter its vCPUs.
    Run,
    /// The second of its vCPUs: one has run by then.
    Entered,
}

/// A point that a schedule passes, at which a fault may befall it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Moment {
    /// A control message is about to be sent.
    Sends(MessageKind),
    /// A guest is asked for something.
    Calls(Side, Call),
    /// An entry is about to be recorded.
    Records(Side, Entry),
    /// The engine says that a point on the way was reached.
    Reaches(Milestone),
    /// So much virtual time has passed.
    Time(Duration),
}

/// Something on the agenda.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// A fault befalls it.
    Perform(Fault),
    /// A fault ends.
    Undo(Undo),
}

/// What is still to come, and what the scenario waits for.
#[derive(Default)]
pub(crate) struct Agenda {
    /// When what is due.
    pub(crate) acts: Vec<(Duration, Act)>,
    /// Whether a side has nothing more to do.
    pub(crate) is_done: [bool; 2],
    /// Since when the source holds a guest whose owner it does not know.
    pub(crate) in_doubt_since: Option<Duration>,
}

/// The processes, as far as there are such.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cast {
    source: Option<ProcessId>,
    destination: Option<ProcessId>,
    supervisor: Option<ProcessId>,
    send: Option<ProcessId>,
}

impl Cast {
    fn slot(&mut self, who: Who) -> &mut Option<ProcessId> {
        match who {
            Who::Source => &mut self.source,
            Who::Destination => &mut self.destination,
            Who::Supervisor => &mut self.supervisor,
            Who::Send => &mut self.send,
        }
    }
}

struct Inner {
    world: World,
    hosts: [HostId; 2],
    disks: [Disk; 2],
    wire: Wire,
    ledger: Ledger,
    handle: Mutex<Arc<MoveHandle>>,
    session: Mutex<SessionId>,
    /// Whether a side's host is down.
    is_down: Mutex<[bool; 2]>,
    cast: Mutex<Cast>,
    source: Mutex<Option<Machine>>,
    planned: Mutex<Vec<Planned>>,
    failures: Mutex<Vec<(Side, Call)>>,
    injected: Mutex<Vec<&'static str>>,
    /// How many faults befell the moves before this one.
    injected_before: Mutex<usize>,
    agenda: Monitor<Agenda>,
}

/// The stage of one schedule. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Stage(Arc<Inner>);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stage {
    /// A stage on which `planned` is going to happen.
    pub(crate) fn new(
        world: &World,
        wire: Wire,
        ledger: &Ledger,
        handle: &Arc<MoveHandle>,
        planned: Vec<Planned>,
    ) -> Self {
        let hosts = ["host-a", "host-b"].map(|name| world.add_host(name));
        world.put_clock_forward(hosts[1], CLOCKS_APART);
        let stage = Self(Arc::new(Inner {
            world: world.clone(),
            hosts,
            disks: [(); 2].map(|()| Disk::new(world)),
            wire,
            ledger: ledger.clone(),
            handle: Mutex::new(Arc::clone(handle)),
            session: Mutex::new(SessionId([1; 16])),
            is_down: Mutex::default(),
            cast: Mutex::default(),
            source: Mutex::default(),
            planned: Mutex::default(),
            failures: Mutex::default(),
            injected: Mutex::default(),
            injected_before: Mutex::default(),
            agenda: Monitor::default(),
        }));
        for planned in planned {
            stage.plan(planned);
        }
        let watching = Arc::downgrade(&stage.0);
        stage.wire().watch(Arc::new(move |_, kind| {
            if let (Some(inner), Some(kind)) = (watching.upgrade(), kind) {
                let stage = Self(inner);
                if !matches!(kind, MessageKind::Ping | MessageKind::Pong) {
                    stage.world().note(|| format!("sends {kind:?}"));
                }
                stage.passes(Moment::Sends(kind));
            }
        }));
        stage
    }

    fn plan(&self, planned: Planned) {
        match (planned.moment, &planned.fault) {
            (_, Fault::Fail(side, call)) => locked(&self.0.failures).push((*side, *call)),
            (Moment::Time(at), _) => self.schedule(at, Act::Perform(planned.fault)),
            _ => locked(&self.0.planned).push(planned),
        }
    }

    /// The world.
    pub(crate) fn world(&self) -> &World {
        &self.0.world
    }

    /// The network.
    pub(crate) fn wire(&self) -> &Wire {
        &self.0.wire
    }

    /// The ledger.
    pub(crate) fn ledger(&self) -> &Ledger {
        &self.0.ledger
    }

    /// Steers the move.
    pub(crate) fn handle(&self) -> Arc<MoveHandle> {
        Arc::clone(&locked(&self.0.handle))
    }

    /// The move's session.
    pub(crate) fn session(&self) -> SessionId {
        *locked(&self.0.session)
    }

    /// Another move begins, with a session and a handle of its own. Nothing that was planned
    /// befalls it.
    pub(crate) fn begin_another(&self, handle: Arc<MoveHandle>) {
        *locked(&self.0.handle) = handle;
        locked(&self.0.session).0[0] += 1;
        locked(&self.0.planned).clear();
        locked(&self.0.failures).clear();
        *locked(&self.0.injected_before) = locked(&self.0.injected).len();
        *self.0.agenda.lock() = Agenda::default();
    }

    /// A side's host.
    pub(crate) fn host(&self, side: Side) -> HostId {
        self.0.hosts[side as usize]
    }

    /// A side's disk.
    pub(crate) fn disk(&self, side: Side) -> &Disk {
        &self.0.disks[side as usize]
    }

    /// What the destination's records tell of the move.
    pub(crate) fn evidence(&self) -> Evidence {
        let boot = self.world().boot_id(self.host(Side::Destination));
        let disk = self.disk(Side::Destination);
        disk.evidence(&boot, self.session(), EPOCH)
    }

    /// A side's host goes down, or is back.
    pub(crate) fn set_down(&self, side: Side, is_down: bool) {
        locked(&self.0.is_down)[side as usize] = is_down;
    }

    /// Whether the destination's host is up, and nobody listens there.
    pub(crate) fn lacks_supervisor(&self) -> bool {
        let is_down = locked(&self.0.is_down)[Side::Destination as usize];
        !is_down && self.alive(Who::Supervisor).is_none()
    }

    // ---- processes ----

    /// A new process; it takes the place of one that died.
    pub(crate) fn add_process(&self, who: Who) -> ProcessId {
        let process = self.world().add_process(self.host(who.side()), who.name());
        *locked(&self.0.cast).slot(who) = Some(process);
        process
    }

    /// A process, where it is there and was not killed.
    pub(crate) fn alive(&self, who: Who) -> Option<ProcessId> {
        let process = *locked(&self.0.cast).slot(who);
        process.filter(|process| self.world().is_alive(*process))
    }

    /// Whether a process was there and was killed.
    pub(crate) fn was_killed(&self, who: Who) -> bool {
        let process = *locked(&self.0.cast).slot(who);
        process.is_some_and(|process| !self.world().is_alive(process))
    }

    // ---- the agenda ----

    /// Puts something on the agenda.
    pub(crate) fn schedule(&self, at: Duration, act: Act) {
        self.0.agenda.lock().acts.push((at, act));
        self.0.agenda.notify_all();
    }

    /// A side has nothing more to do.
    pub(crate) fn done(&self, side: Side) {
        self.0.agenda.lock().is_done[side as usize] = true;
        self.0.agenda.notify_all();
    }

    /// The source does not know who owns the guest.
    pub(crate) fn in_doubt(&self) {
        let now = self.world().elapsed();
        self.0.agenda.lock().in_doubt_since = Some(now);
        self.0.agenda.notify_all();
    }

    /// Whether the source does not know who owns the guest.
    pub(crate) fn is_in_doubt(&self) -> bool {
        let agenda = self.0.agenda.lock();
        agenda.in_doubt_since.is_some() && !agenda.is_done[Side::Source as usize]
    }

    /// A person who has seen to it that the destination runs nothing decides.
    pub(crate) fn decide(&self, decision: Decision) {
        let machine = locked(&self.0.source).clone();
        if decision == Decision::ResumeHere
            && let Some(machine) = machine
        {
            self.ledger().decide_for_source(&machine.generations());
        }
        self.handle().decide(decision, "it is off");
    }

    /// The source's machine is there.
    pub(crate) fn show_source(&self, machine: &Machine) {
        *locked(&self.0.source) = Some(machine.clone());
    }

    /// The agenda.
    pub(crate) fn agenda(&self) -> &Monitor<Agenda> {
        &self.0.agenda
    }

    // ---- moments ----

    /// A guest is asked for something.
    pub(crate) fn called(&self, side: Side, call: Call) {
        self.passes(Moment::Calls(side, call));
    }

    /// The words of a failure that is ordered for this call, once.
    pub(crate) fn take_failure(&self, side: Side, call: Call) -> Option<String> {
        let mut failures = locked(&self.0.failures);
        let ordered = failures
            .iter()
            .position(|failure| *failure == (side, call))?;
        failures.swap_remove(ordered);
        drop(failures);
        self.injected(Fault::Fail(side, call).name());
        Some(format!("{call:?} fails by order"))
    }

    /// A moment is passed: what is planned for it happens. No lock may be held.
    pub(crate) fn passes(&self, moment: Moment) {
        let mut due = Vec::new();
        locked(&self.0.planned).retain_mut(|planned| {
            if planned.moment != moment {
                return true;
            }
            if planned.skips > 0 {
                planned.skips -= 1;
                return true;
            }
            due.push(planned.clone());
            false
        });
        for planned in due {
            match planned.later {
                Some(later) => {
                    let at = self.world().elapsed() + later;
                    self.schedule(at, Act::Perform(planned.fault));
                }
                None => planned.fault.perform(self),
            }
        }
    }

    /// A fault befell the schedule.
    pub(crate) fn injected(&self, name: &'static str) {
        locked(&self.0.injected).push(name);
    }

    /// Whether a fault befell this move.
    pub(crate) fn is_disturbed(&self) -> bool {
        locked(&self.0.injected).len() > *locked(&self.0.injected_before)
    }

    /// The faults that befell it so far.
    pub(crate) fn all_injected(&self) -> Vec<&'static str> {
        locked(&self.0.injected).clone()
    }
}
