//! What a report says that both ends measured.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::schema::Schema;

/// The schema of a move's report.
pub const REPORT_SCHEMA: &str = "dunlin.report/1";

/// Checks the report of a move, whatever came of it: it is what its schema says, and nothing was
/// recorded where it is not declared to be.
///
/// # Errors
///
/// When it is not so: a mistake in the program.
pub fn check_report(report: &Value) -> Result<()> {
    Schema::Report.check(report)?;
    for end in ["source", "destination"] {
        // A move that reached nobody has nothing measured.
        let measured = &report["telemetry"][end];
        ensure!(
            measured.is_null() || measured["misplaced"] == 0,
            "recordings of the {end} where none is declared: {}",
            measured["misplaced"]
        );
    }
    Ok(())
}

/// The operations that an end has done, by name.
pub fn operations<'a>(report: &'a Value, end: &str) -> BTreeSet<&'a str> {
    let operations = report["telemetry"][end]["operations"].as_array();
    let operations = operations.map_or(&[][..], Vec::as_slice).iter();
    let done = operations.filter(|operation| operation["count"].as_u64() > Some(0));
    done.filter_map(|operation| operation["name"].as_str())
        .collect()
}

/// Checks that everything was measured that a move over TCP which went well must do.
///
/// # Errors
///
/// When an operation was not done, or not where it is done.
pub fn expect_operations_of_tcp(report: &Value) -> Result<()> {
    let source = operations(report, "source");
    let mut wanted = vec![
        "harvest",
        "zero-scan",
        "fence",
        "kick",
        "save-state",
        "send-state",
        "commit-record",
        "control-round-trip",
    ];
    // Other trackers are re-armed as they are collected.
    let tracking = report["guest"]["dirty_tracking"].as_array();
    let is_cleared = tracking.is_some_and(|names| names.iter().any(|name| name == "kvm-bitmap"));
    wanted.extend(is_cleared.then_some("clear"));
    let is_io_uring = report["mechanism"] == "io_uring";
    wanted.extend(is_io_uring.then_some("submission"));
    for name in wanted {
        ensure!(
            source.contains(name),
            "no '{name}' of the source: {source:?}"
        );
    }
    let is_put = |name: &str| name.starts_with("put-") && name != "put-zero";
    ensure!(source.iter().any(|name| is_put(name)), "no put: {source:?}");
    let destination = operations(report, "destination");
    let wanted = [
        "receive",
        "load-state",
        "revoke-access",
        "commit-record",
        "resume",
    ];
    for name in wanted
        .into_iter()
        .chain(is_io_uring.then_some("submission"))
    {
        ensure!(
            destination.contains(name),
            "no '{name}' of the destination: {destination:?}"
        );
    }
    Ok(())
}
