//! A guest for QEMU that rewrites memory: 512 bytes that its firmware starts like a disk's.
//!
//! It enters 32-bit protected mode, without paging, and adds one to the first word of each page of
//! the hot set, page by page, over and over: six instructions a page. So it makes pages dirty as
//! fast as the host tracks them, also where a host emulates code that is not a user's. Every 64 pages
//! it looks at the processor's counter, and keeps the longest time without a look.

/// Where the hot set begins: far above what the firmware uses.
const HOT_START: u32 = 16 << 20;

const PAGE_BYTES: u32 = 4096;

/// A look at the counter is due where none of these bits of a page's address is set.
const LOOK_MASK: u32 = 64 * PAGE_BYTES - 1;

/// Where the longest gap between two looks is in guest memory: a word of 32 bits, little-endian, in
/// units of [`GAP_TICKS`].
pub const LONGEST_GAP: u32 = 0x7e00;

/// How many of the counter's ticks a unit is: so a word counts minutes.
pub const GAP_TICKS: u32 = 1 << GAP_SHIFT;
const GAP_SHIFT: u8 = 8;

/// Where firmware loads it.
const ORIGIN: u16 = 0x7c00;

/// Where its descriptor table is in it, and where the table's place and size are.
const TABLE: u16 = 0x80;
const TABLE_PLACE: u16 = 0x98;

/// Flat segments: none, 4 GiB of code, 4 GiB of data (Intel SDM volume 3, 3.4.5).
const DESCRIPTORS: [u64; 3] = [0, 0x00cf_9a00_0000_ffff, 0x00cf_9200_0000_ffff];

/// Where the last page of the hot set is in guest memory.
pub fn last_page(hot_bytes: u32) -> u32 {
    HOT_START + hot_bytes - PAGE_BYTES
}

/// The sector whose guest rewrites `hot_bytes`, whole pages.
pub fn rewriting(hot_bytes: u32) -> [u8; 512] {
    let [place_low, place_high] = (ORIGIN + TABLE_PLACE).to_le_bytes();
    let mut code = vec![
        0xfa, // cli
        0x31, 0xc0, // xor ax, ax
        0x8e, 0xd8, // mov ds, ax
        0x0f, 0x01, 0x16, place_low, place_high, // lgdt [place]
        0x0f, 0x20, 0xc0, // mov eax, cr0
        0x0c, 0x01, // or al, 1
        0x0f, 0x22, 0xc0, // mov cr0, eax
    ];
    // A far jump of five bytes to what follows it.
    let [next_low, next_high] = (ORIGIN + code.len() as u16 + 5).to_le_bytes();
    code.extend([0xea, next_low, next_high, 0x08, 0x00]); // jmp 8:next
    code.extend([0xb8, 0x10, 0, 0, 0]); // mov eax, 16
    code.extend([0x8e, 0xd8]); // mov ds, ax
    let now = [0x0f, 0x31, 0x0f, 0xac, 0xd0, GAP_SHIFT]; // rdtsc; shrd eax, edx, GAP_SHIFT
    code.extend(now);
    code.extend([0x89, 0xc3]); // mov ebx, eax
    code.push(0xbf); // again: mov edi, HOT_START
    code.extend(HOT_START.to_le_bytes());
    code.extend([0xff, 0x07]); // page: inc dword [edi]
    code.extend([0x81, 0xc7]); // add edi, PAGE_BYTES
    code.extend(PAGE_BYTES.to_le_bytes());
    code.extend([0xf7, 0xc7]); // test edi, LOOK_MASK
    code.extend(LOOK_MASK.to_le_bytes());
    code.extend([0x74, 0x0a]); // jz look, 10 bytes on
    code.extend([0x81, 0xff]); // next: cmp edi, end
    code.extend((HOT_START + hot_bytes).to_le_bytes());
    code.extend([0x72, 0xe8]); // jb page, 24 bytes back
    code.extend([0xeb, 0xe1]); // jmp again, 31 bytes back
    code.extend(now); // look:
    code.extend([0x89, 0xc1, 0x29, 0xd9]); // mov ecx, eax; sub ecx, ebx
    code.extend([0x89, 0xc3]); // mov ebx, eax
    code.extend([0x3b, 0x0d]); // cmp ecx, [LONGEST_GAP]
    code.extend(LONGEST_GAP.to_le_bytes());
    code.extend([0x76, 0xe2]); // jbe next, 30 bytes back
    code.extend([0x89, 0x0d]); // mov [LONGEST_GAP], ecx
    code.extend(LONGEST_GAP.to_le_bytes());
    code.extend([0xeb, 0xda]); // jmp next, 38 bytes back

    let mut sector = [0; 512];
    sector[..code.len()].copy_from_slice(&code);
    let mut at = usize::from(TABLE);
    for descriptor in DESCRIPTORS {
        sector[at..at + 8].copy_from_slice(&descriptor.to_le_bytes());
        at += 8;
    }
    let place = usize::from(TABLE_PLACE);
    sector[place..place + 2].copy_from_slice(&(8 * DESCRIPTORS.len() as u16 - 1).to_le_bytes());
    sector[place + 2..place + 6].copy_from_slice(&u32::from(ORIGIN + TABLE).to_le_bytes());
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_jumps_lead_where_they_should() {
        let sector = rewriting(64 << 20);
        let behind = |jump: [u8; 2]| {
            let mut pairs = sector.windows(2);
            let found = pairs.position(|pair| pair == jump).unwrap() + 2;
            // Jumps are relative to what follows them.
            found.wrapping_add_signed(isize::from(jump[1] as i8))
        };
        let (again, page, look, next) = (
            behind([0xeb, 0xe1]),
            behind([0x72, 0xe8]),
            behind([0x74, 0x0a]),
            behind([0xeb, 0xda]),
        );
        assert_eq!(sector[again], 0xbf);
        assert_eq!(sector[page..page + 2], [0xff, 0x07]);
        assert_eq!(sector[look..look + 2], [0x0f, 0x31]);
        assert_eq!(sector[next..next + 2], [0x81, 0xff]);
        assert_eq!(behind([0x76, 0xe2]), next);
        let last = sector.windows(2).position(|pair| pair == [0xeb, 0xda]);
        assert!(last.unwrap() + 2 <= usize::from(TABLE));
        assert_eq!(sector[510..], [0x55, 0xaa]);
        assert_eq!(last_page(PAGE_BYTES), HOT_START);
    }
}
