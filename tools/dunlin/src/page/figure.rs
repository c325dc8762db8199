//! A figure: the text that people read, the value that programs read, and where in the report it
//! stands. A test reads all of a page's figures back and compares them with the report.

use maud::{Markup, html};

use crate::render::amounts;

/// A page of guest memory.
const PAGE_BYTES: u64 = 4096;

/// A duration in nanoseconds. `from` is its place in the report, as a JSON pointer (RFC 6901).
pub(super) fn duration(from: &str, nanoseconds: u64) -> Markup {
    figure(from, nanoseconds, &amounts::nanoseconds(nanoseconds))
}

/// A number of bytes.
pub(super) fn bytes(from: &str, bytes: u64) -> Markup {
    figure(from, bytes, &amounts::bytes(bytes))
}

/// Bytes a second.
pub(super) fn rate(from: &str, bytes_per_s: u64) -> Markup {
    figure(from, bytes_per_s, &amounts::rate(bytes_per_s))
}

/// A count.
pub(super) fn count(from: &str, count: u64) -> Markup {
    figure(from, count, &amounts::count(count))
}

/// A number of pages, told as the bytes that they have.
pub(super) fn pages(from: &str, pages: u64) -> Markup {
    let bytes = pages.saturating_mul(PAGE_BYTES);
    figure(from, pages, &amounts::bytes(bytes))
}

/// A value in words that somebody else has found.
pub(crate) fn said(from: &str, value: f64, text: &str) -> Markup {
    html! { data value=(value) data-from=(from) { (on_one_line(text)) } }
}

fn figure(from: &str, value: u64, text: &str) -> Markup {
    html! { data value=(value) data-from=(from) { (on_one_line(text)) } }
}

/// A value and its unit stay together.
fn on_one_line(text: &str) -> String {
    text.replace(' ', "\u{a0}")
}
