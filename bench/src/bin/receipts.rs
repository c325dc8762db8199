//! Whether the receipts of many moves hold: `make receipts`.
//!
//! A small guest moves there and back. Of each move the parts of the pause have to add up, its
//! remainder to be small, and what the guest saw to differ from what the engine measured by no more
//! than the receipt explains. The worst of all moves is told, and the exit code says whether all
//! held.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use dunlin_bench::ends::Ends;
use dunlin_bench::host;
use dunlin_bench::moved::Move;
use dunlin_bench::shuttle::Shuttle;
use dunlin_bench::spread::Spread;
use dunlin_bench::table::{Table, figure};
use dunlin_engine::report::BlackoutReport;
use dunlin_engine::report::reckoning::Reckoning;

/// Moves a small guest many times, and checks each receipt.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The program `dunlin`.
    #[arg(long)]
    dunlin: PathBuf,
    /// How often the guest moves over each transport.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    moves: u32,
    /// tcp, rdma, or both, one after the other.
    #[arg(long, value_delimiter = ',', default_value = "tcp")]
    transport: Vec<String>,
    /// This machine's two addresses on a wire, where it is not the loopback interface: as for RDMA,
    /// whose devices they have to lead to.
    #[arg(long, num_args = 2, value_names = ["HERE", "THERE"])]
    addresses: Option<Vec<IpAddr>>,
    /// kvm or process.
    #[arg(long, default_value = "kvm")]
    guest: String,
    #[arg(long, default_value = "128MiB")]
    memory: String,
    #[arg(long, default_value = "1")]
    vcpus: String,
    #[arg(long, default_value = "hot=8MiB,rate=20MiB/s")]
    workload: String,
    /// How many lanes, as `dunlin send` takes it.
    #[arg(long, default_value = "auto")]
    lanes: String,
    /// How many µs the guest may take from being entered until it has looked at its clock. It does
    /// so in every step, so this is the way into memory that is new to the processor; nobody
    /// outside of the guest can time it.
    #[arg(long, default_value_t = 1000)]
    way_in: u64,
    /// Tell of each move, not only of the worst.
    #[arg(long)]
    each: bool,
}

/// One move's receipt.
struct Receipt {
    pause: BlackoutReport,
    reckoning: Reckoning,
    disagreements: Vec<String>,
}

impl Receipt {
    fn of(made: &Move, way_in_ns_max: u64) -> anyhow::Result<Self> {
        let pause = made.pause()?;
        let reckoning = Reckoning::of(&pause);
        Ok(Self {
            disagreements: reckoning.disagreements(way_in_ns_max),
            pause,
            reckoning,
        })
    }

    fn guest_beyond_us(&self) -> Option<f64> {
        let guest = self.reckoning.guest.as_ref()?;
        Some((guest.visible_ns as f64 - guest.paused_ns as f64) / 1e3)
    }

    fn prediction_off_us(&self) -> f64 {
        (self.pause.predicted_ns as f64 - self.pause.total_ns as f64) / 1e3
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let mut bad = 0;
    let mut all = 0;
    for transport in &arguments.transport {
        let begun = Instant::now();
        let receipts = receipts(&arguments, transport)?;
        println!(
            "\n{} moves of a guest of {} over {transport}, there and back; {}; took {} s\n",
            receipts.len(),
            arguments.memory,
            host::machine(),
            begun.elapsed().as_secs()
        );
        print!("{}", table(&receipts).text());
        worst(&receipts);
        all += receipts.len();
        let holds = |receipt: &&Receipt| receipt.disagreements.is_empty();
        bad += receipts.len() - receipts.iter().filter(holds).count();
    }
    Ok(match bad {
        0 => {
            println!("\nevery receipt holds");
            ExitCode::SUCCESS
        }
        bad => {
            println!("\n{bad} of {all} receipts do not hold");
            ExitCode::FAILURE
        }
    })
}

/// Moves a guest there and back.
fn receipts(arguments: &Arguments, transport: &str) -> anyhow::Result<Vec<Receipt>> {
    let ends = match arguments.addresses.as_deref() {
        Some([here, there]) => Ends::existing(*here, *there),
        _ => Ends::loopback(),
    };
    let guest = [
        "--guest",
        &arguments.guest,
        "--memory",
        &arguments.memory,
        "--vcpus",
        &arguments.vcpus,
        "--workload",
        &arguments.workload,
    ];
    let programs = [&*arguments.dunlin; 2];
    let mut shuttle = Shuttle::start(programs, &ends, transport, &guest, &[])?;
    let mut receipts = Vec::new();
    for number in 1..=arguments.moves {
        let made = shuttle.cross(&[
            "--lanes",
            &arguments.lanes,
            // A host that is slow for a moment still makes a receipt.
            "--max-blackout",
            "1s",
            "--on-stall",
            "switchover",
        ])?;
        let receipt = Receipt::of(&made, arguments.way_in.saturating_mul(1000))?;
        if arguments.each || !receipt.disagreements.is_empty() {
            eprintln!("move {number}: {}", line(&receipt));
        }
        receipts.push(receipt);
    }
    Ok(receipts)
}

fn line(receipt: &Receipt) -> String {
    let pause = &receipt.pause;
    let mut line = format!(
        "paused {:.1} µs, remainder {:.1}, the guest beyond {}, leaving {:.1}, predicted {:.1}",
        pause.total_ns as f64 / 1e3,
        receipt.reckoning.remainder_ns as f64 / 1e3,
        figure(receipt.guest_beyond_us(), 1),
        pause.leaving_ns as f64 / 1e3,
        pause.predicted_ns as f64 / 1e3,
    );
    for words in &receipt.disagreements {
        line += "; ";
        line += words;
    }
    line
}

fn table(receipts: &[Receipt]) -> Table {
    let row = |name: &str, digits, of: &dyn Fn(&Receipt) -> Option<f64>| {
        let spread = Spread::of(receipts.iter().filter_map(of));
        let cell = |of: fn(Spread) -> f64| figure(spread.map(of), digits);
        vec![
            name.to_owned(),
            cell(|spread| spread.least),
            cell(|spread| spread.median),
            cell(|spread| spread.p90),
            cell(|spread| spread.most),
        ]
    };
    let us = |ns: u64| Some(ns as f64 / 1e3);
    let rows = [
        row("pause, µs", 1, &|receipt| us(receipt.pause.total_ns)),
        row("parts less the whole, µs", 1, &|receipt| {
            let told = receipt.reckoning.parts_ns as f64 - receipt.pause.total_ns as f64;
            Some(told / 1e3)
        }),
        row("remainder, µs", 1, &|receipt| {
            us(receipt.reckoning.remainder_ns)
        }),
        row("remainder, % of the pause", 2, &|receipt| {
            let whole = receipt.pause.total_ns.max(1) as f64;
            Some(receipt.reckoning.remainder_ns as f64 * 100.0 / whole)
        }),
        row("the guest saw, µs", 1, &|receipt| {
            us(receipt.pause.guest_visible_ns?)
        }),
        row("beyond its vCPU's pause, µs", 1, &Receipt::guest_beyond_us),
        row("of that, at most leaving, µs", 1, &|receipt| {
            us(receipt.pause.leaving_ns)
        }),
        row("error of the clocks, µs", 1, &|receipt| {
            us(receipt.pause.clock_error_ns?)
        }),
        row("the rest: its way in, µs", 1, &|receipt| {
            let guest = receipt.reckoning.guest.as_ref()?;
            Some(guest.unexplained_ns() as f64 / 1e3)
        }),
        row("predicted less the pause, µs", 1, &|receipt| {
            Some(receipt.prediction_off_us())
        }),
    ];
    Table::new(&["", "least", "median", "p90", "most"], rows)
}

/// Where the prediction was off the most, term by term.
fn worst(receipts: &[Receipt]) {
    let off = |receipt: &&Receipt| receipt.prediction_off_us().abs();
    let Some(worst) = receipts
        .iter()
        .max_by(|one, other| off(one).total_cmp(&off(other)))
    else {
        return;
    };
    println!("\nThe move whose prediction was off the most, term by term, in µs\n");
    let rows = worst.reckoning.terms.iter().map(|term| {
        let predicted = term.predicted_ns.map(|ns| ns as f64 / 1e3);
        let took = term.took_ns as f64 / 1e3;
        vec![
            term.name.clone(),
            figure(predicted, 1),
            figure(Some(took), 1),
            figure(Some(predicted.unwrap_or(0.0) - took), 1),
        ]
    });
    print!(
        "{}",
        Table::new(&["", "predicted", "took", "off by"], rows).text()
    );
}
