//! Twenty moves in a row, back and forth between two receivers: nothing is left behind.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result};
use dunlin_tests::program::{eventually, is_alive};
use dunlin_tests::site::{Receiver, Site, expect_moved};

/// What a process holds.
#[derive(Debug)]
struct Holdings {
    threads: usize,
    files: usize,
    resident_kib: u64,
}

fn holdings(pid: u32) -> Result<Holdings> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = resident.context("no VmRSS")?.trim().trim_end_matches(" kB");
    Ok(Holdings {
        threads: fs::read_dir(format!("/proc/{pid}/task"))?.count(),
        files: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
        resident_kib: resident.parse()?,
    })
}

/// The processes whose parent is `pid`, zombies included.
fn children(pid: u32) -> Result<BTreeSet<u32>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name();
        let Some(child) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1));
        if parent == Some(&pid.to_string()) {
            found.insert(child);
        }
    }
    Ok(found)
}

fn guest_pid(site: &Site) -> Result<u32> {
    let pid = site.status("vm1")?["pid"].as_u64().context("no pid")?;
    Ok(u32::try_from(pid)?)
}

#[test]
fn back_and_forth() -> Result<()> {
    let sites = [Site::new()?, Site::new()?];
    let run = [
        "--memory",
        "128MiB",
        "--vcpus",
        "2",
        "--workload",
        "hot=8MiB,rate=20MiB/s",
    ];
    let guest = sites[0].guest("vm1", &run)?;
    let receivers = [sites[0].receiver(&[])?, sites[1].receiver(&[])?];
    let pid_of = |receiver: &Receiver| receiver.process.pid();

    let mut left = vec![guest.pid()];
    let mut first_guest = None;
    let mut supervisors = Vec::new();
    for number in 0..20 {
        let (from, to) = (number % 2, (number + 1) % 2);
        let report = sites[from].send("vm1", &receivers[to].endpoint, &[], 0)?;
        expect_moved(&report).with_context(|| format!("move {number}"))?;
        assert_eq!(report["guest"]["epoch"].as_u64(), Some(number as u64 + 2));
        sites[to].expect_goes_on("vm1")?;
        let pid = guest_pid(&sites[to])?;
        left.push(pid);
        // After the first two moves each side has done everything once.
        if number == 1 {
            first_guest = Some(holdings(pid)?);
            for receiver in &receivers {
                supervisors.push(holdings(pid_of(receiver))?);
            }
        }
    }

    let here = left.pop().context("no guest")?;
    eventually("the processes that a guest left end", || {
        Ok(left.iter().all(|pid| !is_alive(*pid)))
    })?;
    eventually("receivers keep no ended child", || {
        let others: BTreeSet<u32> = [
            children(pid_of(&receivers[0]))?,
            children(pid_of(&receivers[1]))?,
        ]
        .into_iter()
        .flatten()
        .filter(|pid| *pid != here)
        .collect();
        Ok(others.is_empty())
    })?;
    let now = holdings(here)?;
    let then = first_guest.context("no holdings")?;
    assert!(
        now.threads <= then.threads && now.files <= then.files,
        "{then:?}, then {now:?}"
    );
    for (receiver, then) in receivers.iter().zip(supervisors) {
        let now = holdings(pid_of(receiver))?;
        assert!(
            now.threads <= then.threads && now.files <= then.files,
            "{then:?}, then {now:?}"
        );
        // The allocator keeps what it had; a leak for each of 18 moves would show.
        assert!(
            now.resident_kib <= then.resident_kib + 4096,
            "{then:?}, then {now:?}"
        );
    }
    Ok(())
}
