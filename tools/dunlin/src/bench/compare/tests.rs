use super::*;
use crate::bench::example;

/// Results of two cells, whose times and goodputs are those of a noisy machine, slowed by a factor.
fn measured(passes: u32, slowdown: f64) -> Results {
    let mut results = example::results(passes);
    for cell in &mut results.cells {
        for run in &mut cell.runs {
            run.goodput_bytes_per_s = (run.goodput_bytes_per_s as f64 / slowdown) as u64;
            run.total_ns = (run.total_ns as f64 * slowdown) as u64;
        }
    }
    results
}

#[test]
fn a_slowdown_is_seen_and_none_is_not() {
    let base = measured(9, 1.0);
    for (slowdown, outcome) in [
        (1.0, Outcome::Passed),
        (1.03, Outcome::Passed),
        (1.1, Outcome::Slower),
        (0.8, Outcome::Passed),
    ] {
        let comparison = compare(&base, &measured(9, slowdown), 0.05, 1);
        assert_eq!(comparison.outcome, outcome, "{slowdown}: {comparison:?}");
    }
    assert_eq!(
        compare(&base, &measured(9, 1.1), 0.05, 1).exit(),
        Exit::Slower
    );
    assert_eq!(compare(&base, &measured(9, 1.1), 0.2, 1).exit(), Exit::Done);
}

#[test]
fn too_little_is_no_verdict() {
    let few = measured(3, 1.0);
    let comparison = compare(&few, &measured(3, 2.0), 0.05, 1);
    assert_eq!(comparison.exit(), Exit::NotComparable);
    let mut other = measured(9, 1.0);
    for cell in &mut other.cells {
        cell.cell.memory_bytes += 4096;
    }
    let comparison = compare(&measured(9, 1.0), &other, 0.05, 1);
    assert_eq!(comparison.exit(), Exit::NotComparable);
    assert_eq!(comparison.unmatched.len(), 4);
}

#[test]
fn a_cell_that_failed_is_named() {
    let base = measured(9, 1.0);
    let mut judged = measured(9, 1.0);
    for run in &mut judged.cells[0].runs {
        run.outcome = "peer-failed".to_owned();
    }
    let comparison = compare(&base, &judged, 0.05, 1);
    assert_eq!(comparison.outcome, Outcome::Passed);
    assert!(
        comparison.unmatched[0].contains("the second has no run"),
        "{:?}",
        comparison.unmatched
    );
}

#[test]
fn people_and_programs_read_it() {
    let comparison = compare(&measured(9, 1.0), &measured(9, 1.1), 0.05, 1);
    let text = comparison.rendered(Palette::PLAIN);
    for word in [
        "goodput, all together",
        "SLOWER",
        "slower by more than 5 %",
        "different times",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let value = serde_json::to_value(&comparison).unwrap();
    assert_eq!(value["schema"], "dunlin.comparison/1");
    assert_eq!(value["outcome"], "slower");
    assert_eq!(value["rows"][0]["figure"], "goodput");
}
