//! A lane in virtual time: a link, a destination and a codec with speeds of the test's choice.

use super::*;

const BATCH_BYTES: u32 = 1 << 20;

/// What a socket's buffer holds back.
const BUFFER_BYTES: f64 = 4e6;

/// Speeds in bytes a second; each can be changed while the lane runs.
#[derive(Clone, Copy)]
struct World {
    link: f64,
    /// What the destination takes of guest bytes, however few they were on the wire.
    destination: f64,
    compressing: f64,
    /// Compressed size over plain size; 1 for what does not shrink.
    ratio: f64,
    /// Of its time, what the thread has a processor for.
    processor_share: f64,
    /// What gathering a batch costs the lane besides, in seconds.
    filling: f64,
}

/// Text, over 1 Gb/s.
const TEXT: World = World {
    link: 110e6,
    destination: 3e9,
    compressing: 350e6,
    ratio: 0.56,
    processor_share: 1.0,
    filling: 50e-6,
};

struct Lane {
    worth: Worth,
    meter: Meter,
    now: Instant,
    begun: Instant,
    /// Bytes that wait in the socket's buffer, and the guest bytes that they stand for.
    waiting: f64,
    waiting_guest: f64,
    packed: u32,
    compressed: Duration,
    switches: u32,
}

impl Lane {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            worth: Worth::default(),
            meter: Meter::default(),
            now,
            begun: now,
            waiting: 0.0,
            waiting_guest: 0.0,
            packed: 0,
            compressed: Duration::ZERO,
            switches: 0,
        }
    }

    fn is_on(&self) -> bool {
        matches!(self.worth.state, State::On { .. })
    }

    /// The link drains while time passes.
    fn pass(&mut self, world: &World, seconds: f64) {
        self.now += Duration::from_secs_f64(seconds);
        let left = (self.rate(world) * seconds).min(self.waiting);
        if self.waiting > 0.0 {
            self.waiting_guest -= self.waiting_guest * left / self.waiting;
        }
        self.waiting -= left;
    }

    /// Wire bytes a second, of what waits now.
    fn rate(&self, world: &World) -> f64 {
        if self.waiting_guest == 0.0 {
            return world.link;
        }
        world
            .link
            .min(world.destination * self.waiting / self.waiting_guest)
    }

    fn send(&mut self, world: &World, batches: u32) {
        for _ in 0..batches {
            let was_on = self.is_on();
            let bytes = f64::from(BATCH_BYTES);
            self.pass(world, world.filling);
            let mut wire = bytes;
            let mut is_packed = false;
            if self.worth.wants_next(self.now) {
                // Preempted, it takes the longer by the clock.
                let seconds = bytes / world.compressing / world.processor_share;
                let wall = Duration::from_secs_f64(seconds);
                self.pass(world, seconds);
                is_packed = world.ratio < 0.9;
                wire = if is_packed {
                    bytes * world.ratio
                } else {
                    bytes
                };
                self.worth.tried(
                    self.now,
                    Trial {
                        data_bytes: BATCH_BYTES,
                        packed_bytes: wire as u32,
                        wall,
                        processor: wall.mul_f64(world.processor_share),
                    },
                );
                self.compressed += wall;
                self.packed += u32::from(is_packed);
            }
            // The last batch has to be in the buffer whole.
            if self.waiting > BUFFER_BYTES {
                let seconds = (self.waiting - BUFFER_BYTES) / self.rate(world);
                self.pass(world, seconds);
            }
            if let Some(interval) = self.meter.look(self.now, self.waiting as u64) {
                self.worth.sent(self.now, interval);
            }
            self.meter
                .handed(BATCH_BYTES.into(), wire as u64, is_packed);
            self.waiting += wire;
            self.waiting_guest += bytes;
            self.switches += u32::from(was_on != self.is_on());
        }
    }

    /// The share of all time that went into compressing.
    fn share_compressing(&self) -> f64 {
        self.compressed.as_secs_f64() / (self.now - self.begun).as_secs_f64()
    }
}

fn after(world: World, batches: u32) -> Lane {
    let mut lane = Lane::new();
    lane.send(&world, batches);
    lane
}

#[test]
fn a_slow_link_and_data_that_shrinks_are_compressed() {
    let with = after(TEXT, 2000);
    assert!(with.packed > 1900, "{}", with.packed);
    let time = (with.now - with.begun).as_secs_f64();
    let without = 2000.0 * f64::from(BATCH_BYTES) / TEXT.link;
    assert!(time < without * 0.62, "{time} s, and {without} s without");
}

#[test]
fn a_fast_link_is_left_alone() {
    for link in [1.2e9, 5e9] {
        let lane = after(World { link, ..TEXT }, 5000);
        assert!(!lane.is_on());
        assert_eq!(lane.switches, 0);
        // Both are busy, so trials are made.
        assert!(lane.share_compressing() < 0.02, "{link}");
        assert!(lane.compressed > Duration::ZERO);
    }
}

#[test]
fn where_the_link_is_not_the_limit_nothing_is_tried() {
    let world = World {
        filling: 0.1,
        ..TEXT
    };
    let lane = after(world, 500);
    assert_eq!(lane.compressed, Duration::ZERO);
}

#[test]
fn data_that_does_not_shrink_costs_trials_only() {
    let world = World {
        ratio: 1.0,
        compressing: 5e9,
        ..TEXT
    };
    let lane = after(world, 2000);
    assert_eq!(lane.switches, 0);
    assert!(lane.share_compressing() < 0.02);
    assert!(lane.compressed > Duration::ZERO);
}

#[test]
fn it_ends_when_the_data_no_longer_shrinks_and_begins_when_it_does_again() {
    let mut lane = after(TEXT, 200);
    assert!(lane.is_on());
    let random = World { ratio: 1.0, ..TEXT };
    lane.send(&random, 2 * WINDOW_BATCHES);
    assert!(!lane.is_on());
    lane.send(&random, 1000);
    assert!(!lane.is_on());
    lane.send(&TEXT, 1000);
    assert!(lane.is_on());
}

#[test]
fn it_ends_when_the_link_becomes_fast() {
    let mut lane = after(TEXT, 200);
    assert!(lane.is_on());
    let fast = World { link: 5e9, ..TEXT };
    lane.send(&fast, RENEWAL_BATCHES + WINDOW_BATCHES);
    assert!(!lane.is_on());
    // Busy as it is, trials go on.
    (lane.begun, lane.compressed) = (lane.now, Duration::ZERO);
    lane.send(&fast, 2000);
    assert!(!lane.is_on());
    assert!(lane.share_compressing() < 0.02);
}

#[test]
fn a_destination_that_gains_nothing_by_it_ends_it() {
    // The destination's memory is the limit: the link looks slow, and compressing changes nothing.
    let world = World {
        link: 5e9,
        destination: 100e6,
        ..TEXT
    };
    let lane = after(world, 10_000);
    let share = f64::from(lane.packed) / 10_000.0;
    assert!(lane.switches > 0, "it was tried");
    assert!(share < 0.1, "{share}");
}

#[test]
fn short_processors_end_it_and_keep_it_from_beginning() {
    let short = World {
        processor_share: 0.4,
        ..TEXT
    };
    // Slow enough to pay even so.
    let short = World {
        link: 20e6,
        ..short
    };
    let lane = after(short, 2000);
    assert_eq!(lane.switches, 0);
    let mut lane = after(TEXT, 200);
    assert!(lane.is_on());
    lane.send(&short, 20);
    assert!(!lane.is_on());
    // A thread that was held up once is no sign.
    let mut lane = after(TEXT, 200);
    lane.send(&short, 1);
    assert!(lane.is_on());
}

#[test]
fn on_the_border_it_does_not_switch_all_the_time() {
    // Around the rate at which compressing gains as much as it costs.
    for link in 0..40 {
        let link = f64::from(link).mul_add(10e6, 50e6);
        let lane = after(World { link, ..TEXT }, 5000);
        // Renewals alone switch off and on again once in 256 batches.
        assert!(lane.switches <= 2 * 5000 / RENEWAL_BATCHES + 2, "{link}");
    }
}

#[test]
fn looks_tell_what_left_and_whether_anything_waited() {
    let begun = Instant::now();
    let at = |milliseconds| begun + Duration::from_millis(milliseconds);
    let mut meter = Meter::default();
    assert_eq!(meter.look(at(0), 500), None);
    meter.handed(4096, 5000, false);
    let interval = |guest_bytes, elapsed, is_packed, is_link_busy| {
        let elapsed = Duration::from_millis(elapsed);
        Some(Interval {
            guest_bytes,
            elapsed,
            is_packed,
            is_link_busy,
        })
    };
    assert_eq!(meter.look(at(3), 1500), interval(4000, 3, false, true));
    // No batch behind the last look.
    assert_eq!(meter.look(at(4), 1500), None);
    meter.handed(8192, 1000, true);
    assert_eq!(meter.look(at(9), 0), interval(8192, 5, true, false));
}
