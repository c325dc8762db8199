//! The metrics that this program tells beside those that a move measures of itself. Each is
//! declared here once; docs/monitoring.md has the same table, and a test compares the two.

/// A metric family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    /// Its name.
    pub(crate) name: &'static str,
    /// `counter` or `gauge`.
    pub(crate) kind: &'static str,
    /// Its labels, beside the guest's.
    pub(crate) labels: &'static str,
    /// What it is.
    pub(crate) help: &'static str,
}

macro_rules! told {
    ($($constant:ident: $name:literal, $kind:literal, [$labels:literal], $help:literal;)+) => {
        $(pub(crate) const $constant: Told = Told {
            name: $name,
            kind: $kind,
            labels: $labels,
            help: $help,
        };)+

        /// All of them.
        #[cfg(test)]
        pub(crate) const ALL: &[Told] = &[$($constant,)+];
    };
}

told! {
    BUILD: "dunlin_build_info", "gauge", ["version"], "Always 1; the version is the label.";
    GUEST_INFO: "dunlin_guest_info", "gauge", ["guest, uuid, kind, backing"], "Always 1; a guest that is here.";
    GUEST_STATE: "dunlin_guest_state", "gauge", ["guest, state"], "Always 1; what the guest does now.";
    GUEST_MEMORY: "dunlin_guest_configured_memory_bytes", "gauge", ["guest"], "The guest's memory.";
    GUEST_WRITTEN: "dunlin_guest_pages_written_total", "counter", ["guest"], "Pages that the guest's workload wrote, wherever it ran.";
    GUEST_GAP: "dunlin_guest_longest_gap_seconds", "gauge", ["guest"], "The longest gap that the guest saw in its own work.";
    MOVES: "dunlin_moves_total", "counter", ["guest, outcome"], "Moves from here that are over, by outcome: since this process began, or as a file has counted.";
    ARRIVALS: "dunlin_arrivals_total", "counter", ["outcome"], "Guests that came, did not come (failed), or were refused, since this process began.";
    MOVE_PHASE: "dunlin_move_phase", "gauge", ["guest, phase"], "Always 1; where the move under way stands.";
    MOVE_ELAPSED: "dunlin_move_elapsed_seconds", "gauge", ["guest"], "How long the move under way has taken.";
    MOVE_ROUND: "dunlin_move_round", "gauge", ["guest"], "The round of the move under way.";
    MOVE_SENT: "dunlin_move_sent_bytes", "gauge", ["guest"], "Guest bytes that the move under way has sent.";
    MOVE_RATE: "dunlin_move_rate_bytes_per_second", "gauge", ["guest"], "Guest bytes a second of the move under way, smoothed.";
    MOVE_DIRTY: "dunlin_move_dirty_pages", "gauge", ["guest"], "Pages that were dirty when the round began.";
    MOVE_REMAINING: "dunlin_move_remaining_pages", "gauge", ["guest"], "Of these, pages that are not dealt with yet.";
    MOVE_PREDICTED: "dunlin_move_predicted_blackout_seconds", "gauge", ["guest"], "The blackout that is predicted; absent before the first round is over.";
    MOVE_LANE_SENT: "dunlin_move_lane_sent_bytes", "gauge", ["guest, lane"], "Guest bytes that each lane of the move under way has sent.";
    MOVE_LANE_RATE: "dunlin_move_lane_rate_bytes_per_second", "gauge", ["guest, lane"], "Guest bytes a second of each lane of the move under way.";
    LAST_INFO: "dunlin_last_move_info", "gauge", ["guest, session, outcome, transport"], "Always 1; the last move that is over.";
    LAST_TOTAL: "dunlin_last_move_seconds", "gauge", ["guest"], "How long the last move took.";
    LAST_SENT: "dunlin_last_move_sent_bytes", "gauge", ["guest"], "Guest bytes that the last move sent.";
    LAST_GOODPUT: "dunlin_last_move_goodput_bytes_per_second", "gauge", ["guest"], "Guest bytes a second of the last move, on average.";
    LAST_BLACKOUT: "dunlin_last_move_blackout_seconds", "gauge", ["guest"], "The last move's blackout.";
    LAST_PREDICTED: "dunlin_last_move_predicted_blackout_seconds", "gauge", ["guest"], "What was predicted of it.";
    LAST_SEEN: "dunlin_last_move_guest_visible_blackout_seconds", "gauge", ["guest"], "The same as the guest itself measured it; absent where it does not.";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use dunlin_engine::telemetry::completeness::GAPS;
    use dunlin_engine::telemetry::declarations;

    use super::*;

    /// The page that explains them.
    const PAGE: &str = include_str!("../../../../docs/monitoring.md");

    #[test]
    fn the_page_has_every_metric_and_no_other() {
        for told in ALL {
            let line = format!(
                "| `{}` | {} | {} | {} |",
                told.name, told.kind, told.labels, told.help
            );
            assert!(PAGE.contains(&line), "docs/monitoring.md lacks:\n{line}");
        }
        let rows = PAGE.lines().filter(|line| line.starts_with("| `dunlin_"));
        assert_eq!(rows.count(), ALL.len());
    }

    #[test]
    fn no_name_means_two_things() {
        let own: BTreeSet<_> = ALL.iter().map(|told| told.name.to_owned()).collect();
        assert_eq!(own.len(), ALL.len());
        for declaration in declarations() {
            assert!(!own.contains(&declaration.prometheus_name()));
        }
        for gap in GAPS {
            assert!(!own.contains(gap.prometheus_name));
        }
        for told in ALL {
            assert_eq!(told.name.ends_with("_total"), told.kind == "counter");
        }
    }

    #[test]
    fn the_dashboard_asks_for_what_there_is() {
        let dashboard = include_str!("../../../../docs/grafana-dashboard.json");
        let parsed: serde_json::Value = serde_json::from_str(dashboard).unwrap();
        assert!(
            parsed["panels"]
                .as_array()
                .is_some_and(|panels| !panels.is_empty())
        );
        let mut known: BTreeSet<String> = ALL.iter().map(|told| told.name.to_owned()).collect();
        for declaration in declarations() {
            let name = declaration.prometheus_name();
            for ending in ["_bucket", "_sum", "_count"] {
                known.insert(format!("{name}{ending}"));
            }
            known.insert(name);
        }
        known.extend(GAPS.iter().map(|gap| gap.prometheus_name.to_owned()));
        let mut asked = 0;
        for expression in expressions(&parsed) {
            let is_of_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
            for word in expression.split(|letter| !is_of_name(letter)) {
                if word.starts_with("dunlin_") {
                    assert!(known.contains(word), "{word} in {expression}");
                    asked += 1;
                }
            }
        }
        assert!(asked > 10, "{asked}");
    }

    /// Every expression of a dashboard, variables' queries too.
    fn expressions(value: &serde_json::Value) -> Vec<String> {
        match value {
            serde_json::Value::Object(object) => {
                let own = ["expr", "query", "definition"];
                let own = own.iter().filter_map(|key| object.get(*key)?.as_str());
                let own: Vec<_> = own.map(str::to_owned).collect();
                own.into_iter()
                    .chain(object.values().flat_map(expressions))
                    .collect()
            }
            serde_json::Value::Array(values) => values.iter().flat_map(expressions).collect(),
            _ => Vec::new(),
        }
    }
}
