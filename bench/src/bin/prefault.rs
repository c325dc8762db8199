//! Measures what fresh memory costs a destination: whole moves by `dunlin demo`, each kind of memory
//! with each way of backing it, all in turn, so that a noisy machine troubles all rows alike.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use clap::Parser;
use serde_json::Value;

const PREFAULTS: [&str; 3] = ["auto", "on", "off"];

/// Measures moves into fresh memory, for each backing with each --prefault.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The program; build it with 'cargo build --release -p dunlin'.
    #[arg(long, default_value = "target/release/dunlin")]
    program: PathBuf,
    /// The guest's memory.
    #[arg(long, default_value = "4GiB")]
    memory: String,
    /// How many in a hundred of its pages are zero.
    #[arg(long, default_value_t = 0)]
    zero: u8,
    /// How many lanes.
    #[arg(long, default_value_t = 2)]
    lanes: u16,
    /// How often each row is measured; the median counts.
    #[arg(long, default_value_t = 3)]
    passes: usize,
    /// Which kinds of memory.
    #[arg(long, value_delimiter = ',', default_values = ["memfd", "anon"])]
    backings: Vec<String>,
}

struct Row {
    backing: String,
    prefault: &'static str,
    /// Of the first round, in bytes a second.
    rates: Vec<f64>,
    /// From the source's first word to its last, in seconds.
    totals: Vec<f64>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut rows: Vec<Row> = Vec::new();
    for backing in &arguments.backings {
        rows.extend(PREFAULTS.map(|prefault| Row {
            backing: backing.clone(),
            prefault,
            rates: Vec::new(),
            totals: Vec::new(),
        }));
    }
    let directory = tempfile::tempdir()?;
    let report = directory.path().join("report.json");
    for _ in 0..arguments.passes {
        for row in &mut rows {
            let (rate, total) = measure(&arguments, row, &report)?;
            row.rates.push(rate);
            row.totals.push(total);
        }
    }
    println!(
        "{} of memory, {} % zero, {} lanes, median of {} (lowest to highest)",
        arguments.memory, arguments.zero, arguments.lanes, arguments.passes
    );
    for row in &mut rows {
        let (rate, low, high) = spread(&mut row.rates);
        let (total, ..) = spread(&mut row.totals);
        println!(
            "{:<8} prefault {:<5} {:.2} GB/s in the first round ({:.2} to {:.2}), {total:.2} s in all",
            row.backing,
            row.prefault,
            rate / 1e9,
            low / 1e9,
            high / 1e9,
        );
    }
    Ok(())
}

/// One move: the first round's rate, and the whole move's time.
fn measure(arguments: &Arguments, row: &Row, report: &Path) -> anyhow::Result<(f64, f64)> {
    let workload = format!("hot=1MiB,rate=1MiB/s,block=512,zero={}", arguments.zero);
    let status = Command::new(&arguments.program)
        .args(["demo", "--quiet", "--transport", "tcp"])
        .args(["--memory", &arguments.memory, "--workload", &workload])
        .args(["--memory-backing", &row.backing])
        .args(["--prefault", row.prefault])
        .args(["--lanes", &arguments.lanes.to_string()])
        .arg("--json")
        .arg(report)
        .status()
        .with_context(|| format!("running {}", arguments.program.display()))?;
    ensure!(status.success(), "the demo failed: {status}");
    let told: Value = serde_json::from_slice(&std::fs::read(report)?)?;
    let number = |pointer: &str| {
        let value = told.pointer(pointer).and_then(Value::as_f64);
        value.with_context(|| format!("the report has no {pointer}"))
    };
    let rate = number("/rounds/0/sent_bytes")? * 1e9 / number("/rounds/0/duration_ns")?;
    Ok((rate, number("/total_ns")? / 1e9))
}

/// The median, the lowest and the highest.
fn spread(values: &mut [f64]) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or_default();
    (
        at(values.len() / 2),
        at(0),
        at(values.len().saturating_sub(1)),
    )
}
