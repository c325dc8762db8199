//! Dirty tracking of a guest that writes as fast as it can: no write is lost (law 1).

use std::process::{Child, Command, Stdio};

use dunlin_engine::dirty::{DirtyBitmap, DirtySource};
use dunlin_engine::guest::Guest;
use dunlin_engine::kvm::capabilities;
use dunlin_transports::memory::PageNumber;
use vmm_sys_util::signal::Killable;

use super::*;
use crate::kvm_guest::kick;

/// Words of the bitmap that are re-armed at once: 1 MiB of pages, so that there are many calls.
const GRANULE_WORDS: usize = 4;

fn collect(sources: &[Arc<dyn DirtySource>], into: &mut DirtyBitmap) {
    into.clear();
    sources
        .iter()
        .for_each(|source| source.collect(into).unwrap());
}

/// Re-arms what was collected and copies it, as a round of pre-copy does.
fn rearm_and_copy(
    guest: &KvmGuest,
    sources: &[Arc<dyn DirtySource>],
    dirty: &DirtyBitmap,
    copy: &mut [u8],
) {
    for (granule, words) in dirty.words().chunks(GRANULE_WORDS).enumerate() {
        let first = PageNumber((granule * GRANULE_WORDS * 64) as u64);
        for source in sources {
            source.rearm(first, words).unwrap();
        }
    }
    for page in dirty.pages() {
        let start = (page.0 * PAGE_BYTES) as usize;
        let run = Run {
            first: page,
            pages: 1,
        };
        Guest::memory(guest)
            .lane_map()
            .copy_out(run, &mut copy[start..start + PAGE_BYTES as usize])
            .unwrap();
    }
}

/// Moves a guest's memory in rounds, pauses it, and compares; several times over.
fn no_write_is_lost(mut guest: KvmGuest, rest: Duration) {
    let sources = guest.dirty_sources();
    let mut dirty = DirtyBitmap::new(Guest::memory(&guest).layout().page_span());
    let (mut reported, mut paused) = (0, 0);
    for source in &sources {
        source.start().unwrap();
    }
    // The first round takes every page, re-armed before it is copied.
    let mut copy = vec![0; (dirty.words().len() * 64 * PAGE_BYTES as usize).next_power_of_two()];
    dirty.set_range(PageNumber(0), Guest::memory(&guest).layout().pages());
    rearm_and_copy(&guest, &sources, &dirty, &mut copy);
    while paused < 8 {
        for _ in 0..12 {
            let before = pages_written(&guest);
            wait_for("writing", &guest, |guest| {
                pages_written(guest) > before + 20
            });
            std::thread::sleep(rest);
            collect(&sources, &mut dirty);
            reported += dirty.count();
            rearm_and_copy(&guest, &sources, &dirty, &mut copy);
        }
        guest.pause(deadline()).unwrap();
        collect(&sources, &mut dirty);
        rearm_and_copy(&guest, &sources, &dirty, &mut copy);
        // Saving may dirty memory: collected again.
        guest.save_state().unwrap();
        collect(&sources, &mut dirty);
        rearm_and_copy(&guest, &sources, &dirty, &mut copy);
        let now = copy_of_memory(&guest);
        for (page, (now, copied)) in now
            .chunks(PAGE_BYTES as usize)
            .zip(copy.chunks(PAGE_BYTES as usize))
            .enumerate()
        {
            assert!(
                now == copied,
                "pause {paused}: a write to page {page} was lost"
            );
        }
        paused += 1;
        guest.resume().unwrap();
    }
    assert!(reported > 1000, "only {reported} pages were reported");
    for source in &sources {
        source.stop().unwrap();
    }
    assert_eq!(guest.crashed(), None);
}

#[test]
fn the_bitmap_loses_no_write() {
    if !have_kvm() {
        return;
    }
    for vcpus in [1, 2] {
        let spec = spec(vcpus, 4 << 20, Pattern::Random, DirtyTracking::Bitmap);
        no_write_is_lost(start(&spec, &Options::default()), Duration::ZERO);
    }
}

#[test]
fn the_ring_loses_no_write() {
    if !have_kvm() {
        return;
    }
    if capabilities().unwrap().ring_bytes_max == 0 {
        println!("skipped: this host's KVM has no dirty ring");
        return;
    }
    for vcpus in [1, 2] {
        let spec = spec(vcpus, 4 << 20, Pattern::Random, DirtyTracking::Ring);
        no_write_is_lost(start(&spec, &Options::default()), Duration::ZERO);
    }
}

#[test]
fn a_full_ring_stops_no_vcpu_and_loses_no_write() {
    if !have_kvm() {
        return;
    }
    if capabilities().unwrap().ring_bytes_max == 0 {
        println!("skipped: this host's KVM has no dirty ring");
        return;
    }
    let spec = spec(2, 8 << 20, Pattern::Sequential, DirtyTracking::Ring);
    // 256 entries where that is allowed; processors with PML need 1024 (see `KvmRing::enable`).
    let ring_bytes = [4096, 16384].into_iter().find(|ring_bytes| {
        let options = Options {
            ring_bytes: *ring_bytes,
            ..Options::default()
        };
        KvmGuest::start_with(&spec, Box::new(io::sink()), &options).is_ok()
    });
    let options = Options {
        ring_bytes: ring_bytes.unwrap(),
        ..Options::default()
    };
    // Long enough for each vCPU to write more pages than its ring has entries, several times.
    no_write_is_lost(start(&spec, &options), Duration::from_millis(30));

    let guest = start(&spec, &options);
    let sources = guest.dirty_sources();
    sources.iter().for_each(|source| source.start().unwrap());
    let before = pages_written(&guest);
    wait_for("going on past a full ring", &guest, |guest| {
        pages_written(guest) > before + 10_000
    });
    let mut dirty = DirtyBitmap::new(Guest::memory(&guest).layout().page_span());
    collect(&sources, &mut dirty);
    // Each hot page was written several times, and none was collected in between.
    assert!(dirty.count() >= 2048, "{} pages", dirty.count());
}

/// A guest whose rings have much to reset at each collection.
fn guest_with_a_large_ring(vcpus: u32) -> KvmGuest {
    let spec = spec(vcpus, 8 << 20, Pattern::Sequential, DirtyTracking::Ring);
    let options = Options {
        ring_bytes: 65536,
        ..Options::default()
    };
    start(&spec, &options)
}

#[test]
fn the_ring_loses_no_write_when_signals_come_in() {
    if !have_kvm() {
        return;
    }
    if capabilities().unwrap().ring_bytes_max == 0 {
        println!("skipped: this host's KVM has no dirty ring");
        return;
    }
    kick::install_signal_handler().unwrap();
    // One vCPU, so that there is a processor for who sends the signals.
    let guest = guest_with_a_large_ring(1);
    let collector = std::thread::spawn(|| no_write_is_lost(guest, Duration::from_millis(5)));
    while !collector.is_finished() {
        collector.kill(kick::signal()).unwrap();
        std::thread::sleep(Duration::from_micros(20));
    }
    collector.join().unwrap();
}

/// A shell that stops this process and lets it go on, again and again.
struct Stops {
    shell: Child,
    until_removed: tempfile::NamedTempFile,
}

impl Stops {
    fn of_this_process() -> Self {
        // The shell ends itself, behind letting this process go on.
        let script = "while test -e $1; do \
            kill -STOP $0; sleep 0.001; kill -CONT $0; sleep 0.002; done";
        let until_removed = tempfile::NamedTempFile::new().unwrap();
        let shell = Command::new("sh")
            .args(["-c", script, &std::process::id().to_string()])
            .arg(until_removed.path())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            shell,
            until_removed,
        }
    }
}

impl Drop for Stops {
    fn drop(&mut self) {
        std::fs::remove_file(self.until_removed.path()).unwrap();
        self.shell.wait().unwrap();
    }
}

#[test]
fn the_ring_loses_no_write_when_the_process_is_stopped() {
    if !have_kvm() {
        return;
    }
    if capabilities().unwrap().ring_bytes_max == 0 {
        println!("skipped: this host's KVM has no dirty ring");
        return;
    }
    let guest = guest_with_a_large_ring(2);
    let _stops = Stops::of_this_process();
    no_write_is_lost(guest, Duration::from_millis(5));
}
