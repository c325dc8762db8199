//! What recorders hold, and what is left of it once they are merged.

use crate::telemetry::{End, Operation, Recorder, Recording, SpanName, Track};

#[test]
fn timing_work_hands_on_what_it_returns() {
    let mut recorder = Recorder::new(End::Source, Track::Control);
    assert_eq!(recorder.time(Operation::Harvest, || 7), 7);
    let begun = recorder.now();
    recorder.span(SpanName::Round, begun, recorder.now());
    let recording = Recording::merge([recorder]);
    let is_recording = cfg!(feature = "telemetry");
    let is_told = recording
        .measurements
        .operation(Operation::Harvest)
        .is_some();
    assert_eq!(
        (is_told, recording.spans.len()),
        (is_recording, usize::from(is_recording))
    );
}

/// A lane's recorder is made before its thread, and read behind its end.
#[test]
fn recorders_go_to_their_thread_and_come_back() {
    let mut recorder = Recorder::new(End::Source, Track::Lane(1));
    let thread = std::thread::spawn(move || {
        recorder.time(Operation::Clear, || ());
        recorder
    });
    let measurements = Recording::merge([thread.join().unwrap()]).measurements;
    let lanes: Vec<_> = measurements.lanes.iter().map(|lane| lane.lane).collect();
    assert_eq!(lanes, [1; cfg!(feature = "telemetry") as usize]);
}

#[cfg(not(feature = "telemetry"))]
#[test]
fn a_recorder_that_is_not_there_has_no_size() {
    assert_eq!(size_of::<Recorder>(), 0);
    assert_eq!(size_of::<crate::telemetry::Moment>(), 0);
}

#[cfg(feature = "telemetry")]
mod recording {
    use std::time::Duration;

    use dunlin_transports::lane::LANES_MAX;
    use proptest::prelude::*;

    use super::*;
    use crate::clock::Timestamp;
    use crate::telemetry::buckets::{bucket_bounds, bucket_of};
    use crate::telemetry::measurements::Summary;
    use crate::telemetry::recorder::{
        CONTROL_SPANS, HISTOGRAM_BYTES, HISTOGRAM_NS_MAX, LANE_SPANS,
    };
    use crate::telemetry::{Counter, Gauge, Moment};

    fn lane(number: u16, durations_ns: &[u64]) -> Recorder {
        let mut recorder = Recorder::new(End::Source, Track::Lane(number));
        for duration_ns in durations_ns {
            let begun = Moment::at(Timestamp(1_000));
            let ended = Moment::at(Timestamp(1_000 + duration_ns));
            recorder.between(Operation::Clear, begun, ended);
        }
        recorder
    }

    fn summary(durations_ns: &[u64]) -> Summary {
        let recording = Recording::merge([lane(0, durations_ns)]);
        let measured = recording.measurements.operation(Operation::Clear);
        measured.unwrap().summary
    }

    /// Within one part in a thousand, or within the histogram's step of 64 ns.
    fn is_near(told: u64, truth: u64) -> bool {
        told >= truth.min(HISTOGRAM_NS_MAX) && told - truth.min(told) <= (truth / 1000).max(64)
    }

    #[test]
    fn durations_past_the_range_count_and_keep_their_length() {
        let past = 2 * HISTOGRAM_NS_MAX;
        let summary = summary(&[0, 50, past]);
        assert_eq!(
            (summary.count, summary.min_ns, summary.max_ns),
            (3, 0, past)
        );
        assert_eq!(summary.total_ns, past + 50);
        assert!(summary.is_possible(), "{summary:?}");
    }

    #[test]
    fn what_a_thread_does_not_measure_is_counted_and_not_told() {
        let mut recorder = Recorder::new(End::Destination, Track::Lane(0));
        recorder.took(Operation::Clear, Duration::from_micros(1));
        recorder.took(Operation::Receive, Duration::from_micros(1));
        recorder.count(Counter::Skipped, 5);
        recorder.set(Gauge::Goodput, 5);
        let now = recorder.now();
        recorder.span(SpanName::Round, now, now);
        recorder.span_of(Track::Vcpu(0), SpanName::VcpuKick, now, now);
        let recording = Recording::merge([recorder]);
        let measurements = recording.measurements;
        assert_eq!(measurements.misplaced, 5);
        assert_eq!(measurements.operations.len(), 1);
        assert!(measurements.counters.is_empty() && measurements.gauges.is_empty());
        assert!(recording.spans.is_empty());
    }

    #[test]
    fn a_recorder_of_few_operations_measures_no_others() {
        let few = [Operation::ControlRoundTrip, Operation::Clear];
        let mut recorder = Recorder::of_operations(End::Source, Track::Control, &few);
        for operation in Operation::ALL {
            recorder.took(*operation, Duration::from_micros(3));
        }
        let now = recorder.now();
        recorder.span(SpanName::Round, now, now);
        assert!(recorder.memory_bytes() < 2 * HISTOGRAM_BYTES);
        let recording = Recording::merge([recorder]);
        let told: Vec<_> = recording
            .measurements
            .operations
            .iter()
            .map(|told| told.name)
            .collect();
        // The other one is measured by lanes.
        assert_eq!(told, [Operation::ControlRoundTrip]);
        assert_eq!(
            recording.measurements.misplaced,
            Operation::COUNT as u64 - 1
        );
        assert_eq!((recording.spans.len(), recording.dropped_spans), (0, 1));
    }

    #[test]
    fn the_oldest_spans_make_room_and_are_counted() {
        let mut recorder = Recorder::new(End::Source, Track::Lane(3));
        for begin in 0..LANE_SPANS as u64 + 10 {
            let (begun, ended) = (Timestamp(begin * 10), Timestamp(begin * 10 + 5));
            recorder.span(SpanName::LaneRound, Moment::at(begun), Moment::at(ended));
        }
        let recording = Recording::merge([recorder]);
        assert_eq!(
            (recording.spans.len(), recording.dropped_spans),
            (LANE_SPANS, 10)
        );
        let begins: Vec<_> = recording.spans.iter().map(|span| span.begin.0).collect();
        assert_eq!(
            (begins[0], begins[LANE_SPANS - 1]),
            (100, 10 * (LANE_SPANS as u64 + 9))
        );
        assert!(begins.is_sorted());
    }

    #[test]
    fn amounts_add_up_and_stay_with_their_lane() {
        let recorders = (0..3).map(|number| {
            let mut recorder = lane(2 - number, &[100 * (1 + u64::from(number))]);
            recorder.count(Counter::Payload, 4096);
            recorder.count(Counter::Payload, u64::from(number));
            recorder.counted(Counter::Wire, 9000);
            recorder.counted(Counter::Wire, 9100);
            recorder
        });
        let mut session = Recorder::new(End::Source, Track::Control);
        session.set(Gauge::Lanes, 2);
        session.set(Gauge::Lanes, 3);
        let measurements = Recording::merge(recorders.chain([session])).measurements;
        assert_eq!(measurements.counters[&Counter::Payload], 3 * 4096 + 3);
        assert_eq!(measurements.counters[&Counter::Wire], 3 * 9100);
        assert_eq!(measurements.gauges[&Gauge::Lanes], 3);
        let lanes: Vec<_> = measurements
            .lanes
            .iter()
            .map(|lane| {
                (
                    lane.lane,
                    lane.operations[0].summary.max_ns,
                    lane.counters[&Counter::Payload],
                )
            })
            .collect();
        assert_eq!(lanes, [(0, 300, 4098), (1, 200, 4097), (2, 100, 4096)]);
    }

    /// An engine may take 8 MiB for each lane and 4 MiB beside them and the guest's share.
    #[test]
    fn recorders_take_what_is_stated() {
        for end in [End::Source, End::Destination] {
            let lane = Recorder::new(end, Track::Lane(LANES_MAX - 1)).memory_bytes();
            let session = Recorder::new(end, Track::Control).memory_bytes();
            let registrar = Recorder::new(end, Track::Registrar(0)).memory_bytes();
            println!("{end:?}: lane {lane}, session {session}, registrar {registrar} bytes");
            assert!(lane <= 3 << 19, "a lane's recorder takes {lane} bytes");
            assert!(
                session <= 3 << 19,
                "a session's recorder takes {session} bytes"
            );
            assert!(
                registrar <= 1 << 19,
                "a registrar's recorder takes {registrar} bytes"
            );
        }
        let lane = Recorder::new(End::Destination, Track::Lane(0));
        let histograms = Operation::ALL.iter().filter(|name| {
            name.declaration()
                .is_measured_by(End::Destination, crate::telemetry::TrackKind::Lane)
        });
        let spans = LANE_SPANS * size_of::<crate::telemetry::timeline::Span>();
        let beside = lane.memory_bytes() - histograms.count() * HISTOGRAM_BYTES - spans;
        assert!(beside < 8192, "{beside} bytes beside histograms and spans");
        assert_eq!(CONTROL_SPANS, 4096);
    }

    proptest! {
        #[test]
        fn a_summary_is_that_of_the_durations(
            mut durations_ns in prop::collection::vec(
                prop_oneof![0_u64..2_000, 0_u64..10_000_000, 0..HISTOGRAM_NS_MAX], 1..300,
            ),
        ) {
            let told = summary(&durations_ns);
            durations_ns.sort_unstable();
            let count = durations_ns.len();
            prop_assert_eq!(told.count, count as u64);
            prop_assert_eq!(told.total_ns, durations_ns.iter().sum::<u64>());
            prop_assert_eq!((told.min_ns, told.max_ns), (durations_ns[0], durations_ns[count - 1]));
            prop_assert!(told.is_possible());
            for (permille, quantile) in [
                (500, told.p50_ns), (900, told.p90_ns), (990, told.p99_ns), (999, told.p999_ns),
            ] {
                let truth = durations_ns[(count * permille).div_ceil(1000) - 1];
                prop_assert!(is_near(quantile, truth), "{permille}: {quantile} for {truth}");
            }
        }

        #[test]
        fn lanes_merged_are_as_one_lane_that_did_it_all(
            by_lane in prop::collection::vec(
                prop::collection::vec(0_u64..50_000_000, 0..60), 1..6,
            ),
        ) {
            let lanes = by_lane.iter().enumerate();
            let lanes = lanes.map(|(number, durations_ns)| lane(number as u16, durations_ns));
            let merged = Recording::merge(lanes).measurements;
            let all = by_lane.concat();
            let one = Recording::merge([lane(0, &all)]).measurements;
            prop_assert_eq!(&merged.operations, &one.operations);
            // Each duration is in its bucket.
            let mut expected = std::collections::BTreeMap::<u64, u64>::new();
            for duration_ns in all {
                *expected.entry(bucket_bounds(bucket_of(duration_ns)).1).or_default() += 1;
            }
            let told = merged.operations.first().map(|told| told.buckets.clone());
            let told = told.unwrap_or_default().into_iter();
            let told: Vec<_> = told.map(|bucket| (bucket.below_ns, bucket.count)).collect();
            prop_assert_eq!(told, expected.into_iter().collect::<Vec<_>>());
        }
    }
}
