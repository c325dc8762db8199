//! What measuring costs: one recording, a clock reading, and putting the lanes' recorders together.
//!
//! With `--no-default-features` recorders are compiled out, and the same code shows what is left.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput};
use dunlin_bench::SplitMix;
use dunlin_engine::clock::Timestamp;
use dunlin_engine::telemetry::{
    End, Moment, MoveTelemetry, Operation, Recorder, Recording, SpanName, Track, prometheus, wire,
};

const LANES: u16 = 64;

/// Recordings of each operation on each lane before the merging: as many as fill the histograms'
/// buckets as widely as a long move does.
const RECORDINGS: u64 = 2_000;

pub(crate) fn all(criterion: &mut Criterion) {
    one(criterion);
    whole(criterion);
}

fn one(criterion: &mut Criterion) {
    let durations = durations();
    let mut group = criterion.benchmark_group("telemetry");
    group.throughput(Throughput::Elements(durations.len() as u64));
    group.bench_function("record, 1024 durations", |bencher| {
        let mut recorder = Recorder::new(End::Source, Track::Lane(0));
        let begun = Moment::at(Timestamp(0));
        bencher.iter(|| {
            for duration_ns in &durations {
                let ended = Moment::at(Timestamp(black_box(*duration_ns)));
                recorder.between(Operation::Clear, begun, ended);
            }
        });
    });
    group.bench_function("record with a clock reading, 1024 times", |bencher| {
        let mut recorder = Recorder::new(End::Source, Track::Lane(0));
        bencher.iter(|| {
            let mut begun = recorder.now();
            for _ in 0..durations.len() {
                begun = recorder.done(black_box(Operation::Clear), begun);
            }
            begun
        });
    });
    group.bench_function("clock reading, 1024 times", |bencher| {
        let recorder = Recorder::new(End::Source, Track::Lane(0));
        bencher.iter(|| {
            for _ in 0..durations.len() {
                black_box(recorder.now());
            }
        });
    });
    group.bench_function("span, 1024 times", |bencher| {
        let mut recorder = Recorder::new(End::Source, Track::Lane(0));
        let begun = Moment::at(Timestamp(0));
        bencher.iter(|| {
            for duration_ns in &durations {
                let ended = Moment::at(Timestamp(black_box(*duration_ns)));
                recorder.span(SpanName::LaneRound, begun, ended);
            }
        });
    });
    group.finish();
}

fn whole(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("telemetry");
    group.sample_size(10);
    group.bench_function("make a lane's recorder", |bencher| {
        bencher.iter(|| Recorder::new(End::Source, Track::Lane(0)));
    });
    group.bench_function("merge 64 lanes", |bencher| {
        bencher.iter_batched(recorders, Recording::merge, BatchSize::PerIteration);
    });
    let recording = Recording::merge(recorders());
    if let Ok(bytes) = wire::encode(&recording) {
        group.bench_function("encode 64 lanes", |bencher| {
            bencher.iter(|| wire::encode(&recording));
        });
        group.bench_function("decode 64 lanes", |bencher| {
            bencher.iter(|| wire::decode(&bytes, End::Destination));
        });
    }
    let told = MoveTelemetry::new(recording, None, None);
    group.bench_function("write 64 lanes for Prometheus", |bencher| {
        bencher.iter(|| {
            let mut out = Vec::new();
            prometheus::write(&told, &[("guest", "vm1")], &mut out).map(|()| out)
        });
    });
    group.finish();
}

/// What lanes take for most things: a microsecond to some milliseconds.
fn durations() -> Vec<u64> {
    let mut random = SplitMix(7);
    (0..1024)
        .map(|_| 1_000 << (random.next_u64() % 12))
        .collect()
}

/// Of a destination, whose part is what goes over the wire; each lane did everything that it can.
fn recorders() -> Vec<Recorder> {
    let mut random = SplitMix(11);
    let mut lane = |number| {
        let mut recorder = Recorder::new(End::Destination, Track::Lane(number));
        let begun = Moment::at(Timestamp(0));
        for operation in [Operation::Receive, Operation::Submission] {
            for _ in 0..RECORDINGS {
                let magnitude = random.next_u64() % 12;
                let duration_ns = (1_000 << magnitude) + random.next_u64() % (1_000 << magnitude);
                recorder.between(operation, begun, Moment::at(Timestamp(duration_ns)));
            }
        }
        recorder
    };
    (0..LANES).map(&mut lane).collect()
}
