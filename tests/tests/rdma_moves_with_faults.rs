//! Moves over RDMA whose processes are killed, one at each of the phases that differ: never two
//! owners, none lost, and nothing stays pinned or registered. `make softroce-chaos` makes any number
//! of them (docs/chaos.md).

use std::sync::atomic::AtomicBool;

use dunlin_tests::chaos::arena::{Fabric, GuestKind};
use dunlin_tests::chaos::campaign::Campaign;
use dunlin_tests::chaos::tally::Tally;
use dunlin_tests::host::has_kvm;
use dunlin_tests::rdma::Ends;

/// Who is killed, and when: in the middle of copying, inside the pause while memory is still open to
/// the peer, and around the moment in which the guest changes its owner.
const KILLED: [&str; 16] = [
    "kill-send/round",
    "kill-run/opened",
    "kill-run/round",
    "kill-run/paused",
    "kill-run/committed",
    "kill-run/in-doubt",
    "kill-incoming/welcomed",
    "kill-incoming/round",
    "kill-incoming/paused",
    "kill-incoming/loaded",
    "kill-incoming/ready-sent",
    "kill-incoming/owned",
    "kill-incoming/running",
    "kill-receive/round",
    "kill-receive/ready-sent",
    "kill-receive/commit",
];

#[test]
fn each_process_is_killed_in_the_phases_that_differ() -> anyhow::Result<()> {
    let Some(ends) = Ends::here() else {
        return Ok(());
    };
    if !has_kvm() {
        return Ok(());
    }
    let wanted: anyhow::Result<Vec<_>> = KILLED.iter().map(|fault| fault.parse()).collect();
    let campaign = Campaign {
        runs: KILLED.len(),
        seed: 2026,
        // Two at a time take longer in an emulated machine than one after the other.
        jobs: 1,
        fabric: Fabric::Rdma(ends),
        guests: vec![GuestKind::Kvm],
        wanted: wanted?,
        has_links: false,
    };
    let outcomes = campaign.run(&AtomicBool::new(false), |outcome| {
        println!(
            "{}: {} ({} s)",
            outcome.order.fault,
            outcome.ending.name(),
            outcome.took.as_secs()
        );
        if !outcome.has_passed() {
            println!("{}\n{:#?}", outcome.complaints.join("\n"), outcome.story);
        }
    });
    let tally = Tally::new(&outcomes);
    println!("{}", tally.closing_line());
    assert_eq!((tally.passed(), tally.failed()), (KILLED.len(), 0));
    Ok(())
}
