//! Results as they could have been measured, for tests.

use dunlin_engine::report::{BlackoutPart, Host, PredictedPart, Side};

use super::matrix::Cell;
use super::results::{CellResult, ReferenceResult, ReferenceRun, Results, Run, SCHEMA, Summary};
use super::verdict;

/// Two cells, of one lane and of two, and two references, with the noise of a real machine: each
/// pass has its own speed.
pub(crate) fn results(passes: u32) -> Results {
    let cells: Vec<CellResult> = [1, 2].map(|lanes| cell(lanes, passes)).into();
    let references = vec![
        ReferenceResult {
            name: "memcpy".to_owned(),
            what: "from memory to memory, one thread".to_owned(),
            version: None,
            left_out: None,
            runs: (1..=passes).map(reference_run).collect(),
        },
        ReferenceResult {
            name: "iperf3 -P 2".to_owned(),
            what: "1 GiB over TCP, 2 streams".to_owned(),
            version: None,
            left_out: Some("iperf3 is not installed (package iperf3)".to_owned()),
            runs: Vec::new(),
        },
    ];
    Results {
        schema: SCHEMA.to_owned(),
        dunlin: "0.1.0".to_owned(),
        seed: 1,
        passes_asked: passes,
        passes,
        warm_up_passes: 1,
        is_interrupted: false,
        is_one_host: true,
        is_interleaved: false,
        max_blackout_ns: 50_000_000,
        duration_ns: 90_000_000_000,
        host: Host {
            kernel: "6.18.0".to_owned(),
            cpu: "A Processor".to_owned(),
            cpus: 2,
            dunlin: "0.1.0".to_owned(),
        },
        destination_host: None,
        verdicts: verdict::of_matrix(&cells, &references, 1),
        cells,
        references,
    }
}

/// The machine's speed in a pass: from 0.8 to 1.2 of what it is as a rule.
fn speed(pass: u32) -> f64 {
    0.8 + f64::from(pass * 7 % 9) / 20.0
}

fn cell(lanes: u16, passes: u32) -> CellResult {
    let cell = Cell {
        transport: "tcp".to_owned(),
        lanes: Some(lanes),
        memory_bytes: 1 << 30,
        dirty_bytes_per_s: Some(100 << 20),
        pattern: "sequential".to_owned(),
        hot_bytes: 256 << 20,
        guest: "kvm".to_owned(),
        vcpus: 1,
    };
    let runs: Vec<Run> = (1..=passes).map(|pass| run(lanes, pass)).collect();
    CellResult {
        cell,
        left_out: None,
        summary: Summary::of(&runs),
        runs,
    }
}

fn run(lanes: u16, pass: u32) -> Run {
    let speed = speed(pass) * if lanes == 2 { 1.3 } else { 1.0 };
    let of = |value: f64| (value / speed) as u64;
    let parts = [
        ("park", Side::Source, 0.1e6),
        ("load-state", Side::Destination, 0.9e6),
    ];
    let part = |(name, side, ns): (&str, Side, f64)| BlackoutPart {
        name: name.to_owned(),
        side,
        begin_ns: None,
        duration_ns: of(ns),
    };
    Run {
        pass,
        began_ns: u64::from(pass) * 5_000_000_000,
        outcome: "moved".to_owned(),
        reason: None,
        mechanism: "io_uring".to_owned(),
        lanes: lanes.into(),
        rounds: 3,
        goodput_bytes_per_s: (1.4e9 * speed) as u64,
        sent_bytes: 1 << 30,
        wire_bytes: (1 << 30) + 4096,
        total_ns: of(0.9e9),
        blackout_ns: Some(of(1e6)),
        predicted_ns: Some(of(1.5e6)),
        predicted_parts: vec![PredictedPart {
            name: "park".to_owned(),
            duration_ns: 300_000,
            is_assumed: true,
        }],
        guest_visible_ns: Some(of(1.2e6)),
        parts: parts.map(part).into(),
        clock_error_ns: Some(0),
        source_cpu_ns: Some(of(0.5e9)),
        destination_cpu_ns: Some(of(0.6e9)),
        is_equal: Some(true),
    }
}

fn reference_run(pass: u32) -> ReferenceRun {
    ReferenceRun {
        pass,
        goodput_bytes_per_s: Some((9e9 * speed(pass)) as u64),
        ..ReferenceRun::default()
    }
}
