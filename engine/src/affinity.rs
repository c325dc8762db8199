//! Which CPUs lane threads run on.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The CPU for each of `lanes` lanes: those that the operator named, in turn; else CPUs of their
/// own where there are more than lanes and vCPUs together need, near the NIC if enough of them are
/// (`near`); else `None`, and the scheduler decides. (Pinning where there are too few only keeps
/// the scheduler from helping.)
pub(crate) fn lane_cpus(
    named: &[usize],
    near: &[usize],
    lanes: u16,
    vcpus: u32,
) -> Vec<Option<usize>> {
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
    free_cpus(allowed_cpus(), near, lanes, vcpus)
}

/// CPUs of their own for lanes, if there are enough of those `allowed`.
fn free_cpus(
    mut allowed: Vec<usize>,
    near: &[usize],
    lanes: usize,
    vcpus: u32,
) -> Vec<Option<usize>> {
    let enough = allowed.len() > lanes + vcpus as usize;
    let is_near = |cpu: &usize| near.contains(cpu);
    if allowed.iter().filter(|cpu| is_near(cpu)).count() >= lanes {
        allowed.retain(is_near);
    }
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
        let named = lane_cpus(&[3, 5], &[7], 3, 1);
        assert_eq!(named, vec![Some(3), Some(5), Some(3)]);
        assert_eq!(lane_cpus(&[], &[], 64, 4096), vec![None; 64]);
    }

    #[test]
    fn lanes_run_near_the_nic_where_there_is_room() {
        let free = |near: &[usize], lanes, vcpus| free_cpus((0..8).collect(), near, lanes, vcpus);
        assert_eq!(free(&[], 2, 1), [Some(7), Some(6)]);
        assert_eq!(free(&[2, 3, 4], 2, 1), [Some(4), Some(3)]);
        // Too few are near, or not allowed: wherever there is room.
        assert_eq!(free(&[2, 9, 10], 2, 1), [Some(7), Some(6)]);
        // The host has no room for lanes of their own.
        assert_eq!(free(&[2, 3, 4], 2, 6), [None, None]);
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
