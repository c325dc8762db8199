//! Reports for tests of the rendering.

use dunlin_engine::report::{
    BlackoutPart, BlackoutReport, DeviceReport, GuestReport, Host, Hosts, Outcome, PredictedPart,
    REPORT_SCHEMA, Report, RoundReport, Side, VerificationReport,
};

/// Every outcome.
pub(crate) const OUTCOMES: [Outcome; 13] = [
    Outcome::Moved,
    Outcome::MovedUnverified,
    Outcome::Cancelled,
    Outcome::NotConverging,
    Outcome::BlackoutCap,
    Outcome::TimedOut,
    Outcome::Refused,
    Outcome::PeerFailed,
    Outcome::Failed,
    Outcome::NotResumed,
    Outcome::Unknown,
    Outcome::ResumedByHand,
    Outcome::DiscardedByHand,
];

/// The report of a move that went well.
pub(crate) fn moved() -> Report {
    let host = Host {
        kernel: "6.18.0".to_owned(),
        cpu: "Example CPU".to_owned(),
        cpus: 2,
        dunlin: "0.1.0".to_owned(),
    };
    let part = |name: &str, side, duration_ns| BlackoutPart {
        name: name.to_owned(),
        side,
        duration_ns,
    };
    Report {
        schema: REPORT_SCHEMA.to_owned(),
        session: "00".repeat(16),
        outcome: Outcome::Moved,
        reason: None,
        transport: "tcp".to_owned(),
        mechanism: "io_uring".to_owned(),
        lanes: 2,
        guest: GuestReport {
            name: "vm1".to_owned(),
            uuid: "6f1c0d7e-0000-4000-8000-000000000001".to_owned(),
            epoch: 2,
            kind: "kvm".to_owned(),
            memory_bytes: 1 << 30,
            vcpus: 2,
            dirty_tracking: vec!["kvm-bitmap".to_owned(), "vmm".to_owned()],
        },
        rounds: vec![
            RoundReport {
                number: 1,
                is_final: false,
                duration_ns: 700_000_000,
                dirty_pages: 262_144,
                zero_pages: 131_072,
                skipped_pages: 131_072,
                sent_bytes: 512 << 20,
                predicted_blackout_ns: 61_000_000,
                ..RoundReport::default()
            },
            RoundReport {
                number: 2,
                is_final: true,
                duration_ns: 1_900_000,
                dirty_pages: 300,
                sent_bytes: 300 * 4096,
                ..RoundReport::default()
            },
        ],
        total_ns: 912_000_000,
        sent_bytes: 513 << 20,
        wire_bytes: 514 << 20,
        device: DeviceReport::default(),
        goodput_bytes_per_s: 731 << 20,
        blackout: Some(BlackoutReport {
            total_ns: 3_100_000,
            predicted_ns: 4_000_000,
            predicted_parts: vec![PredictedPart {
                name: "final-round".to_owned(),
                duration_ns: 2_100_000,
                is_assumed: false,
            }],
            guest_visible_ns: Some(3_300_000),
            parts: vec![
                part("park", Side::Source, 300_000),
                part("final-round", Side::Source, 1_900_000),
                part("load-state", Side::Destination, 600_000),
                part("run", Side::Destination, 300_000),
            ],
            vcpus_ns: vec![3_000_000, 3_050_000],
            budget_ns: 50_000_000,
            cap_ns: 500_000_000,
            clock_error_ns: Some(0),
        }),
        in_doubt: None,
        registration: None,
        verification: VerificationReport {
            method: "pages".to_owned(),
            pages_checked: 262_144,
            pages_same: 262_000,
            pages_later: 144,
            equal: Some(true),
            duration_ns: 300_000_000,
            ..VerificationReport::default()
        },
        hosts: Hosts {
            source: host.clone(),
            destination: host,
        },
        telemetry: None,
        another_transport_may_do: false,
    }
}

/// The report of a move that ended early.
pub(crate) fn failed(outcome: Outcome, reason: &str) -> Report {
    Report {
        outcome,
        reason: Some(reason.to_owned()),
        blackout: None,
        rounds: Vec::new(),
        verification: VerificationReport::default(),
        ..moved()
    }
}
