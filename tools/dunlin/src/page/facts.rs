//! The guest, the comparison of its memory, the hosts, and what was counted.

use dunlin_engine::report::{Host, Report};
use dunlin_engine::telemetry::{Counter, Declaration, Gauge, Measurements, Unit};
use maud::{Markup, html};

use super::document::Section;
use super::figure;
use super::table::{Column, Form, table};
use crate::render::text::printable;

/// The sections.
pub(super) fn sections(report: &Report) -> Vec<Section> {
    let mut sections = Vec::new();
    if report.verification.equal.is_some() {
        sections.push(Section {
            id: "memory",
            heading: "The two memories, compared",
            body: memory(report),
        });
    }
    sections.push(Section {
        id: "guest",
        heading: "The guest and the move",
        body: guest(report),
    });
    sections.push(Section {
        id: "hosts",
        heading: "Both hosts",
        body: hosts(report),
    });
    if let Some(told) = &report.telemetry {
        sections.push(Section {
            id: "counters",
            heading: "What was counted",
            body: counters(&told.source, told.destination.as_ref()),
        });
    }
    sections
}

fn memory(report: &Report) -> Markup {
    let told = &report.verification;
    let method = match told.method.as_str() {
        "pages" => "page by page, once the guest ran on the destination",
        "digests" => "by digests, inside the handover",
        method => method,
    };
    let equal = match told.equal {
        Some(true) => ("good", "equal"),
        Some(false) => ("bad", "NOT EQUAL"),
        None => ("careful", "not compared"),
    };
    html! {
        p { span.outcome.(equal.0) { (equal.1) } " – compared " (printable(method)) "." }
        dl.facts {
            (fact("Pages compared", &figure::count("/verification/pages_checked", told.pages_checked)))
            (fact("The same", &figure::count("/verification/pages_same", told.pages_same)))
            (fact("Rewritten since", &figure::count("/verification/pages_later", told.pages_later)))
            (fact("Wrong", &figure::count("/verification/pages_different", told.pages_different)))
            (fact("Took", &figure::duration("/verification/duration_ns", told.duration_ns)))
            (fact("Of it in the pause", &figure::duration("/verification/blackout_ns", told.blackout_ns)))
        }
        @if !told.examples.is_empty() {
            ul { @for example in &told.examples { li { (printable(example)) } } }
        }
    }
}

fn guest(report: &Report) -> Markup {
    let guest = &report.guest;
    html! {
        dl.facts {
            (fact("Name", &html! { (printable(&guest.name)) }))
            (fact("UUID", &html! { code { (printable(&guest.uuid)) } }))
            (fact("Kind", &html! { (printable(&guest.kind)) }))
            (fact("Memory", &figure::bytes("/guest/memory_bytes", guest.memory_bytes)))
            (fact("vCPUs", &figure::count("/guest/vcpus", u64::from(guest.vcpus))))
            (fact("Epoch", &figure::count("/guest/epoch", guest.epoch)))
            (fact("Writes tracked by", &html! { (printable(&guest.dirty_tracking.join(" + "))) }))
            (fact("Transport", &html! {
                (printable(&report.transport)) " (" (printable(&report.mechanism)) ")"
            }))
            (fact("On the wire", &figure::bytes("/wire_bytes", report.wire_bytes)))
            (fact("Session", &html! { code { (printable(&report.session)) } }))
            @if let Some(told) = &report.registration {
                (fact("Registered at once, at most",
                    &figure::bytes("/registration/source/peak_bytes", told.source.peak_bytes)))
                (fact("Ranges opened", &figure::count("/registration/source/made", told.source.made)))
                (fact("Closed for others", &figure::count("/registration/evictions", told.evictions)))
                (fact("Lanes waited for it", &figure::duration("/registration/wait_ns", told.wait_ns)))
            }
            @if let Some(told) = &report.in_doubt {
                (fact("Owner not known for", &figure::duration("/in_doubt/held_ns", told.held_ns)))
                (fact("Settled by", &html! {
                    (printable(&told.settled_by)) ": " (printable(&told.words))
                }))
            }
        }
    }
}

fn fact(name: &str, value: &Markup) -> Markup {
    html! { div { dt { (name) } dd { (value) } } }
}

fn hosts(report: &Report) -> Markup {
    let (source, destination) = (&report.hosts.source, &report.hosts.destination);
    type Told = fn(&Host) -> String;
    let facts: [(&str, Told); 4] = [
        ("Kernel", |host| host.kernel.clone()),
        ("Processor", |host| host.cpu.clone()),
        ("CPUs", |host| host.cpus.to_string()),
        ("dunlin", |host| host.dunlin.clone()),
    ];
    let cell = |host: &Host, told: Told| {
        html! { @if *host == Host::default() { "–" } @else { (printable(&told(host))) } }
    };
    let rows: Vec<_> = facts
        .into_iter()
        .map(|(name, told)| {
            vec![
                html! { (name) },
                cell(source, told),
                cell(destination, told),
            ]
        })
        .collect();
    let columns = [
        Column::new("", Form::Name),
        Column::new("source", Form::Text),
        Column::new("destination", Form::Text),
    ];
    let caption = html! {
        @if source == destination { "Both ends are alike, or one and the same host." }
        @else { "Each end as it tells of itself." }
    };
    table(&caption, &columns, None, &rows)
}

fn counters(source: &Measurements, destination: Option<&Measurements>) -> Markup {
    let counters = Counter::ALL.iter().map(|counter| {
        let told = |measured: &Measurements| measured.counters.get(counter).copied();
        let destination = destination.and_then(told);
        (counter.declaration(), "counters", told(source), destination)
    });
    let gauges = Gauge::ALL.iter().map(|gauge| {
        let told = |measured: &Measurements| measured.gauges.get(gauge).copied();
        (
            gauge.declaration(),
            "gauges",
            told(source),
            destination.and_then(told),
        )
    });
    let told = counters.chain(gauges);
    let rows: Vec<_> = told
        .filter(|(_, _, source, destination)| source.or(*destination).is_some())
        .map(|(declaration, place, source, destination)| {
            let cell = |end: &str, value: Option<u64>| {
                let name = declaration.json_name();
                let from = format!("/telemetry/{end}/{place}/{name}");
                value.map_or_else(|| html! { "–" }, |value| amount(declaration, &from, value))
            };
            vec![
                html! { (declaration.meaning) },
                cell("source", source),
                cell("destination", destination),
            ]
        })
        .collect();
    let columns = [
        Column::new("What", Form::Name),
        Column::new("source", Form::Number),
        Column::new("destination", Form::Number),
    ];
    html! {
        details {
            summary { "All amounts of both ends" }
            (table(&html! { "All lanes and threads of each end together; gauges as they last were." }, &columns, None, &rows))
        }
    }
}

fn amount(declaration: &Declaration, from: &str, value: u64) -> Markup {
    match declaration.unit {
        Unit::Nanoseconds => figure::duration(from, value),
        Unit::Bytes => figure::bytes(from, value),
        Unit::BytesPerSecond => figure::rate(from, value),
        Unit::Pages | Unit::PagesPerSecond | Unit::Count => figure::count(from, value),
    }
}
