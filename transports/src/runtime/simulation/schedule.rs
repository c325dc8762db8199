//! Who runs next, and what time it is. Everything here is a function of the seed and of what the
//! threads asked for.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::{Ended, HostId, ProcessId};

/// A step takes up to so long of virtual time: about what a system call takes. It also makes
/// waiting in a loop end.
const STEP_NS_MAX: u64 = 4_000;

/// Past so many steps each takes [`LATE_STEP_NS`], so that whoever spins without an end reaches the
/// scenario's limit in virtual time soon.
const STEPS_MAX: u64 = 2_000_000;

/// See [`STEPS_MAX`].
const LATE_STEP_NS: u64 = 10_000_000;

/// How many threads may run, and the right to do so.
pub(super) struct Baton {
    is_here: Mutex<bool>,
    given: Condvar,
}

impl Baton {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            is_here: Mutex::new(false),
            given: Condvar::new(),
        })
    }

    /// Lets this baton's thread run.
    pub(super) fn give(&self) {
        *self.is_here.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.given.notify_one();
    }

    /// Waits until this thread may run.
    pub(super) fn wait(&self) {
        let mut is_here = self.is_here.lock().unwrap_or_else(PoisonError::into_inner);
        while !*is_here {
            is_here = self
                .given
                .wait(is_here)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *is_here = false;
    }
}

/// What a thread is up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// It was enlisted, and there is no thread yet.
    Expected,
    /// It wants to run, or does.
    Runnable,
    /// It waits to be woken.
    Waiting {
        /// Up to this moment of virtual time.
        until: Option<u64>,
    },
    /// It is over.
    Ended,
}

struct Thread {
    name: String,
    process: ProcessId,
    status: Status,
    baton: Arc<Baton>,
    joiners: Vec<usize>,
}

struct Process {
    name: String,
    host: HostId,
    is_alive: bool,
    is_stopped: bool,
}

struct Host {
    name: String,
    /// What its clock showed when the world began.
    booted_ns: u64,
    /// How far its clock was put forward since.
    forward_ns: u64,
    boots: u64,
}

/// A small deterministic generator (SplitMix64, Steele and others 2014).
struct Generator(u64);

impl Generator {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}

/// A world's state.
pub(super) struct Schedule {
    seed: u64,
    generator: Generator,
    now_ns: u64,
    steps: u64,
    digest: u64,
    /// In how many of 16 steps the thread that has the baton keeps it, if it wants to run on.
    keeps: u64,
    is_over: bool,
    hosts: Vec<Host>,
    processes: Vec<Process>,
    threads: Vec<Thread>,
    panics: Vec<String>,
    trace: Option<Vec<String>>,
}

impl Schedule {
    pub(super) fn new(seed: u64, keeps_trace: bool) -> Self {
        let mut generator = Generator(seed);
        Self {
            seed,
            // Some worlds change hands at every step, in some a thread runs on for long.
            keeps: [0, 8, 14]
                .get(generator.below(3) as usize)
                .copied()
                .unwrap_or(0),
            generator,
            now_ns: 0,
            steps: 0,
            digest: 0,
            is_over: false,
            hosts: Vec::new(),
            processes: Vec::new(),
            threads: Vec::new(),
            panics: Vec::new(),
            trace: keeps_trace.then(Vec::new),
        }
    }

    // ---- hosts, processes, threads ----

    pub(super) fn add_host(&mut self, name: &str) -> HostId {
        self.hosts.push(Host {
            name: name.to_owned(),
            booted_ns: self.generator.below(1 << 50),
            forward_ns: 0,
            boots: 0,
        });
        HostId(self.hosts.len() - 1)
    }

    pub(super) fn add_process(&mut self, host: HostId, name: &str) -> ProcessId {
        self.processes.push(Process {
            name: name.to_owned(),
            host,
            is_alive: true,
            is_stopped: false,
        });
        ProcessId(self.processes.len() - 1)
    }

    pub(super) fn add_thread(&mut self, process: ProcessId, name: &str) -> (usize, Arc<Baton>) {
        let baton = Baton::new();
        self.threads.push(Thread {
            name: name.to_owned(),
            process,
            status: Status::Expected,
            baton: Arc::clone(&baton),
            joiners: Vec::new(),
        });
        (self.threads.len() - 1, baton)
    }

    pub(super) fn begin(&mut self, thread: usize) {
        self.set(thread, Status::Runnable);
    }

    pub(super) fn discard(&mut self, thread: usize) {
        self.set(thread, Status::Ended);
    }

    fn set(&mut self, thread: usize, status: Status) {
        if let Some(thread) = self.threads.get_mut(thread) {
            thread.status = status;
        }
    }

    pub(super) fn host_of(&self, process: ProcessId) -> HostId {
        let process = self.processes.get(process.0);
        process.map_or(HostId(0), |process| process.host)
    }

    pub(super) fn kill(&mut self, process: ProcessId) {
        if let Some(process) = self.processes.get_mut(process.0) {
            process.is_alive = false;
        }
    }

    pub(super) fn set_stopped(&mut self, process: ProcessId, is_stopped: bool) {
        if let Some(process) = self.processes.get_mut(process.0) {
            process.is_stopped = is_stopped;
        }
    }

    pub(super) fn is_alive(&self, process: ProcessId) -> bool {
        let process = self.processes.get(process.0);
        process.is_some_and(|process| process.is_alive)
    }

    // ---- time ----

    pub(super) fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// How far the clock of a host went since the world began.
    pub(super) fn instant_ns(&self, host: HostId) -> u64 {
        let host = self.hosts.get(host.0);
        self.now_ns + host.map_or(0, |host| host.forward_ns)
    }

    /// What the clock of a host shows.
    pub(super) fn clock_ns(&self, host: HostId) -> u64 {
        let booted = self.hosts.get(host.0).map_or(0, |host| host.booted_ns);
        booted.saturating_add(self.instant_ns(host))
    }

    pub(super) fn put_clock_forward(&mut self, host: HostId, by_ns: u64) {
        if let Some(host) = self.hosts.get_mut(host.0) {
            host.forward_ns = host.forward_ns.saturating_add(by_ns);
        }
    }

    pub(super) fn reboot(&mut self, host: HostId) {
        if let Some(host) = self.hosts.get_mut(host.0) {
            host.boots += 1;
        }
    }

    pub(super) fn boot_id(&self, host: HostId) -> String {
        let host = self.hosts.get(host.0);
        host.map_or_else(String::new, |host| format!("{}-{}", host.name, host.boots))
    }

    // ---- the baton ----

    pub(super) fn wake(&mut self, thread: usize) {
        if let Some(thread) = self.threads.get_mut(thread)
            && matches!(thread.status, Status::Waiting { .. })
        {
            thread.status = Status::Runnable;
        }
    }

    /// Has `joiner` woken when the thread ends; `false` when it has ended.
    pub(super) fn add_joiner(&mut self, thread: usize, joiner: usize) -> bool {
        match self.threads.get_mut(thread) {
            Some(thread) if thread.status != Status::Ended => {
                thread.joiners.push(joiner);
                true
            }
            _ => false,
        }
    }

    /// The thread is over. Whom to give the baton.
    pub(super) fn finish(&mut self, thread: usize) -> Option<Arc<Baton>> {
        let joiners = self.threads.get_mut(thread).map(|ended| {
            ended.status = Status::Ended;
            std::mem::take(&mut ended.joiners)
        });
        for joiner in joiners.into_iter().flatten() {
            self.wake(joiner);
        }
        self.pass_on(thread, Status::Ended)
    }

    /// A thread takes a step. Whom to give the baton; `None` when the thread keeps it, or nobody
    /// gets it any more.
    pub(super) fn pass_on(&mut self, thread: usize, status: Status) -> Option<Arc<Baton>> {
        self.set(thread, status);
        self.steps += 1;
        self.now_ns += match self.steps {
            ..=STEPS_MAX => 1 + self.generator.below(STEP_NS_MAX),
            _ => LATE_STEP_NS,
        };
        if self.is_over {
            // The thread that ended the world has left; whoever comes here stays here.
            return Some(Baton::new());
        }
        let next = self.choose(thread);
        self.digest = (self.digest.rotate_left(5) ^ next as u64 ^ self.now_ns)
            .wrapping_mul(0x517c_c1b7_2722_0a95);
        if next == thread {
            return None;
        }
        self.threads.get(next).map(|next| Arc::clone(&next.baton))
    }

    fn choose(&mut self, last: usize) -> usize {
        loop {
            let mut runnable = Vec::new();
            let mut nearest = u64::MAX;
            for (number, thread) in self.threads.iter_mut().enumerate() {
                let process = self.processes.get(thread.process.0);
                if process.is_none_or(|process| !process.is_alive || process.is_stopped) {
                    continue;
                }
                if let Status::Waiting { until: Some(until) } = thread.status {
                    if until <= self.now_ns {
                        thread.status = Status::Runnable;
                    } else {
                        nearest = nearest.min(until);
                    }
                }
                if thread.status == Status::Runnable {
                    runnable.push(number);
                }
            }
            if runnable.contains(&last) && self.generator.below(16) < self.keeps {
                return last;
            }
            let drawn = self.generator.below(runnable.len() as u64) as usize;
            if let Some(next) = runnable.get(drawn) {
                return *next;
            }
            if nearest == u64::MAX {
                // Nobody can run ever again: the first thread is woken, and finds that nothing
                // came of what it waits for.
                self.set(0, Status::Runnable);
                return 0;
            }
            self.now_ns = nearest;
        }
    }

    // ---- what is told ----

    pub(super) fn draw(&mut self, bound: u64) -> u64 {
        self.generator.below(bound)
    }

    pub(super) fn keeps_trace(&self) -> bool {
        self.trace.is_some()
    }

    pub(super) fn note(&mut self, words: &str) {
        let line = format!("{:>12.6} s  {words}", self.now_ns as f64 / 1e9);
        if let Some(trace) = &mut self.trace {
            trace.push(line);
        }
    }

    pub(super) fn panicked(&mut self, thread: usize, words: &str) {
        let thread = self.threads.get(thread);
        let name = thread.map_or("?", |thread| thread.name.as_str());
        let process = thread.and_then(|thread| self.processes.get(thread.process.0));
        let process = process.map_or("?", |process| process.name.as_str());
        let seed = self.seed;
        let words = format!("seed {seed}: {process}/{name} panicked: {words}");
        self.note(&words);
        self.panics.push(words);
    }

    pub(super) fn end(&mut self) -> Ended {
        self.is_over = true;
        Ended {
            took: Duration::from_nanos(self.now_ns),
            steps: self.steps,
            digest: self.digest,
            panics: std::mem::take(&mut self.panics),
            trace: self.trace.take().unwrap_or_default(),
        }
    }
}
