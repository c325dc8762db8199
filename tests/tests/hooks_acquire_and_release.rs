//! What a guest holds outside of its host changes hands with it: the destination's acquire hook
//! runs before the guest does, and has a say; the release hook runs once on the side that lets go.

use std::path::{Path, PathBuf};

use anyhow::Result;
use dunlin_tests::program::{eventually, is_stopped, signal_process};
use dunlin_tests::site::{Site, expect_moved};

const RUN: [&str; 6] = [
    "--memory",
    "24MiB",
    "--workload",
    "hot=2MiB,rate=20MiB/s",
    "--guest",
    "process",
];

/// A side whose hooks write down what they are told.
struct Side {
    site: Site,
    told: PathBuf,
}

impl Side {
    fn new() -> Result<Self> {
        let site = Site::new()?;
        let told = site.directory().join("hooks.told");
        Ok(Self { site, told })
    }

    fn hook(&self, then: &str) -> String {
        format!(
            "echo $DUNLIN_HOOK $DUNLIN_ROLE $DUNLIN_EPOCH $DUNLIN_REASON >> {}; {then}",
            self.told.display()
        )
    }

    fn told(&self) -> Vec<String> {
        told(&self.told)
    }
}

fn told(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| line.trim().to_owned()).collect()
}

fn guest(side: &Side) -> Result<dunlin_tests::program::Running> {
    let release = side.hook("true");
    let mut arguments = RUN.to_vec();
    arguments.extend(["--hook-release", &release]);
    side.site.guest("vm1", &arguments)
}

#[test]
fn a_guest_that_moves_and_ends_is_acquired_once_and_released_once_by_each_side() -> Result<()> {
    let (here, there) = (Side::new()?, Side::new()?);
    let mut guest = guest(&here)?;
    let hook = there.hook("true");
    let receiver = there
        .site
        .receiver(&["--hook-acquire", &hook, "--hook-release", &hook])?;
    let report = here.site.send("vm1", &receiver.endpoint, &[], 0)?;
    expect_moved(&report)?;
    let parts = report["blackout"]["parts"].as_array().cloned();
    let acquire = parts
        .unwrap_or_default()
        .into_iter()
        .find(|part| part["name"] == "acquire");
    // A shell takes its time, and the receipt says so.
    let took = acquire.and_then(|part| part["duration_ns"].as_u64());
    assert!(took.is_some_and(|took| took > 100_000), "{report:#}");
    eventually("the source's process ends", || Ok(guest.ended().is_some()))?;
    assert_eq!(here.told(), ["release source 1 moved-away"]);
    there.site.expect_goes_on("vm1")?;
    assert_eq!(there.told(), ["acquire destination 2"]);
    there.site.run(&["stop", "vm1"])?.expect_code(0)?;
    assert_eq!(
        there.told(),
        ["acquire destination 2", "release destination 2 ended"]
    );
    Ok(())
}

#[test]
fn an_acquire_hook_that_fails_or_hangs_leaves_the_guest_where_it_was() -> Result<()> {
    for (then, words) in [("exit 3", "exit status: 3"), ("sleep 60", "was ended")] {
        let (here, there) = (Side::new()?, Side::new()?);
        let _guest = guest(&here)?;
        let (acquire, release) = (there.hook(then), there.hook("true"));
        let mut receiver = there.site.receiver(&[
            "--hook-acquire",
            &acquire,
            "--hook-release",
            &release,
            "--hook-timeout",
            "200ms",
        ])?;
        let report = here.site.send("vm1", &receiver.endpoint, &[], 5)?;
        let reason = report["reason"].as_str().unwrap_or_default();
        assert!(reason.contains(words), "{report:#}");
        here.site.expect_goes_on("vm1")?;
        receiver.process.event("failed")?;
        assert_eq!(
            there.told(),
            ["acquire destination 2", "release destination 2 not-come"]
        );
        assert!(here.told().is_empty(), "the source let go of nothing");
    }
    Ok(())
}

/// The process can't release any more; whoever made it does.
#[test]
fn a_destination_that_is_killed_before_commit_is_released_by_its_supervisor() -> Result<()> {
    let (here, mut there) = (Side::new()?, Side::new()?);
    let _guest = guest(&here)?;
    there
        .site
        .set_environment("DUNLIN_STOP_AT", Some("acquired"));
    let hook = there.hook("true");
    let mut receiver = there
        .site
        .receiver(&["--hook-acquire", &hook, "--hook-release", &hook])?;
    let to = receiver.endpoint.clone();
    let send = here.site.start(&[
        "send",
        "vm1",
        "--to",
        &to,
        "--json",
        "--quiet",
        "--blackout-cap",
        "300ms",
    ])?;
    let pid = receiver.process.event("incoming")?["pid"].as_u64();
    let pid = u32::try_from(pid.unwrap_or_default())?;
    eventually("it stands at 'acquired'", || Ok(is_stopped(pid)))?;
    signal_process(pid, libc::SIGKILL);
    receiver.process.event("failed")?;
    let report = send.wait()?.json()?;
    assert_ne!(report["outcome"], "moved");
    here.site.expect_goes_on("vm1")?;
    // Once the killed process's hook can't be at work any more.
    let told = ["acquire destination 2", "release destination 2 not-come"];
    eventually("it is released", || Ok(there.told() == told))?;
    Ok(())
}
