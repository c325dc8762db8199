//! What recording costs a move: `make bench-recording`.
//!
//! Two answers. One is arithmetic: what one record takes here, times the records of a move, as a
//! share of the move. The other is a comparison: a guest moves with a program that records and with
//! one that does not, in turns, and the ratio of the two is told with its interval.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use dunlin_bench::ends::Ends;
use dunlin_bench::host;
use dunlin_bench::moved::Move;
use dunlin_bench::shuttle::Shuttle;
use dunlin_bench::spread::{Spread, median, median_interval};
use dunlin_bench::table::{Table, figure};
use dunlin_engine::telemetry::{End, MoveTelemetry, Operation, Recorder, SpanName, Track};

/// How often something is done to see how long it takes once.
const REPETITIONS: u32 = 1_000_000;

/// Measures what recording costs a move.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The program `dunlin`.
    #[arg(long)]
    dunlin: PathBuf,
    /// The same, built without the feature `telemetry`.
    #[arg(long)]
    without: PathBuf,
    /// How many pairs of moves.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(6..))]
    pairs: u32,
    /// kvm or process.
    #[arg(long, default_value = "kvm")]
    guest: String,
    #[arg(long, default_value = "512MiB")]
    memory: String,
    #[arg(long, default_value = "hot=16MiB,rate=50MiB/s,zero=0")]
    workload: String,
    /// How many lanes, as `dunlin send` takes it.
    #[arg(long, default_value = "auto")]
    lanes: String,
}

/// A move with recording, and one without.
struct Pair {
    with: Move,
    without: Move,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let begun = Instant::now();
    let mut pairs = Vec::new();
    // What is on disk is in memory before it counts.
    for program in [&arguments.dunlin, &arguments.without] {
        one(&arguments, program)?;
    }
    for number in 0..arguments.pairs {
        // Each goes first as often as the other.
        let pair = if number % 2 == 0 {
            let with = one(&arguments, &arguments.dunlin)?;
            let without = one(&arguments, &arguments.without)?;
            Pair { with, without }
        } else {
            let without = one(&arguments, &arguments.without)?;
            let with = one(&arguments, &arguments.dunlin)?;
            Pair { with, without }
        };
        anyhow::ensure!(
            pair.without.telemetry()?.is_none(),
            "{} records",
            arguments.without.display()
        );
        pairs.push(pair);
    }
    println!(
        "\n{} pairs of moves of a guest of {} over loopback TCP; {}; took {} s\n",
        pairs.len(),
        arguments.memory,
        host::machine(),
        begun.elapsed().as_secs()
    );
    share(&pairs)?;
    compare(&pairs);
    Ok(())
}

fn one(arguments: &Arguments, program: &Path) -> anyhow::Result<Move> {
    let guest = [
        "--guest",
        &arguments.guest,
        "--memory",
        &arguments.memory,
        "--workload",
        &arguments.workload,
    ];
    let mut shuttle = Shuttle::start([program; 2], &Ends::loopback(), "tcp", &guest, &[])?;
    shuttle.cross(&["--verify", "off", "--lanes", &arguments.lanes])
}

/// What is recorded, how long that takes, and what share of the move that is.
fn share(pairs: &[Pair]) -> anyhow::Result<()> {
    let (record_ns, span_ns) = (record_ns(), span_ns());
    let mut shares = Vec::new();
    let mut counts = Vec::new();
    for pair in pairs {
        let told = pair.with.telemetry()?;
        let told = told.context("the program does not record")?;
        let (records, spans) = recorded(&told);
        let took_ns = records as f64 * record_ns + spans as f64 * span_ns;
        shares.push(took_ns * 100.0 / pair.with.total.as_nanos() as f64);
        counts.push([records as f64, spans as f64]);
    }
    let count = |which: usize| figure(median(counts.iter().map(|count| count[which])), 0);
    println!("  a record, its two readings of the clock included: {record_ns:.0} ns");
    println!("  a span, without: {span_ns:.0} ns");
    println!(
        "  in a move: {} records and {} spans on both ends, by all threads together",
        count(0),
        count(1)
    );
    if let Some(share) = Spread::of(shares) {
        println!(
            "  if one thread did all of it: {:.4} % of the move (most {:.4} %)\n",
            share.median, share.most
        );
    }
    Ok(())
}

fn recorded(told: &MoveTelemetry) -> (u64, u64) {
    let operations = told.ends().flat_map(|(_, told)| &told.operations);
    let records = operations.map(|operation| operation.summary.count).sum();
    let timeline = &told.timeline;
    let spans = timeline.spans.len() as u64 + timeline.dropped_spans;
    (records, spans)
}

fn record_ns() -> f64 {
    let mut recorder = Recorder::new(End::Source, Track::Lane(0));
    let begun = Instant::now();
    for _ in 0..REPETITIONS {
        let begun = recorder.now();
        black_box(recorder.done(black_box(Operation::Clear), begun));
    }
    begun.elapsed().as_nanos() as f64 / f64::from(REPETITIONS)
}

fn span_ns() -> f64 {
    let mut recorder = Recorder::new(End::Source, Track::Lane(0));
    let at = recorder.now();
    let begun = Instant::now();
    for _ in 0..REPETITIONS {
        recorder.span(black_box(SpanName::LaneRound), at, at);
    }
    begun.elapsed().as_nanos() as f64 / f64::from(REPETITIONS)
}

/// The two programs side by side.
fn compare(pairs: &[Pair]) {
    let row = |name: &str, unit: f64, digits, of: &dyn Fn(&Move) -> f64| {
        let all = |moves: &dyn Fn(&Pair) -> f64| median(pairs.iter().map(moves));
        let ratios: Vec<f64> = pairs
            .iter()
            .map(|pair| of(&pair.with) / of(&pair.without))
            .collect();
        let interval = median_interval(ratios.iter().copied());
        let (low, high) = interval.unwrap_or((f64::NAN, f64::NAN));
        let verdict = if low > 1.0 {
            "more with recording"
        } else if high < 1.0 {
            "less with recording"
        } else {
            "no difference seen"
        };
        vec![
            name.to_owned(),
            figure(all(&|pair| of(&pair.with) / unit), digits),
            figure(all(&|pair| of(&pair.without) / unit), digits),
            figure(median(ratios), 3),
            format!("{low:.3} to {high:.3}"),
            verdict.to_owned(),
        ]
    };
    let rows = [
        row("goodput, GB/s", 1e9, 2, &|made| made.goodput),
        row("pause, ms", 1e-3, 2, &|made| made.blackout.as_secs_f64()),
        row("move, s", 1.0, 2, &|made| made.total.as_secs_f64()),
    ];
    let headings = ["", "with", "without", "ratio", "95 in 100", ""];
    print!("{}", Table::new(&headings, rows).text());
}
