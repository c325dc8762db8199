//! What was measured: the file that `dunlin bench --json` writes, schema `dunlin.bench/1`. Every
//! field is explained in docs/measuring.md. Durations end in `_ns`, sizes in `_bytes`.
//!
//! Nothing in it names a host, an address, a user or a path: before it is written, what others said
//! in words loses them ([`Results::without_private`]).

use std::fs::File;
use std::io::Read;
use std::path::Path;

use dunlin_engine::report::{BlackoutPart, Host, PredictedPart};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::matrix::Cell;
use super::private::{Names, clean};
use super::statistics::Spread;
use super::verdict::Verdict;
use crate::exit::Exit;
use crate::failure::Failure;

/// The schema's name and version.
pub(crate) const SCHEMA: &str = "dunlin.bench/1";

/// The longest file that is read: a thousand runs of each of a hundred cells take some 2 KiB each.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// All that was measured by one program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Results {
    /// [`SCHEMA`].
    pub(crate) schema: String,
    /// The program's version.
    pub(crate) dunlin: String,
    /// Where the random resampling of the verdicts started.
    pub(crate) seed: u64,
    /// Passes that were asked for.
    pub(crate) passes_asked: u32,
    /// Passes that are complete.
    pub(crate) passes: u32,
    /// Passes that came before, and are not counted.
    pub(crate) warm_up_passes: u32,
    /// Whether somebody ended it before it was through.
    pub(crate) is_interrupted: bool,
    /// Whether source and destination were on one host.
    pub(crate) is_one_host: bool,
    /// Whether another program was run in turns with this one.
    pub(crate) is_interleaved: bool,
    /// The pause's budget.
    pub(crate) max_blackout_ns: u64,
    /// How long all of it took.
    pub(crate) duration_ns: u64,
    /// The source's machine.
    pub(crate) host: Host,
    /// The destination's, where it is another one.
    pub(crate) destination_host: Option<Host>,
    /// The cells.
    pub(crate) cells: Vec<CellResult>,
    /// Other programs.
    pub(crate) references: Vec<ReferenceResult>,
    /// What the figures say.
    pub(crate) verdicts: Vec<Verdict>,
}

/// What was measured of one cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CellResult {
    /// Which.
    pub(crate) cell: Cell,
    /// Why it was not run, if so.
    pub(crate) left_out: Option<String>,
    /// Each run, in order.
    pub(crate) runs: Vec<Run>,
    /// The spread of each figure over the runs that moved the guest.
    pub(crate) summary: Summary,
}

/// One move.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run {
    /// The pass, from 1.
    pub(crate) pass: u32,
    /// When it began, since the first run that counts.
    pub(crate) began_ns: u64,
    /// As in the move's report; `error` where there was no report.
    pub(crate) outcome: String,
    /// Why, where it did not end well; in a file without what is private.
    pub(crate) reason: Option<String>,
    /// What carried the bytes, and how.
    pub(crate) mechanism: String,
    /// How many lanes there were.
    pub(crate) lanes: u64,
    /// How many rounds, the final one among them.
    pub(crate) rounds: u64,
    /// Guest bytes sent over the rounds' time.
    pub(crate) goodput_bytes_per_s: u64,
    /// Guest bytes sent.
    pub(crate) sent_bytes: u64,
    /// All bytes on the lanes.
    pub(crate) wire_bytes: u64,
    /// From HELLO to the last vCPU running.
    pub(crate) total_ns: u64,
    /// The pause.
    pub(crate) blackout_ns: Option<u64>,
    /// What was predicted when it began.
    pub(crate) predicted_ns: Option<u64>,
    /// The prediction, term by term.
    pub(crate) predicted_parts: Vec<PredictedPart>,
    /// The longest gap that the guest itself measured.
    pub(crate) guest_visible_ns: Option<u64>,
    /// The pause, part by part.
    pub(crate) parts: Vec<BlackoutPart>,
    /// How far the two ends' clocks may be apart.
    pub(crate) clock_error_ns: Option<u64>,
    /// Processor time of the source's process without its guest's.
    pub(crate) source_cpu_ns: Option<u64>,
    /// The destination's; `None` on another host.
    pub(crate) destination_cpu_ns: Option<u64>,
    /// Whether memory compared equal afterwards.
    pub(crate) is_equal: Option<bool>,
}

impl Run {
    /// Whether the guest runs on the destination, whole.
    pub(crate) fn is_good(&self) -> bool {
        self.outcome == "moved"
    }

    /// Both sides' processor time.
    pub(crate) fn cpu_ns(&self) -> Option<u64> {
        Some(self.source_cpu_ns? + self.destination_cpu_ns?)
    }
}

/// A figure of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Figure {
    /// Guest bytes a second.
    Goodput,
    /// The whole move.
    Total,
    /// The pause.
    Blackout,
    /// The pause as the guest saw it.
    GuestVisible,
    /// Both sides' processor time.
    Cpu,
}

impl Figure {
    /// Its value in a run that moved the guest.
    pub(crate) fn of(self, run: &Run) -> Option<f64> {
        if !run.is_good() {
            return None;
        }
        let value = match self {
            Self::Goodput => Some(run.goodput_bytes_per_s),
            Self::Total => Some(run.total_ns),
            Self::Blackout => run.blackout_ns,
            Self::GuestVisible => run.guest_visible_ns,
            Self::Cpu => run.cpu_ns(),
        };
        value.map(|value| value as f64)
    }

    /// Its name for people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Goodput => "goodput",
            Self::Total => "the whole move",
            Self::Blackout => "blackout",
            Self::GuestVisible => "the guest's own pause",
            Self::Cpu => "processor time",
        }
    }

    /// Whether more of it is better.
    pub(crate) fn more_is_better(self) -> bool {
        self == Self::Goodput
    }
}

/// The spread of each figure; `None` where no run has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    /// In bytes a second.
    pub(crate) goodput_bytes_per_s: Option<Spread>,
    /// In nanoseconds, like those that follow.
    pub(crate) total_ns: Option<Spread>,
    /// The pause.
    pub(crate) blackout_ns: Option<Spread>,
    /// As the guest saw it.
    pub(crate) guest_visible_ns: Option<Spread>,
    /// Both sides' processor time.
    pub(crate) cpu_ns: Option<Spread>,
    /// Predicted pause over the pause that came.
    pub(crate) prediction_ratio: Option<Spread>,
}

impl Summary {
    /// Of some runs.
    pub(crate) fn of(runs: &[Run]) -> Self {
        let spread = |figure: Figure| Spread::of(runs.iter().filter_map(|run| figure.of(run)));
        let predicted = runs.iter().filter(|run| run.is_good()).filter_map(|run| {
            let blackout = run.blackout_ns.filter(|blackout| *blackout > 0)?;
            Some(run.predicted_ns? as f64 / blackout as f64)
        });
        Self {
            goodput_bytes_per_s: spread(Figure::Goodput),
            total_ns: spread(Figure::Total),
            blackout_ns: spread(Figure::Blackout),
            guest_visible_ns: spread(Figure::GuestVisible),
            cpu_ns: spread(Figure::Cpu),
            prediction_ratio: Spread::of(predicted),
        }
    }
}

/// What was measured of another program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ReferenceResult {
    /// The program.
    pub(crate) name: String,
    /// What it did.
    pub(crate) what: String,
    /// Its version, as it tells.
    #[serde(default)]
    pub(crate) version: Option<String>,
    /// Why it was not run, if so.
    pub(crate) left_out: Option<String>,
    /// Each run, in order.
    pub(crate) runs: Vec<ReferenceRun>,
}

/// One run of another program.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ReferenceRun {
    /// The pass, from 1.
    pub(crate) pass: u32,
    /// What it carried a second.
    pub(crate) goodput_bytes_per_s: Option<u64>,
    /// How long one operation took.
    pub(crate) latency_ns: Option<u64>,
    /// A whole move.
    pub(crate) total_ns: Option<u64>,
    /// A pause, as the program itself tells.
    pub(crate) blackout_ns: Option<u64>,
    /// Why there are no figures, if so.
    pub(crate) reason: Option<String>,
}

impl Results {
    /// The same, as it is written: what others said in their own words (why something was not run or
    /// failed, a program's version) is without what is private.
    pub(crate) fn without_private(&self, names: &Names) -> Self {
        let mut public = self.clone();
        let cells = public.cells.iter_mut().flat_map(|cell| {
            let reasons = cell.runs.iter_mut().map(|run| &mut run.reason);
            reasons.chain([&mut cell.left_out])
        });
        let references = public.references.iter_mut().flat_map(|reference| {
            let reasons = reference.runs.iter_mut().map(|run| &mut run.reason);
            reasons.chain([&mut reference.left_out, &mut reference.version])
        });
        for text in cells.chain(references).flatten() {
            *text = clean(text, names);
        }
        public
    }

    /// Reads a file of results.
    ///
    /// # Errors
    ///
    /// [`Exit::Usage`], naming the file and what is wrong with it.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let wrong = |what: String| Failure::new(Exit::Usage, format!("{}: {what}", path.display()));
        let file = File::open(path).map_err(|error| wrong(error.to_string()))?;
        let mut text = String::new();
        file.take(FILE_BYTES_MAX + 1)
            .read_to_string(&mut text)
            .map_err(|error| wrong(error.to_string()))?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(wrong(format!("longer than {} MiB", FILE_BYTES_MAX >> 20)));
        }
        Self::parse(&text).map_err(wrong)
    }

    /// Reads results from text.
    ///
    /// # Errors
    ///
    /// In one sentence, what is wrong.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let value: Value =
            serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
        match value.get("schema").and_then(Value::as_str) {
            Some(SCHEMA) => {}
            Some(other) => return Err(format!("its schema is '{other}', not {SCHEMA}")),
            None => {
                return Err(format!(
                    "it has no schema; 'dunlin bench --json' writes {SCHEMA}"
                ));
            }
        }
        serde_json::from_value(value).map_err(|error| format!("not {SCHEMA}: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_result_gets_a_sentence() {
        for (text, named) in [
            ("", "not JSON"),
            ("[1]", "no schema"),
            ("{\"schema\":\"dunlin.report/1\"}", "'dunlin.report/1'"),
            ("{\"schema\":\"dunlin.bench/1\"}", "missing field"),
        ] {
            let reason = Results::parse(text).unwrap_err();
            assert!(reason.contains(named), "{reason}");
        }
        assert!(Results::parse(&"[".repeat(200_000)).is_err());
        let missing = Results::read(Path::new("/nonexistent/r.json")).unwrap_err();
        assert_eq!(missing.exit, Exit::Usage);
    }

    #[test]
    fn what_others_said_is_written_without_what_is_private() {
        let mut results = crate::bench::example::results(2);
        let said = "can't reach customer.example:7471: see /var/lib/acme, customers/acme.img";
        results.cells[0].runs[1].reason = Some(said.to_owned());
        results.cells[1].left_out = Some(said.to_owned());
        results.references[0].runs[0].reason = Some(said.to_owned());
        results.references[0].version = Some(said.to_owned());
        results.references[1].left_out = Some(said.to_owned());
        let public = results.without_private(&Names::default());
        let text = serde_json::to_string(&public).unwrap();
        assert_eq!(text.matches("can't reach [private]").count(), 5, "{text}");
        for secret in ["customer", "acme"] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
        // All the rest stays.
        results = crate::bench::example::results(2);
        assert_eq!(results.without_private(&Names::default()), results);
    }

    #[test]
    fn only_good_runs_count() {
        let good = Run {
            outcome: "moved".to_owned(),
            goodput_bytes_per_s: 10,
            blackout_ns: Some(4),
            predicted_ns: Some(8),
            source_cpu_ns: Some(1),
            ..Run::default()
        };
        let bad = Run {
            outcome: "not-converging".to_owned(),
            goodput_bytes_per_s: 1000,
            ..Run::default()
        };
        let summary = Summary::of(&[good, bad]);
        assert_eq!(summary.goodput_bytes_per_s.unwrap().most, 10.0);
        assert_eq!(summary.prediction_ratio.unwrap().median, 2.0);
        assert_eq!(summary.cpu_ns, None, "the destination's is not known");
    }
}
