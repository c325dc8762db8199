//! Device state, both ways: part of every blackout.

use criterion::{Criterion, Throughput};
use dunlin_bench::SplitMix;
use dunlin_engine::state::{DeviceState, Section};

const VCPUS: u32 = 64;

/// What a vCPU's registers, XSAVE area, LAPIC and MSRs take on a processor with AVX-512.
const VCPU_FIELD_BYTES: [usize; 6] = [144, 312, 2696, 1024, 1200, 72];

pub(crate) fn all(criterion: &mut Criterion) {
    let state = state();
    let Ok(bytes) = state.encode() else {
        return;
    };
    let mut group = criterion.benchmark_group("state");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("encode, 64 vCPUs", |bencher| {
        bencher.iter(|| state.encode())
    });
    group.bench_function("decode, 64 vCPUs", |bencher| {
        bencher.iter(|| DeviceState::decode(&bytes));
    });
    group.finish();
}

fn state() -> DeviceState {
    let mut random = SplitMix(3);
    let mut state = DeviceState::new();
    for vcpu in 0..VCPUS {
        let mut section = Section::new(format!("kvm.vcpu.{vcpu}"), 1);
        for (field, bytes) in (1..).zip(VCPU_FIELD_BYTES) {
            let bytes: Vec<u8> = (0..bytes).map(|_| random.next_u64() as u8).collect();
            section.put(field, bytes);
        }
        state.push(section);
    }
    state
}
