//! Twenty moves with faults of all sorts, as `make chaos` makes by the hundred: never two owners,
//! none lost, everything settled or held with the reason, nothing left over.

use std::sync::atomic::AtomicBool;

use dunlin_tests::chaos::arena::{Fabric, GuestKind};
use dunlin_tests::chaos::campaign::Campaign;
use dunlin_tests::chaos::tally::Tally;
use dunlin_tests::host::{has_kvm, has_namespaces};

#[test]
fn twenty_of_them() {
    let mut guests = vec![GuestKind::Process];
    guests.extend(has_kvm().then_some(GuestKind::Kvm));
    let campaign = Campaign {
        runs: 20,
        // A scenario is the same each time; `make chaos` has others.
        seed: 2026,
        jobs: 2,
        fabric: Fabric::Tcp,
        guests,
        wanted: Vec::new(),
        has_links: has_namespaces(),
    };
    let outcomes = campaign.run(&AtomicBool::new(false), |outcome| {
        let order = outcome.order;
        println!(
            "{} ({} guest): {}",
            order.fault,
            order.guest.name(),
            outcome.ending.name()
        );
        if !outcome.has_passed() {
            println!("{}\n{:#?}", outcome.complaints.join("\n"), outcome.story);
        }
    });
    let tally = Tally::new(&outcomes);
    println!("{}", tally.closing_line());
    assert_eq!((tally.passed(), tally.failed()), (20, 0));
}
