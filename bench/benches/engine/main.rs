//! Micro-benchmarks of the engine's parts: what a page costs on its way to a lane.
//!
//! `make bench` runs all of them; `make bench ARGS=zero` those whose name holds 'zero'.

mod chunks;
mod runs;
mod state;
mod telemetry;
mod zero;

use std::time::Duration;

use criterion::Criterion;

fn main() {
    // Short, so that all of it takes about a minute: what is measured takes nanoseconds to
    // milliseconds, so a second of it is a lot.
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
        .configure_from_args();
    zero::all(&mut criterion);
    runs::all(&mut criterion);
    chunks::all(&mut criterion);
    state::all(&mut criterion);
    telemetry::all(&mut criterion);
    criterion.final_summary();
}
