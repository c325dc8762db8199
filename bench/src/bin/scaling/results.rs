//! What the moves gave.

use dunlin_bench::moved::Move;
use dunlin_bench::spread::Spread;
use dunlin_bench::usage::Usage;
use serde_json::{Value, json};

use crate::cases::Case;
use crate::table::Title;
use crate::verdicts;

const GIBIBYTE: f64 = 1_073_741_824.0;

/// One move.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) moved: Move,
    pub(crate) usage: Usage,
    /// What the guest's process held before the move at the source, and behind it at the
    /// destination, in bytes, with the guest's memory.
    pub(crate) resident: [u64; 2],
}

/// The moves of one kind of guest.
pub(crate) struct Results {
    pub(crate) case: Case,
    pub(crate) moves: Vec<Made>,
    /// Why it did not move, where it did not.
    pub(crate) failures: Vec<String>,
    /// Why it was left out.
    pub(crate) left_out: Option<String>,
}

impl Results {
    pub(crate) fn new(available_bytes: u64, case: Case) -> Self {
        Self {
            left_out: case.lacks(available_bytes),
            case,
            moves: Vec::new(),
            failures: Vec::new(),
        }
    }

    pub(crate) fn total_s(&self) -> Option<Spread> {
        self.figure(|made| made.moved.total.as_secs_f64())
    }

    pub(crate) fn pause_s(&self) -> Option<Spread> {
        self.figure(|made| made.moved.blackout.as_secs_f64())
    }

    pub(crate) fn goodput(&self) -> Option<Spread> {
        self.figure(|made| made.moved.goodput)
    }

    /// Processor seconds for each GiB that is in use, at the source and at the destination.
    pub(crate) fn cpu_s(&self) -> Option<[f64; 2]> {
        let used = self.case.used_bytes() as f64 / GIBIBYTE;
        let source = self.figure(|made| made.usage.source.total_s() / used)?;
        let destination = self.figure(|made| made.usage.destination.total_s() / used)?;
        Some([source.median, destination.median])
    }

    /// What the engine takes: by how much the source's own memory grew in the move, and the
    /// destination's, whose guest's process begins with it.
    pub(crate) fn engine_bytes(&self) -> Option<[f64; 2]> {
        let source = self.figure(|made| made.usage.source_memory.growth_bytes as f64)?;
        let destination = self.figure(|made| made.usage.destination_memory.growth_bytes as f64)?;
        Some([source.median, destination.median])
    }

    /// What both processes held, with the guest's memory.
    pub(crate) fn resident_bytes(&self) -> Option<[f64; 2]> {
        let source = self.figure(|made| made.resident[0] as f64)?;
        let destination = self.figure(|made| made.resident[1] as f64)?;
        Some([source.median, destination.median])
    }

    fn figure(&self, figure: impl Fn(&Made) -> f64) -> Option<Spread> {
        Spread::of(self.moves.iter().map(figure))
    }

    fn as_json(&self) -> Value {
        json!({
            "name": self.case.name, "memory_bytes": self.case.memory_bytes,
            "used_percent": self.case.used_percent, "lanes": self.case.lanes,
            "vcpus": self.case.vcpus, "moves": self.moves.len(), "total_s": self.total_s(),
            "blackout_s": self.pause_s(), "goodput_bytes_per_s": self.goodput(),
            "cpu_s_per_gib": self.cpu_s(), "engine_bytes": self.engine_bytes(),
            "resident_bytes": self.resident_bytes(), "left_out": self.left_out,
            "failures": self.failures,
        })
    }
}

/// All of it, as JSON.
pub(crate) fn json(title: &Title, all: &[Results]) -> Value {
    let cases: Vec<Value> = all.iter().map(Results::as_json).collect();
    let targets: Vec<String> = verdicts::all(all).iter().map(ToString::to_string).collect();
    json!({
        "machine": title.machine, "passes": title.passes, "seconds": title.took.as_secs(),
        "cases": cases, "targets": targets,
    })
}
