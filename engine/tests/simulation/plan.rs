//! What a seed says: the guest, the settings, the network, and which faults befall the move when.
//!
//! The plan has a generator of its own, so that a plan does not change when the schedule does.

use std::time::Duration;

use dunlin_engine::destination::ReceiveSettings;
use dunlin_engine::milestone::Milestone;
use dunlin_engine::pin_budget::PinBudget;
use dunlin_engine::protocol::MessageKind;
use dunlin_engine::records::Entry;
use dunlin_engine::settings::{MoveSettings, OnStall, Verify};
use dunlin_transports::inmemory::Place;
use dunlin_transports::lane::LaneNumber;

use super::faults::{Fault, Planned, Who};
use super::guest::Shape;
use super::ledger::Side;
use super::network::Wire;
use super::stage::{Call, Moment};

/// The messages of the handover, in the order in which they are sent: most faults fall among them.
const HANDOVER: [MessageKind; 6] = [
    MessageKind::Prepare,
    MessageKind::Ready,
    MessageKind::Commit,
    MessageKind::Running,
    MessageKind::VerifyEnd,
    MessageKind::Released,
];

/// The other messages.
const OTHERS: [MessageKind; 6] = [
    MessageKind::Hello,
    MessageKind::Welcome,
    MessageKind::Abort,
    MessageKind::Aborted,
    MessageKind::VerifyPages,
    MessageKind::Verified,
];

/// The messages that open and close ranges of memory.
const RANGES: [MessageKind; 4] = [
    MessageKind::Open,
    MessageKind::Grants,
    MessageKind::Close,
    MessageKind::Closed,
];

/// Pages of a chunk, the unit in which memory is registered.
const CHUNK_PAGES: u64 = 512;

/// The messages with which a source in doubt asks.
const SETTLING: [MessageKind; 3] = [MessageKind::Ask, MessageKind::Answer, MessageKind::Settled];

/// What is recorded while it matters.
const ENTRIES: [(Side, Entry); 8] = [
    (Side::Source, Entry::GivenUp),
    (Side::Source, Entry::Stayed),
    (Side::Source, Entry::Released),
    (Side::Destination, Entry::Owned),
    (Side::Destination, Entry::Running),
    (Side::Destination, Entry::Aborted),
    (Side::Destination, Entry::Broken),
    (Side::Destination, Entry::Released),
];

/// Where a lost connection leaves the source in doubt.
const DOUBTFUL: [Moment; 10] = [
    Moment::Sends(MessageKind::Commit),
    Moment::Reaches(Milestone::GivenUp),
    Moment::Reaches(Milestone::Committed),
    Moment::Reaches(Milestone::Commit),
    Moment::Records(Side::Destination, Entry::Owned),
    Moment::Reaches(Milestone::Owned),
    Moment::Calls(Side::Destination, Call::Run),
    Moment::Reaches(Milestone::Entered),
    Moment::Sends(MessageKind::Running),
    Moment::Reaches(Milestone::RunningSent),
];

/// What is asked of a guest.
const CALLS: [(Side, Call); 8] = [
    (Side::Destination, Call::Acquire),
    (Side::Destination, Call::Create),
    (Side::Source, Call::Pause),
    (Side::Source, Call::Save),
    (Side::Source, Call::Resume),
    (Side::Destination, Call::Load),
    (Side::Destination, Call::Run),
    (Side::Destination, Call::Entered),
];

/// How long faults last, in milliseconds: from far below every limit to far above.
const LASTING_MS: [u64; 6] = [1, 20, 150, 800, 4_000, 15_000];

/// How long a move with these settings may pause the guest, up to the give-up.
pub(crate) fn blackout_cap(settings: &MoveSettings) -> Duration {
    settings.blackout_cap.unwrap_or(settings.max_blackout * 10)
}

/// A small deterministic generator (SplitMix64, Steele and others 2014).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize].clone()
    }

    fn milliseconds(&mut self, choices: &[u64]) -> Duration {
        Duration::from_millis(self.of(choices))
    }

    fn lasting(&mut self) -> Duration {
        self.milliseconds(&LASTING_MS)
    }
}

/// What a seed says.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The guest.
    pub(crate) shape: Shape,
    /// How long a message takes.
    latency: Duration,
    /// How much longer on each lane.
    lanes: Vec<Duration>,
    /// Whether both sides have devices that register memory.
    registers: bool,
    /// The source's settings.
    pub(crate) settings: MoveSettings,
    /// The destination's settings.
    pub(crate) receive: ReceiveSettings,
    /// How long the guest runs before it is moved.
    pub(crate) run_up: Duration,
    /// What befalls the move.
    pub(crate) planned: Vec<Planned>,
}

impl Plan {
    /// Settings with which a move goes well if nothing is wrong.
    pub(crate) fn lenient(&self) -> MoveSettings {
        MoveSettings {
            max_blackout: Duration::from_secs(10),
            blackout_cap: None,
            on_stall: OnStall::Switchover,
            max_bandwidth: None,
            timeout: None,
            ..self.settings.clone()
        }
    }

    /// The network.
    pub(crate) fn wire(&self) -> Wire {
        Wire::new(self.latency, &self.lanes, self.registers)
    }

    /// The plan of a seed.
    pub(crate) fn draw(seed: u64) -> Self {
        let mut dice = Dice(seed ^ 0x0064_756e_6c69_6e00);
        let shape = Shape {
            regions: (0..1 + dice.below(3)).map(|_| 1 + dice.below(24)).collect(),
            vcpus: 1 + dice.below(2) as u32,
            stride: 1,
            think: Duration::from_micros(dice.of(&[30, 200, 1_000, 5_000])),
            save_dirties: dice.one_in(3),
            self_check: !dice.one_in(4),
        };
        let latency = Duration::from_micros(dice.of(&[0, 50, 1_000, 15_000]));
        let peer_timeout = dice.milliseconds(&[100, 500, 2_000]);
        let max_blackout = dice.milliseconds(&[3, 50, 400]);
        let lanes = 1 + dice.below(3) as u16;
        let count = dice.of(&[0, 1, 1, 1, 1, 2, 2, 2, 3, 3]);
        let planned: Vec<_> = if dice.one_in(4) {
            doubt(&mut dice, lanes)
        } else {
            (0..count).map(|_| planned(&mut dice, lanes)).collect()
        };
        let damages_pages =
            |planned: &Planned| matches!(planned.fault, Fault::Corrupt(Place::Lane(_), _));
        let verify = if planned.iter().any(damages_pages) {
            // Lanes have checksums of their own on a real link. Here the digests must find it.
            Verify::Full
        } else {
            dice.of(&[Verify::Auto, Verify::Auto, Verify::Off, Verify::Full])
        };
        let settings = MoveSettings {
            max_blackout,
            blackout_cap: dice.of(&[None, Some(max_blackout * 3)]),
            on_stall: dice.of(&[OnStall::Abort, OnStall::Switchover]),
            max_bandwidth: dice.of(&[None, None, Some(20 << 20)]),
            max_rounds: dice.of(&[3, 30]),
            timeout: dice.of(&[None, None, Some(Duration::from_secs(5))]),
            verify,
            lanes: Some(lanes),
            cpus: Vec::new(),
            peer_timeout,
            pin_budget: PinBudget::default(),
        };
        let receive = ReceiveSettings {
            peer_timeout,
            session_limit: Duration::from_secs(60),
            ..ReceiveSettings::default()
        };
        let mut plan = Self {
            registers: false,
            run_up: dice.milliseconds(&[0, 2, 40]),
            lanes: match dice.below(3) {
                0 => (0..lanes).map(|_| dice.milliseconds(&[0, 1, 30])).collect(),
                _ => Vec::new(),
            },
            shape,
            latency,
            settings,
            receive,
            planned,
        };
        // Dice of its own: what the other seeds are does not hang on it.
        let mut dice = Dice(seed ^ 0x7265_6769_7374_6572);
        if dice.one_in(6) {
            plan.register(&mut dice, lanes);
        }
        plan
    }

    /// Lets devices register memory, of a guest that is larger than the window.
    fn register(&mut self, dice: &mut Dice, lanes: u16) {
        let region = |dice: &mut Dice| CHUNK_PAGES * (1 + dice.below(3)) + 1 + dice.below(300);
        self.registers = true;
        self.shape.regions = (0..1 + dice.below(3)).map(|_| region(dice)).collect();
        self.shape.stride = dice.of(&[7, 41, 170]);
        let budgets = [
            PinBudget::Bytes(8 << 20),
            PinBudget::Bytes(10 << 20),
            PinBudget::Unlimited,
        ];
        self.settings.pin_budget = dice.of(&budgets);
        self.receive.pin_budget = dice.of(&budgets);
        let side = dice.of(&[Side::Source, Side::Destination]);
        let fault = match dice.below(6) {
            0 => Fault::RefuseRegistration(side, dice.below(8)),
            1 => Fault::SlowDevice(side, dice.lasting() / 4, dice.lasting()),
            2 | 3 => fault(dice, lanes),
            _ => return,
        };
        self.planned.push(Planned {
            moment: Moment::Sends(dice.of(&RANGES)),
            skips: dice.below(3) as u32,
            later: None,
            fault,
        });
    }
}

fn planned(dice: &mut Dice, lanes: u16) -> Planned {
    let moment = match dice.below(14) {
        0..=3 => Moment::Sends(dice.of(&HANDOVER)),
        4 => Moment::Sends(dice.of(&OTHERS)),
        5 | 6 => {
            let (side, call) = dice.of(&CALLS);
            Moment::Calls(side, call)
        }
        7 | 8 => {
            let (side, entry) = dice.of(&ENTRIES);
            Moment::Records(side, entry)
        }
        9 | 10 => Moment::Reaches(dice.of(Milestone::ALL)),
        _ => {
            // From 1 ms to 2 s, each order of magnitude as often as the others.
            let exponent = 10 + dice.below(11);
            Moment::Time(Duration::from_micros(dice.below(1 << exponent)))
        }
    };
    Planned {
        moment,
        skips: 0,
        later: match dice.below(4) {
            0 => Some(Duration::from_micros(dice.below(200))),
            1 => Some(Duration::from_micros(dice.below(40_000))),
            _ => None,
        },
        fault: fault(dice, lanes),
    }
}

/// A connection that is lost behind the give-up, and what befalls whoever wants to settle it.
fn doubt(dice: &mut Dice, lanes: u16) -> Vec<Planned> {
    let lost = match dice.below(8) {
        0 | 1 => Fault::Cut(Place::Control),
        2 | 3 => Fault::CutLosing(Place::Control),
        4 => Fault::Silence(Place::All, dice.lasting()),
        5 => Fault::Kill(Who::Destination, Duration::ZERO),
        6 => Fault::CrashHost(Side::Destination, dice.lasting()),
        _ => Fault::Stop(Who::Destination, dice.lasting()),
    };
    let first = Planned {
        moment: dice.of(&DOUBTFUL),
        skips: 0,
        later: dice
            .one_in(3)
            .then(|| Duration::from_micros(dice.below(300))),
        fault: lost,
    };
    let mut all = vec![first];
    for _ in 0..dice.below(3) {
        let moment = match dice.below(4) {
            0 | 1 => Moment::Sends(dice.of(&SETTLING)),
            2 => Moment::Reaches(Milestone::InDoubt),
            _ => Moment::Records(Side::Destination, Entry::Aborted),
        };
        all.push(Planned {
            moment,
            skips: dice.below(3) as u32,
            later: dice
                .one_in(2)
                .then(|| Duration::from_micros(dice.below(2_000_000))),
            fault: match dice.below(5) {
                0 => Fault::FenceAndResume,
                _ => fault(dice, lanes),
            },
        });
    }
    all
}

fn fault(dice: &mut Dice, lanes: u16) -> Fault {
    let lane = LaneNumber(dice.below(u64::from(lanes)) as u16);
    let ways = [
        Place::All,
        Place::Control,
        Place::ControlToDestination,
        Place::ControlToSource,
        Place::Lane(lane),
    ];
    let side = dice.of(&[Side::Source, Side::Destination]);
    match dice.below(28) {
        0 | 1 => Fault::Delay(dice.of(&ways), dice.lasting() / 2, dice.lasting()),
        2..=4 => Fault::Cut(dice.of(&ways)),
        5..=7 => Fault::CutLosing(dice.of(&ways)),
        8 | 9 => Fault::Silence(dice.of(&ways), dice.lasting()),
        10 => Fault::Stall(lane, dice.lasting()),
        11 => Fault::Corrupt(dice.of(&ways[1..]), dice.below(64)),
        12 => Fault::Kill(Who::Source, Duration::ZERO),
        13 | 14 => Fault::Kill(Who::Destination, Duration::ZERO),
        15 => Fault::Kill(Who::Supervisor, dice.lasting()),
        16 => Fault::Kill(Who::Send, Duration::ZERO),
        17 => Fault::Stop(dice.of(&Who::ALL), dice.lasting()),
        18 => Fault::CrashHost(side, dice.lasting()),
        19 => Fault::ClockForward(side, dice.lasting() * 4),
        21 | 22 => Fault::SlowDisk(side, dice.lasting() / 2, dice.lasting()),
        23 => Fault::FullDisk(side, dice.lasting()),
        24 => Fault::FailingDisk(side, dice.lasting()),
        25 | 26 => Fault::Stop(dice.of(&[Who::Source, Who::Destination]), dice.lasting()),
        20 => {
            let (side, call) = dice.of(&CALLS);
            Fault::Fail(side, call)
        }
        _ => Fault::Cancel,
    }
}
