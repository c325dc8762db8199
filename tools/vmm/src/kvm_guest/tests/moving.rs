//! A guest that is saved and restored into another: it goes on as if nothing had been.

use std::sync::atomic::{AtomicU64, Ordering};

use dunlin_engine::guest::{Guest, IncomingGuest, RunError};

use super::super::program::between;
use super::super::serial_port::Ports;
use super::*;
use crate::workload::words::PageWords;

/// Moves a guest by hand: pause, memory, state. Returns it where it goes on.
fn moved(mut source: KvmGuest, output: Box<dyn Write + Send>, options: &Options) -> KvmGuest {
    let offer = source.offer().unwrap();
    let tracking = DirtyTracking::Auto;
    let mut destination =
        KvmGuest::incoming_with(&offer, Backing::Memfd, tracking, output, options).unwrap();
    assert!(!destination.running());
    source.pause(deadline()).unwrap();
    let state = source.save_state().unwrap();
    // As it travels.
    let state = dunlin_engine::state::DeviceState::decode(&state.encode().unwrap()).unwrap();
    fill_memory(&destination, &copy_of_memory(&source));
    drop(source);
    destination.load_state(&state).unwrap();
    let epoch = offer.identity.epoch + 1;
    let record = destination.run(epoch).unwrap();
    assert_eq!(record.running.len(), offer.vcpus as usize);
    assert_eq!(destination.offer().unwrap().identity.epoch, epoch);
    destination
}

#[test]
fn a_moved_guest_goes_on_counting_and_no_heartbeat_is_lost_or_doubled() {
    if !have_kvm() {
        return;
    }
    let options = Options::default;
    let mut printed = vec![Printed::default()];
    let mut spec = spec(2, 2 << 20, Pattern::Random, DirtyTracking::Auto);
    spec.workload.beat = "2ms".parse().unwrap();
    let mut guest = KvmGuest::start_with(&spec, Box::new(printed[0].clone()), &options()).unwrap();
    for _ in 0..6 {
        let beats = guest.statistics()[0].beats;
        wait_for("heartbeats", &guest, |guest| {
            guest.statistics()[0].beats > beats + 20
        });
        let before = guest.statistics();
        let output = Printed::default();
        printed.push(output.clone());
        guest = moved(guest, Box::new(output), &options());
        let pause = guest.guest_visible_pause(deadline()).unwrap();
        assert!(pause > Duration::ZERO);
        for (now, before) in guest.statistics().iter().zip(&before) {
            assert!(now.pages_written >= before.pages_written);
            assert!(now.beats >= before.beats);
            assert!(now.loops > before.loops);
        }
    }
    guest.pause(deadline()).unwrap();
    drop(guest);
    let text: String = printed.iter().map(Printed::text).collect();
    let lines: Vec<&str> = text.split_terminator('\n').collect();
    assert!(lines.len() > 120, "{} lines", lines.len());
    // The last line may have been cut off by the end.
    let (last, whole) = lines.split_last().unwrap();
    for (number, line) in (1_u64..).zip(whole) {
        let (beat, numbers) = line.split_once(" loops ").unwrap();
        assert_eq!(beat, format!("vcpu 0 beat {number:08x}"));
        assert!(numbers.contains(" tick "), "{line}");
    }
    let number = format!("vcpu 0 beat {:08x} ", lines.len());
    assert!(number.starts_with(last) || last.starts_with(&number));
}

#[test]
fn every_page_of_a_moved_guest_passes_its_own_check() {
    if !have_kvm() {
        return;
    }
    let spec = spec(2, 4 << 20, Pattern::Sequential, DirtyTracking::Auto);
    let mut source = start(&spec, &Options::default());
    wait_for("writing", &source, |guest| pages_written(guest) > 2000);
    source.pause(deadline()).unwrap();
    let pages = Guest::memory(&source).layout().page_span();
    let first = dunlin_transports::memory::PageNumber(0);
    let claims = Guest::self_check(&source)
        .unwrap()
        .claims(first, pages as u32);
    let destination = moved(source, Box::new(io::sink()), &Options::default());
    let outcome = Guest::self_check(&destination)
        .unwrap()
        .check(first, &claims, deadline());
    assert_eq!(outcome.different, 0, "{:?}", outcome.examples);
    assert_eq!(outcome.checked, pages);
}

#[test]
fn an_incoming_guest_that_does_not_fit_is_refused_by_name() {
    if !have_kvm() {
        return;
    }
    let spec = spec(1, 0, Pattern::Sequential, DirtyTracking::Auto);
    let mut guest = start(&spec, &Options::default());
    let refusal = |change: &dyn Fn(&mut dunlin_engine::guest::GuestOffer)| {
        let mut offer = guest.offer().unwrap();
        change(&mut offer);
        let sink = Box::new(io::sink());
        KvmGuest::incoming(&offer, Backing::Memfd, DirtyTracking::Auto, sink)
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    };
    assert_eq!(refusal(&|_| ()), "");
    assert!(refusal(&|offer| offer.kind = "process".to_owned()).contains("'process'"));
    assert!(refusal(&|offer| offer.vcpus = 0).contains("0 vCPUs"));
    let unknown = dunlin_engine::state::Section::new("gpu", 1);
    assert_eq!(
        refusal(&|offer| offer.configuration.push(unknown.clone())),
        "section 'gpu' is not known to this build"
    );
    let twice_as_fast = |offer: &mut dunlin_engine::guest::GuestOffer| {
        let mut platform = offer.configuration.require("kvm.platform", 1).unwrap();
        let khz = platform.require_u64(1).unwrap();
        platform.put_u64(1, 2 * khz);
        offer.configuration.push(platform);
    };
    if !dunlin_engine::kvm::capabilities().unwrap().tsc_control {
        assert!(refusal(&twice_as_fast).contains("more than 250 ppm apart"));
    }

    assert!(guest.save_state().is_err(), "it runs");
    guest.pause(deadline()).unwrap();
    let mut state = guest.save_state().unwrap();
    state.push(unknown);
    assert_eq!(
        guest.load_state(&state).unwrap_err().to_string(),
        "section 'gpu' is not known to this build"
    );
}

#[test]
fn a_guest_that_arrived_is_offered_on_with_its_own_frequency() {
    if !have_kvm() {
        return;
    }
    let spec = spec(1, 0, Pattern::Sequential, DirtyTracking::Auto);
    let mut offer = start(&spec, &Options::default()).offer().unwrap();
    // A few ppm from this host's, which counts as the same everywhere.
    let mut platform = offer.configuration.require("kvm.platform", 1).unwrap();
    let khz = platform.require_u64(1).unwrap() + 5;
    platform.put_u64(1, khz);
    offer.configuration.push(platform);
    let sink = Box::new(io::sink());
    let there = KvmGuest::incoming(&offer, Backing::Memfd, DirtyTracking::Auto, sink).unwrap();
    let mut told = there.offer().unwrap().configuration;
    let mut platform = told.require("kvm.platform", 1).unwrap();
    assert_eq!(platform.require_u64(1).unwrap(), khz);
}

#[test]
fn a_guest_that_can_t_be_run_says_whether_a_vcpu_was_entered() {
    if !have_kvm() {
        return;
    }
    let spec = spec(2, 0, Pattern::Sequential, DirtyTracking::Auto);
    let mut source = start(&spec, &Options::default());
    let offer = source.offer().unwrap();
    source.pause(deadline()).unwrap();
    let state = source.save_state().unwrap();
    let memory = copy_of_memory(&source);
    let arrived = || {
        let sink = Box::new(io::sink());
        let tracking = DirtyTracking::Auto;
        let mut guest = KvmGuest::incoming(&offer, Backing::Memfd, tracking, sink).unwrap();
        fill_memory(&guest, &memory);
        guest.load_state(&state).unwrap();
        guest
    };
    let end = |guest: &mut KvmGuest, vcpus: std::ops::Range<usize>| {
        for vcpu in &mut guest.vcpus[vcpus] {
            vcpu.order_end();
            vcpu.join(deadline());
        }
    };

    let mut guest = arrived();
    end(&mut guest, 0..2);
    let error = guest.run(2).unwrap_err();
    assert!(matches!(error, RunError::NeverEntered(_)), "{error}");
    assert_eq!(guest.offer().unwrap().identity.epoch, 1);

    // The other vCPU's thread is there, so it may have been entered before the failure was seen.
    let mut guest = arrived();
    end(&mut guest, 0..1);
    guest.crew.order_run();
    guest.vcpus[1].wait_in_guest(deadline()).unwrap();
    let error = guest.run(2).unwrap_err();
    assert!(matches!(error, RunError::MayHaveRun(_)), "{error}");
    // It does not go on by itself.
    guest.vcpus[1].wait_at_rest(deadline()).unwrap();
}

// Adds up what it reads from a port, and counts how often it did.
std::arch::global_asm!(
    ".pushsection .rodata.dunlin_adding_program, \"a\", @progbits",
    ".hidden dunlin_adding_program_start",
    ".globl dunlin_adding_program_start",
    "dunlin_adding_program_start:",
    "    mov edx, {port}",
    ".Ldunlin_adding_loop:",
    "    in eax, dx",
    "    add [rdi + {sum}], rax",
    "    inc qword ptr [rdi + {count}]",
    "    jmp .Ldunlin_adding_loop",
    ".hidden dunlin_adding_program_end",
    ".globl dunlin_adding_program_end",
    "dunlin_adding_program_end:",
    ".popsection",
    port = const COUNTING_PORT,
    sum = const SUM * 8,
    count = const COUNT * 8,
);

unsafe extern "C" {
    static dunlin_adding_program_start: u8;
    static dunlin_adding_program_end: u8;
}

const COUNTING_PORT: u16 = 0x500;

/// Words of the control page that the workload does not use.
const SUM: usize = 40;
const COUNT: usize = 41;

/// A port that reads as 1, 2, 3 …
#[derive(Default)]
struct CountingPort(AtomicU64);

impl Ports for CountingPort {
    fn read(&self, port: u16, data: &mut [u8]) {
        assert_eq!(port, COUNTING_PORT);
        let next = self.0.fetch_add(1, Ordering::SeqCst) + 1;
        data.copy_from_slice(&(next as u32).to_le_bytes());
    }

    fn write(&self, _port: u16, _data: &[u8]) {}
}

#[test]
fn an_in_that_is_pending_when_the_vcpu_is_parked_is_neither_lost_nor_doubled() {
    if !have_kvm() {
        return;
    }
    let port = Arc::new(CountingPort::default());
    // SAFETY: the labels enclose the program above, in read-only data.
    let program = unsafe {
        between(
            &raw const dunlin_adding_program_start,
            &raw const dunlin_adding_program_end,
        )
    };
    let options = Options {
        program,
        other_ports: Some(Arc::clone(&port) as Arc<dyn Ports>),
        ..Options::default()
    };
    let spec = spec(1, 0, Pattern::Sequential, DirtyTracking::Auto);
    let mut guest = start(&spec, &options);
    let mut random = 0x9E37_79B9_u64;
    for round in 0..40 {
        let read = port.0.load(Ordering::SeqCst);
        wait_for("reading", &guest, |_| {
            port.0.load(Ordering::SeqCst) > read + 10
        });
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        for _ in 0..random >> 50 {
            std::hint::spin_loop();
        }
        guest = moved(guest, Box::new(io::sink()), &options);
        if round % 4 == 0 {
            guest.pause(deadline()).unwrap();
            let words =
                PageWords::new(Guest::memory(&guest).guest_map(), guest.control_pages[0]).unwrap();
            let (sum, count) = (words.load(SUM), words.load(COUNT));
            let handed_out = port.0.load(Ordering::SeqCst);
            // The last value may be in the register still; the sum may be ahead of the count.
            let sum_of = |n: u64| n * (n + 1) / 2;
            let added = if sum == sum_of(count) {
                count
            } else {
                count + 1
            };
            assert_eq!(sum, sum_of(added), "round {round}, {count} counted");
            assert!(
                added == handed_out || added + 1 == handed_out,
                "round {round}: {handed_out} values were read, {added} were added"
            );
            guest.resume().unwrap();
        }
    }
}
