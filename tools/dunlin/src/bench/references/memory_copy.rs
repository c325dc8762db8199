//! A copy from memory to memory on one thread: what a move that carries every byte once over the
//! memory bus can't exceed on one lane and one host.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::Conditions;
use crate::bench::Stop;
use crate::bench::results::ReferenceRun;

/// Far beyond any cache, and little enough for any host.
const BUFFER_BYTES: usize = 256 << 20;

/// How long it is copied at least, so that a short disturbance is averaged away.
const TIME_MIN: Duration = Duration::from_millis(300);

/// Copies.
pub(super) fn run(conditions: &Conditions<'_>) -> Result<ReferenceRun, Stop> {
    // Filled with something, so that every page is there.
    let source = vec![0x5a_u8; BUFFER_BYTES];
    let mut destination = vec![1_u8; BUFFER_BYTES];
    let begun = Instant::now();
    let mut copied = 0_u64;
    while begun.elapsed() < TIME_MIN {
        if (conditions.interrupted)() {
            return Err(Stop::Interrupted);
        }
        destination.copy_from_slice(black_box(&source));
        black_box(&mut destination);
        copied += BUFFER_BYTES as u64;
    }
    let seconds = begun.elapsed().as_secs_f64();
    Ok(ReferenceRun {
        goodput_bytes_per_s: Some((copied as f64 / seconds) as u64),
        ..ReferenceRun::default()
    })
}
