//! Simulated worlds: virtual time, and a seed that draws who runs next.
//!
//! The threads of a [`World`] are real ones, of which exactly one runs at a time: the one that has
//! the baton. It passes the baton on wherever it waits, sends or receives, and
//! the world's generator draws who gets it. When all wait, time jumps to the nearest deadline. So
//! one seed is one order of events, every time.
//!
//! Threads belong to processes, and processes to hosts, each with a clock of its own. A process
//! that is killed or stopped gets the baton no more: its threads stay where they are, and what they
//! hold is never freed. Run many worlds in processes of a few hundred each.
//!
//! What the laws are: nobody waits but through [`crate::runtime`], and nobody passes the baton on
//! (waits, sends, receives, starts a thread) with a lock held that others take.
//!
//! | room | what is in it |
//! |---|---|
//! | here | the world as a scenario sees it, and the calling thread's place in it |
//! | `schedule` | who runs next, and what time it is |

mod schedule;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use self::schedule::{Baton, Schedule, Status};

thread_local! {
    static CURRENT: RefCell<Option<Member>> = const { RefCell::new(None) };
}

/// The calling thread's place in a world; `None` for a thread that is in none.
pub fn current() -> Option<Member> {
    // A thread whose locals are being destroyed has given the baton away for good.
    CURRENT
        .try_with(|current| current.borrow().clone())
        .ok()
        .flatten()
}

/// A process of a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProcessId(usize);

/// A host of a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HostId(usize);

/// A simulated world. Clones are the same one.
#[derive(Clone)]
pub struct World {
    schedule: Arc<Mutex<Schedule>>,
    /// The real moment at which virtual time is zero, since an [`Instant`] can't be made up.
    base: Instant,
}

/// What a world was like, once it is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Virtual time that passed.
    pub took: Duration,
    /// How often the baton could have changed hands.
    pub steps: u64,
    /// A digest of who had it when: the same for the same seed.
    pub digest: u64,
    /// The threads that panicked, and with what words.
    pub panics: Vec<String>,
    /// What was noted, in order, where the world keeps a trace.
    pub trace: Vec<String>,
}

impl World {
    /// Runs `main` as the first thread of a new world, on the calling thread, and ends the world
    /// with it: whoever else is left gets the baton no more.
    pub fn run<T>(seed: u64, keeps_trace: bool, main: impl FnOnce(&Self) -> T) -> (T, Ended) {
        let world = Self {
            schedule: Arc::new(Mutex::new(Schedule::new(seed, keeps_trace))),
            base: Instant::now(),
        };
        let (host, process) = {
            let mut schedule = world.schedule();
            let host = schedule.add_host("outside");
            (host, schedule.add_process(host, "scenario"))
        };
        let (thread, baton) = world.schedule().add_thread(process, "main");
        world.schedule().begin(thread);
        let member = Member {
            world: world.clone(),
            host,
            process,
            thread,
            baton,
        };
        let before = CURRENT.with(|current| current.replace(Some(member)));
        let result = catch_unwind(AssertUnwindSafe(|| main(&world)));
        CURRENT.with(|current| *current.borrow_mut() = before);
        let ended = world.schedule().end();
        match result {
            Ok(result) => (result, ended),
            Err(panic) => resume_unwind(panic),
        }
    }

    fn schedule(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A host, whose clock starts anywhere.
    pub fn add_host(&self, name: &str) -> HostId {
        self.schedule().add_host(name)
    }

    /// A process on a host, with no thread yet.
    pub fn add_process(&self, host: HostId, name: &str) -> ProcessId {
        self.schedule().add_process(host, name)
    }

    /// Starts a process's first thread; the others it starts itself.
    ///
    /// # Errors
    ///
    /// When the system has no room for another thread.
    pub fn spawn_in(
        &self,
        process: ProcessId,
        name: &str,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<Member> {
        let (host, (thread, baton)) = {
            let mut schedule = self.schedule();
            let host = schedule.host_of(process);
            (host, schedule.add_thread(process, name))
        };
        let member = Member {
            world: self.clone(),
            host,
            process,
            thread,
            baton,
        };
        let inside = member.clone();
        let builder = std::thread::Builder::new().name(name.to_owned());
        member.begun(builder.spawn(move || inside.run(work)))?;
        super::step();
        Ok(member)
    }

    /// Ends a process where it stands, as SIGKILL does. What a kernel does to its connections is
    /// for the network to do. A thread that kills its own process does not return from this.
    pub fn kill(&self, process: ProcessId) {
        self.schedule().kill(process);
        super::step();
    }

    /// Stops a process where it stands, as SIGSTOP does.
    pub fn stop(&self, process: ProcessId) {
        self.schedule().set_stopped(process, true);
        super::step();
    }

    /// Lets a stopped process go on.
    pub fn go_on(&self, process: ProcessId) {
        self.schedule().set_stopped(process, false);
    }

    /// Whether a process was not killed.
    pub fn is_alive(&self, process: ProcessId) -> bool {
        self.schedule().is_alive(process)
    }

    /// Puts a host's clock forward, as a host that was suspended finds it.
    pub fn put_clock_forward(&self, host: HostId, by: Duration) {
        self.schedule().put_clock_forward(host, nanoseconds(by));
    }

    /// Gives a host a new boot id. Its processes are killed separately.
    pub fn reboot(&self, host: HostId) {
        self.schedule().reboot(host);
    }

    /// A number below `bound`, drawn by the world's generator; 0 for a bound of 0.
    pub fn draw(&self, bound: u64) -> u64 {
        self.schedule().draw(bound)
    }

    /// Virtual time since the world began.
    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.schedule().now_ns())
    }

    /// Adds a line to the trace, where one is kept.
    pub fn note(&self, words: impl FnOnce() -> String) {
        // The words may ask for the time.
        if self.schedule().keeps_trace() {
            let words = words();
            self.schedule().note(&words);
        }
    }
}

/// Nanoseconds of the clock of the calling thread's host; `None` outside of worlds.
pub fn monotonic_ns() -> Option<u64> {
    current().map(|member| member.world.schedule().clock_ns(member.host))
}

/// The boot id of the calling thread's host; `None` outside of worlds.
pub fn boot_id() -> Option<String> {
    current().map(|member| member.world.schedule().boot_id(member.host))
}

/// One thread of a world. Clones are the same one.
#[derive(Clone)]
pub struct Member {
    world: World,
    host: HostId,
    process: ProcessId,
    thread: usize,
    baton: Arc<Baton>,
}

impl Member {
    /// The world.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The process that the thread belongs to.
    pub fn process(&self) -> ProcessId {
        self.process
    }

    /// This moment, by the clock of the thread's host.
    pub(crate) fn now(&self) -> Instant {
        let forward = self.world.schedule().instant_ns(self.host);
        self.world.base + Duration::from_nanos(forward)
    }

    /// Lets somebody else run first, perhaps.
    pub(crate) fn step(&self) {
        self.pass_on(Status::Runnable);
    }

    /// Waits to be woken, for at most `limit`.
    pub(crate) fn wait(&self, limit: Option<Duration>) {
        let until = limit.map(|limit| {
            let now = self.world.schedule().now_ns();
            now.saturating_add(nanoseconds(limit))
        });
        self.pass_on(Status::Waiting { until });
    }

    /// Waits until the thread of this member has ended.
    pub(crate) fn wait_for_end(&self) {
        let Some(own) = current() else {
            return;
        };
        loop {
            if !self.world.schedule().add_joiner(self.thread, own.thread) {
                return;
            }
            own.wait(None);
        }
    }

    fn wake(&self) {
        self.world.schedule().wake(self.thread);
    }

    /// Passes the baton on, and returns when it is this thread's again.
    fn pass_on(&self, status: Status) {
        let next = self.world.schedule().pass_on(self.thread, status);
        if let Some(next) = next {
            next.give();
            self.baton.wait();
        }
    }

    /// A further thread of the same process, which is not there yet.
    pub(crate) fn enlist(&self, name: &str) -> Self {
        let (thread, baton) = self.world.schedule().add_thread(self.process, name);
        Self {
            thread,
            baton,
            ..self.clone()
        }
    }

    /// Takes note of whether a thread could be started for this member.
    pub(crate) fn begun<T>(&self, thread: io::Result<T>) -> io::Result<T> {
        let mut schedule = self.world.schedule();
        match &thread {
            Ok(_) => schedule.begin(self.thread),
            Err(_) => schedule.discard(self.thread),
        }
        drop(schedule);
        thread
    }

    /// The whole life of this member's thread, on that thread.
    pub(crate) fn run<T>(self, work: impl FnOnce() -> T) -> T {
        self.baton.wait();
        CURRENT.with(|current| *current.borrow_mut() = Some(self.clone()));
        let result = catch_unwind(AssertUnwindSafe(work));
        CURRENT.with(|current| *current.borrow_mut() = None);
        let mut schedule = self.world.schedule();
        if let Err(panic) = &result {
            let words = panic.downcast_ref::<String>().map(String::as_str);
            let words = words.or_else(|| panic.downcast_ref::<&str>().copied());
            schedule.panicked(self.thread, words.unwrap_or("without words"));
        }
        let next = schedule.finish(self.thread);
        drop(schedule);
        if let Some(next) = next {
            next.give();
        }
        result.unwrap_or_else(|panic| resume_unwind(panic))
    }
}

/// The threads that wait for one thing.
#[derive(Default)]
pub(crate) struct Waiting(Mutex<Vec<Member>>);

impl Waiting {
    fn members(&self) -> MutexGuard<'_, Vec<Member>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits to be woken, for at most `limit`; gives the lock back first.
    pub(crate) fn wait(&self, own: &Member, limit: Option<Duration>, unlock: impl FnOnce()) {
        self.members().push(own.clone());
        unlock();
        own.wait(limit);
        self.members().retain(|member| member.thread != own.thread);
    }

    /// Wakes them all.
    pub(crate) fn wake_all(&self) {
        for member in self.members().drain(..) {
            member.wake();
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
