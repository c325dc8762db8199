//! What the vCPUs execute: position-independent 64-bit code at CPL 3, without stack, exceptions or
//! interrupts. What it does is told in `workload::control_page`; the format of the pages that it
//! writes in `workload::page`.
//!
//! # Laws of this room
//!
//! The assembler puts the program between two labels in this binary's read-only data; [`workload`]
//! is the only place that turns the labels into a slice. It is executed in the guest only.

use dunlin_engine::layout::{GuestAddress, GuestMemory};
use dunlin_transports::memory::{MemoryError, PAGE_BYTES, PageNumber, Run};

use crate::workload::Workload;
use crate::workload::beat;
use crate::workload::control_page::{ControlPage, ControlSettings, GuestClock, Word};
use crate::workload::page;
use crate::workload::plan::{CODE_ADDRESS, Plan};
use crate::workload::words::PageWords;

/// The serial port's first I/O port: COM1 of a PC.
pub(super) const SERIAL_PORT: u16 = 0x3f8;

/// The port of its line status register.
pub(super) const LINE_STATUS: u16 = SERIAL_PORT + 5;

/// In the line status: all that was printed is out.
pub(super) const TRANSMITTER_EMPTY: u8 = 0x40;

/// A register that holds no more than a word's byte offset in the control page.
const fn offset(word: Word) -> usize {
    word as usize * 8
}

// Registers: rdi the control page; r15 now, in ticks; r14 how late a write may be, in ticks.
// `field` puts a text and a number into the line and returns to r8: there is no stack, whose page
// would have to be writable. The line leaves by one instruction: where leaving the guest is slow,
// an exit for each byte would take milliseconds.
std::arch::global_asm!(
    ".pushsection .rodata.dunlin_guest_program, \"a\", @progbits",
    ".hidden dunlin_guest_program_start",
    ".globl dunlin_guest_program_start",
    "dunlin_guest_program_start:",
    "    mov rax, [rdi + {ticks_per_second}]",
    "    xor edx, edx",
    "    mov ecx, 100",
    "    div rcx",
    "    mov r14, rax",
    // The clock, and the longest time without looking at it. A counter that went back says nothing.
    ".Ldunlin_guest_loop:",
    "    rdtsc",
    "    shl rdx, 32",
    "    or rax, rdx",
    "    mov r15, rax",
    "    mov rcx, [rdi + {last_tick}]",
    "    test rcx, rcx",
    "    jz .Ldunlin_guest_looked",
    "    sub rax, rcx",
    "    jbe .Ldunlin_guest_looked",
    "    cmp rax, [rdi + {gap_max_ticks}]",
    "    jbe .Ldunlin_guest_looked",
    "    mov [rdi + {gap_max_ticks}], rax",
    ".Ldunlin_guest_looked:",
    "    mov [rdi + {last_tick}], r15",
    "    inc qword ptr [rdi + {loops}]",
    // Whether a page is due.
    "    mov r8, [rdi + {hot_pages}]",
    "    test r8, r8",
    "    jz .Ldunlin_guest_idle",
    "    cmp r15, [rdi + {next_write_tick}]",
    "    jb .Ldunlin_guest_idle",
    // Which page.
    "    cmp qword ptr [rdi + {pattern}], 0",
    "    je .Ldunlin_guest_sequential",
    "    mov rax, [rdi + {rng}]",
    "    mov rcx, rax",
    "    shl rcx, 13",
    "    xor rax, rcx",
    "    mov rcx, rax",
    "    shr rcx, 7",
    "    xor rax, rcx",
    "    mov rcx, rax",
    "    shl rcx, 17",
    "    xor rax, rcx",
    "    mov [rdi + {rng}], rax",
    "    mul r8",
    "    jmp .Ldunlin_guest_chosen",
    ".Ldunlin_guest_sequential:",
    "    mov rdx, [rdi + {next_index}]",
    "    lea rcx, [rdx + 1]",
    "    xor r9d, r9d",
    "    cmp rcx, r8",
    "    cmovae rcx, r9",
    "    mov [rdi + {next_index}], rcx",
    // Rewrite it: odd sequence, generation, address, body, even sequence.
    ".Ldunlin_guest_chosen:",
    "    mov r9, rdx",
    "    shl r9, 12",
    "    add r9, [rdi + {hot_base}]",
    "    mov r10, [r9 + {generation}]",
    "    inc r10",
    "    lea r11, [r10 + r10]",
    "    lea rax, [r11 - 1]",
    "    mov [r9 + {sequence}], rax",
    "    mov [r9 + {generation}], r10",
    "    mov [r9 + {address}], r9",
    "    movabs rax, {k1}",
    "    imul rax, r10",
    "    xor rax, r9",
    "    movabs rcx, {k2}",
    "    lea rsi, [r9 + {body}]",
    "    lea rdx, [r9 + {page_bytes}]",
    ".Ldunlin_guest_body:",
    "    mov [rsi], rax",
    "    add rax, rcx",
    "    add rsi, 8",
    "    cmp rsi, rdx",
    "    jne .Ldunlin_guest_body",
    "    mov [r9 + {sequence}], r11",
    "    inc qword ptr [rdi + {pages_written}]",
    // When the next one is due; who is too late does not try to catch up.
    "    mov rax, [rdi + {next_write_tick}]",
    "    add rax, [rdi + {ticks_per_page}]",
    "    mov rcx, r15",
    "    sub rcx, rax",
    "    jbe .Ldunlin_guest_due",
    "    cmp rcx, r14",
    "    jbe .Ldunlin_guest_due",
    "    mov rax, r15",
    ".Ldunlin_guest_due:",
    "    mov [rdi + {next_write_tick}], rax",
    "    jmp .Ldunlin_guest_beat",
    ".Ldunlin_guest_idle:",
    "    pause",
    // The heartbeat. All vCPUs count; one of them prints, so that lines stay whole, and only once
    // the line before is out.
    ".Ldunlin_guest_beat:",
    "    cmp qword ptr [rdi + {heartbeat_ticks}], 0",
    "    je .Ldunlin_guest_loop",
    "    cmp r15, [rdi + {next_beat_tick}]",
    "    jb .Ldunlin_guest_loop",
    "    cmp qword ptr [rdi + {vcpu}], 0",
    "    jne .Ldunlin_guest_count_beat",
    "    mov edx, {line_status}",
    "    in al, dx",
    "    test al, {transmitter_empty}",
    "    jz .Ldunlin_guest_loop",
    // The clock once more: a pause may have fallen between the look at it and here, and the beat
    // shall tell when it is printed.
    ".Ldunlin_guest_count_beat:",
    "    rdtsc",
    "    shl rdx, 32",
    "    or rax, rdx",
    "    mov r15, rax",
    "    sub rax, [rdi + {last_tick}]",
    "    jbe .Ldunlin_guest_looked_again",
    "    cmp rax, [rdi + {gap_max_ticks}]",
    "    jbe .Ldunlin_guest_looked_again",
    "    mov [rdi + {gap_max_ticks}], rax",
    ".Ldunlin_guest_looked_again:",
    "    mov [rdi + {last_tick}], r15",
    "    mov rax, [rdi + {heartbeat_ticks}]",
    "    add rax, r15",
    "    mov [rdi + {next_beat_tick}], rax",
    "    inc qword ptr [rdi + {beats}]",
    "    cmp qword ptr [rdi + {vcpu}], 0",
    "    jne .Ldunlin_guest_loop",
    "    lea rbx, [rdi + {line}]",
    "    lea rsi, [rip + .Ldunlin_guest_text_beat]",
    "    mov r12, [rdi + {beats}]",
    "    shl r12, 32",
    "    mov ebp, 8",
    "    lea r8, [rip + .Ldunlin_guest_line_loops]",
    "    jmp .Ldunlin_guest_field",
    ".Ldunlin_guest_line_loops:",
    "    lea rsi, [rip + .Ldunlin_guest_text_loops]",
    "    mov r12, [rdi + {loops}]",
    "    mov ebp, 16",
    "    lea r8, [rip + .Ldunlin_guest_line_tick]",
    "    jmp .Ldunlin_guest_field",
    ".Ldunlin_guest_line_tick:",
    "    lea rsi, [rip + .Ldunlin_guest_text_tick]",
    "    mov r12, r15",
    "    mov ebp, 16",
    "    lea r8, [rip + .Ldunlin_guest_line_end]",
    // The text at rsi, then the upper ebp digits of r12, to rbx.
    ".Ldunlin_guest_field:",
    "    mov al, [rsi]",
    "    test al, al",
    "    jz .Ldunlin_guest_digit",
    "    mov [rbx], al",
    "    inc rsi",
    "    inc rbx",
    "    jmp .Ldunlin_guest_field",
    ".Ldunlin_guest_digit:",
    "    rol r12, 4",
    "    mov eax, r12d",
    "    and eax, 15",
    "    add eax, 48", // '0'
    "    cmp eax, 58",
    "    jb .Ldunlin_guest_decimal",
    "    add eax, 39", // from behind '9' to 'a'
    ".Ldunlin_guest_decimal:",
    "    mov [rbx], al",
    "    inc rbx",
    "    dec ebp",
    "    jnz .Ldunlin_guest_digit",
    "    jmp r8",
    ".Ldunlin_guest_line_end:",
    "    mov byte ptr [rbx], 10",
    "    lea rsi, [rdi + {line}]",
    "    mov ecx, {line_bytes}",
    "    mov edx, {transmit}",
    "    rep outsb",
    // Printing takes milliseconds where leaving the guest is slow. It is the guest's own work and no
    // gap in it, unless a pause fell into it: then a beat is due at once, and the gap counts.
    "    mov rax, [rdi + {heartbeat_ticks}]",
    "    add rax, r15",
    "    cmp rax, [rdi + {next_beat_tick}]",
    "    jne .Ldunlin_guest_loop",
    "    rdtsc",
    "    shl rdx, 32",
    "    or rax, rdx",
    "    mov [rdi + {last_tick}], rax",
    "    jmp .Ldunlin_guest_loop",
    ".Ldunlin_guest_text_beat:",
    "    .asciz \"vcpu 0 beat \"",
    ".Ldunlin_guest_text_loops:",
    "    .asciz \" loops \"",
    ".Ldunlin_guest_text_tick:",
    "    .asciz \" tick \"",
    ".hidden dunlin_guest_program_end",
    ".globl dunlin_guest_program_end",
    "dunlin_guest_program_end:",
    ".popsection",
    hot_base = const offset(Word::HotBase),
    hot_pages = const offset(Word::HotPages),
    pattern = const offset(Word::Pattern),
    ticks_per_page = const offset(Word::TicksPerPage),
    heartbeat_ticks = const offset(Word::HeartbeatTicks),
    ticks_per_second = const offset(Word::TicksPerSecond),
    vcpu = const offset(Word::Vcpu),
    pages_written = const offset(Word::PagesWritten),
    last_tick = const offset(Word::LastTick),
    gap_max_ticks = const offset(Word::GapMaxTicks),
    rng = const offset(Word::Rng),
    next_index = const offset(Word::NextIndex),
    next_write_tick = const offset(Word::NextWriteTick),
    next_beat_tick = const offset(Word::NextBeatTick),
    beats = const offset(Word::Beats),
    loops = const offset(Word::Loops),
    line = const offset(Word::Line),
    line_bytes = const beat::LINE_BYTES,
    sequence = const page::SEQUENCE * 8,
    generation = const page::GENERATION * 8,
    address = const page::ADDRESS * 8,
    body = const page::BODY * 8,
    page_bytes = const PAGE_BYTES,
    k1 = const page::K1,
    k2 = const page::K2,
    line_status = const LINE_STATUS,
    transmitter_empty = const TRANSMITTER_EMPTY,
    transmit = const SERIAL_PORT,
);

unsafe extern "C" {
    static dunlin_guest_program_start: u8;
    static dunlin_guest_program_end: u8;
}

/// The program of the workload.
pub(super) fn workload() -> &'static [u8] {
    // SAFETY: both labels are in one section of this binary's read-only data, the end behind the
    // start, with nothing but the program between them.
    unsafe {
        between(
            &raw const dunlin_guest_program_start,
            &raw const dunlin_guest_program_end,
        )
    }
}

/// The bytes between two labels.
///
/// # Safety
///
/// Both are in one piece of read-only data of this binary, `end` not before `start`.
pub(super) unsafe fn between(start: *const u8, end: *const u8) -> &'static [u8] {
    // SAFETY: the caller vouches for the range, which is never written or unmapped.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

/// Puts a program where the vCPUs begin.
pub(super) fn load(memory: &GuestMemory, program: &[u8]) -> Result<(), MemoryError> {
    let first = memory.layout().page_of(CODE_ADDRESS).unwrap_or_default();
    let pages = program.len().div_ceil(PAGE_BYTES as usize);
    let mut bytes = program.to_vec();
    bytes.resize(pages * PAGE_BYTES as usize, 0);
    let run = Run {
        first,
        pages: u32::try_from(pages).unwrap_or(u32::MAX),
    };
    memory.guest_map().copy_in(run, &bytes)
}

/// Writes what the workload can't do without: control pages, and hot pages of the first generation.
/// For a guest whose other memory may stay untouched.
pub(super) fn prepare_workload_pages(
    memory: &GuestMemory,
    plan: &Plan,
    workload: &Workload,
    clock: GuestClock,
) -> Result<(), MemoryError> {
    let map = memory.guest_map();
    let page_of = |address| {
        memory
            .layout()
            .page_of(address)
            .unwrap_or(PageNumber(u64::MAX))
    };
    for vcpu in 0..plan.vcpus() {
        let (Some(control), Some(hot), Some(settings)) = (
            plan.control_page(vcpu),
            plan.hot_range(vcpu),
            ControlSettings::new(plan, vcpu, workload, clock),
        ) else {
            continue;
        };
        ControlPage::new(map, page_of(control))?.initialise(&settings);
        for index in 0..hot.pages {
            let address = GuestAddress(hot.base.0 + index * PAGE_BYTES);
            let words = PageWords::new(map, page_of(address))?;
            page::write(words, address, page::FIRST_GENERATION);
        }
    }
    Ok(())
}
