//! All of it for people, and as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use dunlin_bench::spread::Spread;
use dunlin_bench::table::{Table, figure};
use serde_json::{Value, json};

use crate::{Results, verdicts};

/// What all figures have in common.
pub(crate) struct Title {
    pub(crate) machine: String,
    pub(crate) lanes: String,
    pub(crate) passes: u32,
    pub(crate) took: Duration,
}

/// The tables, and the targets in words.
pub(crate) fn text(title: &Title, all: &[Results], with_parts: bool) -> String {
    let mut text = String::new();
    // Writing to a string can't fail.
    let _ = writeln!(
        text,
        "\nThe pause of guests that move over loopback TCP, there and back; 1 vCPU, lanes: {}, {} passes",
        title.lanes, title.passes
    );
    let _ = writeln!(text, "{}; took {} s\n", title.machine, title.took.as_secs());
    let headings = [
        "",
        "moves",
        "pause ms",
        "p90",
        "most",
        "guest saw",
        "most",
        "predicted",
        "off by %",
        "dirty KiB",
        "copying ms",
        "GB/s",
        "move s",
    ];
    text += &Table::new(&headings, all.iter().map(row)).text();
    if with_parts {
        for results in all.iter().filter(|results| !results.moves.is_empty()) {
            let _ = writeln!(text, "\n{}, part by part, in µs\n", results.case.name);
            let headings = ["", "median", "p90", "most", "predicted"];
            text += &Table::new(&headings, parts(results)).text();
        }
    }
    text += "\nTargets\n\n";
    for target in verdicts::all(all) {
        let _ = writeln!(text, "  {target}");
    }
    for results in all {
        if let Some(reason) = &results.left_out {
            let _ = writeln!(text, "\nleft out: {}: {reason}", results.case.name);
        }
        for failure in &results.failures {
            let _ = writeln!(text, "\nFAILED: {}: {failure}", results.case.name);
        }
    }
    text
}

fn row(results: &Results) -> Vec<String> {
    let ms = |spread: Option<Spread>, of: fn(Spread) -> f64| {
        figure(spread.map(|spread| of(spread) * 1e3), 2)
    };
    let median = |spread: Option<Spread>, unit: f64, digits| {
        figure(spread.map(|spread| spread.median / unit), digits)
    };
    let pauses = results.pauses_s();
    let gaps = results.figure(|made| Some(made.guest_gap?.as_secs_f64()));
    vec![
        results.case.name.to_owned(),
        results.moves.len().to_string(),
        ms(pauses, |spread| spread.median),
        ms(pauses, |spread| spread.p90),
        ms(pauses, |spread| spread.most),
        ms(gaps, |spread| spread.median),
        ms(gaps, |spread| spread.most),
        ms(
            results.figure(|made| Some(made.predicted.as_secs_f64())),
            |spread| spread.median,
        ),
        median(
            results.figure(|made| Some(100.0 * made.prediction_error())),
            1.0,
            0,
        ),
        median(
            results.figure(|made| Some(made.final_dirty_bytes as f64)),
            1024.0,
            0,
        ),
        ms(
            results.figure(|made| Some(made.final_copying().as_secs_f64())),
            |spread| spread.median,
        ),
        median(results.figure(|made| Some(made.goodput)), 1e9, 2),
        median(
            results.figure(|made| Some(made.total.as_secs_f64())),
            1.0,
            2,
        ),
    ]
}

/// The names of the pause's parts in the order in which they come.
fn part_names(results: &Results) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for (name, _) in results.moves.iter().flat_map(|made| &made.parts) {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

fn spread_of(results: &Results, name: &str, is_predicted: bool) -> Option<Spread> {
    results.figure(|made| {
        let parts = if is_predicted {
            &made.predicted_parts
        } else {
            &made.parts
        };
        let (_, duration) = parts.iter().find(|(known, _)| known == name)?;
        Some(duration.as_secs_f64() * 1e6)
    })
}

fn parts(results: &Results) -> Vec<Vec<String>> {
    let line = |name: String| {
        let spread = spread_of(results, &name, false);
        let predicted = spread_of(results, &name, true);
        vec![
            name,
            figure(spread.map(|spread| spread.median), 0),
            figure(spread.map(|spread| spread.p90), 0),
            figure(spread.map(|spread| spread.most), 0),
            figure(predicted.map(|spread| spread.median), 0),
        ]
    };
    part_names(results).into_iter().map(line).collect()
}

/// The same, and each move's pause.
pub(crate) fn json(title: &Title, all: &[Results]) -> Value {
    let cases: Vec<Value> = all
        .iter()
        .map(|results| {
            let ns = |duration: Duration| duration.as_nanos() as u64;
            let moves: Vec<Value> = results
                .moves
                .iter()
                .map(|made| {
                    json!({
                        "blackout_ns": ns(made.blackout),
                        "predicted_ns": ns(made.predicted),
                        "guest_visible_ns": made.guest_gap.map(ns),
                        "final_dirty_bytes": made.final_dirty_bytes,
                        "goodput_bytes_per_s": made.goodput,
                        "total_ns": ns(made.total),
                    })
                })
                .collect();
            let parts: serde_json::Map<String, Value> = part_names(results)
                .into_iter()
                .map(|name| {
                    let part = json!({
                        "us": spread_of(results, &name, false),
                        "predicted_us": spread_of(results, &name, true),
                    });
                    (name, part)
                })
                .collect();
            json!({
                "name": results.case.name, "blackout_s": results.pauses_s(), "moves": moves,
                "parts": parts, "left_out": results.left_out, "failures": results.failures,
            })
        })
        .collect();
    let targets: Vec<String> = verdicts::all(all).iter().map(ToString::to_string).collect();
    json!({
        "machine": title.machine, "lanes": title.lanes, "passes": title.passes,
        "seconds": title.took.as_secs(), "cases": cases, "targets": targets,
    })
}
