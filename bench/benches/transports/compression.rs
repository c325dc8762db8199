//! What a batch of 1 MiB costs a lane that compresses: copying and compressing on the one side,
//! decompressing and copying on the other; and one copy, to compare. How small a batch becomes is
//! printed with the names.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use dunlin_bench::{Contents, fresh_memory};
use dunlin_transports::memory::{MemoryMap, PAGE_BYTES, PageNumber, Run};
use dunlin_transports::tcp::Compression;
use dunlin_transports::tcp::rehearsal::Rehearsal;

const BATCH_BYTES: usize = 1 << 20;

/// More batches than caches hold, one behind the other, as a lane meets them.
const BATCHES: u64 = 64;

pub(crate) fn all(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compression");
    group.throughput(Throughput::Bytes(BATCH_BYTES as u64));
    for contents in Contents::ALL {
        let name = contents.name();
        let memory = memory(contents);
        let mut buffer = vec![0; BATCH_BYTES];
        let mut batches = (0..BATCHES).cycle().map(batch);
        group.bench_function(format!("{name}/copy"), |bencher| {
            bencher.iter(|| {
                let run = batches.next().map(|run| memory.copy_out(run, &mut buffer));
                black_box(run)
            });
        });
        for mode in ["lz4", "zstd:1", "zstd:3", "zstd:6"] {
            let mut rehearsal = rehearsal(mode, &memory);
            let packed = rehearsal.pack(batch(0)).ok().flatten();
            let size = packed.map_or("as it is".to_owned(), |bytes| {
                format!("to {:.1} %", f64::from(bytes) * 100.0 / BATCH_BYTES as f64)
            });
            group.bench_function(format!("{name}/{mode}/pack {size}"), |bencher| {
                bencher.iter(|| batches.next().map(|run| rehearsal.pack(run)));
            });
            let Some(bytes) = packed else {
                continue;
            };
            assert_eq!(rehearsal.pack(batch(0)), Ok(packed));
            rehearsal.deliver(bytes);
            group.bench_function(format!("{name}/{mode}/unpack"), |bencher| {
                bencher.iter(|| {
                    // What it holds is no matter here.
                    let run = batches.next();
                    let unpacked = run.map(|run| rehearsal.unpack(bytes, run));
                    assert_eq!(unpacked, Some(Ok(())));
                });
            });
            fill(&memory, contents);
        }
    }
    group.finish();
}

fn batch(number: u64) -> Run {
    let pages = BATCH_BYTES as u64 / PAGE_BYTES;
    Run {
        first: PageNumber(number * pages),
        pages: pages as u32,
    }
}

#[allow(
    clippy::expect_used,
    reason = "a benchmark without memory has nothing to measure"
)]
fn memory(contents: Contents) -> MemoryMap {
    let pages = BATCHES * BATCH_BYTES as u64 / PAGE_BYTES;
    let memory = fresh_memory(pages as u32).expect("memory");
    fill(&memory, contents);
    memory
}

fn fill(memory: &MemoryMap, contents: Contents) {
    for number in 0..BATCHES {
        let bytes = contents.bytes(BATCH_BYTES, number);
        assert_eq!(memory.copy_in(batch(number), &bytes), Ok(()));
    }
}

#[allow(
    clippy::expect_used,
    reason = "a benchmark without a codec has nothing to measure"
)]
fn rehearsal(mode: &str, memory: &MemoryMap) -> Rehearsal {
    let mode: Compression = mode.parse().expect("a compression");
    Rehearsal::new(mode, memory.clone()).expect("memory")
}
