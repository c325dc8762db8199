//! No RDMA on the way: what demands it fails with one line, what leaves the choice goes over TCP and
//! says why. (That guests do move over RDMA is seen in the SoftRoCE machine, docs/softroce.md.)
//!
//! The loopback address belongs to no RDMA device, so most of this holds on hosts that have one too;
//! there it is the destination that says so.

use anyhow::{Context, Result};
use dunlin_tests::host::has_kvm;
use dunlin_tests::site::{Site, expect_moved};
use serde_json::Value;

const RUN: [&str; 6] = [
    "--memory",
    "64MiB",
    "--workload",
    "hot=4MiB,rate=10MiB/s",
    "--guest",
    "process",
];

/// What doctor says of RDMA, and whether there is any.
fn rdma_of(site: &Site) -> Result<(bool, Value)> {
    let doctor = site.run(&["doctor", "--json"])?.expect_code(0)?.json()?;
    let checks = doctor["checks"].as_array().cloned().unwrap_or_default();
    let rdma = checks.into_iter().find(|check| check["name"] == "rdma");
    let rdma = rdma.context("doctor says nothing of RDMA")?;
    Ok((rdma["state"] == "ok", rdma))
}

/// The endpoint with another scheme.
fn by(scheme: &str, endpoint: &str) -> Result<String> {
    let (_, rest) = endpoint.split_once("://").context("no scheme")?;
    Ok(format!("{scheme}://{rest}"))
}

#[test]
fn a_demand_fails_with_one_line_and_the_guest_goes_on() -> Result<()> {
    let (here, there) = (Site::new()?, Site::new()?);
    let _guest = here.guest("vm1", &RUN)?;
    let receiver = there.receiver(&[])?;
    let to = by("rdma", &receiver.endpoint)?;
    let (code, outcome) = match rdma_of(&here)?.0 {
        true => (4, "refused"),
        false => (12, "failed"),
    };
    let output = here
        .run(&["send", "vm1", "--to", &to, "--quiet"])?
        .expect_code(code)?;
    assert_eq!(output.stderr.trim().lines().count(), 1, "{}", output.stderr);
    let said = output.stderr.to_lowercase();
    assert!(said.contains("rdma"), "{said}");
    let report = here.send("vm1", &to, &[], code)?;
    assert_eq!(report["outcome"], outcome);
    here.expect_goes_on("vm1")?;
    // The same receiver takes it over TCP.
    expect_moved(&here.send("vm1", &receiver.endpoint, &[], 0)?)
}

#[test]
fn a_choice_falls_on_tcp_and_is_explained() -> Result<()> {
    let (here, there) = (Site::new()?, Site::new()?);
    let _guest = here.guest("vm1", &RUN)?;
    let receiver = there.receiver(&["--once"])?;
    let to = by("auto", &receiver.endpoint)?;
    let file = here.directory().join("report.json");
    let path = file.to_string_lossy().into_owned();
    let output = here
        .run(&["send", "vm1", "--to", &to, "--report", &path])?
        .expect_code(0)?;
    let note = "auto: using tcp, as ";
    let told = output.stderr.lines().find(|line| line.contains(note));
    let (_, why) = told
        .and_then(|line| line.split_once(note))
        .with_context(|| format!("'{note}' is not in {}", output.stderr))?;
    assert!(!why.trim().is_empty(), "{}", output.stderr);
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
    expect_moved(&report)?;
    assert_eq!(report["transport"], "tcp");
    Ok(())
}

#[test]
fn the_demo_says_why_it_goes_over_tcp() -> Result<()> {
    let site = Site::new()?;
    let (is_there, rdma) = rdma_of(&site)?;
    if is_there {
        println!(
            "skipped: this host has RDMA ({}), so the demo uses it",
            rdma["found"]
        );
        return Ok(());
    }
    assert!(
        rdma["meaning"]
            .as_str()
            .is_some_and(|words| words.contains("TCP"))
    );
    let demo = [
        "demo",
        "--memory",
        "64MiB",
        "--workload",
        "hot=4MiB",
        "--guest",
        "process",
    ];
    let output = site.run(&demo)?.expect_code(0)?;
    assert!(
        output
            .stderr
            .contains("auto: using tcp, as there is no rdma: "),
        "{}",
        output.stderr
    );
    let demanded = [&demo[..], &["--transport", "rdma"]].concat();
    let output = site.run(&demanded)?.expect_code(12)?;
    assert_eq!(output.stdout, "", "a story that can't be told is not begun");
    assert_eq!(output.stderr.trim().lines().count(), 1, "{}", output.stderr);
    // And a receiver of which RDMA is demanded does not begin to wait.
    let receive = ["receive", "--listen", "rdma://127.0.0.1:0"];
    let output = site.run(&receive)?.expect_code(12)?;
    assert!(output.stderr.contains("RDMA"), "{}", output.stderr);
    Ok(())
}

/// A site that finds no RDMA library, whatever the host has: the loader takes these files first, and
/// they are none.
fn site_without_libraries() -> Result<(Site, tempfile::TempDir)> {
    let libraries = tempfile::tempdir()?;
    for library in ["libibverbs.so.1", "librdmacm.so.1"] {
        std::fs::write(libraries.path().join(library), "")?;
    }
    let mut site = Site::new()?;
    site.set_environment("LD_LIBRARY_PATH", libraries.path().to_str());
    Ok((site, libraries))
}

#[test]
fn without_the_library_all_goes_over_tcp() -> Result<()> {
    let (site, _libraries) = site_without_libraries()?;
    // The kernel of the SoftRoCE machine can't track a process's memory.
    let kind = if has_kvm() { "kvm" } else { "process" };
    let workload = "hot=4MiB,rate=1MiB/s";
    let guest = ["--memory", "64MiB", "--workload", workload, "--guest", kind];
    let (rdma_is_there, rdma) = rdma_of(&site)?;
    assert!(!rdma_is_there, "{rdma}");
    let lacks = "there is no libibverbs.so.1";
    assert!(
        rdma["meaning"]
            .as_str()
            .is_some_and(|words| words.contains(lacks)),
        "{rdma}"
    );

    let file = site.directory().join("report.json");
    let path = file.to_string_lossy().into_owned();
    let demo = [
        &["demo", "--json", &path, "--max-blackout", "5s"],
        &guest[..],
    ]
    .concat();
    let output = site.run(&demo)?.expect_code(0)?;
    let note = "auto: using tcp, as there is no rdma: there is no libibverbs.so.1";
    assert!(output.stderr.contains(note), "{}", output.stderr);
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
    expect_moved(&report)?;
    assert_eq!(report["transport"], "tcp");

    let (there, _also) = site_without_libraries()?;
    let _guest = site.guest("vm1", &guest)?;
    let receiver = there.receiver(&[])?;
    let to = by("rdma", &receiver.endpoint)?;
    let output = site
        .run(&["send", "vm1", "--to", &to, "--quiet"])?
        .expect_code(12)?;
    assert_eq!(output.stderr.trim().lines().count(), 1, "{}", output.stderr);
    assert!(output.stderr.contains(lacks), "{}", output.stderr);
    assert!(output.stderr.contains("libibverbs1"), "{}", output.stderr);
    site.expect_goes_on("vm1")?;
    let listen = there.run(&["receive", "--listen", "rdma://127.0.0.1:0"])?;
    let output = listen.expect_code(12)?;
    assert!(output.stderr.contains(lacks), "{}", output.stderr);
    Ok(())
}
