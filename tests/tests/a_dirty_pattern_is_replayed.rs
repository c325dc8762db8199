//! A guest's dirty pages are recorded while it moves, and another guest rewrites the same pages in a
//! move of its own.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use dunlin_tests::schema::Schema;
use dunlin_tests::site::Site;
use serde_json::Value;

const MEMORY: [&str; 2] = ["--memory", "128MiB"];

/// Enough that pages become dirty in the first round, however fast it is.
const WORKLOAD: [&str; 4] = [
    "--workload",
    "hot=8MiB,rate=max,zero=0",
    "--guest",
    "process",
];

#[test]
fn a_recorded_pattern_is_replayed_by_a_guest_and_by_a_bench() -> Result<()> {
    let (here, there) = (Site::new()?, Site::new()?);
    let trace = here.directory().join("vm1.dirty");
    let path = trace.to_string_lossy().into_owned();
    let mut guest = MEMORY.to_vec();
    guest.extend(WORKLOAD);
    let _guest = here.guest("vm1", &guest)?;
    let receiver = there.receiver(&[])?;
    let how = ["--dirty-trace", &path, "--on-stall", "switchover"];
    let report = here.send("vm1", &receiver.endpoint, &how, 0)?;
    ensure!(report["verification"]["equal"] == true, "{report:#}");
    let bytes = std::fs::read(&trace)?;
    ensure!(bytes.starts_with(b"DUNDIRTY\x01"), "no trace");

    let mut replay = MEMORY.to_vec();
    replay.extend(["--replay", &path]);
    let _other = here.guest("vm2", &replay)?;
    let written = |name: &str| -> Result<u64> {
        let status = here.status(name)?;
        let pages = status["workload"]["pages_written"].as_u64();
        pages.with_context(|| format!("{status:#}"))
    };
    ensure!(written("vm2")? == 0, "it writes before it is moved");
    let how = ["--on-stall", "switchover"];
    let report = here.send("vm2", &receiver.endpoint, &how, 0)?;
    ensure!(report["verification"]["equal"] == true, "{report:#}");
    let second = report["rounds"][1]["dirty_pages"].as_u64();
    // No more than the hot set and the guest's own page.
    ensure!(
        second.is_some_and(|pages| (2..=2049).contains(&pages)),
        "{report:#}"
    );

    let results = here.directory().join("replayed.json");
    let results_path = results.to_string_lossy().into_owned();
    let bench = [
        "bench",
        "--replay",
        &path,
        "--transports",
        "tcp,tcp-writev",
        "--lanes",
        "1",
        "--repeat",
        "1",
        "--warm-up",
        "0",
        "--references",
        "none",
        "--json",
        &results_path,
    ];
    let output = here.run(&bench)?.expect_code(0)?;
    ensure!(output.stdout.contains("replayed"), "{}", output.stdout);
    let results: Value = serde_json::from_slice(&std::fs::read(&results)?)?;
    Schema::Bench.check(&results)?;
    for cell in results["cells"].as_array().context("no cells")? {
        ensure!(cell["cell"]["pattern"] == "replay", "{cell:#}");
        ensure!(cell["cell"]["memory_bytes"] == 128_u64 << 20, "{cell:#}");
        let hot = cell["cell"]["hot_bytes"].as_u64();
        ensure!(
            hot.is_some_and(|hot| hot > 0 && hot <= (8 << 20) + 4096),
            "{cell:#}"
        );
        ensure!(cell["runs"][0]["is_equal"] == true, "{cell:#}");
    }
    Ok(())
}

#[test]
fn what_can_not_be_recorded_or_replayed_says_why() -> Result<()> {
    let here = Site::new()?;
    let trace = here.directory().join("no.dirty");
    std::fs::write(&trace, "something else")?;
    let path = trace.to_string_lossy().into_owned();
    let mut run = vec!["run", "--name", "vm1", "--replay", &path];
    run.extend(MEMORY);
    for line in [&run[..], &["bench", "--replay", &path]] {
        let output = here.run(line)?.expect_code(2)?;
        ensure!(output.stderr.contains("not a dirty trace"), "{output:?}");
    }
    // A trace of nothing, of a guest with 16 MiB.
    std::fs::write(&trace, b"DUNDIRTY\x01\x00\x01\x00\x80\x20\x00")?;
    let output = here.run(&run)?.expect_code(2)?;
    ensure!(output.stderr.contains("--memory 16MiB"), "{output:?}");
    let output = here.run(&["bench", "--replay", &path])?.expect_code(2)?;
    ensure!(
        output.stderr.contains("no page becomes dirty"),
        "{output:?}"
    );

    let mut guest = MEMORY.to_vec();
    guest.extend(WORKLOAD);
    let _guest = here.guest("vm2", &guest)?;
    let how = ["--dirty-trace", "/nowhere/vm2.dirty"];
    ensure!(!Path::new("/nowhere").exists(), "somebody made /nowhere");
    let report = here.send("vm2", "tcp://127.0.0.1:1", &how, 12)?;
    let reason = report["reason"].as_str().unwrap_or_default();
    ensure!(
        reason.contains("the dirty trace can't be written"),
        "{reason}"
    );
    here.expect_goes_on("vm2")
}
