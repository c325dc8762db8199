//! Compressed frames that lie, and peers that don't know any.

use dunlin_transports::tcp::{Compression, ZstdLevel};

use super::*;

const LZ4: u16 = 4;
const ZSTD: u16 = 5;

/// 4096 bytes of the same, as each codec makes them; by hand, from the formats' descriptions.
fn page_of(kind: u16, byte: u8) -> Vec<u8> {
    if kind == ZSTD {
        // Magic, a content size of 256 + 0xf00, and one last block: `byte` 4096 times.
        return vec![0x28, 0xb5, 0x2f, 0xfd, 0x60, 0, 0x0f, 0x03, 0x80, 0, byte];
    }
    // One byte, the same again 4 + 15 + 15 · 255 + 246 times, and five at the end.
    let mut bytes = vec![0x1f, byte, 1, 0];
    bytes.extend([255; 15]);
    bytes.push(246);
    bytes.extend([0x50, byte, byte, byte, byte, byte]);
    bytes
}

fn packed_header(kind: u16, count: u16, packed_bytes: u32, data_bytes: u32) -> Vec<u8> {
    header(
        kind,
        count,
        u64::from(data_bytes) << 32 | u64::from(packed_bytes),
    )
}

/// A compressed frame that says of itself what is so.
fn packed_frame(kind: u16, runs: &[(u64, u32, u32)], packed: &[u8]) -> Vec<u8> {
    let pages: u32 = runs
        .iter()
        .filter(|(_, _, flags)| *flags == 0)
        .map(|(_, pages, _)| *pages)
        .sum();
    let header = packed_header(kind, runs.len() as u16, packed.len() as u32, pages * 4096);
    [header, table(runs), packed.to_vec()].concat()
}

#[test]
fn honest_frames_by_hand_are_understood() {
    for mechanism in MECHANISMS {
        let mut victim = Victim::new(options(mechanism, Duration::from_secs(10)));
        victim.memory.copy_in(run(4, 1), &[9; 4096]).unwrap();
        let mut sent = packed_frame(LZ4, &[(4, 1, 1), (6, 1, 0)], &page_of(LZ4, 7));
        sent.extend(packed_frame(ZSTD, &[(8, 1, 0)], &page_of(ZSTD, 8)));
        // The codecs change from frame to frame, and with frames that are not compressed.
        sent.extend(frame(&[(9, 1, 0)], 9));
        sent.extend(packed_frame(LZ4, &[(10, 1, 0)], &page_of(LZ4, 10)));
        sent.extend(fence(1));
        victim.peer.write_all(&sent).unwrap();
        assert_eq!(victim.lane.next_fence(soon()).unwrap(), FenceNumber(1));
        for (page, byte) in [(4, 0), (6, 7), (8, 8), (9, 9), (10, 10)] {
            assert!(bytes(&victim.memory, run(page, 1)) == [byte; 4096]);
        }
        let counted = victim.lane.counters().unwrap();
        assert_eq!(counted.payload_bytes, 4 * PAGE_BYTES);
        assert_eq!(counted.compressed_bytes, 3 * PAGE_BYTES);
        assert_eq!((counted.runs, counted.zero_pages), (4, 1));
        // All that came, and the one word that went.
        assert_eq!(counted.wire_bytes, sent.len() as u64 + 16);
    }
}

/// A frame that is split anywhere is the same frame.
#[test]
fn a_frame_that_comes_in_two_pieces_is_understood() {
    let mut sent = packed_frame(LZ4, &[(0, 1, 0)], &page_of(LZ4, 7));
    sent.extend(fence(1));
    for mechanism in MECHANISMS {
        for split in 1..sent.len() {
            let mut victim = Victim::new(options(mechanism, Duration::from_secs(10)));
            let mut peer = victim.peer.try_clone().unwrap();
            let (first, second) = sent.split_at(split);
            peer.write_all(first).unwrap();
            let second = second.to_vec();
            let sending = std::thread::spawn(move || {
                std::thread::yield_now();
                peer.write_all(&second).unwrap();
            });
            assert_eq!(victim.lane.next_fence(soon()).unwrap(), FenceNumber(1));
            assert!(bytes(&victim.memory, run(0, 1)) == [7; 4096]);
            sending.join().unwrap();
        }
    }
}

#[test]
fn what_breaks_the_protocol_is_refused_before_memory_is_touched() {
    for kind in [LZ4, ZSTD] {
        for (name, sent, named) in lies(kind) {
            for mechanism in MECHANISMS {
                let mut victim = Victim::new(options(mechanism, Duration::from_secs(10)));
                let all = run(0, PAGES as u32);
                let ones = vec![1; all.bytes() as usize];
                victim.memory.copy_in(all, &ones).unwrap();
                victim.peer.write_all(&sent).unwrap();
                let error = victim.lane.next_fence(soon()).unwrap_err();
                assert!(error.to_string().contains(named), "{name}: {error}");
                // Not its zeros either: a frame is all or nothing.
                assert!(bytes(&victim.memory, all) == ones, "{name}");
                assert!(victim.lane.next_fence(soon()).is_err(), "{name}");
            }
        }
    }
}

/// Frames that are refused, and what the error has to say.
fn lies(kind: u16) -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let page = page_of(kind, 7);
    let length = page.len() as u32;
    let one = [(0, 1, 0)];
    let two = [(0, 2, 0)];
    let prepared = u64::from(PREPARED);
    let garbage: Vec<u8> = (0..200_u32).map(|at| (at * 91 + 7) as u8).collect();
    // More data than 1 MiB, in less than that.
    let bomb = if kind == ZSTD {
        // 128 KiB of the same in each of 64 blocks, no content size, a window of 8 MiB.
        let mut bytes = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0x68];
        for block in 0..64 {
            let last = u32::from(block == 63);
            bytes.extend(&((128 << 10 << 3) | 2 | last).to_le_bytes()[..3]);
            bytes.push(7);
        }
        bytes
    } else {
        let mut bytes = vec![0x1f, 7, 1, 0];
        bytes.extend(vec![255; 500_000]);
        bytes.extend([0, 0x50, 7, 7, 7, 7, 7]);
        bytes
    };
    let head =
        |count, packed_bytes, data_bytes| packed_header(kind, count, packed_bytes, data_bytes);
    vec![
        ("no runs", head(0, 10, 4096), "0 runs"),
        ("too many runs", head(513, 10, 4096), "513 runs"),
        (
            "too much data",
            head(1, 10, (1 << 20) + 4096),
            "1052672 bytes",
        ),
        ("absurd data", head(1, 10, u32::MAX), "4294967295 bytes"),
        ("nothing packed", head(1, 0, 4096), "0 bytes of"),
        ("not smaller", head(1, 4096, 4096), "has to be smaller"),
        ("larger", head(1, u32::MAX, 4096), "has to be smaller"),
        (
            "less data than runs",
            [head(1, length, 4096), table(&two), page.clone()].concat(),
            "runs of 8192 bytes in a frame of 4096 bytes",
        ),
        (
            "more data than runs",
            [head(1, length, 8192), table(&one), page.clone()].concat(),
            "runs of 4096 bytes in a frame of 8192 bytes",
        ),
        (
            "data for zeros",
            [head(1, length, 4096), table(&[(0, 1, 1)]), page.clone()].concat(),
            "runs of 0 bytes",
        ),
        (
            "not whole pages",
            [head(1, length, 4095), table(&one), page.clone()].concat(),
            "in a frame of 4095 bytes",
        ),
        (
            "short, behind zeros",
            packed_frame(kind, &[(300, 1, 1), (0, 2, 0)], &page),
            "that makes 4096 bytes where 8192 were announced",
        ),
        (
            "cut off",
            packed_frame(kind, &one, &page[..page.len() - 1]),
            "does not make 4096 bytes",
        ),
        (
            "garbage",
            packed_frame(kind, &[(300, 1, 1), (0, 1, 0)], &garbage),
            "does not make 4096 bytes",
        ),
        (
            "a bomb",
            packed_frame(kind, &[(0, 256, 0)], &bomb),
            "does not make 1048576 bytes",
        ),
        (
            "the other codec's",
            packed_frame(kind, &one, &page_of(LZ4 + ZSTD - kind, 7)),
            "does not make 4096 bytes",
        ),
        (
            "outside of memory",
            packed_frame(kind, &[(PAGES, 1, 0)], &page),
            "not inside one region",
        ),
        (
            "far outside",
            packed_frame(kind, &[(u64::MAX, 1, 0)], &page),
            "not inside one region",
        ),
        (
            "zeros outside",
            packed_frame(kind, &[(0, 1, 0), (u64::MAX, u32::MAX, 1)], &page),
            "not inside one region",
        ),
        (
            "not prepared",
            packed_frame(kind, &[(prepared, 1, 0)], &page),
            "are not prepared",
        ),
        (
            "zeros half prepared",
            packed_frame(kind, &[(0, 1, 0), (prepared - 1, 2, 1)], &page),
            "are not prepared",
        ),
    ]
}

#[test]
fn mutated_frames_reach_only_what_is_prepared() {
    for kind in [LZ4, ZSTD] {
        let mut honest = packed_frame(kind, &[(0, 1, 0), (8, 3, 1)], &page_of(kind, 7));
        honest.extend(fence(1));
        honest.extend(packed_frame(kind, &[(20, 1, 0)], &page_of(kind, 8)));
        honest.extend(fence(2));
        for seed in 1..=300_u64 {
            let mechanism = MECHANISMS[seed as usize % MECHANISMS.len()];
            let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let mut sent = honest.clone();
            for _ in 0..=random.below(3) {
                let at = random.below(sent.len());
                sent[at] = random.next() as u8;
            }
            if random.below(4) == 0 {
                sent.truncate(random.below(sent.len()));
            }
            let mut victim = Victim::new(options(mechanism, Duration::from_millis(200)));
            victim.peer.write_all(&sent).unwrap();
            drop(victim.peer);
            let fences = (0..3)
                .take_while(|_| victim.lane.next_fence(soon()).is_ok())
                .count();
            assert!(fences <= 2);
            let rest = run(PREPARED.into(), PAGES as u32 - PREPARED);
            let rest = bytes(&victim.memory, rest);
            assert!(rest.iter().all(|byte| *byte == 0), "seed {seed}");
        }
    }
}

#[test]
fn an_announcement_without_data_ends_at_the_stall_limit() {
    for mechanism in MECHANISMS {
        for kind in [LZ4, ZSTD] {
            let whole = packed_frame(kind, &[(0, 1, 0)], &page_of(kind, 7));
            for length in [5, 16, 20, 32, whole.len() - 1] {
                let mut victim = Victim::new(options(mechanism, Duration::from_millis(50)));
                victim.peer.write_all(&whole[..length]).unwrap();
                // Were it not for the stall limit, this would take an hour.
                let deadline = Deadline::after(Duration::from_secs(3600));
                let result = victim.lane.next_fence(deadline);
                assert!(
                    matches!(result, Err(LaneError::Stalled { .. })),
                    "{result:?}"
                );
            }
        }
    }
}

/// A lane to a destination that never said that it takes them gets no compressed frames.
#[test]
fn a_destination_that_knows_no_compression_never_gets_any() {
    let level = ZstdLevel::MIN;
    for compression in [
        Compression::Lz4,
        Compression::Zstd { level },
        Compression::Auto,
    ] {
        let options = Options {
            compression,
            ..options(Mechanism::Auto, PATIENCE)
        };
        // Memory is all zeros: nothing shrinks better.
        let (mut lane, peer, memory) = open_source(options);
        let reading = std::thread::spawn(move || {
            let mut pages = 0;
            loop {
                let mut head = [0; 16];
                (&peer).read_exact(&mut head).unwrap();
                let kind = u16::from_le_bytes([head[4], head[5]]);
                if kind == 2 {
                    return (pages, peer);
                }
                assert_eq!(kind, 1);
                let count = usize::from(u16::from_le_bytes([head[6], head[7]]));
                let bytes = u64::from_le_bytes(head[8..].try_into().unwrap());
                let mut rest = vec![0; count * 16 + bytes as usize];
                (&peer).read_exact(&mut rest).unwrap();
                pages += bytes / PAGE_BYTES;
            }
        });
        lane.put(&[run(0, PAGES as u32)]).unwrap();
        lane.fence().unwrap();
        let (pages, _peer) = reading.join().unwrap();
        assert_eq!(pages, PAGES);
        let counted = lane.counters();
        assert_eq!(counted.compressed_bytes, 0);
        assert_eq!(counted.compressing, Duration::ZERO);
        drop(memory);
    }
}
