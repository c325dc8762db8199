//! The zero scan: whether a page of guest memory holds nothing but zeros.
//!
//! # Laws of this room
//!
//! 1. **The bytes may change while they are read.** Each implementation reads them either inside an
//!    `asm!` block or by volatile loads. Both are outside of what the compiler may assume about
//!    memory: nothing is read twice, cached or merged by it, and a concurrent write yields old or
//!    new bytes and nothing worse. The answer is then about a mix of both; the dirty bit that the
//!    write leaves behind (law 1 of the engine: collect before reading) sends the page again.
//! 2. **An implementation is only reachable where the processor has it.** A [`ZeroScan`] can't be
//!    made but by [`ZeroScan::detect`] and [`ZeroScan::all_available`], which ask the processor
//!    (and through `XGETBV` the kernel) first.

use dunlin_transports::memory::{MemoryError, MemoryMap, PAGE_BYTES, PageNumber, Run};

/// What a scan's length is a multiple of: a cache line.
const LINE_BYTES: usize = 64;

/// What the vector loops test at once. Four lines keep the loads ahead of the branch; fewer lines
/// are read in vain when the first of them already decides.
#[cfg(target_arch = "x86_64")]
const BLOCK_BYTES: usize = 4 * LINE_BYTES;

/// The zero scan that suits this processor. Cheap to copy; choose once and keep it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZeroScan {
    implementation: Implementation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Implementation {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl ZeroScan {
    /// The fastest implementation that this processor runs.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if std::arch::is_x86_feature_detected!("avx512f") {
                return Self {
                    implementation: Implementation::Avx512,
                };
            }
            if std::arch::is_x86_feature_detected!("avx2") {
                return Self {
                    implementation: Implementation::Avx2,
                };
            }
        }
        Self {
            implementation: Implementation::Portable,
        }
    }

    /// Every implementation that this processor runs, for tests and benchmarks.
    pub fn all_available() -> Vec<Self> {
        let mut all = vec![Self {
            implementation: Implementation::Portable,
        }];
        #[cfg(target_arch = "x86_64")]
        {
            if std::arch::is_x86_feature_detected!("avx2") {
                all.push(Self {
                    implementation: Implementation::Avx2,
                });
            }
            if std::arch::is_x86_feature_detected!("avx512f") {
                all.push(Self {
                    implementation: Implementation::Avx512,
                });
            }
        }
        all
    }

    /// The implementation's name in reports: `avx512`, `avx2` or `portable`.
    pub fn name(self) -> &'static str {
        match self.implementation {
            #[cfg(target_arch = "x86_64")]
            Implementation::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Implementation::Avx2 => "avx2",
            Implementation::Portable => "portable",
        }
    }

    /// Whether a page of guest memory reads as zero. Stops at the first part that does not.
    ///
    /// # Errors
    ///
    /// When the page is in no region.
    pub fn page_is_zero(self, memory: &MemoryMap, page: PageNumber) -> Result<bool, MemoryError> {
        let at = memory.host_address(Run {
            first: page,
            pages: 1,
        })?;
        // SAFETY: `host_address` checked that one page is mapped at `at`, and `memory`, which is
        // borrowed, keeps it mapped. Nobody has to keep the guest from writing there.
        Ok(unsafe { self.is_zero(at, PAGE_BYTES as usize) })
    }

    /// Which pages of a bitmap's word read as zero: bit `b` stands for page `first + b`; only those
    /// that are set in `word` are looked at.
    ///
    /// # Errors
    ///
    /// When one of them is in no region, or in another region than `first`.
    pub fn zero_pages(
        self,
        memory: &MemoryMap,
        first: PageNumber,
        word: u64,
    ) -> Result<u64, MemoryError> {
        if word == 0 {
            return Ok(0);
        }
        // All up to the highest, checked at once.
        let base = memory.host_address(Run {
            first,
            pages: u64::BITS - word.leading_zeros(),
        })?;
        let (mut zero, mut left) = (0, word);
        while left != 0 {
            let bit = left.trailing_zeros();
            left &= left - 1;
            let at = base.wrapping_add(bit as usize * PAGE_BYTES as usize);
            // SAFETY: `host_address` checked that all pages up to the word's highest are mapped
            // behind `base`; the rest is as in `page_is_zero`.
            if unsafe { self.is_zero(at, PAGE_BYTES as usize) } {
                zero |= 1 << bit;
            }
        }
        Ok(zero)
    }

    /// Whether `bytes` bytes from `start` on are all zero. Bytes past the last multiple of 64 are
    /// not looked at. Stops at the first part that is not zero.
    ///
    /// # Safety
    ///
    /// `bytes` bytes from `start` on are mapped and readable for the length of the call. They may
    /// be written by others meanwhile. `start` is aligned to 8 bytes.
    pub unsafe fn is_zero(self, start: *const u8, bytes: usize) -> bool {
        match self.implementation {
            #[cfg(target_arch = "x86_64")]
            Implementation::Avx512 => {
                // SAFETY: the caller vouches for the bytes; the processor has AVX-512F, or this
                // value would not exist.
                unsafe { in_blocks(start, bytes, blocks_avx512) }
            }
            #[cfg(target_arch = "x86_64")]
            Implementation::Avx2 => {
                // SAFETY: as above, with AVX2.
                unsafe { in_blocks(start, bytes, blocks_avx2) }
            }
            Implementation::Portable => {
                // SAFETY: the caller vouches for the bytes.
                unsafe { lines_portable(start, bytes / LINE_BYTES) }
            }
        }
    }
}

/// Looks at the first line alone, for that decides most pages that hold data, and then only one
/// line of them was pulled into the cache; then at whole blocks, then at the lines left over.
///
/// # Safety
///
/// As for [`ZeroScan::is_zero`]; the processor can run `blocks`.
#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn in_blocks(
    start: *const u8,
    bytes: usize,
    blocks: unsafe fn(*const u8, *const u8) -> bool,
) -> bool {
    let blocks_bytes = bytes / BLOCK_BYTES * BLOCK_BYTES;
    let lines_left = (bytes - blocks_bytes) / LINE_BYTES;
    // SAFETY: the first line, the blocks and the lines behind them are within the caller's bytes;
    // `blocks` is called with a range that is not empty and is made of whole blocks.
    unsafe {
        let blocks_end = start.add(blocks_bytes);
        if blocks_bytes > 0 && !(lines_portable(start, 1) && blocks(start, blocks_end)) {
            return false;
        }
        lines_portable(blocks_end, lines_left)
    }
}

/// # Safety
///
/// `start..end` is readable, not empty, and a multiple of [`BLOCK_BYTES`] long; the processor has
/// AVX-512F.
#[cfg(target_arch = "x86_64")]
unsafe fn blocks_avx512(start: *const u8, end: *const u8) -> bool {
    let zero: u8;
    // SAFETY: reads `start..end` in whole blocks, writes no memory, and declares every register
    // that it changes. Registers from zmm16 on have no lower half that SSE code knows, so no
    // `vzeroupper` is due. At label 3 the zero flag is clear when a block was not zero, and set
    // when the end was reached.
    unsafe {
        std::arch::asm!(
            "2:",
            "vmovdqu64 zmm16, [{at}]",
            "vmovdqu64 zmm17, [{at} + 64]",
            "vporq zmm16, zmm16, [{at} + 128]",
            "vporq zmm17, zmm17, [{at} + 192]",
            "vporq zmm16, zmm16, zmm17",
            "vptestmq k1, zmm16, zmm16",
            "kortestw k1, k1",
            "jnz 3f",
            "add {at}, 256",
            "cmp {at}, {end}",
            "jne 2b",
            "3:",
            "setz {zero}",
            at = inout(reg) start => _,
            end = in(reg) end,
            zero = out(reg_byte) zero,
            out("zmm16") _,
            out("zmm17") _,
            out("k1") _,
            options(nostack, readonly)
        );
    }
    zero != 0
}

/// # Safety
///
/// As for [`blocks_avx512`], with AVX2.
#[cfg(target_arch = "x86_64")]
unsafe fn blocks_avx2(start: *const u8, end: *const u8) -> bool {
    let zero: u8;
    // SAFETY: as in `blocks_avx512`. `vzeroupper` spares SSE code behind this the penalty for
    // dirty upper halves; it changes the upper halves of all sixteen registers, whose lower halves
    // it keeps, and code outside keeps nothing in upper halves across a block that names a register
    // as changed only if it names them all, so it names them all.
    unsafe {
        std::arch::asm!(
            "2:",
            "vmovdqu ymm0, [{at}]",
            "vmovdqu ymm1, [{at} + 32]",
            "vmovdqu ymm2, [{at} + 64]",
            "vmovdqu ymm3, [{at} + 96]",
            "vpor ymm0, ymm0, [{at} + 128]",
            "vpor ymm1, ymm1, [{at} + 160]",
            "vpor ymm2, ymm2, [{at} + 192]",
            "vpor ymm3, ymm3, [{at} + 224]",
            "vpor ymm0, ymm0, ymm1",
            "vpor ymm2, ymm2, ymm3",
            "vpor ymm0, ymm0, ymm2",
            "vptest ymm0, ymm0",
            "jnz 3f",
            "add {at}, 256",
            "cmp {at}, {end}",
            "jne 2b",
            "3:",
            "setz {zero}",
            "vzeroupper",
            at = inout(reg) start => _,
            end = in(reg) end,
            zero = out(reg_byte) zero,
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _,
            out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
            out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
            out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
            options(nostack, readonly)
        );
    }
    zero != 0
}

/// # Safety
///
/// `lines` lines from `start` on are readable; `start` is aligned to 8 bytes where there are any.
#[inline]
unsafe fn lines_portable(start: *const u8, lines: usize) -> bool {
    const LINE_WORDS: usize = LINE_BYTES / size_of::<u64>();
    let words = start.cast::<u64>();
    (0..lines).all(|line| {
        let mut sum = 0;
        for word in 0..LINE_WORDS {
            // SAFETY: the word is in one of the caller's lines and aligned. Volatile: it may be
            // written meanwhile.
            sum |= unsafe { words.add(line * LINE_WORDS + word).read_volatile() };
        }
        sum == 0
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dunlin_transports::memory::{HostMapping, OwnedMapping};
    use proptest::prelude::*;

    use super::*;

    fn two_pages() -> MemoryMap {
        let mapping: Arc<dyn HostMapping> = Arc::new(OwnedMapping::new(2 * PAGE_BYTES).unwrap());
        MemoryMap::new(vec![mapping]).unwrap()
    }

    fn put_page(memory: &MemoryMap, bytes: &[u8]) {
        let run = Run {
            first: PageNumber(0),
            pages: 1,
        };
        memory.copy_in(run, bytes).unwrap();
    }

    #[test]
    fn the_fastest_is_one_of_those_available() {
        let all = ZeroScan::all_available();
        assert_eq!(all.last(), Some(&ZeroScan::detect()));
        assert_eq!(all[0].name(), "portable");
    }

    #[test]
    fn every_single_byte_counts_and_the_next_page_does_not() {
        let memory = two_pages();
        let next = Run {
            first: PageNumber(1),
            pages: 1,
        };
        memory.copy_in(next, &[0xff; 4096]).unwrap();
        for scan in ZeroScan::all_available() {
            put_page(&memory, &[0; 4096]);
            assert!(
                scan.page_is_zero(&memory, PageNumber(0)).unwrap(),
                "{scan:?}"
            );
            assert!(
                !scan.page_is_zero(&memory, PageNumber(1)).unwrap(),
                "{scan:?}"
            );
            for position in 0..4096 {
                let mut page = [0; 4096];
                page[position] = 1 << (position % 8);
                put_page(&memory, &page);
                let zero = scan.page_is_zero(&memory, PageNumber(0)).unwrap();
                assert!(!zero, "{scan:?} misses byte {position}");
            }
        }
    }

    #[test]
    fn only_the_pages_of_a_word_that_are_asked_about_are_told() {
        let memory = two_pages();
        put_page(&memory, &[1; 4096]);
        for scan in ZeroScan::all_available() {
            let zero = |word| scan.zero_pages(&memory, PageNumber(0), word);
            assert_eq!(zero(0b11), Ok(0b10), "{scan:?}");
            assert_eq!(zero(0b10), Ok(0b10), "{scan:?}");
            assert_eq!(zero(0b01), Ok(0), "{scan:?}");
            assert_eq!(zero(0), Ok(0), "{scan:?}");
            assert!(zero(0b100).is_err(), "{scan:?}");
        }
    }

    #[test]
    fn a_page_outside_memory_is_an_error() {
        let memory = two_pages();
        assert!(
            ZeroScan::detect()
                .page_is_zero(&memory, PageNumber(2))
                .is_err()
        );
    }

    proptest! {
        #[test]
        fn all_agree_on_every_length(
            lines in 0_usize..=64,
            bytes in proptest::collection::vec((0_usize..4096, any::<u8>()), 0..3),
        ) {
            let memory = two_pages();
            let mut page = [0; 4096];
            for (position, value) in bytes {
                page[position] = value;
            }
            put_page(&memory, &page);
            let length = lines * LINE_BYTES;
            let expected = page[..length].iter().all(|byte| *byte == 0);
            let first = Run { first: PageNumber(0), pages: 1 };
            let start = memory.host_address(first).unwrap();
            for scan in ZeroScan::all_available() {
                // SAFETY: `length` is at most the page that `start` is the first byte of.
                let zero = unsafe { scan.is_zero(start, length) };
                prop_assert_eq!(zero, expected, "{:?}, {} bytes", scan, length);
            }
        }
    }
}
