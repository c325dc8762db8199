//! The receipt: what a move came to, for a person, in at most 100 columns.

use dunlin_engine::report::{
    BlackoutReport, Host, Outcome, RegisteredReport, RegistrationReport, Report, RoundReport,
};

use super::amounts::{bytes, count, counted, nanoseconds, rate};
use super::blackout;
use super::palette::Palette;
use super::text::{COLUMNS, printable, wrapped};

/// The most rounds that are shown one by one; of more, the first and the last.
const ROUNDS_SHOWN: usize = 12;

/// Of many rounds, how many of the first are shown.
const ROUNDS_FIRST: usize = 5;

/// A page of guest memory.
const PAGE_BYTES: u64 = 4096;

/// The receipt of a move, with a line end behind each line.
pub(crate) fn receipt(report: &Report, palette: Palette) -> String {
    let plain = headline(report, Palette::PLAIN);
    let mut lines = if plain.chars().count() <= COLUMNS {
        vec![headline(report, palette)]
    } else {
        let broken = wrapped(&plain, 0);
        broken.iter().map(|line| palette.strong(line)).collect()
    };
    lines.extend(explanation(report, palette));
    if !report.rounds.is_empty() {
        lines.push(String::new());
        lines.extend(rounds(&report.rounds, palette));
    }
    if let Some(pause) = &report.blackout {
        lines.push(String::new());
        lines.extend(blackout::lines(pause, palette));
    }
    let facts = facts(report, palette);
    if !facts.is_empty() {
        lines.push(String::new());
        lines.extend(facts);
    }
    let mut text = lines.join("\n");
    text.push('\n');
    text
}

/// The move in one sentence.
pub(crate) fn headline(report: &Report, palette: Palette) -> String {
    let name = &report.guest.name;
    let memory = bytes(report.guest.memory_bytes);
    let total = nanoseconds(report.total_ns);
    let sentence = match report.outcome {
        Outcome::Moved | Outcome::MovedUnverified => {
            let pause = match &report.blackout {
                None => String::new(),
                Some(BlackoutReport {
                    total_ns,
                    guest_visible_ns: Some(seen),
                    ..
                }) => format!(
                    ", paused {} (guest saw {})",
                    nanoseconds(*total_ns),
                    nanoseconds(*seen)
                ),
                // It ran there at some point before its source learned so.
                Some(blackout) if report.in_doubt.is_some() => {
                    format!(", paused at most {}", nanoseconds(blackout.total_ns))
                }
                Some(blackout) => format!(", paused {}", nanoseconds(blackout.total_ns)),
            };
            let verdict = match report.verification.equal {
                Some(true) => palette.good("verified equal"),
                Some(false) => palette.bad("NOT EQUAL"),
                None => palette.careful("not verified"),
            };
            return format!(
                "{}, {verdict}",
                palette.strong(&format!("{name} moved: {memory} in {total}{pause}"))
            );
        }
        Outcome::Cancelled => format!("{name} was not moved: cancelled after {total}"),
        Outcome::NotConverging if writes_outrun_link(report) => {
            format!("{name} was not moved: its writes outrun the link ({total})")
        }
        Outcome::NotConverging => {
            format!("{name} was not moved: the blackout stays above the budget ({total})")
        }
        Outcome::BlackoutCap => {
            format!("{name} was not moved: the pause reached its cap and was called off")
        }
        Outcome::TimedOut => format!("{name} was not moved: out of time after {total}"),
        Outcome::Refused => format!("{name} was not moved: the destination refused it"),
        Outcome::PeerFailed => {
            format!("{name} was not moved: the destination or the link failed")
        }
        Outcome::Failed => format!("{name} was not moved: something failed on this side"),
        Outcome::NotResumed => {
            format!("{name} was not moved, and could NOT BE RESUMED on this side")
        }
        Outcome::Unknown => format!("{name}: it is NOT KNOWN which side owns the guest"),
        Outcome::ResumedByHand => {
            format!("{name} was not moved: it goes on here by a person's word")
        }
        Outcome::DiscardedByHand => format!("{name} is not kept here, by a person's word"),
    };
    palette.bad(&sentence)
}

/// Whether the guest wrote at least as fast as its memory was sent, going by the last round that
/// was followed by another: what the next one found dirty was written in its time.
fn writes_outrun_link(report: &Report) -> bool {
    let mut copied = report.rounds.iter().filter(|round| !round.is_final).rev();
    let (Some(last), Some(before)) = (copied.next(), copied.next()) else {
        return false;
    };
    let dirtied_bytes = u128::from(last.dirty_pages) * u128::from(PAGE_BYTES);
    let sendable_bytes =
        u128::from(report.goodput_bytes_per_s) * u128::from(before.duration_ns) / 1_000_000_000;
    sendable_bytes > 0 && dirtied_bytes >= sendable_bytes
}

/// Why, where the guest is, and what to do next.
pub(crate) fn explanation(report: &Report, palette: Palette) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(reason) = &report.reason {
        lines.extend(wrapped(&format!("why: {reason}"), 2));
    }
    if let Some(doubt) = &report.in_doubt {
        let words = format!(
            "its owner was not known for {}; the destination was asked {} times; settled by {}",
            nanoseconds(doubt.held_ns),
            doubt.asked,
            match doubt.settled_by.as_str() {
                "person" => "a person",
                _ => "its answer",
            }
        );
        lines.extend(wrapped(&words, 2));
    }
    let next = match report.outcome {
        Outcome::Moved => return lines,
        Outcome::MovedUnverified => {
            lines.extend(
                report
                    .verification
                    .examples
                    .iter()
                    .flat_map(|example| wrapped(example, 4)),
            );
            "The guest runs on the destination, and its memory may be damaged: stop it there and start it anew from its own data. Please report this with the JSON report."
        }
        Outcome::Cancelled => "The guest runs on the source, as before.",
        Outcome::NotConverging if writes_outrun_link(report) => {
            "The guest runs on the source, as before. A larger --max-blackout, more --lanes, a higher --max-bandwidth or a quieter hour lets it converge; --on-stall switchover pauses it anyway, up to the cap."
        }
        Outcome::NotConverging => {
            "The guest runs on the source, as before. A larger --max-blackout lets it converge; --on-stall switchover pauses it anyway, up to the cap."
        }
        Outcome::BlackoutCap => {
            "The guest runs on the source, after a pause. A larger --blackout-cap allows a longer one."
        }
        Outcome::TimedOut => {
            "The guest runs on the source, as before. A larger --timeout gives it more time."
        }
        Outcome::Refused => {
            "The guest runs on the source, as before. The reason above says what the destination lacks."
        }
        Outcome::PeerFailed => {
            "The guest runs on the source, as before. See that 'dunlin receive' runs at the destination and that its port is open; then send again."
        }
        Outcome::Failed => {
            "The guest runs on the source, as before. 'dunlin doctor' looks at what this host can do."
        }
        Outcome::NotResumed => {
            "The guest is PAUSED on the source, and its memory is intact. The reason above says what failed; 'dunlin stop' ends it. Please report this with the JSON report."
        }
        Outcome::ResumedByHand => "The guest runs on the source, by a person's word.",
        Outcome::DiscardedByHand => "The guest is not on the source any more, by a person's word.",
        Outcome::Unknown => {
            "The link was lost behind the give-up. The source keeps the guest PAUSED and goes on asking the destination; once it is reached, its records settle it. 'dunlin settle' shows where that stands, and lets a person decide who has fenced the destination off. Never run both."
        }
    };
    lines.extend(wrapped(next, 2).into_iter().map(|line| {
        if matches!(report.outcome, Outcome::Unknown | Outcome::NotResumed) {
            palette.careful(&line)
        } else {
            line
        }
    }));
    lines
}

fn rounds(rounds: &[RoundReport], palette: Palette) -> Vec<String> {
    let head = format!(
        "  {:>5}  {:>10}  {:>10}  {:>10}  {:>8}  {:>11}  {:>12}",
        "round", "dirty", "zero", "sent", "time", "rate", "blackout ≈"
    );
    let mut lines = vec![palette.faint(&head)];
    let many = rounds.len() > ROUNDS_SHOWN;
    let last_from = if many {
        rounds.len() - (ROUNDS_SHOWN - ROUNDS_FIRST - 1)
    } else {
        0
    };
    for (index, round) in rounds.iter().enumerate() {
        if many && (ROUNDS_FIRST..last_from).contains(&index) {
            if index == ROUNDS_FIRST {
                let hidden = last_from - ROUNDS_FIRST;
                lines.push(palette.faint(&format!("      …  {hidden} rounds more")));
            }
            continue;
        }
        lines.push(round_line(round));
    }
    lines
}

fn round_line(round: &RoundReport) -> String {
    let name = if round.is_final {
        "final".to_owned()
    } else {
        round.number.to_string()
    };
    let predicted = if round.is_final || round.predicted_blackout_ns == 0 {
        String::new()
    } else {
        nanoseconds(round.predicted_blackout_ns)
    };
    let speed = per_second(round.sent_bytes, round.duration_ns);
    let line = format!(
        "  {name:>5}  {:>10}  {:>10}  {:>10}  {:>8}  {:>11}  {predicted:>12}",
        pages(round.dirty_pages),
        pages(round.zero_pages),
        bytes(round.sent_bytes),
        nanoseconds(round.duration_ns),
        speed,
    );
    line.trim_end().to_owned()
}

fn pages(pages: u64) -> String {
    bytes(pages.saturating_mul(PAGE_BYTES))
}

fn per_second(bytes: u64, duration_ns: u64) -> String {
    if bytes == 0 || duration_ns == 0 {
        return "-".to_owned();
    }
    let per_second = u128::from(bytes) * 1_000_000_000 / u128::from(duration_ns);
    rate(u64::try_from(per_second).unwrap_or(u64::MAX))
}

fn facts(report: &Report, palette: Palette) -> Vec<String> {
    let mut lines = Vec::new();
    let mut fact = |name: &str, text: String| {
        let mut wrapped = wrapped(&text, 12).into_iter();
        if let Some(first) = wrapped.next() {
            let name = palette.faint(&format!("{name:<9}"));
            lines.push(format!("  {name} {}", first.trim_start()));
        }
        lines.extend(wrapped);
    };
    let verification = &report.verification;
    if verification.equal.is_some() {
        fact(
            "memory",
            format!(
                "{} compared{}: {} the same, {} rewritten since, {} wrong; took {}, {} of it in the blackout",
                counted(verification.pages_checked, "page"),
                match verification.method.as_str() {
                    "pages" => " page by page",
                    "digests" => " by digests",
                    _ => "",
                },
                count(verification.pages_same),
                count(verification.pages_later),
                count(verification.pages_different),
                nanoseconds(verification.duration_ns),
                if verification.blackout_ns == 0 {
                    "none".to_owned()
                } else {
                    nanoseconds(verification.blackout_ns)
                },
            ),
        );
    }
    if report.lanes > 0 && report.sent_bytes > 0 {
        fact(
            "transport",
            format!(
                "{} ({}), {}; {} of pages sent, {} on the wire, {} on average",
                report.transport,
                report.mechanism,
                counted(u64::from(report.lanes), "lane"),
                bytes(report.sent_bytes),
                bytes(report.wire_bytes),
                rate(report.goodput_bytes_per_s),
            ),
        );
    }
    if let Some(told) = &report.registration {
        fact("pinned", registration(told));
    }
    if !report.guest.uuid.is_empty() {
        let tracking = if report.guest.dirty_tracking.is_empty() {
            String::new()
        } else {
            format!(
                ", writes tracked by {}",
                report.guest.dirty_tracking.join(" + ")
            )
        };
        fact(
            "guest",
            format!(
                "{}, {}, {}, epoch {}{tracking}",
                report.guest.uuid,
                report.guest.kind,
                counted(u64::from(report.guest.vcpus), "vCPU"),
                report.guest.epoch,
            ),
        );
    }
    let (source, destination) = (&report.hosts.source, &report.hosts.destination);
    if *source != Host::default() {
        if source == destination {
            fact("hosts", format!("both: {}", host(source)));
        } else {
            fact("source", host(source));
            if *destination != Host::default() {
                fact("dest.", host(destination));
            }
        }
    }
    lines
}

/// What was registered with the devices.
fn registration(told: &RegistrationReport) -> String {
    let peak = |side: &RegisteredReport| bytes(side.peak_bytes);
    let mut text = match &told.destination {
        Some(there) if there.peak_bytes != told.source.peak_bytes => format!(
            "at most {} of memory at once here, {} there",
            peak(&told.source),
            peak(there)
        ),
        _ => format!("at most {} of memory at once", peak(&told.source)),
    };
    if let Some(window) = told.window_bytes {
        text.push_str(&format!(" of the {} that the budgets allow", bytes(window)));
    }
    text.push_str(&format!("; {} opened", counted(told.source.made, "range")));
    if told.evictions > 0 {
        text.push_str(&format!(", {} closed for others", count(told.evictions)));
    }
    if told.wait_ns > 0 {
        text.push_str(&format!(
            "; lanes waited {} for it",
            nanoseconds(told.wait_ns)
        ));
    }
    text
}

fn host(host: &Host) -> String {
    format!(
        "Linux {}, {}, {}, dunlin {}",
        printable(&host.kernel),
        printable(&host.cpu),
        counted(u64::from(host.cpus), "CPU"),
        printable(&host.dunlin)
    )
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;

    #[test]
    fn a_move_that_went_well() {
        let text = receipt(&example::moved(), Palette::PLAIN);
        let first = text.lines().next().unwrap();
        assert_eq!(
            first,
            "vm1 moved: 1 GiB in 912 ms, paused 3.1 ms (guest saw 3.3 ms), verified equal"
        );
        assert!(text.contains("final"), "{text}");
        assert!(text.contains("tcp (io_uring), 2 lanes"), "{text}");
        assert!(text.contains("0 wrong"), "{text}");
    }

    #[test]
    fn what_was_pinned_is_told_where_something_was() {
        let mut report = example::moved();
        assert!(!receipt(&report, Palette::PLAIN).contains("pinned"));
        let side = RegisteredReport {
            made: 140,
            ended: 124,
            peak_bytes: 127 << 20,
        };
        report.registration = Some(RegistrationReport {
            window_bytes: Some(127 << 20),
            source: side,
            destination: Some(side),
            evictions: 124,
            wait_ns: 35_000_000,
            postponed_pages: 0,
        });
        let text = receipt(&report, Palette::PLAIN);
        for words in [
            "pinned    at most 127 MiB of memory at once of the 127 MiB that the budgets allow",
            "140 ranges opened",
            "124 closed for others",
            "waited 35 ms",
        ] {
            let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
            let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(flat.contains(&words), "{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= COLUMNS));
    }

    #[test]
    fn no_receipt_is_wider_than_100_columns() {
        let mut wide = example::moved();
        wide.reason = Some("x".repeat(500));
        wide.guest.name = "n".repeat(40);
        wide.hosts.source.cpu = "y ".repeat(200);
        let blackout = wide.blackout.as_mut().unwrap();
        blackout.vcpus_ns = vec![3_123_456; 64];
        blackout.parts[0].name = "z".repeat(80);
        for outcome in example::OUTCOMES {
            wide.outcome = outcome;
            for line in receipt(&wide, Palette::PLAIN).lines() {
                assert!(line.chars().count() <= COLUMNS, "{line}");
            }
        }
    }

    #[test]
    fn a_failure_says_where_the_guest_is_and_what_to_do() {
        for outcome in example::OUTCOMES {
            let report = example::failed(outcome, "the cable was cut");
            let text = receipt(&report, Palette::PLAIN);
            let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(text.contains("the cable was cut"), "{text}");
            let place = if outcome == Outcome::Unknown {
                "The source keeps the guest PAUSED"
            } else if outcome == Outcome::NotResumed {
                "The guest is PAUSED on the source"
            } else if outcome.moved() {
                "moved"
            } else if outcome == Outcome::DiscardedByHand {
                "The guest is not on the source any more"
            } else {
                "The guest runs on the source"
            };
            assert!(text.contains(place), "{outcome:?}: {text}");
        }
    }

    #[test]
    fn what_the_peer_says_can_not_steer_the_terminal() {
        let mut report = example::failed(Outcome::Refused, "\u{1b}[2Jno\u{7}\u{9b}");
        report.hosts.source.kernel = "6\u{1b}]0;x".to_owned();
        report.blackout = example::moved().blackout;
        report.blackout.as_mut().unwrap().parts[0].name = "a\nb\u{1b}".to_owned();
        let text = receipt(&report, Palette::PLAIN);
        assert!(
            text.chars()
                .all(|letter| letter == '\n' || !letter.is_control()),
            "{text:?}"
        );
    }

    #[test]
    fn writes_outrun_the_link_only_where_the_rounds_say_so() {
        let mut report = example::failed(Outcome::NotConverging, "after 2 rounds");
        report.goodput_bytes_per_s = 100 << 20;
        let round = |number, dirty_pages| RoundReport {
            number,
            dirty_pages,
            duration_ns: 1_000_000_000,
            ..RoundReport::default()
        };
        // 100 MiB are 25,600 pages.
        for (dirty_pages, outrun) in [(25_600, true), (25_599, false), (0, false)] {
            report.rounds = vec![round(1, 262_144), round(2, dirty_pages)];
            let text = receipt(&report, Palette::PLAIN);
            assert_eq!(
                text.contains("its writes outrun the link"),
                outrun,
                "{text}"
            );
            assert_eq!(text.contains("--lanes"), outrun, "{text}");
            assert_eq!(text.contains("stays above the budget"), !outrun, "{text}");
        }
        report.rounds.truncate(1);
        assert!(receipt(&report, Palette::PLAIN).contains("stays above the budget"));
    }

    #[test]
    fn many_rounds_are_folded() {
        let mut report = example::moved();
        let round = report.rounds[0].clone();
        report.rounds = (1..=30)
            .map(|number| RoundReport {
                number,
                ..round.clone()
            })
            .collect();
        let text = receipt(&report, Palette::PLAIN);
        assert!(text.contains("19 rounds more"), "{text}");
        assert!(text.contains("\n     30 "), "{text}");
    }
}
