//! A destination's memory is fresh: what of it is backed when, and that nothing is backed in vain.

use anyhow::{Context, Result};
use dunlin_tests::measured::operations;
use dunlin_tests::program::resident_kib;
use dunlin_tests::site::{Site, expect_moved};
use serde_json::Value;

/// Of 512 MiB.
const USED_MEBIBYTES: u64 = 256;

/// Moves a guest that uses half of its memory over one lane. Returns the report, and how much the
/// guest takes at the destination, in MiB.
fn moved(receive: &[&str]) -> Result<(Value, u64)> {
    let (here, there) = (Site::new()?, Site::new()?);
    let workload = "hot=1MiB,rate=1MiB/s,zero=0,unused=50";
    let guest = here.guest(
        "half",
        &[
            "--memory",
            "512MiB",
            "--guest",
            "process",
            "--workload",
            workload,
        ],
    )?;
    let receiver = there.receiver(receive)?;
    // Held back, so that there is an ahead.
    let send = ["--lanes", "1", "--max-bandwidth", "400MiB/s"];
    let report = here.send("half", &receiver.endpoint, &send, 0)?;
    expect_moved(&report)?;
    there.expect_goes_on("half")?;
    let status = there.status("half")?;
    let process = status["pid"].as_u64().context("no process")?;
    let resident = resident_kib(u32::try_from(process)?)?;
    guest.wait()?.expect_code(0)?;
    Ok((report, resident >> 10))
}

fn is_backed_ahead(report: &Value) -> bool {
    operations(report, "destination").contains("prefault")
}

#[test]
fn what_comes_is_backed_ahead_of_it_by_a_processor_that_the_lane_leaves() -> Result<()> {
    let (report, resident) = moved(&[])?;
    let processors = std::thread::available_parallelism()?.get();
    assert_eq!(is_backed_ahead(&report), processors > 1, "{report:#}");
    // What the guest does not use is backed neither ahead nor by chance.
    assert!(resident < USED_MEBIBYTES + 64, "{resident} MiB");
    Ok(())
}

#[test]
fn nothing_is_backed_ahead_where_that_is_off_or_all_is_backed() -> Result<()> {
    let (report, resident) = moved(&["--prefault", "off"])?;
    assert!(!is_backed_ahead(&report), "{report:#}");
    assert!(resident < USED_MEBIBYTES + 64, "{resident} MiB");
    let (report, resident) = moved(&["--prefault", "on"])?;
    assert!(!is_backed_ahead(&report), "{report:#}");
    assert!(resident >= 2 * USED_MEBIBYTES, "{resident} MiB");
    Ok(())
}
