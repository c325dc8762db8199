//! What a page shows is what the report says, and nothing in a report becomes markup.

use dunlin_engine::report::{BlackoutPart, Side};
use dunlin_engine::telemetry::{Kind, SpanName};
use serde_json::Value;

use super::*;
use crate::render::example;

/// The elements `data` of a page: where each comes from, and its value.
fn figures(page: &str) -> Vec<(String, u64)> {
    let elements = page.split("<data value=\"").skip(1);
    elements
        .map(|element| {
            let (value, rest) = element.split_once("\" data-from=\"").unwrap();
            let (from, _) = rest.split_once('"').unwrap();
            (from.to_owned(), value.parse().unwrap())
        })
        .collect()
}

/// The report that a page carries.
fn embedded(page: &str) -> Value {
    let (_, rest) = page
        .split_once("<script type=\"application/json\" id=\"report\">")
        .unwrap();
    let (json, _) = rest.split_once("</script>").unwrap();
    serde_json::from_str(json).unwrap()
}

#[test]
fn every_figure_is_the_reports() {
    let mut report = example::moved();
    report.telemetry = Some(dunlin_engine::telemetry::example::whole_move());
    let page = page(&report).unwrap();
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(embedded(&page), json);
    let figures = figures(&page);
    assert!(figures.len() > 200, "{}", figures.len());
    for (from, value) in figures {
        let there = json.pointer(&from).and_then(Value::as_u64);
        assert_eq!(there, Some(value), "{from}");
    }
}

/// The bars that a page draws of the pause's parts: their names, and where they begin and how wide
/// they are, in hundredths of the picture.
fn bars(page: &str) -> Vec<(String, f64, f64)> {
    let (_, rest) = page.split_once("when in the pause").unwrap();
    let (table, _) = rest.split_once("</table>").unwrap();
    let between = |text: &str, from: &str, to: &str| -> Option<String> {
        let (_, rest) = text.split_once(from)?;
        Some(rest.split_once(to)?.0.to_owned())
    };
    let mut bars = Vec::new();
    for row in table.split("<tr").skip(1) {
        let name = between(row, "scope=\"row\"", "</th>").unwrap();
        let name = name.rsplit('>').next().unwrap().to_owned();
        for shape in row.split("<rect").skip(1) {
            if shape.contains("class=\"expected\"") {
                continue;
            }
            let place = |key: &str| -> f64 {
                let percent = between(shape, &format!("{key}=\""), "%\"").unwrap();
                percent.parse().unwrap()
            };
            bars.push((name.clone(), place(" x"), place("width")));
        }
    }
    bars
}

#[test]
fn a_long_part_is_a_long_bar_and_no_other_is() {
    const SHORT_NS: u64 = 1_000_000;
    const LONG_NS: u64 = 400_000_000;
    let all = SpanName::ALL.iter().map(|span| span.declaration());
    let all = all.filter(|span| span.kind == Kind::BlackoutPart);
    let names: Vec<_> = all.map(|span| span.name).collect();
    for (place, name) in names.iter().enumerate() {
        let mut report = example::moved();
        let blackout = report.blackout.as_mut().unwrap();
        blackout.parts.clear();
        blackout.predicted_parts.clear();
        blackout.total_ns = 0;
        for (other, name) in names.iter().enumerate() {
            let duration_ns = if other == place { LONG_NS } else { SHORT_NS };
            blackout.parts.push(BlackoutPart {
                name: (*name).to_owned(),
                side: Side::Source,
                begin_ns: Some(blackout.total_ns),
                duration_ns,
            });
            blackout.total_ns += duration_ns;
        }
        let whole_ns = blackout.total_ns as f64;
        let bars = bars(&page(&report).unwrap());
        assert_eq!(bars.len(), names.len());
        for (other, (drawn, begin, width)) in bars.iter().enumerate() {
            assert_eq!(drawn, names[other]);
            assert_eq!(*width > 50.0, other == place, "{drawn}, with a long {name}");
            let part = &report.blackout.as_ref().unwrap().parts[other];
            let percent = |ns: u64| ns as f64 * 100.0 / whole_ns;
            // Short ones are drawn so wide that they are seen.
            let expected = percent(part.begin_ns.unwrap()).min(99.6);
            assert!((begin - expected).abs() < 0.01, "{drawn} at {begin}");
            let expected = percent(part.duration_ns).max(0.4);
            assert!(
                (width - expected).abs() < 0.01,
                "{drawn} as wide as {width}"
            );
        }
    }
}

#[test]
fn every_outcome_has_a_page() {
    for outcome in example::OUTCOMES {
        let report = example::failed(outcome, "the cable was cut");
        let page = page(&report).unwrap();
        if !outcome.moved() {
            assert!(page.contains("the cable was cut"), "{outcome:?}");
        }
        assert_eq!(page.matches("<h1>").count(), 1);
    }
}

#[test]
fn what_a_report_says_is_text() {
    let hostile = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&\u{1b}[2J";
    let mut report = example::moved();
    report.telemetry = Some(dunlin_engine::telemetry::example::whole_move());
    report.reason = Some(hostile.to_owned());
    report.session = hostile.to_owned();
    report.transport = hostile.to_owned();
    report.mechanism = hostile.to_owned();
    report.guest.name = hostile.to_owned();
    report.guest.uuid = hostile.to_owned();
    report.guest.kind = hostile.to_owned();
    report.guest.dirty_tracking = vec![hostile.to_owned()];
    report.verification.method = hostile.to_owned();
    report.verification.examples = vec![hostile.to_owned()];
    for host in [&mut report.hosts.source, &mut report.hosts.destination] {
        host.kernel = hostile.to_owned();
        host.cpu = hostile.to_owned();
        host.dunlin = hostile.to_owned();
    }
    let blackout = report.blackout.as_mut().unwrap();
    for part in &mut blackout.parts {
        part.name = hostile.to_owned();
    }
    for part in &mut blackout.predicted_parts {
        part.name = hostile.to_owned();
    }
    for outcome in example::OUTCOMES {
        report.outcome = outcome;
        let page = page(&report).unwrap();
        assert_eq!(page.matches("<script").count(), 1, "{outcome:?}");
        assert_eq!(page.matches("</script").count(), 1, "{outcome:?}");
        assert!(!page.contains("<img"), "{outcome:?}");
        assert!(!page.contains('\u{1b}'), "{outcome:?}");
        assert_eq!(embedded(&page), serde_json::to_value(&report).unwrap());
    }
}

#[test]
fn many_rounds_are_folded() {
    let mut report = example::moved();
    let round = report.rounds[0].clone();
    report.rounds = vec![round; 5000];
    let page = page(&report).unwrap();
    assert!(page.contains("4,900 rounds"), "the middle is left out");
    assert!(page.matches("<tr").count() < 200);
}
