use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::Unpacking;
use super::*;
use crate::memory::{HostMapping, OwnedMapping, PAGE_BYTES, PageNumber};

const PAGES: u32 = 256;

fn memory() -> MemoryMap {
    let bytes = u64::from(PAGES) * PAGE_BYTES;
    let mapping: Arc<dyn HostMapping> = Arc::new(OwnedMapping::new(bytes).unwrap());
    MemoryMap::new(vec![mapping]).unwrap()
}

fn run(first: u64, pages: u32) -> Run {
    Run {
        first: PageNumber(first),
        pages,
    }
}

/// Fills all of memory by word number.
fn fill(memory: &MemoryMap, word: impl Fn(u64) -> u64) {
    let words = u64::from(PAGES) * PAGE_BYTES / 8;
    let bytes: Vec<u8> = (0..words).flat_map(|at| word(at).to_le_bytes()).collect();
    memory.copy_in(run(0, PAGES), &bytes).unwrap();
}

fn noise(at: u64) -> u64 {
    let mixed = (at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

fn modes() -> Vec<Compression> {
    let level = |level| ZstdLevel::new(level).unwrap();
    let mut modes = vec![Compression::Lz4];
    modes.extend([1, 3, 12].map(|number| Compression::Zstd {
        level: level(number),
    }));
    modes
}

fn packing(compression: Compression, memory: &MemoryMap) -> (Packing, Vec<u8>) {
    let packing = Packing::new(compression, memory.clone(), 1 << 20);
    let packing = packing.unwrap().unwrap();
    let room = vec![0; packing.room_bytes()];
    (packing, room)
}

fn unpacked(codec: Codec, packed: &[u8], data_bytes: u32) -> Vec<u8> {
    let mut unpacking = Unpacking::new().unwrap();
    let mut buffer = unpacking.take_buffer();
    buffer[..packed.len()].copy_from_slice(packed);
    unpacking.give_buffer(buffer);
    unpacking
        .unpack(codec, packed.len() as u32, data_bytes.into())
        .unwrap();
    unpacking.data().to_vec()
}

#[test]
fn what_is_off_packs_nothing() {
    let packing = Packing::new(Compression::Off, memory(), 1 << 20).unwrap();
    assert!(packing.is_none());
}

#[test]
fn runs_are_packed_in_their_order() {
    let memory = memory();
    fill(&memory, |at| at / 100);
    for mode in modes() {
        let (mut packing, mut room) = packing(mode, &memory);
        // Largest first, as the codec's memory is that of the first it sees.
        for runs in [
            vec![run(0, PAGES)],
            vec![run(200, 7), run(3, 1), run(100, 60)],
            vec![run(9, 1)],
        ] {
            let data_bytes: u64 = runs.iter().map(|run| run.bytes()).sum();
            let data_bytes = data_bytes as u32;
            let packed = packing
                .pack(runs.iter().copied(), data_bytes, &mut room)
                .unwrap();
            let packed = &room[..packed.unwrap() as usize];
            assert!(packed.len() < data_bytes as usize * 9 / 10, "{mode}");
            let data = unpacked(packing.codec(), packed, data_bytes);
            let mut rest = data.as_slice();
            for run in runs {
                let (piece, others) = rest.split_at(run.bytes() as usize);
                let mut expected = vec![0; piece.len()];
                memory.copy_out(run, &mut expected).unwrap();
                assert!(piece == expected, "{mode}, {run:?}");
                rest = others;
            }
        }
    }
}

#[test]
fn what_does_not_shrink_goes_out_as_it_is() {
    let memory = memory();
    for mode in modes() {
        let (mut packing, mut room) = packing(mode, &memory);
        let mut pack = || {
            let all = std::iter::once(run(0, PAGES));
            packing.pack(all, 1 << 20, &mut room).unwrap()
        };
        fill(&memory, noise);
        assert_eq!(pack(), None, "{mode}");
        // A twentieth of it is not enough either, a third is.
        fill(&memory, |at| if at % 10_240 < 512 { 7 } else { noise(at) });
        assert_eq!(pack(), None, "{mode}");
        fill(&memory, |at| if at % 1536 < 512 { 7 } else { noise(at) });
        assert!(pack().is_some(), "{mode}");
        assert!(packing.spent() > Duration::ZERO);
    }
}

#[test]
fn lengths_that_do_not_fit_pack_nothing() {
    let memory = memory();
    let (mut packing, mut room) = packing(Compression::Lz4, &memory);
    let mut pack = |runs: &[Run], data_bytes: u32| {
        let packed = packing.pack(runs.iter().copied(), data_bytes, &mut room);
        packed.map(|packed| packed.is_some())
    };
    assert_eq!(pack(&[run(0, 2)], 4096), Ok(false));
    assert_eq!(pack(&[run(0, 1)], 8192), Ok(false));
    assert_eq!(pack(&[run(0, 256), run(0, 1)], (1 << 20) + 4096), Ok(false));
    assert!(pack(&[run(u64::from(PAGES), 1)], 4096).is_err());
    assert_eq!(pack(&[run(0, 2)], 8192), Ok(true));
}

/// A guest writes all the while: what is packed unpacks, whatever the mix of old and new bytes, and
/// once the guest rests it is what the guest has.
#[test]
fn a_guest_that_writes_meanwhile_breaks_nothing() {
    let memory = memory();
    fill(&memory, |at| at / 64);
    for mode in modes() {
        let (mut packing, mut room) = packing(mode, &memory);
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut seed = 0_u64;
                while !is_over.load(Ordering::Relaxed) {
                    seed += 1;
                    let page: Vec<u8> = (0..512_u64)
                        .flat_map(|at| (seed ^ (at / 32)).to_le_bytes())
                        .collect();
                    for first in (0..u64::from(PAGES)).skip(seed as usize % 3) {
                        memory.copy_in(run(first, 1), &page).unwrap();
                    }
                }
            });
            for _ in 0..30 {
                let all = std::iter::once(run(0, PAGES));
                if let Some(packed) = packing.pack(all, 1 << 20, &mut room).unwrap() {
                    unpacked(packing.codec(), &room[..packed as usize], 1 << 20);
                }
            }
            is_over.store(true, Ordering::Relaxed);
        });
        let all = std::iter::once(run(0, PAGES));
        let packed = packing.pack(all, 1 << 20, &mut room).unwrap().unwrap();
        let data = unpacked(packing.codec(), &room[..packed as usize], 1 << 20);
        let mut expected = vec![0; 1 << 20];
        memory.copy_out(run(0, PAGES), &mut expected).unwrap();
        assert!(data == expected, "{mode}");
    }
}

#[test]
fn zstd_has_no_more_memory_than_is_stated() {
    for (level, bytes_max) in [(ZstdLevel::MIN, 5 << 17), (ZstdLevel::MAX, 11 << 20)] {
        let memory = memory();
        let (mut packing, mut room) = packing(Compression::Zstd { level }, &memory);
        let size = |packing: &Packing| match &packing.coder {
            Coder::Zstd(context) => context.sizeof(),
            Coder::Lz4(_) => 0,
        };
        let at_first = size(&packing);
        assert!(at_first < bytes_max, "{level}: {at_first}");
        // All of it was there when the lane opened.
        for pages in [1, 256, 17] {
            let runs = std::iter::once(run(0, pages));
            let data_bytes = pages * PAGE_BYTES as u32;
            packing.pack(runs, data_bytes, &mut room).unwrap();
        }
        assert_eq!(size(&packing), at_first);
    }
}

#[test]
fn automatic_packing_packs_nothing_before_it_knows_the_link() {
    let memory = memory();
    let (mut packing, mut room) = packing(Compression::Auto, &memory);
    for _ in 0..10 {
        let all = std::iter::once(run(0, PAGES));
        assert_eq!(packing.pack(all, 1 << 20, &mut room), Ok(None));
        packing.handed(1 << 20, 1 << 20, false);
    }
    assert_eq!(packing.spent(), Duration::ZERO);
}
