//! What this process has pinned and registered, as the kernel counts it: for tests that see to it
//! that nothing stays.

use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::session::soon;

/// The counts are the whole process's, so one test at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// How long between two looks.
const PAUSE: Duration = Duration::from_millis(5);

#[derive(Debug, PartialEq, Eq)]
struct Counts {
    /// `VmPin` of `/proc/self/status` (proc_pid_status(5)).
    pinned_kib: u64,
    /// Registrations of this process; `None` where the program `rdma` is not there to list them.
    registrations: Option<usize>,
}

impl Counts {
    fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let pinned = status.lines().find_map(|line| line.strip_prefix("VmPin:"));
        let pinned = pinned.and_then(|line| line.trim().strip_suffix(" kB"));
        Self {
            pinned_kib: pinned.unwrap().trim().parse().unwrap(),
            registrations: registrations(),
        }
    }
}

/// How many registrations of this process `rdma resource show mr` lists.
fn registrations() -> Option<usize> {
    let shown = Command::new("rdma")
        .args(["resource", "show", "mr"])
        .output();
    let shown = shown.ok().filter(|shown| shown.status.success())?;
    let own = format!(" pid {} ", std::process::id());
    let lines = String::from_utf8_lossy(&shown.stdout);
    let is_own = |line: &&str| format!("{line} ").contains(&own);
    Some(lines.lines().filter(is_own).count())
}

/// Sees to it that a test leaves nothing pinned: make one before anything else, so that it goes
/// last.
pub struct Pinned {
    before: Counts,
    _alone: MutexGuard<'static, ()>,
}

impl Pinned {
    /// What is pinned now. Waits until no other test that does the same runs.
    pub fn watch() -> Self {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        Self {
            before: Counts::now(),
            _alone: alone,
        }
    }

    /// Waits until no more is pinned than when this was made.
    pub fn assert_as_before(&self) {
        let deadline = soon();
        loop {
            let now = Counts::now();
            if now == self.before {
                return;
            }
            assert!(!deadline.passed(), "{:?}, then {now:?}", self.before);
            std::thread::sleep(PAUSE);
        }
    }

    /// How much more is pinned than when this was made.
    pub fn more_bytes(&self) -> u64 {
        let now = Counts::now().pinned_kib;
        now.saturating_sub(self.before.pinned_kib) << 10
    }

    /// How many more registrations there are than when this was made; `None` where the program
    /// `rdma` is not there to list them.
    pub fn more_registrations(&self) -> Option<usize> {
        let now = Counts::now().registrations?;
        now.checked_sub(self.before.registrations?)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.assert_as_before();
        }
    }
}
