//! From a dirty bitmap to runs, chunk by chunk as a lane does it, and the final round's sharing.

use criterion::{Criterion, Throughput};
use dunlin_bench::{Pattern, one_region};
use dunlin_engine::chunk::{CHUNK_PAGES, ChunkPlan, is_clean, share_by_bytes};
use dunlin_engine::dirty::DirtyBitmap;
use dunlin_engine::runs::for_each_run;

/// As many lanes as share a final round.
const LANES: usize = 16;

pub(crate) fn all(criterion: &mut Criterion) {
    for (size, bytes) in [("4 GiB", 4 << 30), ("512 GiB", 512 << 30)] {
        let Ok(layout) = one_region(bytes) else {
            continue;
        };
        let plan = ChunkPlan::new(&layout, CHUNK_PAGES);
        for pattern in Pattern::ALL {
            let bitmap = pattern.bitmap(&layout);
            let name = format!("{size}, {}", pattern.name());
            let mut group = criterion.benchmark_group("runs");
            group.throughput(Throughput::Elements(layout.pages()));
            group.bench_function(name.as_str(), |bencher| {
                bencher.iter(|| count_runs(&plan, &bitmap));
            });
            group.finish();
            let mut group = criterion.benchmark_group("share");
            group.throughput(Throughput::Elements(layout.pages()));
            group.bench_function(name.as_str(), |bencher| {
                bencher.iter(|| share_by_bytes(&bitmap, &layout, LANES));
            });
            group.finish();
        }
    }
}

/// Runs and pages: both, so that neither is optimised away.
fn count_runs(plan: &ChunkPlan, bitmap: &DirtyBitmap) -> (u64, u64) {
    let mut runs = 0;
    let mut pages = 0;
    for chunk in (0..plan.chunks()).filter_map(|number| plan.chunk(number)) {
        let words = chunk.words(bitmap);
        if !is_clean(words) {
            for_each_run(chunk.first, words, u32::MAX, |run| {
                runs += 1;
                pages += u64::from(run.pages);
            });
        }
    }
    (runs, pages)
}
