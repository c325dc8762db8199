//! Writing metrics: one family after the other, each with all its samples together, as the format
//! wants it.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};

use dunlin_engine::report::{Outcome, Progress, Report};
use dunlin_engine::telemetry::prometheus;
use serde::Serialize;

use super::told::{self, Told};
use crate::local::protocol::GuestStatus;

/// Metrics that are being gathered.
#[derive(Default)]
pub(crate) struct Exposition {
    /// By the family's name: its head, and its samples.
    families: BTreeMap<&'static str, (Told, Vec<String>)>,
    /// What a move measured, written by the engine.
    measured: String,
}

/// Seconds, told without rounding.
struct Seconds(u64);

impl Display for Seconds {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (seconds, rest) = (self.0 / 1_000_000_000, self.0 % 1_000_000_000);
        write!(formatter, "{seconds}.{rest:09}")
    }
}

impl Exposition {
    /// With what is true of every process.
    pub(crate) fn new() -> Self {
        let mut exposition = Self::default();
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        exposition.sample(told::BUILD, &version, 1);
        exposition
    }

    /// A guest that is here, and its move under way.
    pub(crate) fn guest(&mut self, guest: &GuestStatus) {
        let own = ("guest", guest.name.as_str());
        let info = [
            own,
            ("uuid", &guest.uuid),
            ("kind", &guest.kind),
            ("backing", &guest.backing),
        ];
        self.sample(told::GUEST_INFO, &info, 1);
        let state = word(&guest.state);
        self.sample(told::GUEST_STATE, &[own, ("state", &state)], 1);
        self.sample(told::GUEST_MEMORY, &[own], guest.memory_bytes);
        if let Some(workload) = guest.workload {
            self.sample(told::GUEST_WRITTEN, &[own], workload.pages_written);
            self.sample(told::GUEST_GAP, &[own], Seconds(workload.longest_gap_ns));
        }
        let under_way = guest.move_under_way.as_ref();
        if let Some(progress) = under_way.and_then(|under_way| under_way.progress.as_ref()) {
            self.progress(&guest.name, progress);
        }
    }

    /// Where a guest's move stands.
    pub(crate) fn progress(&mut self, guest: &str, progress: &Progress) {
        let own = ("guest", guest);
        let phase = word(&progress.phase);
        self.sample(told::MOVE_PHASE, &[own, ("phase", &phase)], 1);
        self.sample(told::MOVE_ELAPSED, &[own], Seconds(progress.elapsed_ns));
        self.sample(told::MOVE_ROUND, &[own], progress.round);
        self.sample(told::MOVE_SENT, &[own], progress.sent_bytes);
        self.sample(told::MOVE_RATE, &[own], progress.rate_bytes_per_s);
        self.sample(told::MOVE_DIRTY, &[own], progress.dirty_pages);
        self.sample(told::MOVE_REMAINING, &[own], progress.remaining_pages);
        if let Some(predicted_ns) = progress.predicted_blackout_ns {
            self.sample(told::MOVE_PREDICTED, &[own], Seconds(predicted_ns));
        }
        for lane in &progress.lanes {
            let number = lane.lane.to_string();
            let labels = [own, ("lane", number.as_str())];
            self.sample(told::MOVE_LANE_SENT, &labels, lane.sent_bytes);
            self.sample(told::MOVE_LANE_RATE, &labels, lane.rate_bytes_per_s);
        }
    }

    /// The last move that is over, with what it measured.
    pub(crate) fn last_move(&mut self, report: &Report) {
        let own = ("guest", report.guest.name.as_str());
        let outcome = word(&report.outcome);
        let info = [
            own,
            ("session", &report.session),
            ("outcome", &outcome),
            ("transport", &report.transport),
        ];
        self.sample(told::LAST_INFO, &info, 1);
        self.sample(told::LAST_TOTAL, &[own], Seconds(report.total_ns));
        self.sample(told::LAST_SENT, &[own], report.sent_bytes);
        self.sample(told::LAST_GOODPUT, &[own], report.goodput_bytes_per_s);
        if let Some(blackout) = &report.blackout {
            self.sample(told::LAST_BLACKOUT, &[own], Seconds(blackout.total_ns));
            let predicted_ns = blackout.predicted_ns;
            self.sample(told::LAST_PREDICTED, &[own], Seconds(predicted_ns));
            if let Some(seen_ns) = blackout.guest_visible_ns {
                self.sample(told::LAST_SEEN, &[own], Seconds(seen_ns));
            }
        }
        if let Some(told) = &report.telemetry {
            let mut text = Vec::new();
            // A vector takes everything.
            let _ = prometheus::write(told, &[own], &mut text);
            self.measured = String::from_utf8_lossy(&text).into_owned();
        }
    }

    /// Moves of a guest that are over, by outcome.
    pub(crate) fn moves(&mut self, guest: &str, over: &Outcomes) {
        for (outcome, count) in &over.0 {
            let labels = [("guest", guest), ("outcome", outcome)];
            self.sample(told::MOVES, &labels, *count);
        }
    }

    /// A value of a family.
    pub(crate) fn sample(&mut self, told: Told, labels: &[(&str, &str)], value: impl Display) {
        let mut line = told.name.to_owned();
        for (place, (label, text)) in labels.iter().enumerate() {
            let before = if place == 0 { '{' } else { ',' };
            let text = text
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            // A string takes everything.
            let _ = write!(line, "{before}{label}=\"{text}\"");
        }
        if !labels.is_empty() {
            line.push('}');
        }
        let _ = write!(line, " {value}");
        let (_, samples) = self
            .families
            .entry(told.name)
            .or_insert_with(|| (told, Vec::new()));
        samples.push(line);
    }

    /// All of it.
    pub(crate) fn text(self) -> String {
        let mut text = String::new();
        for (name, (told, samples)) in self.families {
            let _ = writeln!(text, "# HELP {name} {}", told.help);
            let _ = writeln!(text, "# TYPE {name} {}", told.kind);
            for sample in samples {
                text.push_str(&sample);
                text.push('\n');
            }
        }
        text.push_str(&self.measured);
        text
    }
}

/// How many moves ended how.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcomes(BTreeMap<String, u64>);

impl Outcomes {
    /// One more.
    pub(crate) fn add(&mut self, outcome: Outcome) {
        *self.0.entry(word(&outcome)).or_default() += 1;
    }
}

/// The word that something is in JSON.
pub(crate) fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::render::example;

    #[test]
    fn each_family_stands_together_and_each_sample_has_its_head() {
        let mut report = example::moved();
        report.guest.name = "a\"b\\c\nd".to_owned();
        report.telemetry = Some(dunlin_engine::telemetry::example::whole_move());
        let mut exposition = Exposition::new();
        exposition.last_move(&report);
        let mut over = Outcomes::default();
        over.add(Outcome::Moved);
        over.add(Outcome::Moved);
        over.add(Outcome::BlackoutCap);
        exposition.moves("vm1", &over);
        let text = exposition.text();
        assert!(text.contains("dunlin_moves_total{guest=\"vm1\",outcome=\"moved\"} 2\n"));
        assert!(text.contains("dunlin_moves_total{guest=\"vm1\",outcome=\"blackout-cap\"} 1\n"));
        assert!(text.contains(
            "dunlin_last_move_blackout_seconds{guest=\"a\\\"b\\\\c\\nd\"} 0.003100000\n"
        ));
        assert!(
            text.contains("dunlin_fence_seconds_bucket{guest="),
            "{text}"
        );
        let heads = text.lines().filter(|line| line.starts_with("# TYPE"));
        let heads: Vec<_> = heads.collect();
        let families: BTreeSet<_> = heads.iter().collect();
        assert_eq!(heads.len(), families.len(), "a family comes twice");
        assert!(text.ends_with('\n'));
    }
}
