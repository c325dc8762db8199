//! How long re-arming the dirty log takes, by how much is re-armed in one call: `make bench-rearm`.
//!
//! `KVM_CLEAR_DIRTY_LOG` protects the pages it is given again, under the VM's one lock, and has vCPUs
//! forget what they knew of them. A call for few pages pays for entering the kernel, the lock and
//! the vCPUs' part again and again; a call for many holds the lock, and a vCPU that writes to a
//! protected page, for long. A guest's vCPU rewrites all of its memory meanwhile, or is parked.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;
use dunlin_bench::host;
use dunlin_bench::spread::{Spread, median};
use dunlin_bench::table::{Table, figure, spread};
use dunlin_engine::dirty::{DirtyBitmap, DirtySource};
use dunlin_engine::guest::Guest;
use dunlin_engine::layout::Backing;
use dunlin_transports::deadline::Deadline;
use dunlin_transports::memory::{PAGE_BYTES, PageNumber};
use dunlin_vmm::kvm_guest::KvmGuest;
use dunlin_vmm::spec::{DirtyTracking, GuestSpec};
use dunlin_vmm::workload::{BeatInterval, Pattern, Workload};
use uuid::Uuid;

/// What goes into one call, in KiB: 64 pages are the least that KVM takes.
const GRANULE_KIBIBYTES: [u64; 8] = [256, 512, 1024, 2048, 4096, 8192, 16384, 32768];

/// How long the guest is given to write all of its hot set again, and parking to happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often it is asked whether it has.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// What the guest has beyond what it rewrites.
const REST_BYTES: u64 = 64 << 20;

/// Measures re-arming of the dirty log, by the size of its granules.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// How much the guest rewrites, in MiB.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(64..=65536))]
    mebibytes: u64,
    /// How often each row is measured; the median counts.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    passes: u32,
}

/// One size of granules, with the vCPU running or parked.
struct Row {
    granule_pages: u64,
    running: bool,
    /// Seconds for a GiB.
    whole: Vec<f64>,
    /// The longest call, in seconds.
    longest: Vec<f64>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let hot_bytes = arguments.mebibytes << 20;
    let spec = GuestSpec {
        name: "rearmed".to_owned(),
        uuid: Uuid::from_u128(1),
        memory_bytes: hot_bytes + REST_BYTES,
        vcpus: 1,
        backing: Backing::Memfd,
        workload: Workload {
            pattern: Pattern::Sequential,
            hot_bytes,
            rate: None,
            zero_percent: 0,
            block_pages: 512,
            unused_percent: 0,
            beat: BeatInterval::default(),
        },
        tracking: DirtyTracking::Bitmap,
    };
    let mut guest = KvmGuest::start(&spec, Box::new(std::io::sink()))?;
    let span = guest.memory().layout().page_span();
    let source = guest.dirty_sources().into_iter().next();
    let source = source.context("the guest's writes are not tracked")?;
    ensure!(
        !source.rearms_on_collect(),
        "this host's KVM has no manual protection: collecting re-arms all"
    );
    source.start()?;
    let mut rows: Vec<Row> = [true, false]
        .into_iter()
        .flat_map(|running| {
            GRANULE_KIBIBYTES.map(|kibibytes| Row {
                granule_pages: (kibibytes << 10) / PAGE_BYTES,
                running,
                whole: Vec::new(),
                longest: Vec::new(),
            })
        })
        .collect();
    let hot_pages = hot_bytes / PAGE_BYTES;
    // Where everything counts as written at first, nothing is protected yet.
    rearm(source.as_ref(), &written(source.as_ref(), span, 0)?, 512)?;
    for _ in 0..arguments.passes {
        for row in &mut rows {
            let bitmap = written(source.as_ref(), span, hot_pages)?;
            if !row.running {
                guest.pause(Deadline::after(PATIENCE))?;
            }
            let measured = rearm(source.as_ref(), &bitmap, row.granule_pages);
            if !row.running {
                guest.resume()?;
            }
            let (whole, longest) = measured?;
            let gib = (bitmap.count() * PAGE_BYTES) as f64 / f64::from(1 << 30);
            row.whole.push(whole.as_secs_f64() / gib);
            row.longest.push(longest.as_secs_f64());
        }
    }
    source.stop()?;
    print(&arguments, &rows);
    Ok(())
}

/// What the guest wrote, once that is so many pages.
fn written(source: &dyn DirtySource, span: u64, pages: u64) -> anyhow::Result<DirtyBitmap> {
    let until = Instant::now() + PATIENCE;
    let mut bitmap = DirtyBitmap::new(span);
    loop {
        source.collect(&mut bitmap)?;
        if bitmap.count() >= pages {
            return Ok(bitmap);
        }
        ensure!(Instant::now() < until, "the guest does not write");
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// Re-arms what is set, so many pages a call; how long it took, and the longest call.
fn rearm(
    source: &dyn DirtySource,
    bitmap: &DirtyBitmap,
    granule_pages: u64,
) -> anyhow::Result<(Duration, Duration)> {
    let words = usize::try_from(granule_pages / 64)?;
    let begun = Instant::now();
    let mut longest = Duration::ZERO;
    for (first, granule) in (0..).step_by(words).zip(bitmap.words().chunks(words)) {
        let call = Instant::now();
        source.rearm(PageNumber(first * 64), granule)?;
        longest = longest.max(call.elapsed());
    }
    Ok((begun.elapsed(), longest))
}

fn print(arguments: &Arguments, rows: &[Row]) {
    println!(
        "Re-arming {} MiB of written memory, KVM's bitmap, one vCPU; {}; medians of {} (least-most)\n",
        arguments.mebibytes,
        host::machine(),
        arguments.passes
    );
    let headings = [
        "vCPU",
        "KiB a call",
        "ms a GiB",
        "",
        "of 2 MiB's",
        "longest call, us",
        "",
    ];
    let base = |running| {
        let same = rows
            .iter()
            .find(|row| row.running == running && row.granule_pages == 512)?;
        median(same.whole.iter().copied())
    };
    let cells = rows.iter().map(|row| {
        let whole = Spread::of(row.whole.iter().copied());
        let ratio = whole.zip(base(row.running));
        let ratio = ratio.map(|(whole, base)| whole.median / base);
        let [median, range] = spread(whole, 1e-3, 1);
        let [longest, longest_range] = spread(Spread::of(row.longest.iter().copied()), 1e-6, 0);
        vec![
            if row.running { "running" } else { "parked" }.to_owned(),
            (row.granule_pages * PAGE_BYTES / 1024).to_string(),
            median,
            range,
            figure(ratio, 2),
            longest,
            longest_range,
        ]
    });
    print!("{}", Table::new(&headings, cells).text());
}
