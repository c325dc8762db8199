//! The state in which a vCPU begins: 64-bit code at CPL 3, with all of guest memory mapped where it
//! is.
//!
//! The vCPU is put there by `KVM_SET_SREGS`, without passing through real mode. At CPL 3 the code
//! runs natively on every back end of KVM, software ones included. It may use `in` and `out` all the
//! same: by I/O privilege level 3, and by the TSS's I/O permission bitmap where a back end forgets
//! that level once the code has run natively (the software back end PVM does). There is no descriptor table: an exception is a triple fault,
//! which stops the vCPU with its registers told.

use dunlin_engine::layout::{GuestAddress, GuestMemory};
use dunlin_transports::memory::{MemoryError, PAGE_BYTES, PageNumber, Run};
use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_mp_state, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;

use super::KvmGuestError;
use crate::workload::plan::{CODE_ADDRESS, PAGE_TABLES_ADDRESS, SYSTEM_AREA_BYTES};

/// Entries in a page table.
const ENTRIES: u64 = 512;

/// What one entry of the lowest level that we use maps: 2 MiB.
const LARGE_PAGE_BYTES: u64 = 2 << 20;

/// Present, writable, for user mode, accessed: an entry that points to a table. (Intel SDM volume 3A,
/// 4.5.) Accessed and dirty are set beforehand, so that the processor never writes the tables.
const TABLE: u64 = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 5;

/// The same with dirty and page size: an entry that maps 2 MiB.
const LARGE_PAGE: u64 = TABLE | 1 << 6 | 1 << 7;

// Control registers and EFER (Intel SDM volume 3A, 2.5 and 2.2.1).
const CR0_PE: u64 = 1 << 0;
const CR0_MP: u64 = 1 << 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// RFLAGS: the bit that is always set, and I/O privilege level 3.
const RFLAGS: u64 = 1 << 1 | 3 << 12;

/// Where the TSS lies: in the system area, between the program and the control pages.
const TSS_ADDRESS: GuestAddress = GuestAddress(0x8000);

/// A 64-bit TSS's fixed part (Intel SDM volume 3A, 8.7).
const TSS_BYTES: usize = 104;

/// Where in it the offset of the I/O permission bitmap is.
const TSS_IO_MAP_BASE: usize = 102;

/// A bit for each of 65,536 ports, clear where it may be used.
const IO_MAP_BYTES: usize = 8192;

/// The offset of the TSS's last byte: one of all ones ends the bitmap.
const TSS_LIMIT: u32 = (TSS_BYTES + IO_MAP_BYTES) as u32;

/// Writes a TSS whose I/O permission bitmap allows every port.
///
/// # Errors
///
/// When there is no memory where it lies.
pub(super) fn write_tss(memory: &GuestMemory) -> Result<(), MemoryError> {
    let pages = (TSS_LIMIT as usize + 1).div_ceil(PAGE_BYTES as usize);
    let mut tss = vec![0; pages * PAGE_BYTES as usize];
    for (byte, value) in tss
        .iter_mut()
        .skip(TSS_IO_MAP_BASE)
        .zip((TSS_BYTES as u16).to_le_bytes())
    {
        *byte = value;
    }
    if let Some(last) = tss.get_mut(TSS_LIMIT as usize) {
        *last = 0xff;
    }
    let first = memory.layout().page_of(TSS_ADDRESS);
    let run = Run {
        first: first.unwrap_or(PageNumber(u64::MAX)),
        pages: pages as u32,
    };
    memory.guest_map().copy_in(run, &tss)
}

/// Writes page tables that map all of guest memory where it is, with 2 MiB entries.
///
/// # Errors
///
/// When there is more memory than the tables' place has room for (1.5 TiB).
pub(super) fn write_page_tables(memory: &GuestMemory) -> Result<(), MemoryError> {
    let mut tables = Tables {
        memory,
        next: PAGE_TABLES_ADDRESS.0,
    };
    let root = tables.new_table()?;
    for region in memory.layout().regions() {
        let first = region.address.0 - region.address.0 % LARGE_PAGE_BYTES;
        let end = region.address.0 + region.bytes;
        for address in (first..end).step_by(LARGE_PAGE_BYTES as usize) {
            let middle = tables.table_below(root, address / (ENTRIES << 30) % ENTRIES)?;
            let lowest = tables.table_below(middle, address / (1 << 30) % ENTRIES)?;
            let index = address / LARGE_PAGE_BYTES % ENTRIES;
            tables.store(lowest, index, address | LARGE_PAGE)?;
        }
    }
    Ok(())
}

/// The page tables in guest memory, before any vCPU runs.
struct Tables<'memory> {
    memory: &'memory GuestMemory,
    /// Where the next table goes.
    next: u64,
}

impl Tables<'_> {
    fn new_table(&mut self) -> Result<u64, MemoryError> {
        let address = self.next;
        if address >= SYSTEM_AREA_BYTES {
            return Err(MemoryError::TooLarge);
        }
        self.next += PAGE_BYTES;
        self.memory.guest_map().fill_zero(self.run(address))?;
        Ok(address)
    }

    fn table_below(&mut self, table: u64, index: u64) -> Result<u64, MemoryError> {
        let entry = self.load(table, index)?;
        if entry != 0 {
            return Ok(entry & !(PAGE_BYTES - 1));
        }
        let below = self.new_table()?;
        self.store(table, index, below | TABLE)?;
        Ok(below)
    }

    fn load(&self, table: u64, index: u64) -> Result<u64, MemoryError> {
        Ok(self.words(table)?.load(index as usize))
    }

    fn store(&self, table: u64, index: u64, entry: u64) -> Result<(), MemoryError> {
        self.words(table)?.store(index as usize, entry);
        Ok(())
    }

    fn words(&self, table: u64) -> Result<crate::workload::words::PageWords<'_>, MemoryError> {
        crate::workload::words::PageWords::new(self.memory.guest_map(), self.run(table).first)
    }

    fn run(&self, address: u64) -> Run {
        let page = self.memory.layout().page_of(GuestAddress(address));
        Run {
            first: page.unwrap_or(PageNumber(u64::MAX)),
            pages: 1,
        }
    }
}

/// Puts a fresh vCPU at the program's start, with its control page's address in `rdi`.
///
/// # Errors
///
/// When KVM refuses the state.
pub(super) fn enter_at_program(
    vcpu: &VcpuFd,
    control_page: GuestAddress,
) -> Result<(), KvmGuestError> {
    let mut sregs = vcpu
        .get_sregs()
        .map_err(KvmGuestError::system("reading SREGS"))?;
    let flat = kvm_segment {
        limit: u32::MAX,
        present: 1,
        dpl: 3,
        s: 1,
        g: 1,
        ..Default::default()
    };
    // The selectors are those of Linux's user mode; there is no table behind them.
    let code = kvm_segment {
        selector: 0x33,
        type_: 0b1011, // executable, readable, accessed
        l: 1,
        ..flat
    };
    let data = kvm_segment {
        selector: 0x2b,
        type_: 0b0011, // writable, accessed
        db: 1,
        ..flat
    };
    sregs.cs = code;
    for segment in [
        &mut sregs.ss,
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
    ] {
        *segment = data;
    }
    // VM entry demands a busy 64-bit TSS (Intel SDM volume 3C, 26.3.1.2).
    sregs.tr = kvm_segment {
        base: TSS_ADDRESS.0,
        limit: TSS_LIMIT,
        type_: 0b1011,
        present: 1,
        ..Default::default()
    };
    sregs.ldt = kvm_segment {
        unusable: 1,
        type_: 0b0010,
        ..Default::default()
    };
    sregs.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_PG;
    sregs.cr3 = PAGE_TABLES_ADDRESS.0;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
    vcpu.set_sregs(&sregs)
        .map_err(KvmGuestError::system("setting SREGS"))?;
    let regs = kvm_regs {
        rip: CODE_ADDRESS.0,
        rdi: control_page.0,
        rflags: RFLAGS,
        ..Default::default()
    };
    vcpu.set_regs(&regs)
        .map_err(KvmGuestError::system("setting registers"))?;
    // All but the first vCPU would wait for INIT and SIPI.
    let runnable = kvm_mp_state {
        mp_state: KVM_MP_STATE_RUNNABLE,
    };
    vcpu.set_mp_state(runnable)
        .map_err(KvmGuestError::system("setting the MP state"))
}
