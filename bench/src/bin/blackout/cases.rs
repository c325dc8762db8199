//! Which guests move.

/// A guest's memory that is its own, and what its two processes take besides.
const OVERHEAD_BYTES: u64 = 1 << 30;

/// One kind of guest. All of its memory is random; it has one vCPU.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    memory_bytes: u64,
    workload: &'static str,
    /// One in so many of the moves that the first case makes.
    one_in: u32,
}

/// The guest that does nothing.
pub(crate) const IDLE: &str = "idle, 1 GiB";
/// A larger one.
pub(crate) const IDLE_LARGE: &str = "idle, 8 GiB";
/// The one that writes as fast as it can.
pub(crate) const HOT: &str = "hot 64 MiB, 1 GiB";

/// All of them, in the order of a pass.
pub(crate) fn all() -> Vec<Case> {
    vec![
        Case {
            name: IDLE,
            memory_bytes: 1 << 30,
            workload: "hot=0,zero=0",
            one_in: 1,
        },
        Case {
            name: HOT,
            memory_bytes: 1 << 30,
            workload: "hot=64MiB,rate=max,zero=0",
            one_in: 2,
        },
        // 10 s to fill, and some seconds a move.
        Case {
            name: IDLE_LARGE,
            memory_bytes: 8 << 30,
            workload: "hot=0,zero=0",
            one_in: 5,
        },
    ]
}

impl Case {
    /// How often it moves in a pass in which the first case moves `moves` times.
    pub(crate) fn moves(&self, moves: u32) -> u32 {
        moves.div_ceil(self.one_in)
    }

    /// What `dunlin run` is told.
    pub(crate) fn run_arguments(&self) -> [&str; 6] {
        let memory = match self.memory_bytes >> 30 {
            8 => "8GiB",
            _ => "1GiB",
        };
        [
            "--guest",
            "kvm",
            "--memory",
            memory,
            "--workload",
            self.workload,
        ]
    }

    /// What is missing for it: it is there twice while it moves.
    pub(crate) fn lacks(&self, available_bytes: u64) -> Option<String> {
        let needed = 2 * self.memory_bytes + OVERHEAD_BYTES;
        (available_bytes < needed).then(|| {
            format!(
                "it needs {} GiB of memory, {} are available",
                needed >> 30,
                available_bytes >> 30
            )
        })
    }
}
