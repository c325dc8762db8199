//! Which guests move, and how.

/// What processes take besides guests' memory.
const OVERHEAD_BYTES: u64 = 1 << 30;

/// One kind of guest, and how it is moved.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    /// What is compared inside of it: a heading.
    pub(crate) group: &'static str,
    pub(crate) memory_bytes: u64,
    /// How much of it is in use, in a hundred parts.
    pub(crate) used_percent: u8,
    pub(crate) lanes: &'static str,
    pub(crate) vcpus: u32,
    /// What the guest rewrites.
    writes: &'static str,
}

/// The guest that is as large as what one of [`SPARSE`] uses.
pub(crate) const DENSE: &str = "819 MiB, all used";
/// A guest that uses a twentieth of its memory.
pub(crate) const SPARSE: &str = "16 GiB, 5 % used";

const IDLE: &str = "hot=0";
const WRITING: &str = "hot=64MiB,rate=200MiB/s";

/// All of them, in the order of a pass.
pub(crate) fn all() -> Vec<Case> {
    let case = |group, name: String, memory_mebibytes: u64| Case {
        name,
        group,
        memory_bytes: memory_mebibytes << 20,
        used_percent: 100,
        lanes: "auto",
        vcpus: 1,
        writes: IDLE,
    };
    let mut cases = Vec::new();
    for gibibytes in [1, 2, 4, 8] {
        let name = format!("{gibibytes} GiB, all used");
        cases.push(case("all memory in use", name, gibibytes << 10));
    }
    let sparse = "little of the memory in use";
    cases.push(case(sparse, DENSE.to_owned(), 819));
    for gibibytes in [1, 4, 16, 64] {
        let name = format!("{gibibytes} GiB, 5 % used");
        cases.push(Case {
            used_percent: 5,
            ..case(sparse, name, gibibytes << 10)
        });
    }
    for lanes in ["1", "2", "3", "4"] {
        let plural = if lanes == "1" { "" } else { "s" };
        let name = format!("2 GiB, {lanes} lane{plural}");
        cases.push(Case {
            lanes,
            ..case("lanes", name, 2048)
        });
    }
    for vcpus in [1, 2] {
        let plural = if vcpus == 1 { "" } else { "s" };
        let name = format!("2 GiB, {vcpus} vCPU{plural} writing");
        cases.push(Case {
            vcpus,
            writes: WRITING,
            ..case("vCPUs", name, 2048)
        });
    }
    cases
}

impl Case {
    /// Guest bytes in use.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.memory_bytes / 100 * u64::from(self.used_percent)
    }

    /// What `dunlin run` is told.
    pub(crate) fn run_arguments(&self) -> Vec<String> {
        let unused = 100 - self.used_percent;
        let workload = format!("{},zero=0,unused={unused}", self.writes);
        let words = ["--guest", "kvm", "--memory", &self.memory_bytes.to_string()];
        let words = words.into_iter().map(str::to_owned);
        let vcpus = ["--vcpus".to_owned(), self.vcpus.to_string()];
        words
            .chain(vcpus)
            .chain(["--workload".to_owned(), workload])
            .collect()
    }

    /// How much of its memory has to be free at the destination: all of it, as is usual; of a guest
    /// that is larger than what is free, what it uses. Then its memory comes in small pages.
    pub(crate) fn reserve_percent(&self, available_bytes: u64) -> u8 {
        let needed = self.memory_bytes + self.used_bytes() + OVERHEAD_BYTES;
        if needed <= available_bytes {
            100
        } else {
            self.used_percent
        }
    }

    /// What is missing for it: what it uses is there twice while it moves.
    pub(crate) fn lacks(&self, available_bytes: u64) -> Option<String> {
        let needed = 2 * self.used_bytes() + OVERHEAD_BYTES;
        (available_bytes < needed).then(|| {
            format!(
                "it needs {} GiB of memory, {} are available",
                needed.div_ceil(1 << 30),
                available_bytes >> 30
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compared_ones_are_there_and_use_alike() {
        let cases = all();
        let used = |name: &str| {
            let mut found = cases.iter().filter(|case| case.name == name);
            let used = found.next().unwrap().used_bytes();
            assert!(found.next().is_none());
            used as f64
        };
        assert!((used(SPARSE) / used(DENSE) - 1.0).abs() < 0.01);
    }
}
