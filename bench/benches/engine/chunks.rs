//! Lanes that claim every chunk of a large guest and do nothing with them.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use dunlin_bench::one_region;
use dunlin_engine::chunk::{CHUNK_PAGES, ChunkCursor, ChunkPlan};

pub(crate) fn all(criterion: &mut Criterion) {
    let Ok(layout) = one_region(512 << 30) else {
        return;
    };
    let cursor = ChunkCursor::new(ChunkPlan::new(&layout, CHUNK_PAGES));
    let mut group = criterion.benchmark_group("claim");
    group.throughput(Throughput::Elements(cursor.plan().chunks()));
    for lanes in [1, 16] {
        group.bench_function(format!("512 GiB, {lanes} lanes"), |bencher| {
            bencher.iter_custom(|rounds| (0..rounds).map(|_| round(&cursor, lanes)).sum());
        });
    }
    group.finish();
}

/// How long the lanes take together, without the time to start their threads.
fn round(cursor: &ChunkCursor, lanes: usize) -> Duration {
    cursor.reset();
    let ready = Barrier::new(lanes + 1);
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..lanes)
            .map(|_| {
                scope.spawn(|| {
                    ready.wait();
                    while cursor.claim().is_some() {}
                    Instant::now()
                })
            })
            .collect();
        let started = Instant::now();
        ready.wait();
        handles
            .into_iter()
            .filter_map(|handle| handle.join().ok())
            .max()
            .map_or(Duration::ZERO, |ended| ended.duration_since(started))
    })
}
