//! A guest for QEMU that rewrites memory: 512 bytes that its firmware starts like a disk's.
//!
//! It enters 32-bit protected mode, without paging, and adds one to the first word of each page of
//! the hot set, page by page, over and over: four instructions a page. So it makes pages dirty as
//! fast as the host tracks them, also where a host emulates code that is not a user's.

/// Where the hot set begins: far above what the firmware uses.
const HOT_START: u32 = 16 << 20;

const PAGE_BYTES: u32 = 4096;

/// Where firmware loads it.
const ORIGIN: u16 = 0x7c00;

/// Where its descriptor table is in it, and where the table's place and size are.
const TABLE: u16 = 0x60;
const TABLE_PLACE: u16 = 0x78;

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
    code.push(0xbf); // again: mov edi, HOT_START
    code.extend(HOT_START.to_le_bytes());
    code.extend([0xff, 0x07]); // page: inc dword [edi]
    code.extend([0x81, 0xc7]); // add edi, PAGE_BYTES
    code.extend(PAGE_BYTES.to_le_bytes());
    code.extend([0x81, 0xff]); // cmp edi, end
    code.extend((HOT_START + hot_bytes).to_le_bytes());
    code.extend([0x72, 0xf0]); // jb page, 16 bytes back
    code.extend([0xeb, 0xe9]); // jmp again, 23 bytes back

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
        let end = sector
            .windows(2)
            .position(|pair| pair == [0xeb, 0xe9])
            .unwrap()
            + 2;
        assert!(end <= usize::from(TABLE));
        // Both are relative to what follows them.
        assert_eq!(sector[end - 23], 0xbf);
        assert_eq!(sector[end - 2 - 16..end - 16], [0xff, 0x07]);
        assert_eq!(sector[510..], [0x55, 0xaa]);
        assert_eq!(last_page(PAGE_BYTES), HOT_START);
    }
}
