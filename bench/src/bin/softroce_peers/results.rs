//! What a run gave, and medians of several.

use dunlin_bench::host;
use dunlin_bench::spread::Spread;
use dunlin_bench::usage::{Bulk, Cpu, Usage};
use serde_json::{Value, json};

use crate::calls::{SideCalls, SystemCalls};
use crate::rows::Row;
use crate::runs::Bench;

/// Bytes.
pub(crate) const MEBIBYTE: f64 = 1_048_576.0;
/// Bytes.
pub(crate) const GIBIBYTE: f64 = 1_073_741_824.0;

/// The budget for the pause that is given to all that move guests: QEMU's own default.
pub(crate) const PAUSE_BUDGET_MS: u64 = 300;

/// When what is not acknowledged is sent again, for all that lets it be set: after 4.096 µs times two
/// to this power, so 1 s. rxe does not stop its timer when all is acknowledged; with the 67 ms that
/// perftest and Dunlin have otherwise, it repeats packets that arrived, and some of these
/// repetitions end in a request that the peer refuses. QEMU has rdma_cm's own, which is longer.
pub(crate) const ACK_TIMEOUT: u8 = 18;

/// What one run gave.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// Bytes of content that were moved.
    pub(crate) bytes: u64,
    /// Bytes a second while they were copied, as the program says; setting up is not in it.
    pub(crate) goodput: f64,
    /// The whole, as the program says.
    pub(crate) seconds: f64,
    /// The pause, as the program says.
    pub(crate) blackout_s: Option<f64>,
    /// Processor time.
    pub(crate) usage: Usage,
    /// What the source asked of its device.
    pub(crate) device: Option<DeviceWork>,
    /// How often the RDMA devices sent again.
    pub(crate) retries: u64,
}

/// What the source asked of its RDMA device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceWork {
    /// Content that was sent.
    pub(crate) bytes: u64,
    pub(crate) work_requests: u64,
    pub(crate) doorbells: u64,
    pub(crate) completions: u64,
    pub(crate) registrations: u64,
}

impl Outcome {
    pub(crate) fn new(bytes: u64, goodput: f64, seconds: f64, usage: Usage) -> Self {
        Self {
            bytes,
            goodput,
            seconds,
            blackout_s: None,
            usage,
            device: None,
            retries: 0,
        }
    }

    fn per_gibibyte(&self, value: f64) -> f64 {
        value * GIBIBYTE / self.bytes.max(1) as f64
    }
}

/// All runs of a row.
#[derive(Clone, Debug)]
pub(crate) struct RowResults {
    pub(crate) row: Row,
    pub(crate) runs: Vec<Outcome>,
    pub(crate) calls: Option<SystemCalls>,
}

/// A figure of a row.
type Figure = fn(&Outcome) -> Option<f64>;

impl RowResults {
    fn spread(&self, figure: impl Fn(&Outcome) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.runs.iter().filter_map(figure))
    }

    fn median(&self, figure: impl Fn(&Outcome) -> Option<f64>) -> Option<f64> {
        self.spread(figure).map(|spread| spread.median)
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

    pub(crate) fn retries(&self) -> Option<Spread> {
        self.spread(|run| Some(run.retries as f64))
    }

    /// Seconds of processor time for a GiB: in programs and in the kernel.
    pub(crate) fn cpu(&self, side: fn(&Usage) -> Cpu) -> Option<Cpu> {
        Some(Cpu {
            user_s: self.median(|run| Some(run.per_gibibyte(side(&run.usage).user_s)))?,
            system_s: self.median(|run| Some(run.per_gibibyte(side(&run.usage).system_s)))?,
        })
    }

    /// Seconds that all processors of the machine were busy for a GiB.
    pub(crate) fn machine_s(&self) -> Option<f64> {
        self.median(|run| Some(run.per_gibibyte(run.usage.machine_s)))
    }

    /// The destination's processor time while bytes flow, in seconds for a GiB: in programs, and all
    /// that the scheduler gave it.
    pub(crate) fn bulk(&self) -> Option<(f64, f64)> {
        let figure = |seconds: fn(&Bulk) -> f64| {
            self.median(move |run| {
                let bulk = run.usage.bulk.as_ref()?;
                // Less came over the wire than was moved: what came went another way.
                if bulk.wire_bytes < run.bytes / 4 {
                    return None;
                }
                Some(seconds(bulk) * GIBIBYTE / bulk.wire_bytes.max(1) as f64)
            })
        };
        Some((
            figure(|bulk| bulk.destination_user_s)?,
            figure(|bulk| bulk.destination_run_s)?,
        ))
    }

    /// Requests, doorbells, completions and registrations for a MiB.
    pub(crate) fn work(&self) -> Option<[f64; 4]> {
        let figure = |count: fn(&DeviceWork) -> u64| {
            self.median(move |run| {
                let device = run.device.as_ref()?;
                Some(count(device) as f64 * MEBIBYTE / device.bytes.max(1) as f64)
            })
        };
        Some([
            figure(|device| device.work_requests)?,
            figure(|device| device.doorbells)?,
            figure(|device| device.completions)?,
            figure(|device| device.registrations)?,
        ])
    }

    /// System calls for a GiB: the source's and the destination's.
    pub(crate) fn calls(&self) -> Option<[f64; 2]> {
        let (run, calls) = (self.runs.first()?, self.calls.as_ref()?);
        let sides = [&calls.source, &calls.destination];
        Some(sides.map(|side| run.per_gibibyte(side.calls as f64)))
    }

    /// The most frequent system calls for a GiB: the source's and the destination's.
    pub(crate) fn most_calls(&self) -> Option<[Vec<(&str, f64)>; 2]> {
        let (run, calls) = (self.runs.first()?, self.calls.as_ref()?);
        let sides = [&calls.source, &calls.destination];
        Some(sides.map(|side| {
            let most = side.most.iter();
            most.map(|(name, count)| (name.as_str(), run.per_gibibyte(*count as f64)))
                .collect()
        }))
    }

    fn as_json(&self) -> Value {
        let figures: [(&str, Figure); 4] = [
            ("goodput_bytes_per_s", |run| Some(run.goodput)),
            ("seconds", |run| Some(run.seconds)),
            ("blackout_s", |run| run.blackout_s),
            ("retries", |run| Some(run.retries as f64)),
        ];
        let mut object = json!({ "name": self.row.name, "runs": self.runs.len() });
        for (name, figure) in figures {
            object[name] = json!(self.spread(figure));
        }
        object["source_cpu_per_gib"] = json!(self.cpu(|usage| usage.source));
        object["destination_cpu_per_gib"] = json!(self.cpu(|usage| usage.destination));
        object["machine_busy_s_per_gib"] = json!(self.machine_s());
        let bulk = self.bulk();
        object["bulk_destination_user_s_per_gib"] = json!(bulk.map(|(user_s, _)| user_s));
        object["bulk_destination_run_s_per_gib"] = json!(bulk.map(|(_, run_s)| run_s));
        object["per_mib"] = self.work().map_or(Value::Null, |work| {
            let [work_requests, doorbells, completions, registrations] = work;
            json!({
                "work_requests": work_requests, "doorbells": doorbells,
                "completions": completions, "registrations": registrations,
            })
        });
        let side = |calls: &SideCalls| json!({ "calls": calls.calls, "clock_calls": calls.clock_calls, "most": calls.most });
        object["system_calls"] = self.calls.as_ref().map_or(Value::Null, |calls| {
            json!({ "source": side(&calls.source), "destination": side(&calls.destination) })
        });
        object
    }
}

/// All that came out.
pub(crate) struct Results {
    pub(crate) machine: String,
    pub(crate) qemu: Option<String>,
    pub(crate) bytes: u64,
    pub(crate) passes: u32,
    /// How long all of it took.
    pub(crate) seconds: u64,
    pub(crate) rows: Vec<RowResults>,
    /// Rows that were not run, and why.
    pub(crate) left_out: Vec<(String, String)>,
    failures: Vec<String>,
}

impl Results {
    pub(crate) fn new(bench: &Bench, passes: u32) -> Self {
        Self {
            machine: host::machine(),
            qemu: bench.qemu_version.clone(),
            bytes: bench.bytes,
            passes,
            seconds: 0,
            rows: Vec::new(),
            left_out: Vec::new(),
            failures: Vec::new(),
        }
    }

    pub(crate) fn leave_out(&mut self, row: &Row, reason: &str) {
        self.left_out.push((row.name.clone(), reason.to_owned()));
    }

    pub(crate) fn add(&mut self, row: &Row, outcome: anyhow::Result<Outcome>) {
        match outcome {
            Ok(outcome) => self.entry(row).runs.push(outcome),
            Err(error) => self.fail(row, &error),
        }
    }

    pub(crate) fn add_system_calls(&mut self, row: &Row, calls: anyhow::Result<SystemCalls>) {
        match calls {
            Ok(calls) => self.entry(row).calls = Some(calls),
            Err(error) => self.fail(row, &error.context("counting system calls")),
        }
    }

    /// What did not run that should have.
    pub(crate) fn failures(&self) -> &[String] {
        &self.failures
    }

    /// The results of the row with a name, if it was run.
    pub(crate) fn row(&self, name: &str) -> Option<&RowResults> {
        self.rows.iter().find(|results| results.row.name == name)
    }

    fn fail(&mut self, row: &Row, error: &anyhow::Error) {
        self.failures.push(format!("{}: {error:#}", row.name));
    }

    fn entry(&mut self, row: &Row) -> &mut RowResults {
        let at = self
            .rows
            .iter()
            .position(|results| results.row.name == row.name);
        let at = at.unwrap_or_else(|| {
            self.rows.push(RowResults {
                row: row.clone(),
                runs: Vec::new(),
                calls: None,
            });
            self.rows.len() - 1
        });
        &mut self.rows[at]
    }

    pub(crate) fn as_json(&self) -> Value {
        let rows: Vec<Value> = self.rows.iter().map(RowResults::as_json).collect();
        let targets = crate::targets::all(self);
        let targets: Vec<String> = targets.iter().map(ToString::to_string).collect();
        json!({
            "machine": self.machine, "qemu": self.qemu, "bytes": self.bytes,
            "passes": self.passes, "seconds": self.seconds, "rows": rows,
            "targets": targets, "left_out": self.left_out, "failures": self.failures,
        })
    }
}
