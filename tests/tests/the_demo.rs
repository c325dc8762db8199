//! `dunlin demo`, as in the README: what it prints, what its report says, and what it leaves.

use anyhow::Result;
use dunlin_tests::measured::{check_report, expect_operations_of_tcp};
use dunlin_tests::program::eventually;
use dunlin_tests::site::{Site, expect_moved};
use serde_json::Value;

/// Every field that a report has at least.
const FIELDS: [&str; 24] = [
    "/schema",
    "/outcome",
    "/transport",
    "/lanes",
    "/guest/kind",
    "/guest/memory_bytes",
    "/guest/vcpus",
    "/rounds/0/duration_ns",
    "/rounds/0/dirty_pages",
    "/rounds/0/zero_pages",
    "/rounds/0/sent_bytes",
    "/total_ns",
    "/sent_bytes",
    "/goodput_bytes_per_s",
    "/blackout/total_ns",
    "/blackout/predicted_ns",
    "/blackout/guest_visible_ns",
    "/blackout/parts/0/name",
    "/blackout/parts/0/side",
    "/blackout/parts/0/duration_ns",
    "/verification/method",
    "/verification/pages_checked",
    "/verification/equal",
    "/session",
];

#[test]
fn a_guest_moves_and_the_report_says_how() -> Result<()> {
    let site = Site::new()?;
    let file = site.directory().join("report.json");
    let path = file.to_string_lossy().into_owned();
    let workload = "hot=16MiB";
    let demo = [
        "demo",
        "--memory",
        "256MiB",
        "--workload",
        workload,
        "--json",
        &path,
    ];
    let output = site.run(&demo)?.expect_code(0)?;
    for word in ["moved", "paused", "verified equal"] {
        assert!(
            output.stdout.contains(word),
            "'{word}' is not in\n{}",
            output.stdout
        );
    }
    let widest = output.stdout.lines().map(|line| line.chars().count()).max();
    assert!(
        widest <= Some(100),
        "{widest:?} columns:\n{}",
        output.stdout
    );
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
    expect_moved(&report)?;
    check_report(&report)?;
    expect_operations_of_tcp(&report)?;
    for field in FIELDS {
        assert!(
            !report.pointer(field).unwrap_or(&Value::Null).is_null(),
            "{field}: {report:#}"
        );
    }
    assert_eq!(
        report["verification"]["pages_checked"],
        (256_u64 << 20) / 4096
    );
    Ok(())
}

#[test]
fn quiet_is_quiet_and_threads_serve_as_a_guest() -> Result<()> {
    let site = Site::new()?;
    let demo = [
        "demo",
        "--quiet",
        "--guest",
        "process",
        "--memory",
        "64MiB",
        "--workload",
        "hot=4MiB",
    ];
    let output = site.run(&demo)?.expect_code(0)?;
    assert_eq!((output.stdout.trim(), output.stderr.trim()), ("", ""));
    Ok(())
}

#[test]
fn ctrl_c_leaves_nothing_behind() -> Result<()> {
    let site = Site::new()?;
    let temporary = tempfile::tempdir()?;
    let mut command = site.command(&["demo", "--memory", "1GiB"]);
    command.env("TMPDIR", temporary.path());
    let demo = dunlin_tests::program::Running::start(command)?;
    let pid = demo.pid();
    eventually("its processes are there", || Ok(descendants(pid) >= 2))?;
    demo.signal(libc::SIGINT);
    let output = demo.wait()?;
    assert_eq!(output.code, 9, "{output:?}");
    assert_eq!(std::fs::read_dir(temporary.path())?.count(), 0);
    Ok(())
}

/// How many processes have `pid` as their parent.
fn descendants(pid: u32) -> usize {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    children.unwrap_or_default().split_whitespace().count()
}
