//! Guests that really run. Where there is no KVM, each test says so and passes.

mod dirty;
mod moving;
mod running;

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dunlin_engine::guest::Guest;
use dunlin_engine::layout::Backing;
use dunlin_transports::deadline::Deadline;
use dunlin_transports::memory::{PAGE_BYTES, Run};
use uuid::Uuid;

use super::{KvmGuest, Options};
use crate::spec::{DirtyTracking, GuestSpec};
use crate::workload::BeatInterval;
use crate::workload::{Pattern, Workload};

/// How long anything here may take, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

const MEMORY_BYTES: u64 = 32 << 20;

/// Whether there is KVM; says so if not.
fn have_kvm() -> bool {
    match kvm_ioctls::Kvm::new() {
        Ok(_) => true,
        Err(error) => {
            println!("skipped: no KVM here: {error}");
            false
        }
    }
}

fn spec(vcpus: u32, hot_bytes: u64, pattern: Pattern, tracking: DirtyTracking) -> GuestSpec {
    GuestSpec {
        name: "test".to_owned(),
        uuid: Uuid::from_u128(7),
        memory_bytes: MEMORY_BYTES,
        vcpus,
        backing: Backing::Memfd,
        workload: Workload {
            pattern,
            hot_bytes,
            rate: None,
            zero_percent: 50,
            block_pages: 16,
            unused_percent: 0,
            beat: BeatInterval::default(),
        },
        tracking,
    }
}

/// Starts a guest whose output nobody reads.
fn start(spec: &GuestSpec, options: &Options) -> KvmGuest {
    KvmGuest::start_with(spec, Box::new(io::sink()), options).unwrap()
}

fn deadline() -> Deadline {
    Deadline::after(PATIENCE)
}

/// Waits for something to come true.
fn wait_for(what: &str, guest: &KvmGuest, reached: impl Fn(&KvmGuest) -> bool) {
    let since = Instant::now();
    while !reached(guest) {
        assert_eq!(guest.crashed(), None, "while waiting for {what}");
        assert!(since.elapsed() < PATIENCE, "{what} did not come");
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn pages_written(guest: &KvmGuest) -> u64 {
    guest
        .statistics()
        .iter()
        .map(|vcpu| vcpu.pages_written)
        .sum()
}

/// All of a guest's memory, region behind region as the bitmap has it.
fn copy_of_memory(guest: &KvmGuest) -> Vec<u8> {
    let map = Guest::memory(guest).lane_map();
    let mut copy = vec![0; (map.page_span() * PAGE_BYTES) as usize];
    for run in map.whole() {
        let start = (run.first.0 * PAGE_BYTES) as usize;
        let end = start + run.bytes() as usize;
        map.copy_out(run, &mut copy[start..end]).unwrap();
    }
    copy
}

fn fill_memory(guest: &KvmGuest, copy: &[u8]) {
    let map = Guest::memory(guest).lane_map();
    for run in map.whole() {
        let Run { first, .. } = run;
        let start = (first.0 * PAGE_BYTES) as usize;
        map.copy_in(run, &copy[start..start + run.bytes() as usize])
            .unwrap();
    }
}

/// Output that a test reads.
#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl Printed {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
