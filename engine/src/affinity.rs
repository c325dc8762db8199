//! Which CPUs lane threads run on.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The CPU for each of `lanes` lanes: those that the operator named, in turn; else CPUs of their
/// own where there are more than lanes and vCPUs together need; else `None`, and the scheduler
/// decides. (Pinning where there are too few only keeps the scheduler from helping.)
pub(crate) fn lane_cpus(named: &[usize], lanes: u16, vcpus: u32) -> Vec<Option<usize>> {
    let lanes = usize::from(lanes);
    if !named.is_empty() {
        return named
            .iter()
            .copied()
            .cycle()
            .take(lanes)
            .map(Some)
            .collect();
    }
    let allowed = allowed_cpus();
    let enough = allowed.len() > lanes + vcpus as usize;
    // From the end: the first CPUs are where most interrupts go.
    let mut cpus = allowed.into_iter().rev().map(Some).filter(|_| enough);
    (0..lanes).map(|_| cpus.next().flatten()).collect()
}

/// Pins this thread to a CPU. A CPU that is not there, or not allowed, leaves it unpinned.
pub(crate) fn pin_current_thread(cpu: usize) {
    if cpu < CpuSet::MAX_CPU {
        let mut set = CpuSet::new();
        set.set(cpu);
        // A lane that runs elsewhere still runs.
        let _ = sched_setaffinity(None, &set);
    }
}

/// The CPUs that this process may use; empty when the kernel does not tell.
pub fn allowed_cpus() -> Vec<usize> {
    let set = sched_getaffinity(None);
    set.map_or_else(
        |_| Vec::new(),
        |set| {
            (0..CpuSet::MAX_CPU)
                .filter(|cpu| set.is_set(*cpu))
                .collect()
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_cpus_are_used_in_turn_and_too_few_are_not_used_at_all() {
        assert_eq!(lane_cpus(&[3, 5], 3, 1), vec![Some(3), Some(5), Some(3)]);
        assert_eq!(lane_cpus(&[], 64, 4096), vec![None; 64]);
    }

    #[test]
    fn a_pinned_thread_may_use_one_cpu() {
        let cpu = allowed_cpus()[0];
        std::thread::spawn(move || {
            pin_current_thread(cpu);
            assert_eq!(allowed_cpus(), vec![cpu]);
        })
        .join()
        .unwrap();
    }
}
