//! A vCPU's thread: enter the guest, handle its exits, park when ordered.
//!
//! ```text
//! at rest ──order_run──▶ in the guest ──order_rest, kick──▶ completing its exit ──▶ at rest
//!    ▲                        │ crash                                                  │
//!    └────────────────────────┴────────────────────────────────────────────────────────┘
//! ```
//!
//! The thread holds the vCPU's lock while it is not at rest; at rest, anybody may read and set the
//! vCPU's state.
//!
//! Nobody is woken by a thread that holds the lock on the progress: whoever wakes may take over the
//! waker's processor at once, would then wait for that lock, and where the next in line is a vCPU
//! in its guest, the waker gets the processor back milliseconds later.

use std::io;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use dunlin_engine::clock::Timestamp;
use dunlin_engine::kvm::{KvmRing, KvmSlots};
use dunlin_transports::deadline::Deadline;
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::Killable;

use super::KvmGuestError;
use super::kick::{self, Kick};
use super::serial_port::Ports;

/// How many exits a vCPU may take to complete its pending one: an instruction that repeats itself
/// (`rep outsb`) completes in pieces of at most a page. Past it, the vCPU counts as crashed.
const COMPLETIONS_MAX: u32 = 65_536;

/// How long a vCPU's thread may take to be ready. It needs no more than to be scheduled; the bound
/// is there because every wait has one.
const PREPARE_MAX: Duration = Duration::from_secs(10);

/// How often a vCPU that does not come out is signalled again. Once is enough by the kernel's
/// interface; this keeps a lost signal from costing more than a moment.
const KICK_AGAIN: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Rest,
    Run,
    End,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    AtRest(Timestamp),
    InGuest(Timestamp),
    Crashed(String),
}

#[derive(Debug)]
struct Progress {
    order: Order,
    phase: Phase,
    /// Whether the vCPU was ever let into the guest.
    entered: bool,
}

struct Shared {
    number: u32,
    vcpu: Mutex<VcpuFd>,
    kick: Kick,
    progress: Mutex<Progress>,
    changed: Condvar,
    ports: Arc<dyn Ports>,
    ring: Option<Arc<KvmRing>>,
    /// Keeps guest memory mapped for as long as this thread may enter the guest.
    _memory: KvmSlots,
}

/// A vCPU and its thread.
pub(super) struct VcpuThread {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl VcpuThread {
    /// Starts the thread; the vCPU is at rest.
    pub(super) fn start(
        number: u32,
        vcpu: VcpuFd,
        ports: Arc<dyn Ports>,
        ring: Option<Arc<KvmRing>>,
        memory: KvmSlots,
    ) -> io::Result<Self> {
        kick::install_signal_handler()?;
        let shared = Arc::new(Shared {
            number,
            kick: Kick::new(&vcpu)?,
            vcpu: Mutex::new(vcpu),
            progress: Mutex::new(Progress {
                order: Order::Rest,
                phase: Phase::AtRest(Timestamp::now()),
                entered: false,
            }),
            changed: Condvar::new(),
            ports,
            ring,
            _memory: memory,
        });
        let runner = Arc::clone(&shared);
        let (sender, prepared) = sync_channel(1);
        let thread = Builder::new()
            .name(format!("vcpu-{number}"))
            .spawn(move || {
                let outcome = runner.prepare();
                let ready = outcome.is_ok();
                // Nobody listens any more: then nobody gives orders either.
                if sender.send(outcome).is_ok() && ready {
                    runner.follow_orders();
                }
            })?;
        prepared
            .recv_timeout(PREPARE_MAX)
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// The vCPU, to read and set its state; only while it is at rest.
    pub(super) fn at_rest(&self) -> Result<MutexGuard<'_, VcpuFd>, KvmGuestError> {
        match self.shared.vcpu.try_lock() {
            Ok(vcpu) => Ok(vcpu),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => Err(KvmGuestError::Running(self.shared.number)),
        }
    }

    /// Lets the vCPU go on.
    pub(super) fn order_run(&self) {
        self.shared.order(Order::Run);
    }

    /// Orders the vCPU out of the guest; [`VcpuThread::wait_at_rest`] awaits it.
    pub(super) fn order_rest(&self) {
        self.shared.order(Order::Rest);
        self.signal();
    }

    /// Takes an order to run back; says whether it came too late, or the vCPU was ever entered
    /// before. If not, it will not be.
    pub(super) fn withdraw(&self) -> bool {
        self.order_rest();
        // The thread looks at the order and enters under one lock, so nothing comes between.
        self.shared.lock().entered
    }

    /// Orders the thread to end; [`VcpuThread::join`] awaits it.
    pub(super) fn order_end(&self) {
        self.shared.order(Order::End);
        self.signal();
    }

    /// Waits until the vCPU is at rest, with its pending exit completed; says since when. One that
    /// has crashed never is: its last exit may be incomplete, so its state is not to be read as a
    /// parked vCPU's (law 7).
    pub(super) fn wait_at_rest(&self, deadline: Deadline) -> Result<Timestamp, KvmGuestError> {
        let allowed = deadline.remaining();
        self.wait(deadline, |phase| match phase {
            Phase::AtRest(since) => Some(Ok(*since)),
            Phase::Crashed(reason) => Some(Err(self.crash(reason))),
            Phase::InGuest(_) => None,
        })
        .unwrap_or(Err(KvmGuestError::NotParked {
            vcpu: self.shared.number,
            waited: allowed.saturating_sub(deadline.remaining()),
        }))
    }

    /// Waits until the vCPU is entered; says since when.
    pub(super) fn wait_in_guest(&self, deadline: Deadline) -> Result<Timestamp, KvmGuestError> {
        let allowed = deadline.remaining();
        self.wait(deadline, |phase| match phase {
            Phase::InGuest(since) => Some(Ok(*since)),
            Phase::Crashed(reason) => Some(Err(self.crash(reason))),
            Phase::AtRest(_) => None,
        })
        .unwrap_or(Err(KvmGuestError::NotEntered {
            vcpu: self.shared.number,
            waited: allowed.saturating_sub(deadline.remaining()),
        }))
    }

    /// Whether it runs.
    pub(super) fn running(&self) -> bool {
        matches!(self.shared.lock().phase, Phase::InGuest(_))
    }

    /// Why it can't run any more.
    pub(super) fn crashed(&self) -> Option<KvmGuestError> {
        match &self.shared.lock().phase {
            Phase::Crashed(reason) => Some(self.crash(reason)),
            _ => None,
        }
    }

    /// Joins the thread if it ends by the deadline.
    pub(super) fn join(&mut self, deadline: Deadline) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        while !thread.is_finished() && !deadline.passed() {
            std::thread::sleep(Duration::from_micros(100));
        }
        if thread.is_finished() {
            let _ = thread.join();
        }
    }

    fn crash(&self, reason: &str) -> KvmGuestError {
        KvmGuestError::Crashed {
            vcpu: self.shared.number,
            reason: reason.to_owned(),
        }
    }

    fn signal(&self) {
        if let Some(thread) = &self.thread {
            // It fails when the thread has ended, which is what is wanted.
            let _ = thread.kill(kick::signal());
        }
    }

    fn wait<T>(&self, deadline: Deadline, reached: impl Fn(&Phase) -> Option<T>) -> Option<T> {
        let mut progress = self.shared.lock();
        loop {
            if let Some(value) = reached(&progress.phase) {
                return Some(value);
            }
            let left = deadline.remaining();
            let gone = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            if left.is_zero() || gone {
                return None;
            }
            let (guard, timeout) = self
                .shared
                .changed
                .wait_timeout(progress, left.min(KICK_AGAIN))
                .unwrap_or_else(PoisonError::into_inner);
            progress = guard;
            if timeout.timed_out() && progress.order != Order::Run {
                self.signal();
            }
        }
    }
}

impl Shared {
    fn order(&self, order: Order) {
        let mut progress = self.lock();
        progress.order = order;
        // Under the lock: the thread lets itself in under it too, after looking at the order.
        if order != Order::Run {
            self.kick.want_out();
        }
        drop(progress);
        self.changed.notify_all();
    }

    /// Makes KVM do what it leaves for a vCPU's first `KVM_RUN` (starting a kernel thread for the
    /// VM, since Linux 6.13), so that it is not done in the blackout. The guest is not entered:
    /// `immediate_exit` is set. On the vCPU's own thread, because KVM waits for a grace period when
    /// another thread runs a vCPU than before.
    fn prepare(&self) -> io::Result<()> {
        let mut vcpu = self.vcpu.lock().unwrap_or_else(PoisonError::into_inner);
        self.kick.want_out();
        match vcpu.run() {
            Err(error) if error.errno() != libc::EINTR => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn follow_orders(&self) {
        loop {
            let mut progress = self.lock();
            while progress.order == Order::Rest
                || progress.order == Order::Run && matches!(progress.phase, Phase::Crashed(..))
            {
                progress = self
                    .changed
                    .wait(progress)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            if progress.order == Order::End {
                return;
            }
            // Before the phase says that the vCPU runs, so that whoever sees that phase finds it
            // locked.
            let mut vcpu = self.vcpu.lock().unwrap_or_else(PoisonError::into_inner);
            self.kick.let_in();
            progress.phase = Phase::InGuest(Timestamp::now());
            progress.entered = true;
            drop(progress);
            self.changed.notify_all();

            let outcome = self.run_until_wanted_out(&mut vcpu);

            let phase = match outcome {
                Ok(()) => Phase::AtRest(Timestamp::now()),
                Err(reason) => Phase::Crashed(format!("{reason}; {}", registers(&vcpu))),
            };
            drop(vcpu);
            self.lock().phase = phase;
            self.changed.notify_all();
        }
    }

    /// Runs the vCPU, and returns when it is wanted out and has nothing pending: `KVM_RUN` completes
    /// an exit when it is entered again, and only then says EINTR (law 7).
    fn run_until_wanted_out(&self, vcpu: &mut VcpuFd) -> Result<(), String> {
        let mut completions = 0;
        loop {
            match vcpu.run() {
                Ok(exit) => self.handle(exit)?,
                Err(error) => match error.errno() {
                    libc::EINTR if self.kick.wanted_out() => return Ok(()),
                    libc::EINTR | libc::EAGAIN => {}
                    _ => return Err(format!("KVM_RUN failed: {error}")),
                },
            }
            if self.kick.wanted_out() {
                completions += 1;
                if completions > COMPLETIONS_MAX {
                    return Err("its pending exit does not complete".to_owned());
                }
            }
        }
    }

    fn handle(&self, exit: VcpuExit<'_>) -> Result<(), String> {
        match exit {
            VcpuExit::IoIn(port, data) => self.ports.read(port, data),
            VcpuExit::IoOut(port, data) => self.ports.write(port, data),
            // There is no device in memory: reads see what an empty bus has.
            VcpuExit::MmioRead(_, data) => data.fill(0xff),
            VcpuExit::MmioWrite(..) | VcpuExit::Intr | VcpuExit::IrqWindowOpen => {}
            VcpuExit::Unsupported(KvmRing::EXIT_REASON) => match &self.ring {
                Some(ring) => ring.on_ring_full().map_err(|error| error.to_string())?,
                None => return Err("its dirty ring is full, but there is none".to_owned()),
            },
            VcpuExit::Shutdown => return Err("triple fault".to_owned()),
            VcpuExit::InternalError => {
                return Err("KVM could not go on (internal error)".to_owned());
            }
            VcpuExit::FailEntry(reason, _) => {
                return Err(format!(
                    "the processor refused its state, reason {reason:#x}"
                ));
            }
            other => return Err(format!("an exit that nothing here handles: {other:?}")),
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn registers(vcpu: &VcpuFd) -> String {
    match (vcpu.get_regs(), vcpu.get_sregs()) {
        (Ok(regs), Ok(sregs)) => format!(
            "rip {:#x} rax {:#x} rcx {:#x} rdx {:#x} rbx {:#x} rsi {:#x} rdi {:#x} rflags {:#x} \
             cr2 {:#x} cr3 {:#x}",
            regs.rip,
            regs.rax,
            regs.rcx,
            regs.rdx,
            regs.rbx,
            regs.rsi,
            regs.rdi,
            regs.rflags,
            sregs.cr2,
            sregs.cr3
        ),
        (Err(error), _) | (_, Err(error)) => format!("registers can't be read: {error}"),
    }
}
