//! The zero scan, each implementation that the processor has.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use dunlin_bench::{SplitMix, fresh_memory};
use dunlin_engine::zero::ZeroScan;
use dunlin_transports::memory::{MemoryMap, PAGE_BYTES, PageNumber, Run};

/// More than a core's caches hold, so that the sweep shows what memory gives.
const SWEEP_PAGES: u32 = (256 << 20) / PAGE_BYTES as u32;

const ZERO: PageNumber = PageNumber(0);
const RANDOM: PageNumber = PageNumber(1);
const LAST_BYTE: PageNumber = PageNumber(2);

pub(crate) fn all(criterion: &mut Criterion) {
    let page_bytes = PAGE_BYTES as usize;
    let memory = memory(3);
    let mut random = SplitMix(7);
    let noise: Vec<u8> = (0..page_bytes).map(|_| random.next_u64() as u8).collect();
    put(&memory, RANDOM, &noise);
    let mut last_byte = vec![0; page_bytes];
    last_byte[page_bytes - 1] = 1;
    put(&memory, LAST_BYTE, &last_byte);

    let mut group = criterion.benchmark_group("zero");
    group.throughput(Throughput::Bytes(PAGE_BYTES));
    for scan in ZeroScan::all_available() {
        for (what, page, expected) in [
            ("zero page", ZERO, true),
            ("random page", RANDOM, false),
            ("last byte set", LAST_BYTE, false),
        ] {
            assert_eq!(scan.page_is_zero(&memory, page), Ok(expected));
            group.bench_function(format!("{what}/{}", scan.name()), |bencher| {
                bencher.iter(|| scan.page_is_zero(&memory, black_box(page)));
            });
        }
    }
    group.finish();
    sweep(criterion);
}

fn sweep(criterion: &mut Criterion) {
    let memory = memory(SWEEP_PAGES);
    let all = Run {
        first: PageNumber(0),
        pages: SWEEP_PAGES,
    };
    // Written, so that each page is memory of its own and not the kernel's one page of zeros.
    assert_eq!(memory.fill_zero(all), Ok(()));
    let mut group = criterion.benchmark_group("zero");
    group.throughput(Throughput::Bytes(all.bytes()));
    for scan in ZeroScan::all_available() {
        group.bench_function(format!("256 MiB of zeros/{}", scan.name()), |bencher| {
            bencher.iter(|| {
                (0..u64::from(SWEEP_PAGES))
                    .filter(|page| scan.page_is_zero(&memory, PageNumber(*page)) == Ok(true))
                    .count()
            });
        });
    }
    // What the processor reads at best, one word behind the other, of memory of the same size and
    // kind.
    let words = vec![1_u64; all.bytes() as usize / size_of::<u64>()];
    group.bench_function("256 MiB/plain read", |bencher| {
        bencher.iter(|| plain_read(black_box(&words)));
    });
    group.finish();
}

/// All words, or-ed together: sixty-four sums, so that none waits for another.
fn plain_read(words: &[u64]) -> u64 {
    let mut sums = [0; 64];
    for words in words.chunks_exact(sums.len()) {
        sums.iter_mut()
            .zip(words)
            .for_each(|(sum, word)| *sum |= word);
    }
    sums.iter().fold(0, |all, sum| all | sum)
}

#[allow(
    clippy::expect_used,
    reason = "a benchmark without memory has nothing to measure"
)]
fn memory(pages: u32) -> MemoryMap {
    fresh_memory(pages).expect("memory")
}

fn put(memory: &MemoryMap, page: PageNumber, bytes: &[u8]) {
    let run = Run {
        first: page,
        pages: 1,
    };
    assert_eq!(memory.copy_in(run, bytes), Ok(()));
}
