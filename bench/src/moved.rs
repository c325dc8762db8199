//! What the report of a move says (docs/report.md).

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

/// Bytes of a page.
const PAGE_BYTES: u64 = 4096;

/// A guest that has moved.
#[derive(Clone, Debug)]
pub struct Move {
    report: Value,
    /// From the order to the last vCPU running.
    pub total: Duration,
    /// Guest bytes that were sent.
    pub sent_bytes: u64,
    /// These over the time of copying, in bytes a second.
    pub goodput: f64,
    /// How many lanes.
    pub lanes: u64,
    /// From the first vCPU parked to the last running.
    pub blackout: Duration,
    /// What was predicted when it began.
    pub predicted: Duration,
    /// The longest gap that the guest measured; `None` when it does not.
    pub guest_gap: Option<Duration>,
    /// What was dirty in it, in bytes.
    pub final_dirty_bytes: u64,
    /// The pause's parts, in order.
    pub parts: Vec<(String, Duration)>,
    /// What was predicted of them.
    pub predicted_parts: Vec<(String, Duration)>,
}

impl Move {
    /// Reads a report.
    ///
    /// # Errors
    ///
    /// When it tells of no move, or is none.
    pub fn read(text: &str) -> anyhow::Result<Self> {
        let report: Value = serde_json::from_str(text).context("dunlin wrote no report")?;
        ensure!(
            report["outcome"] == "moved",
            "the guest was not moved: {} ({})",
            report["outcome"],
            report["reason"]
        );
        let number = |pointer: &str| number_in(&report, pointer);
        let time = |pointer: &str| number(pointer).map(Duration::from_nanos);
        let rounds = report["rounds"].as_array().cloned().unwrap_or_default();
        let final_pages: u64 = rounds
            .iter()
            .filter(|round| round["is_final"] == true)
            .filter_map(|round| round["dirty_pages"].as_u64())
            .sum();
        Ok(Self {
            total: time("/total_ns")?,
            sent_bytes: number("/sent_bytes")?,
            goodput: number("/goodput_bytes_per_s")? as f64,
            lanes: number("/lanes")?,
            blackout: time("/blackout/total_ns")?,
            predicted: time("/blackout/predicted_ns")?,
            guest_gap: time("/blackout/guest_visible_ns").ok(),
            final_dirty_bytes: final_pages * PAGE_BYTES,
            parts: parts(&report["blackout"]["parts"]),
            predicted_parts: parts(&report["blackout"]["predicted_parts"]),
            report,
        })
    }

    /// A number of the report, by its JSON pointer.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn number(&self, pointer: &str) -> anyhow::Result<u64> {
        number_in(&self.report, pointer)
    }

    /// A word of the report, by its JSON pointer; empty when there is none.
    pub fn word(&self, pointer: &str) -> &str {
        let value = self.report.pointer(pointer).and_then(Value::as_str);
        value.unwrap_or_default()
    }

    /// How far the prediction was off, as a part of the outcome.
    pub fn prediction_error(&self) -> f64 {
        let outcome = self.blackout.as_secs_f64();
        (self.predicted.as_secs_f64() - outcome).abs() / outcome
    }

    /// How long the pause's dirty bytes take at the move's goodput.
    pub fn final_copying(&self) -> Duration {
        Duration::from_secs_f64(self.final_dirty_bytes as f64 / self.goodput.max(1.0))
    }
}

fn number_in(report: &Value, pointer: &str) -> anyhow::Result<u64> {
    let value = report.pointer(pointer).and_then(Value::as_u64);
    value.with_context(|| format!("the report has no {pointer}"))
}

/// Parts of one name are one: a pause may have two final rounds.
fn parts(list: &Value) -> Vec<(String, Duration)> {
    let mut parts: Vec<(String, Duration)> = Vec::new();
    for part in list.as_array().into_iter().flatten() {
        let name = part["name"].as_str().unwrap_or_default();
        let duration = Duration::from_nanos(part["duration_ns"].as_u64().unwrap_or(0));
        match parts.iter_mut().find(|(known, _)| known == name) {
            Some((_, sum)) => *sum += duration,
            None => parts.push((name.to_owned(), duration)),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_report_is_read() {
        let report = json!({
            "outcome": "moved", "lanes": 2, "transport": "tcp",
            "sent_bytes": 2048, "goodput_bytes_per_s": 4_096_000, "total_ns": 2_500_000_000_u64,
            "rounds": [
                { "is_final": false, "dirty_pages": 100 }, { "is_final": true, "dirty_pages": 2 },
                { "is_final": true, "dirty_pages": 1 },
            ],
            "blackout": {
                "total_ns": 3_000_000, "predicted_ns": 3_300_000, "guest_visible_ns": null,
                "parts": [
                    { "name": "park", "duration_ns": 5 }, { "name": "final-round", "duration_ns": 2 },
                    { "name": "final-round", "duration_ns": 1 },
                ],
            },
        });
        let read = Move::read(&report.to_string()).unwrap();
        assert_eq!(read.final_dirty_bytes, 3 * 4096);
        assert_eq!(read.final_copying(), Duration::from_millis(3));
        assert!((read.prediction_error() - 0.1).abs() < 1e-9);
        assert_eq!(read.guest_gap, None);
        assert_eq!(
            read.parts[1],
            ("final-round".to_owned(), Duration::from_nanos(3))
        );
        assert_eq!(read.number("/lanes").unwrap(), 2);
        assert_eq!(read.word("/transport"), "tcp");
    }

    #[test]
    fn a_guest_that_stayed_is_no_move() {
        let report = json!({ "outcome": "cancelled", "reason": "asked to" });
        let error = Move::read(&report.to_string()).unwrap_err().to_string();
        assert!(error.contains("cancelled"), "{error}");
    }
}
