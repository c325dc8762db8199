//! Micro-benchmarks of the transports' parts.
//!
//! `make bench` runs these too; `make bench ARGS=compress` those whose name holds 'compress'.

mod compression;
mod framing;

use std::time::Duration;

use criterion::Criterion;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
        .configure_from_args();
    framing::all(&mut criterion);
    compression::all(&mut criterion);
    criterion.final_summary();
}
