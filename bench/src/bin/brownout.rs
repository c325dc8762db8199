//! What a move costs the guest while it still runs there: `make bench-brownout`.
//!
//! A guest rewrites memory as fast as it can and counts. Its rate in the rounds is held against its
//! rate in the seconds before the move. At a limited bandwidth the move takes little of the
//! processors, so what is lost is mostly what tracking its writes costs; without a limit the guest
//! and both ends share this machine.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use dunlin_bench::ends::Ends;
use dunlin_bench::host;
use dunlin_bench::moved::Move;
use dunlin_bench::program::output_of;
use dunlin_bench::site::Site;
use dunlin_bench::spread::Spread;
use dunlin_bench::table::{Table, figure};
use serde_json::Value;
use tempfile::TempDir;

/// The guest's name.
const GUEST: &str = "busy";

/// For how long its rate is taken before the move.
const BEFORE: Duration = Duration::from_secs(2);

/// How often it is asked how far it is.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Measures what a move costs a guest while it still runs.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The program `dunlin`.
    #[arg(long)]
    dunlin: PathBuf,
    /// How often each row is measured; the median counts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    passes: u32,
    #[arg(long, default_value = "1GiB")]
    memory: String,
    /// How much of it the guest rewrites, for each row.
    #[arg(long, value_delimiter = ',', default_values = ["16MiB", "512MiB"])]
    hot: Vec<String>,
    /// Bandwidths that the move is held to, for each row; 0 is no limit.
    #[arg(long, value_delimiter = ',', default_values = ["200MiB/s", "0"])]
    bandwidth: Vec<String>,
    /// How writes are tracked, for each row.
    #[arg(long, value_delimiter = ',', default_values = ["bitmap", "ring"])]
    tracking: Vec<String>,
}

/// A kind of move.
struct Row {
    tracking: String,
    hot: String,
    bandwidth: String,
    outcomes: Vec<Outcome>,
}

/// One move's.
struct Outcome {
    /// Pages a second before the move, and in its rounds.
    before: f64,
    during: f64,
    made: Move,
}

/// How far the guest is, and where its move stands.
struct Look {
    at: Instant,
    pages: u64,
    is_copying: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let begun = Instant::now();
    let mut rows = Vec::new();
    for tracking in &arguments.tracking {
        for hot in &arguments.hot {
            for bandwidth in &arguments.bandwidth {
                rows.push(Row {
                    tracking: tracking.clone(),
                    hot: hot.clone(),
                    bandwidth: bandwidth.clone(),
                    outcomes: Vec::new(),
                });
            }
        }
    }
    for pass in 1..=arguments.passes {
        for row in &mut rows {
            eprintln!("pass {pass} of {}: {}", arguments.passes, row.name());
            row.outcomes.push(row.run(&arguments)?);
        }
    }
    println!(
        "\nA guest of {} with one vCPU that rewrites memory all the time; {}; {} passes in {} s\n",
        arguments.memory,
        host::machine(),
        arguments.passes,
        begun.elapsed().as_secs()
    );
    let headings = [
        "",
        "before, pages/s",
        "in the rounds",
        "share kept",
        "least",
        "most",
        "rounds, s",
        "pause, ms",
    ];
    print!(
        "{}",
        Table::new(&headings, rows.iter().map(Row::cells)).text()
    );
    Ok(())
}

impl Row {
    fn name(&self) -> String {
        let bandwidth = match &*self.bandwidth {
            "0" => "no limit",
            limit => limit,
        };
        format!("{}, hot {}, {bandwidth}", self.tracking, self.hot)
    }

    fn run(&self, arguments: &Arguments) -> anyhow::Result<Outcome> {
        let directory = TempDir::with_prefix("dunlin-brownout-")?;
        let ends = Ends::loopback();
        let site = |name: &str, end: &dunlin_bench::ends::End| {
            Site::new(&arguments.dunlin, directory.path().join(name), end.clone())
        };
        let (here, there) = (site("a", &ends.source)?, site("b", &ends.destination)?);
        let receiver = there.receiver(&[])?;
        let workload = format!("hot={},rate=max,zero=0", self.hot);
        let guest = [
            "--guest",
            "kvm",
            "--memory",
            &arguments.memory,
            "--dirty-tracking",
            &self.tracking,
            "--workload",
            &workload,
        ];
        let _guest = here.guest(GUEST, &guest)?;
        let from = look(&here)?.context("the guest is gone")?;
        std::thread::sleep(BEFORE);
        let to = look(&here)?.context("the guest is gone")?;
        let before = rate(&from, &to);

        let mut told = vec!["--verify", "off", "--max-blackout", "300ms"];
        // One round of all memory, and some of what is written meanwhile.
        told.extend(["--on-stall", "switchover", "--max-rounds", "4"]);
        if self.bandwidth != "0" {
            told.extend(["--max-bandwidth", &self.bandwidth]);
        }
        let (during, made) = std::thread::scope(|scope| {
            let moving = scope.spawn(|| here.send(GUEST, "tcp", &receiver, &told));
            let mut copying = Vec::new();
            while !moving.is_finished() {
                // Towards the end the guest's process goes.
                if let Ok(Some(look)) = look(&here)
                    && look.is_copying
                {
                    copying.push(look);
                }
                std::thread::sleep(LOOK_INTERVAL);
            }
            let made = moving
                .join()
                .map_err(|_| anyhow::anyhow!("a thread died"))?;
            let ends = copying.first().zip(copying.last());
            let during = ends.filter(|(first, last)| first.at < last.at);
            let during = during.map(|(first, last)| rate(first, last));
            anyhow::Ok((during, made?))
        })?;
        there.stop(GUEST)?;
        Ok(Outcome {
            before,
            during: during.context("the move was over before it was looked at twice")?,
            made,
        })
    }

    fn cells(&self) -> Vec<String> {
        let spread = |of: &dyn Fn(&Outcome) -> f64| Spread::of(self.outcomes.iter().map(of));
        let median = |of: &dyn Fn(&Outcome) -> f64, digits| {
            figure(spread(of).map(|spread| spread.median), digits)
        };
        let kept = spread(&|outcome| outcome.during / outcome.before);
        vec![
            self.name(),
            median(&|outcome| outcome.before, 0),
            median(&|outcome| outcome.during, 0),
            figure(kept.map(|kept| kept.median), 2),
            figure(kept.map(|kept| kept.least), 2),
            figure(kept.map(|kept| kept.most), 2),
            median(
                &|outcome| (outcome.made.total - outcome.made.blackout).as_secs_f64(),
                2,
            ),
            median(&|outcome| outcome.made.blackout.as_secs_f64() * 1e3, 2),
        ]
    }
}

fn rate(from: &Look, to: &Look) -> f64 {
    let pages = to.pages.saturating_sub(from.pages);
    pages as f64 / to.at.duration_since(from.at).as_secs_f64()
}

/// `None` once the guest is not there any more.
fn look(site: &Site) -> anyhow::Result<Option<Look>> {
    let text = output_of(&mut site.command(&["status", GUEST, "--json"]))?;
    let at = Instant::now();
    let status: Value = serde_json::from_str(&text)?;
    let pages = status["workload"]["pages_written"].as_u64();
    Ok(pages.map(|pages| Look {
        at,
        pages,
        is_copying: status["move_under_way"]["progress"]["phase"] == "copying",
    }))
}
