use super::*;

const MS: fn(u64) -> Duration = Duration::from_millis;

fn limits(on_stall: OnStall) -> Limits {
    Limits {
        max_blackout: MS(50),
        blackout_cap: MS(500),
        max_rounds: 30,
        on_stall,
    }
}

fn verdicts(predictions: &[u64], limits: Limits) -> Vec<Verdict> {
    let mut convergence = Convergence::default();
    (1..)
        .zip(predictions)
        .map(|(round, predicted)| convergence.judge(round, MS(*predicted), MS(0), limits))
        .collect()
}

#[test]
fn pauses_once_the_prediction_is_within_the_budget() {
    use Verdict::{Continue, Switch};
    assert_eq!(
        verdicts(&[900, 200, 51, 50], limits(OnStall::Abort)),
        vec![Continue, Continue, Continue, Switch]
    );
}

#[test]
fn a_pause_that_another_round_would_halve_is_not_yet_taken() {
    use Verdict::{Continue, Switch};
    let mut convergence = Convergence::default();
    let mut judge =
        |predicted, saved| convergence.judge(1, MS(predicted), MS(saved), limits(OnStall::Abort));
    assert_eq!(judge(40, 30), Continue);
    assert_eq!(judge(10, 4), Switch);
    assert_eq!(judge(10, 5), Continue);
    assert_eq!(judge(4, 3), Continue);
    // Enough is enough.
    assert_eq!(judge(4, 3), Switch);
}

#[test]
fn a_round_saves_less_the_faster_the_guest_dirties() {
    let mut convergence = Convergence::default();
    let sample = RoundSample {
        bytes: 100 << 20,
        sending: MS(100),
        ..RoundSample::default()
    };
    convergence.sample(sample);
    // 256,000 pages a second pass the lanes.
    let saved = |dirtied| convergence.saved_by_a_round(2560, dirtied);
    assert_eq!(saved(0.0), MS(10));
    assert_eq!(saved(128_000.0), MS(5));
    assert_eq!(saved(512_000.0), MS(0));
}

#[test]
fn gives_in_after_three_rounds_without_progress() {
    use Verdict::{Continue, GiveIn};
    assert_eq!(
        verdicts(&[400, 399, 398, 397], limits(OnStall::Abort)),
        vec![Continue, Continue, Continue, GiveIn]
    );
    // Slow progress is progress.
    assert!(!verdicts(&[900, 800, 700, 600, 500, 400], limits(OnStall::Abort)).contains(&GiveIn));
}

#[test]
fn a_forced_switchover_never_passes_the_cap() {
    use Verdict::{GiveIn, Switch};
    assert_eq!(
        verdicts(&[400; 4], limits(OnStall::Switchover)).last(),
        Some(&Switch)
    );
    assert_eq!(
        verdicts(&[501; 4], limits(OnStall::Switchover)).last(),
        Some(&GiveIn)
    );
}

#[test]
fn the_last_round_decides() {
    let limits = Limits {
        max_rounds: 2,
        ..limits(OnStall::Abort)
    };
    assert_eq!(
        verdicts(&[900, 100], limits),
        vec![Verdict::Continue, Verdict::GiveIn]
    );
}

#[test]
fn the_prediction_has_a_term_for_what_is_left_at_the_measured_goodput() {
    let mut convergence = Convergence::default();
    let sent = |bytes, sending| RoundSample {
        bytes,
        sending,
        ..RoundSample::default()
    };
    convergence.sample(sent(100 << 20, MS(100)));
    convergence.sample(sent(1000, Duration::from_secs(1)));
    let part = |pages| {
        let now = Circumstances {
            dirty_pages: pages,
            round_trip: Some(Duration::ZERO),
            costs: HandoverCosts {
                save: Some(Duration::ZERO),
                ..HandoverCosts::default()
            },
            ..Circumstances::default()
        };
        let prediction = convergence.predict(now);
        let part = prediction
            .parts
            .iter()
            .find(|part| part.name == "final-round")
            .unwrap();
        Duration::from_nanos(part.duration_ns)
    };
    assert_eq!(part(0), Duration::ZERO);
    assert_eq!(part(256 * 10), MS(10));
}

/// What a small round takes beside its pages is in the next one too, and state is saved
/// meanwhile.
#[test]
fn the_final_round_costs_what_a_small_round_did_but_for_saving() {
    const US: fn(u64) -> Duration = Duration::from_micros;
    let mut convergence = Convergence::default();
    convergence.sample(RoundSample {
        bytes: 100 << 20,
        sending: MS(100),
        pages: 25_600,
        ..RoundSample::default()
    });
    convergence.sample(RoundSample {
        pages: 1,
        unfenced: US(250),
        ..RoundSample::default()
    });
    let parts = |save| {
        let now = Circumstances {
            costs: HandoverCosts {
                save: Some(save),
                ..HandoverCosts::default()
            },
            ..Circumstances::default()
        };
        let parts = convergence.predict(now).parts;
        let part = |name| parts.iter().find(|part| part.name == name).unwrap().clone();
        (part("save-state"), part("final-round"), part("park"))
    };
    let (save, round, park) = parts(US(150));
    assert_eq!((save.duration_ns, round.duration_ns), (150_000, 100_000));
    assert!(!save.is_assumed && !round.is_assumed && park.is_assumed);
    let (save, round, _) = parts(US(400));
    assert_eq!((save.duration_ns, round.duration_ns), (400_000, 0));
}

/// A guest of little data and many zero pages: the lanes scan most of the time, and the link is
/// no slower for it.
#[test]
fn time_spent_scanning_zero_pages_is_not_the_links() {
    let mut convergence = Convergence::default();
    convergence.sample(RoundSample {
        bytes: 100 << 20,
        sending: MS(100),
        pages: 16 << 20,
        scanning: Duration::from_secs(6),
        ..RoundSample::default()
    });
    let now = Circumstances {
        dirty_pages: 256,
        ..Circumstances::default()
    };
    assert!(convergence.predict(now).total() < MS(10));
}

#[test]
fn what_is_not_registered_costs_what_it_did_before() {
    let part = |convergence: &Convergence, unopened| {
        let now = Circumstances {
            round_trip: Some(MS(1)),
            unopened,
            ..Circumstances::default()
        };
        let parts = convergence.predict(now).parts;
        let part = parts.iter().find(|part| part.name == "registration");
        part.map(|part| Duration::from_nanos(part.duration_ns))
    };
    let unopened = |bytes, crossings| {
        Some(Unopened {
            bytes,
            in_pause_bytes: bytes,
            crossings,
        })
    };
    let mut convergence = Convergence::default();
    // No such term where nothing is registered.
    assert_eq!(part(&convergence, None), None);
    assert_eq!(part(&convergence, unopened(0, 0)), Some(MS(0)));
    // What is opened before the pause costs it nothing.
    let before = Unopened {
        bytes: 1 << 30,
        ..Unopened::default()
    };
    assert_eq!(part(&convergence, Some(before)), Some(MS(0)));
    assert_eq!(
        part(&convergence, unopened(2_000_000_000, 1)),
        Some(MS(1002))
    );
    convergence.sample_opening(100_000_000, MS(100));
    convergence.sample_crossings(4, MS(40));
    // Too little to tell, and nothing to tell of.
    convergence.sample_opening(1000, Duration::from_secs(1));
    convergence.sample_crossings(0, Duration::from_secs(1));
    assert_eq!(part(&convergence, unopened(50_000_000, 2)), Some(MS(70)));
    convergence.sample_opening(100_000_000, MS(300));
    assert_eq!(part(&convergence, unopened(50_000_000, 0)), Some(MS(100)));
}

#[test]
fn nothing_measured_and_everything_dirty_stays_finite() {
    let mut convergence = Convergence {
        goodput: Some(0.0),
        ..Convergence::default()
    };
    let now = Circumstances {
        dirty_pages: u64::MAX,
        ..Circumstances::default()
    };
    let predicted = convergence.predict(now).total();
    assert_eq!(
        convergence.judge(1, predicted, MS(0), limits(OnStall::Abort)),
        Verdict::Continue
    );
}
