//! What a run gave, and medians of several.

use dunlin_bench::host;
use dunlin_bench::spread::Spread;
use dunlin_bench::usage::{Memory, Usage};
use serde_json::{Value, json};

use crate::raw::Trial;
use crate::rows::{Link, Row};
use crate::runs::Bench;
use crate::verdicts;

/// Bytes.
pub(crate) const GIBIBYTE: f64 = 1_073_741_824.0;

/// The budget for the pause that is given to all that move guests: QEMU's own default.
pub(crate) const PAUSE_BUDGET_MS: u64 = 300;

/// What one run gave.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// Bytes of content that were moved.
    bytes: u64,
    /// Bytes a second while they were copied; setting up is not in it.
    pub(crate) goodput: f64,
    /// The whole, as the program says.
    pub(crate) seconds: f64,
    /// The pause, as the program says.
    pub(crate) blackout_s: Option<f64>,
    /// The pause as the guest saw it.
    pub(crate) guest_gap_s: Option<f64>,
    usage: Usage,
}

impl Outcome {
    pub(crate) fn new(bytes: u64, goodput: f64, seconds: f64, usage: Usage) -> Self {
        Self {
            bytes,
            goodput,
            seconds,
            blackout_s: None,
            guest_gap_s: None,
            usage,
        }
    }
}

/// All runs of a row.
pub(crate) struct RowResults {
    pub(crate) row: Row,
    runs: Vec<Outcome>,
}

impl RowResults {
    fn spread(&self, figure: impl Fn(&Outcome) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.runs.iter().filter_map(figure))
    }

    /// Bytes a second while copying.
    pub(crate) fn goodput(&self) -> Option<Spread> {
        self.spread(|run| Some(run.goodput))
    }

    pub(crate) fn seconds(&self) -> Option<Spread> {
        self.spread(|run| Some(run.seconds))
    }

    pub(crate) fn blackout_s(&self) -> Option<Spread> {
        self.spread(|run| run.blackout_s)
    }

    pub(crate) fn guest_gap_s(&self) -> Option<Spread> {
        self.spread(|run| run.guest_gap_s)
    }

    /// Seconds of processor time for a GiB: the source's, and the destination's.
    pub(crate) fn cpu_s(&self) -> Option<[f64; 2]> {
        let of = |seconds: fn(&Usage) -> f64| {
            let spread =
                self.spread(|run| Some(seconds(&run.usage) * GIBIBYTE / run.bytes.max(1) as f64));
            spread.map(|spread| spread.median)
        };
        Some([
            of(|usage| usage.source.total_s())?,
            of(|usage| usage.destination.total_s())?,
        ])
    }

    /// The most memory beyond the guest's, in bytes: the source's, and the destination's.
    pub(crate) fn memory_bytes(&self) -> Option<[f64; 2]> {
        let of = |memory: fn(&Usage) -> Memory| {
            let spread = self.spread(|run| {
                let peak = memory(&run.usage).peak_bytes;
                (peak > 0).then_some(peak as f64)
            });
            spread.map(|spread| spread.median)
        };
        Some([
            of(|usage| usage.source_memory)?,
            of(|usage| usage.destination_memory)?,
        ])
    }

    fn as_json(&self) -> Value {
        json!({
            "link": self.row.link.to_string(), "name": self.row.name, "runs": self.runs.len(),
            "goodput_bytes_per_s": self.goodput(), "seconds": self.seconds(),
            "blackout_s": self.blackout_s(), "guest_visible_s": self.guest_gap_s(),
            "cpu_s_per_gib": self.cpu_s(), "memory_beyond_guest_bytes": self.memory_bytes(),
        })
    }
}

/// All that came out.
pub(crate) struct Results {
    pub(crate) machine: String,
    pub(crate) programs: Vec<String>,
    pub(crate) bytes: u64,
    pub(crate) passes: u32,
    /// How long all of it took.
    pub(crate) seconds: u64,
    pub(crate) rows: Vec<RowResults>,
    /// With what plain send and recv were run.
    pub(crate) settings: Vec<(Link, Trial)>,
    /// Rows that were not run, and why.
    pub(crate) left_out: Vec<(String, String)>,
    /// What did not run that should have.
    pub(crate) failures: Vec<String>,
}

impl Results {
    pub(crate) fn new(bench: &Bench, passes: u32) -> Self {
        let programs = [&bench.qemu_version, &bench.iperf_version];
        Self {
            machine: host::machine(),
            programs: programs.into_iter().flatten().cloned().collect(),
            bytes: bench.bytes,
            passes,
            seconds: 0,
            rows: Vec::new(),
            settings: Vec::new(),
            left_out: Vec::new(),
            failures: Vec::new(),
        }
    }

    pub(crate) fn leave_out(&mut self, row: &Row, reason: String) {
        self.left_out
            .push((format!("{}, {}", row.link, row.name), reason));
    }

    pub(crate) fn add(&mut self, row: &Row, outcome: anyhow::Result<Outcome>) {
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                self.failures
                    .push(format!("{}, {}: {error:#}", row.link, row.name));
                return;
            }
        };
        match self.rows.iter_mut().find(|results| results.row == *row) {
            Some(results) => results.runs.push(outcome),
            None => self.rows.push(RowResults {
                row: row.clone(),
                runs: vec![outcome],
            }),
        }
    }

    pub(crate) fn as_json(&self) -> Value {
        let rows: Vec<Value> = self.rows.iter().map(RowResults::as_json).collect();
        let targets: Vec<String> = verdicts::all(self)
            .iter()
            .map(ToString::to_string)
            .collect();
        let settings: Vec<Value> = self
            .settings
            .iter()
            .map(|(link, (settings, goodput))| {
                json!({ "link": link.to_string(), "settings": settings, "goodput_bytes_per_s": goodput })
            })
            .collect();
        json!({
            "machine": self.machine, "programs": self.programs, "bytes": self.bytes,
            "passes": self.passes, "seconds": self.seconds, "rows": rows, "raw_socket": settings,
            "targets": targets, "left_out": self.left_out, "failures": self.failures,
        })
    }
}
