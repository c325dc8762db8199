//! A guest on its own: it runs, pauses, goes on, and crashes in order.

use dunlin_engine::guest::Guest;
use dunlin_engine::layout::{Backing, GuestAddress};

use super::super::program::between;
use super::*;
use crate::workload::beat;
use crate::workload::control_page::Word;
use crate::workload::page::{self, SEQUENCE};
use crate::workload::plan::PageClass;
use crate::workload::words::{PAGE_WORDS, PageWords};

/// Checks every hot page of a paused guest; a vCPU may have been parked in the middle of one each.
fn check_hot_pages(guest: &KvmGuest) {
    let mut half_written = 0;
    for run in Guest::memory(guest).guest_map().whole() {
        for number in run.first.0..run.end().0 {
            let number = dunlin_transports::memory::PageNumber(number);
            let Some(PageClass::Hot(_)) = guest.plan.class_of(number) else {
                continue;
            };
            let words = PageWords::new(Guest::memory(guest).guest_map(), number).unwrap();
            let mut copy = [0; PAGE_WORDS];
            page::copy_words(words, &mut copy);
            if copy[SEQUENCE] % 2 == 1 {
                half_written += 1;
            } else {
                page::check(&copy, guest.plan.address_of(number).unwrap()).unwrap();
            }
        }
    }
    assert!(half_written <= guest.vcpus.len());
}

#[test]
fn hot_pages_are_whole_and_rewritten() {
    if !have_kvm() {
        return;
    }
    for (vcpus, pattern) in [(1, Pattern::Sequential), (2, Pattern::Random)] {
        let spec = spec(vcpus, 4 << 20, pattern, DirtyTracking::Auto);
        let mut guest = start(&spec, &Options::default());
        wait_for("writing", &guest, |guest| {
            guest
                .statistics()
                .iter()
                .all(|vcpu| vcpu.pages_written > 3000)
        });
        assert!(guest.running());
        guest.pause(deadline()).unwrap();
        assert!(!guest.running());
        check_hot_pages(&guest);
        let at_rest = copy_of_memory(&guest);
        assert!(
            copy_of_memory(&guest) == at_rest,
            "something writes in the pause"
        );
    }
}

#[test]
fn a_guest_goes_on_after_200_pauses() {
    if !have_kvm() {
        return;
    }
    let spec = spec(2, 1 << 20, Pattern::Sequential, DirtyTracking::Auto);
    let mut guest = start(&spec, &Options::default());
    for _ in 0..200 {
        let record = guest.pause(deadline()).unwrap();
        assert_eq!(record.parked.len(), 2);
        guest.resume().unwrap();
        assert!(guest.running());
    }
    // Also where nothing was paused.
    guest.resume().unwrap();
    let before = pages_written(&guest);
    wait_for("going on", &guest, |guest| {
        pages_written(guest) > before + 100
    });
    guest.pause(deadline()).unwrap();
    check_hot_pages(&guest);
}

#[test]
fn a_guest_that_writes_nothing_still_beats() {
    if !have_kvm() {
        return;
    }
    let printed = Printed::default();
    let mut spec = spec(2, 0, Pattern::Sequential, DirtyTracking::Auto);
    spec.workload.beat = "2ms".parse().unwrap();
    let guest = KvmGuest::start(&spec, Box::new(printed.clone())).unwrap();
    wait_for("heartbeats", &guest, |guest| {
        guest.statistics().iter().all(|vcpu| vcpu.beats > 20)
    });
    assert_eq!(pages_written(&guest), 0);
    drop(guest);
    let text = printed.text();
    let numbers = |line: &str| -> Vec<u64> {
        let words = line.split(' ').skip(3).step_by(2);
        words
            .map(|word| u64::from_str_radix(word, 16).unwrap())
            .collect()
    };
    let lines: Vec<&str> = text.lines().take(20).collect();
    let mut last = vec![0, 0, 0];
    for line in &lines {
        let now = numbers(line);
        assert_eq!(format!("{line}\n"), beat::line(now[0], now[1], now[2]));
        assert_eq!(now[0], last[0] + 1, "{line}");
        assert!(now[1] > last[1] && now[2] > last[2], "{line}");
        last = now;
    }
    assert_eq!(last[0], 20, "{text}");
}

#[test]
fn memory_above_4_gib_is_reached() {
    if !have_kvm() {
        return;
    }
    let mut spec = spec(2, 16 << 20, Pattern::Sequential, DirtyTracking::Auto);
    spec.memory_bytes = 6 << 30;
    let options = Options {
        fill_fixed_pages: false,
        ..Options::default()
    };
    let mut guest = start(&spec, &options);
    guest.pause(deadline()).unwrap();
    check_hot_pages(&guest);
    // A hot range that lies above 4 GiB by the plan would be 3 GiB long; so the first vCPU is sent
    // there by hand.
    let high = GuestAddress(6 << 30);
    let number = guest.plan.layout().page_of(high).unwrap();
    for control in guest.control_pages().take(1) {
        control.store(Word::HotBase, high.0);
    }
    guest.resume().unwrap();
    let rewritten = |guest: &KvmGuest| {
        let words = PageWords::new(Guest::memory(guest).guest_map(), number).unwrap();
        words.load(page::GENERATION) > 1 && words.load(page::ADDRESS) == high.0
    };
    wait_for("writing above 4 GiB", &guest, rewritten);

    let memory = guest.memory.clone();
    let entry = |table: u64, index: usize| {
        let page = memory.layout().page_of(GuestAddress(table)).unwrap();
        PageWords::new(memory.guest_map(), page)
            .unwrap()
            .load(index)
    };
    let address = |entry: u64| entry & 0x000f_ffff_ffff_f000;
    for guest_physical in [0, (3 << 30) - 1, 4 << 30, (7_u64 << 30) - 1] {
        let mut table = crate::workload::plan::PAGE_TABLES_ADDRESS.0;
        for shift in [39, 30, 21] {
            let entry = entry(table, (guest_physical >> shift) as usize % 512);
            assert_eq!(entry & 1, 1, "{guest_physical:#x} is not mapped");
            table = address(entry);
        }
        assert_eq!(table, guest_physical & !((2 << 20) - 1));
    }
}

#[test]
fn huge_pages_back_a_guest() {
    if !have_kvm() {
        return;
    }
    let mut spec = spec(1, 1 << 20, Pattern::Random, DirtyTracking::Auto);
    spec.backing = Backing::Hugetlb;
    match KvmGuest::start(&spec, Box::new(io::sink())) {
        Ok(mut guest) => {
            wait_for("writing", &guest, |guest| pages_written(guest) > 300);
            guest.pause(deadline()).unwrap();
            check_hot_pages(&guest);
        }
        Err(error) => println!("skipped: {error}"),
    }
}

// Reads from an address that nothing maps: a page fault without handlers.
std::arch::global_asm!(
    ".pushsection .rodata.dunlin_crashing_program, \"a\", @progbits",
    ".hidden dunlin_crashing_program_start",
    ".globl dunlin_crashing_program_start",
    "dunlin_crashing_program_start:",
    "    movabs rbx, 0x123456789000",
    "    mov rax, [rbx]",
    ".hidden dunlin_crashing_program_end",
    ".globl dunlin_crashing_program_end",
    "dunlin_crashing_program_end:",
    ".popsection",
);

unsafe extern "C" {
    static dunlin_crashing_program_start: u8;
    static dunlin_crashing_program_end: u8;
}

#[test]
fn a_crash_is_told_with_its_registers_and_the_guest_can_t_be_paused_for_a_move() {
    if !have_kvm() {
        return;
    }
    // SAFETY: the labels enclose the program above, in read-only data.
    let program = unsafe {
        between(
            &raw const dunlin_crashing_program_start,
            &raw const dunlin_crashing_program_end,
        )
    };
    let options = Options {
        program,
        ..Options::default()
    };
    let spec = spec(1, 0, Pattern::Random, DirtyTracking::Auto);
    let mut guest = match KvmGuest::start_with(&spec, Box::new(io::sink()), &options) {
        Ok(guest) => guest,
        // It may have crashed before it was seen to run.
        Err(error) => {
            assert!(error.to_string().contains("triple fault"), "{error}");
            return;
        }
    };
    let since = Instant::now();
    while guest.crashed().is_none() && since.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(1));
    }
    let reason = guest.crashed().unwrap();
    assert!(reason.contains("triple fault"), "{reason}");
    assert!(reason.contains("rip 0x100a"), "{reason}");
    assert!(!guest.running());
    // What the vCPU's registers say is not what a parked one's would (law 7), so it must not move.
    let refusal = guest.pause(deadline()).unwrap_err().to_string();
    assert!(refusal.contains("triple fault"), "{refusal}");
    assert!(guest.resume().is_err());
}
