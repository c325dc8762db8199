//! How the move ended, and the figures that people ask for first.

use dunlin_engine::report::{Outcome, Report};
use maud::{Markup, html};

use super::figure;
use crate::render::palette::Palette;
use crate::render::receipt::{explanation, headline};
use crate::render::text::printable;

/// The page's title.
pub(super) fn title(report: &Report) -> String {
    let headline = headline(report, Palette::PLAIN);
    format!("{} · Dunlin", printable(&headline))
}

/// What stands above the sections.
pub(super) fn header(report: &Report) -> Markup {
    let (mood, outcome) = outcome(report);
    html! {
        p.product { "Dunlin" span.what { "receipt of a move" } }
        h1 { (printable(&report.guest.name)) " " span.outcome.(mood) { (outcome) } }
        @for line in explanation(report, Palette::PLAIN) {
            p.why { (line.trim()) }
        }
        dl.figures { (figures(report)) }
    }
}

/// How it ended: the mood it leaves, and the words.
fn outcome(report: &Report) -> (&'static str, String) {
    match (report.outcome, report.verification.equal) {
        (Outcome::Moved, Some(true)) => ("good", "moved, verified equal".to_owned()),
        (Outcome::Moved, _) => ("careful", "moved, not verified".to_owned()),
        (Outcome::MovedUnverified, _) => ("bad", "moved, memory NOT EQUAL".to_owned()),
        (Outcome::Cancelled, _) => ("careful", "not moved: cancelled".to_owned()),
        (outcome, _) => {
            let words = match outcome {
                Outcome::NotConverging => "not moved: not converging",
                Outcome::BlackoutCap => "not moved: the pause reached its cap",
                Outcome::TimedOut => "not moved: out of time",
                Outcome::Refused => "not moved: refused",
                Outcome::PeerFailed => "not moved: the destination or the link failed",
                Outcome::NotResumed => "not moved, and NOT RESUMED",
                Outcome::Unknown => "owner NOT KNOWN",
                Outcome::ResumedByHand => "not moved: resumed by hand",
                Outcome::DiscardedByHand => "discarded by hand",
                _ => "not moved: something failed here",
            };
            ("bad", words.to_owned())
        }
    }
}

fn figures(report: &Report) -> Markup {
    html! {
        @if let Some(blackout) = &report.blackout {
            (entry("Paused", &figure::duration("/blackout/total_ns", blackout.total_ns), "pause"))
            @if let Some(seen) = blackout.guest_visible_ns {
                (entry("The guest saw", &figure::duration("/blackout/guest_visible_ns", seen), ""))
            }
            (entry("Predicted", &figure::duration("/blackout/predicted_ns", blackout.predicted_ns), ""))
            (entry("Budget", &figure::duration("/blackout/budget_ns", blackout.budget_ns), ""))
        }
        (entry("Whole move", &figure::duration("/total_ns", report.total_ns), ""))
        (entry("Memory", &figure::bytes("/guest/memory_bytes", report.guest.memory_bytes), ""))
        @if report.sent_bytes > 0 {
            (entry("Sent", &figure::bytes("/sent_bytes", report.sent_bytes), ""))
            (entry("On average", &figure::rate("/goodput_bytes_per_s", report.goodput_bytes_per_s), ""))
        }
        @if report.lanes > 0 {
            (entry("Over", &html! {
                (printable(&report.transport)) ", "
                (figure::count("/lanes", u64::from(report.lanes)))
                @if report.lanes == 1 { " lane" } @else { " lanes" }
            }, ""))
        }
    }
}

fn entry(name: &str, value: &Markup, class: &str) -> Markup {
    html! {
        div class=(class) {
            dt { (name) }
            dd { (value) }
        }
    }
}
