//! What a batch of 1 MiB costs a lane besides moving its bytes: its frame is made on the one side,
//! and read and checked on the other.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use dunlin_bench::fresh_memory;
use dunlin_transports::memory::{MemoryMap, PageNumber, Run};
use dunlin_transports::tcp::framing::Framing;

/// The pages of 1 MiB.
const BATCH_PAGES: u32 = 256;

pub(crate) fn all(criterion: &mut Criterion) {
    let every_other = |pages: u32| (0..pages).map(|page| run(2 * u64::from(page), 1)).collect();
    let shapes: [(&str, Vec<Run>, bool); 3] = [
        ("one run", vec![run(0, BATCH_PAGES)], false),
        ("256 single pages", every_other(BATCH_PAGES), false),
        ("512 runs of zeros", every_other(2 * BATCH_PAGES), true),
    ];
    let memory = memory(4 * BATCH_PAGES);
    let mut group = criterion.benchmark_group("batch");
    for (name, runs, is_zero) in shapes {
        let mut framing = Framing::new(memory.clone());
        group.throughput(Throughput::Elements(runs.len() as u64));
        group.bench_function(format!("{name}/encode"), |bencher| {
            bencher.iter(|| framing.encode(black_box(&runs), is_zero));
        });
        assert_eq!(framing.deliver(&runs, is_zero), Ok(()));
        assert_eq!(framing.decode(), Ok(runs.len()));
        group.bench_function(format!("{name}/decode"), |bencher| {
            bencher.iter(|| framing.decode());
        });
    }
    group.finish();
}

fn run(first: u64, pages: u32) -> Run {
    Run {
        first: PageNumber(first),
        pages,
    }
}

#[allow(
    clippy::expect_used,
    reason = "a benchmark without memory has nothing to measure"
)]
fn memory(pages: u32) -> MemoryMap {
    fresh_memory(pages).expect("memory")
}
