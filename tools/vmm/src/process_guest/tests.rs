//! Guests of threads, moved by hand: copied page by page as an engine would.

use std::sync::Mutex;

use dunlin_engine::dirty::DirtyBitmap;
use dunlin_engine::guest::PageClaim;
use dunlin_transports::memory::{PAGE_BYTES, PageNumber, Run};

use super::*;
use crate::spec::DirtyTracking;
use crate::workload::words::PageWords;

/// Where output goes that nobody reads.
fn nowhere() -> Box<dyn io::Write + Send> {
    Box::new(io::sink())
}

/// What a guest prints.
#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl Printed {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn spec(backing: Backing, vcpus: u32, workload: &str) -> GuestSpec {
    GuestSpec {
        name: "test".to_owned(),
        uuid: Uuid::from_u128(0x1234_5678),
        memory_bytes: 32 << 20,
        vcpus,
        backing,
        workload: workload.parse().unwrap(),
        tracking: DirtyTracking::Auto,
    }
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(30))
}

/// Waits until every vCPU wrote that many pages more.
fn wait_for_writes(guest: &ProcessGuest, pages: u64) {
    let before = guest.statistics();
    let deadline = soon();
    let wrote = || {
        let now = guest.statistics();
        let mut both = now.iter().zip(&before);
        both.all(|(now, before)| now.pages_written >= before.pages_written + pages)
    };
    while !wrote() {
        assert!(!deadline.passed(), "the guest does not write");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn claims(guest: &ProcessGuest) -> Vec<PageClaim> {
    let pages = u32::try_from(guest.memory().layout().page_span()).unwrap();
    guest.checks().claims(PageNumber(0), pages)
}

/// Checks all pages and demands that none is wrong; returns how many are the same.
fn check_clean(guest: &ProcessGuest, claims: &[PageClaim]) -> u64 {
    let outcome = guest.checks().check(PageNumber(0), claims, soon());
    assert_eq!(outcome.examples, vec![]);
    assert_eq!(outcome.different, 0);
    assert_eq!(outcome.checked, guest.memory().layout().pages());
    outcome.same
}

fn copy_pages(from: &ProcessGuest, to: &ProcessGuest, bitmap: &DirtyBitmap) {
    let mut bytes = [0; PAGE_BYTES as usize];
    for first in bitmap.pages() {
        let run = Run { first, pages: 1 };
        from.memory().lane_map().copy_out(run, &mut bytes).unwrap();
        to.memory().lane_map().copy_in(run, &bytes).unwrap();
    }
}

fn collect(guest: &ProcessGuest) -> DirtyBitmap {
    let mut bitmap = DirtyBitmap::new(guest.memory().layout().page_span());
    for source in guest.dirty_sources() {
        source.collect(&mut bitmap).unwrap();
    }
    bitmap
}

/// Moves a running guest: all pages, then rounds of what was written, then a pause and the rest.
fn migrate(source: &mut ProcessGuest, backing: Backing) -> (ProcessGuest, Vec<PageClaim>) {
    migrate_printing(source, backing, nowhere())
}

/// The same, with a place where the guest prints afterwards.
fn migrate_printing(
    source: &mut ProcessGuest,
    backing: Backing,
    serial: Box<dyn io::Write + Send>,
) -> (ProcessGuest, Vec<PageClaim>) {
    let mut destination =
        ProcessGuest::incoming(&source.offer().unwrap(), backing, serial).unwrap();
    assert!(!destination.running());
    for dirty in source.dirty_sources() {
        dirty.start().unwrap();
    }
    let mut all = DirtyBitmap::new(source.memory().layout().page_span());
    all.set_range(PageNumber(0), source.memory().layout().page_span());
    copy_pages(source, &destination, &all);
    for _ in 0..3 {
        wait_for_writes(source, 50);
        copy_pages(source, &destination, &collect(source));
    }
    let vcpus = source.statistics().len();
    assert_eq!(source.pause(soon()).unwrap().parked.len(), vcpus);
    copy_pages(source, &destination, &collect(source));
    let state = source.save_state().unwrap();
    copy_pages(source, &destination, &collect(source));
    let claims = claims(source);
    destination.load_state(&state).unwrap();
    (destination, claims)
}

#[test]
fn a_guest_writes_and_its_memory_stays_right() {
    for (backing, vcpus, workload) in [
        (Backing::Memfd, 1, "hot=2MiB,rate=max"),
        (Backing::Memfd, 2, "hot=8KiB,rate=max"),
        (
            Backing::Anonymous,
            2,
            "hot=2MiB,rate=20MiB/s,pattern=random",
        ),
    ] {
        let mut guest = ProcessGuest::start(&spec(backing, vcpus, workload), nowhere()).unwrap();
        assert!(guest.running());
        wait_for_writes(&guest, 100);
        guest.pause(soon()).unwrap();
        let claims = claims(&guest);
        assert_eq!(check_clean(&guest, &claims), claims.len() as u64);
        guest.resume().unwrap();
        wait_for_writes(&guest, 100);
        assert!(check_clean(&guest, &claims) < claims.len() as u64);
    }
}

#[test]
fn a_paused_guest_stands_still_and_goes_on() {
    let mut guest =
        ProcessGuest::start(&spec(Backing::Memfd, 2, "rate=max,hot=1MiB"), nowhere()).unwrap();
    // Resuming a guest that runs is allowed.
    guest.resume().unwrap();
    assert!(guest.save_state().is_err());
    wait_for_writes(&guest, 10);
    let parked = guest.pause(soon()).unwrap().parked;
    assert!(!guest.running());
    let still = guest.statistics();
    let claims = claims(&guest);
    assert!(claims.iter().all(|claim| claim.settled));
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(guest.statistics(), still);
    // A second pause finds it as it was.
    assert_eq!(guest.pause(soon()).unwrap().parked, parked);
    assert_eq!(check_clean(&guest, &claims), claims.len() as u64);
    guest.resume().unwrap();
    assert!(guest.guest_visible_pause(soon()).unwrap() >= Duration::from_millis(30));
    wait_for_writes(&guest, 10);
}

#[test]
fn pausing_reports_the_control_pages_it_wrote() {
    for backing in [Backing::Memfd, Backing::Anonymous] {
        let mut guest = ProcessGuest::start(&spec(backing, 2, "hot=0"), nowhere()).unwrap();
        for source in guest.dirty_sources() {
            source.start().unwrap();
        }
        guest.pause(soon()).unwrap();
        collect(&guest);
        // The threads are parked now: what is dirty from here on was written by the second pause.
        guest.pause(soon()).unwrap();
        let dirty: Vec<_> = collect(&guest).pages().collect();
        assert_eq!(dirty, vec![PageNumber(16), PageNumber(17)], "{backing:?}");
    }
}

#[test]
fn a_moved_guest_goes_on_counting() {
    for (from, to, vcpus, workload) in [
        (Backing::Memfd, Backing::Memfd, 1, "hot=1MiB,rate=max"),
        (
            Backing::Memfd,
            Backing::Anonymous,
            2,
            "hot=1MiB,rate=50MiB/s",
        ),
        (
            Backing::Anonymous,
            Backing::Memfd,
            2,
            "hot=1MiB,rate=max,pattern=random",
        ),
        (
            Backing::Anonymous,
            Backing::Anonymous,
            1,
            "hot=64KiB,rate=1MiB/s",
        ),
    ] {
        let mut source = ProcessGuest::start(&spec(from, vcpus, workload), nowhere()).unwrap();
        let (mut destination, claims) = migrate(&mut source, to);
        assert_eq!(check_clean(&destination, &claims), claims.len() as u64);
        let before = source.statistics();
        assert_eq!(destination.statistics(), before);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(destination.run(7).unwrap().running.len(), vcpus as usize);
        assert_eq!(destination.identity().epoch, 7);
        let pause = destination.guest_visible_pause(soon()).unwrap();
        assert!(pause >= Duration::from_millis(20), "{pause:?}");
        wait_for_writes(&destination, 20);
        check_clean(&destination, &claims);
        for (after, before) in destination.statistics().iter().zip(&before) {
            assert!(after.loops > before.loops);
            assert!(after.pages_written >= before.pages_written + 20);
        }
        // The source stayed as it was, and could still go on.
        assert_eq!(source.statistics(), before);
        // A guest that was received can be sent on.
        let (again, claims) = migrate(&mut destination, from);
        assert_eq!(check_clean(&again, &claims), claims.len() as u64);
    }
}

#[test]
fn a_guest_on_huge_pages_moves() {
    match ProcessGuest::start(&spec(Backing::Hugetlb, 2, "hot=4MiB,rate=max"), nowhere()) {
        Err(ProcessGuestError::Allocate(error)) => println!("skipped: {error}"),
        Err(error) => panic!("{error}"),
        Ok(mut source) => {
            let (mut destination, claims) = migrate(&mut source, Backing::Memfd);
            assert_eq!(check_clean(&destination, &claims), claims.len() as u64);
            destination.run(2).unwrap();
            wait_for_writes(&destination, 20);
            check_clean(&destination, &claims);
        }
    }
}

#[test]
fn ticks_of_another_hosts_clock_are_shifted() {
    let mut source = ProcessGuest::start(&spec(Backing::Memfd, 1, "hot=1MiB"), nowhere()).unwrap();
    let (mut destination, _) = migrate(&mut source, Backing::Memfd);
    // The same state from a host that is up for ten hours more.
    let ten_hours = 36_000_000_000_000_u64;
    let control = |guest: &ProcessGuest, word| guest.control_pages().next().unwrap().load(word);
    for word in [Word::LastTick, Word::NextWriteTick, Word::NextBeatTick] {
        let control = destination.control_pages().next().unwrap();
        control.store(word, control.load(word) + ten_hours);
    }
    let mut section = ClockState::now().to_section();
    let clock = section.require_u64(1).unwrap();
    section
        .put_u64(1, clock + ten_hours)
        .put(2, b"elsewhere".as_slice());
    let mut state = DeviceState::new();
    state.push(section);
    destination.load_state(&state).unwrap();
    let (moved, here) = (
        control(&destination, Word::LastTick),
        control(&source, Word::LastTick),
    );
    // Apart by the time from saving to loading alone.
    assert!(moved.abs_diff(here) < ten_hours / 100, "{moved} {here}");
    destination.run(2).unwrap();
    let pause = destination.guest_visible_pause(soon()).unwrap();
    assert!(pause < Duration::from_secs(360), "{pause:?}");
    wait_for_writes(&destination, 5);
}

#[test]
fn what_does_not_fit_is_refused() {
    let good = spec(Backing::Memfd, 1, "hot=1MiB");
    let refused = |spec: &GuestSpec| {
        ProcessGuest::start(spec, nowhere())
            .err()
            .map(|e| e.to_string())
    };
    for (bad, message) in [
        (
            GuestSpec {
                name: "../x".to_owned(),
                ..good.clone()
            },
            "'../x' is not a guest's name",
        ),
        (
            GuestSpec {
                vcpus: 0,
                ..good.clone()
            },
            "0 vCPUs",
        ),
        (
            GuestSpec {
                memory_bytes: 4 << 20,
                ..good.clone()
            },
            "at least that",
        ),
        (
            spec(Backing::Memfd, 1, "hot=1GiB"),
            "give the guest 1032MiB of memory",
        ),
    ] {
        let error = refused(&bad).unwrap();
        assert!(error.contains(message), "{error}");
    }

    let mut source = ProcessGuest::start(&good, nowhere()).unwrap();
    let offer = source.offer().unwrap();
    let incoming = |offer: &GuestOffer| ProcessGuest::incoming(offer, Backing::Memfd, nowhere());
    let mut bad = offer.clone();
    bad.kind = "kvm".to_owned();
    assert!(incoming(&bad).is_err());
    bad = offer.clone();
    bad.configuration
        .push(dunlin_engine::state::Section::new("floppy", 1));
    assert!(incoming(&bad).err().unwrap().to_string().contains("floppy"));
    bad = offer.clone();
    bad.configuration = DeviceState::new();
    assert!(incoming(&bad).is_err());

    source.pause(soon()).unwrap();
    let state = source.save_state().unwrap();
    // Memory that was never sent has no control page.
    let error = incoming(&offer).unwrap().load_state(&state).unwrap_err();
    assert!(
        error.to_string().contains("control page of vCPU 0"),
        "{error}"
    );
    source.resume().unwrap();
    let (mut destination, _) = migrate(&mut source, Backing::Memfd);
    let words = PageWords::new(destination.memory.lane_map(), PageNumber(16)).unwrap();
    words.store(Word::HotPages as usize, 1 << 40);
    assert!(destination.load_state(&state).is_err());
}

#[test]
fn a_guest_that_can_t_be_run_says_whether_a_thread_ran() {
    let source =
        ProcessGuest::start(&spec(Backing::Memfd, 2, "rate=max,hot=1MiB"), nowhere()).unwrap();
    let offer = source.offer().unwrap();
    let mut guest = ProcessGuest::incoming(&offer, Backing::Memfd, nowhere()).unwrap();
    guest.writers.end_for_test();
    let error = guest.run(2).unwrap_err();
    assert!(matches!(error, RunError::NeverEntered(_)), "{error}");
    assert_eq!(guest.identity().epoch, 1);

    let mut guest = ProcessGuest::incoming(&offer, Backing::Memfd, nowhere()).unwrap();
    guest.let_run().unwrap();
    guest.writers.end_for_test();
    let error = guest.run(2).unwrap_err();
    assert!(matches!(error, RunError::MayHaveRun(_)), "{error}");
}

#[test]
fn a_pause_that_can_not_wait_is_an_error_and_the_guest_goes_on() {
    let mut guest =
        ProcessGuest::start(&spec(Backing::Memfd, 2, "rate=max,hot=1MiB"), nowhere()).unwrap();
    // With no time at all it nearly always fails; where it does not, the threads were that quick.
    if let Err(error) = guest.pause(Deadline::after(Duration::ZERO)) {
        assert!(
            error.to_string().contains("did not park in time"),
            "{error}"
        );
    }
    guest.resume().unwrap();
    wait_for_writes(&guest, 10);
}

#[test]
fn a_guest_that_moves_prints_each_beat_once() {
    let outputs = [Printed::default(), Printed::default()];
    let printed = |output: &Printed, lines: usize| {
        let end = soon();
        while output.text().lines().count() < lines {
            assert!(!end.passed(), "the guest does not print");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let [here, there] = outputs.clone().map(Box::new);
    let workload = "hot=1MiB,rate=max,beat=2ms";
    let mut source = ProcessGuest::start(&spec(Backing::Memfd, 2, workload), here).unwrap();
    printed(&outputs[0], 10);
    let (mut destination, _) = migrate_printing(&mut source, Backing::Memfd, there);
    destination.run(2).unwrap();
    printed(&outputs[1], 10);
    destination.pause(soon()).unwrap();
    drop(source);
    drop(destination);
    let all = outputs[0].text() + &outputs[1].text();
    for (number, line) in (1_u64..).zip(all.lines()) {
        let beat = format!("vcpu 0 beat {number:08x} loops ");
        assert!(line.starts_with(&beat), "{line} instead of {beat}");
    }
}
