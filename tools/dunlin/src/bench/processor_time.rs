//! Whose processor time a run was. A thread looks at `/proc` while a run goes on, since processes
//! end with it. The threads that run the guest are left out: a guest that is busy is no cost of the
//! move.
//!
//! The kernel counts a process's time in ticks (10 ms as a rule), so that is how exact it is.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::param::clock_ticks_per_second;

/// How often it is looked. A look takes some 50 µs: a quarter of a percent of one processor.
const INTERVAL: Duration = Duration::from_millis(20);

/// How the threads that run a guest begin their names.
const GUEST_THREAD: &str = "vcpu-";

/// What both sides had used at some time.
#[derive(Clone, Copy, Debug)]
struct Look {
    at: Instant,
    source_ns: u64,
    destination_ns: u64,
}

/// Looks at two sides' processes until it is stopped.
pub(crate) struct Watch {
    is_over: Arc<AtomicBool>,
    looks: Arc<Mutex<Vec<Look>>>,
    thread: Option<JoinHandle<()>>,
}

/// What a run used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) source_ns: u64,
    pub(crate) destination_ns: u64,
}

impl Watch {
    /// Watches the source's process, and the destination's two: the one that waits, and the one of
    /// the guest, whose number comes later (0: not yet).
    pub(crate) fn start(source: u32, waiting: Option<u32>, arriving: Arc<AtomicU32>) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let looks = Arc::new(Mutex::new(Vec::new()));
        let look = move || Look {
            at: Instant::now(),
            source_ns: without_guest_ns(source),
            destination_ns: waiting.map_or(0, without_guest_ns)
                + match arriving.load(Ordering::Acquire) {
                    0 => 0,
                    process => without_guest_ns(process),
                },
        };
        push(&looks, look());
        let told = Arc::clone(&is_over);
        let kept = Arc::clone(&looks);
        let thread = thread::Builder::new()
            .name("processor-time".to_owned())
            .spawn(move || {
                while !told.load(Ordering::Acquire) {
                    thread::sleep(INTERVAL);
                    push(&kept, look());
                }
            })
            .ok();
        Self {
            is_over,
            looks,
            thread,
        }
    }

    /// What was used from the start until `end`.
    pub(crate) fn used_until(mut self, end: Instant) -> Option<Used> {
        self.stop();
        let looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        let first = looks.first()?;
        let last = looks.iter().rev().find(|look| look.at <= end)?;
        Some(Used {
            source_ns: last.source_ns.saturating_sub(first.source_ns),
            destination_ns: last.destination_ns.saturating_sub(first.destination_ns),
        })
    }

    fn stop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop();
    }
}

fn push(looks: &Mutex<Vec<Look>>, mut look: Look) {
    let mut looks = looks.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(last) = looks.last() {
        // A process that is gone has used what it had used.
        look.source_ns = look.source_ns.max(last.source_ns);
        look.destination_ns = look.destination_ns.max(last.destination_ns);
    }
    looks.push(look);
}

/// A process's time without its guest's; 0 where there is no such process.
fn without_guest_ns(process: u32) -> u64 {
    let all = ticks_in(&format!("/proc/{process}/stat")).map_or(0, ticks_ns);
    let threads = fs::read_dir(format!("/proc/{process}/task"));
    let guest: u64 = threads
        .into_iter()
        .flatten()
        .flatten()
        .map(|thread| thread.path())
        .filter(|thread| {
            fs::read_to_string(thread.join("comm")).is_ok_and(|name| name.starts_with(GUEST_THREAD))
        })
        .filter_map(|thread| {
            let schedule = fs::read_to_string(thread.join("schedstat")).ok()?;
            schedule.split_whitespace().next()?.parse::<u64>().ok()
        })
        .sum();
    all.saturating_sub(guest)
}

/// User's and system's ticks in a `stat` file, proc(5): fields 14 and 15.
fn ticks_in(path: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    // The name, in parentheses, may hold anything.
    let (_, rest) = text.rsplit_once(") ")?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn ticks_ns(ticks: u64) -> u64 {
    ticks * (1_000_000_000 / clock_ticks_per_second().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_counted_and_a_guests_is_not() {
        let watch = Watch::start(std::process::id(), None, Arc::default());
        let guest = thread::Builder::new().name("vcpu-0".to_owned()).spawn(|| {
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(300) {
                std::hint::spin_loop();
            }
        });
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(300) {
            std::hint::spin_loop();
        }
        guest.unwrap().join().unwrap();
        let used = watch.used_until(Instant::now()).unwrap();
        assert!(used.source_ns > 0, "{used:?}");
        assert_eq!(used.destination_ns, 0);
        assert_eq!(without_guest_ns(u32::MAX), 0);
    }

    #[test]
    fn nothing_is_known_of_before() {
        let before = Instant::now();
        thread::sleep(Duration::from_millis(1));
        let watch = Watch::start(std::process::id(), None, Arc::default());
        assert_eq!(watch.used_until(before), None);
    }
}
