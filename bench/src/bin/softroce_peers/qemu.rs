//! QEMU: an idle guest moves, with the settings of somebody who wants it to be quick.

use anyhow::Context;
use dunlin_bench::qemu::{Guest, Pair, Way};
use dunlin_bench::usage::Since;

use crate::results::{Outcome, PAUSE_BUDGET_MS};
use crate::rows::QemuWay;
use crate::runs::Run;

/// Where the destination waits.
const PORT: u16 = 4444;

/// Moves a guest.
pub(crate) fn run(run: &mut Run<'_>, way: QemuWay) -> anyhow::Result<Outcome> {
    let bytes = run.bench.bytes;
    let memory = run.random_memory()?;
    let guest = Guest {
        bytes,
        memory: &memory,
        touched: false,
        hot_bytes: None,
    };
    let program = run.bench.qemu.as_ref().context("no QEMU")?;
    let ends = &run.bench.ends;
    let mut pair = Pair::start(program, ends, &run.path("."), &guest, &settings(way), PORT)?;
    let watched = run.watch(
        pair.source.process.id(),
        pair.destination.process.id(),
        Since::Order,
    )?;
    let told = pair.migrate();
    let usage = run.end(watched)?;
    let told = told?;
    let mut outcome = Outcome::new(bytes, bytes as f64 / told.copying_s, told.total_s, usage);
    outcome.blackout_s = Some(told.downtime_s);
    Ok(outcome)
}

fn settings(way: QemuWay) -> Way {
    let (scheme, capabilities, channels) = match way {
        QemuWay::Rdma { pin_all: true } => ("rdma", vec!["rdma-pin-all"], None),
        QemuWay::Rdma { pin_all: false } => ("rdma", vec![], None),
        QemuWay::Multifd { channels } => ("tcp", vec!["multifd"], Some(channels)),
    };
    Way {
        scheme,
        capabilities,
        channels,
        downtime_limit_ms: PAUSE_BUDGET_MS,
    }
}
