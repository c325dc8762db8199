//! The guests and their moves as plain text, once: for scripts, and where there is no terminal.

use crate::local::protocol::GuestStatus;
use crate::render::amounts::{bytes, rate};
use crate::render::guests;
use crate::render::palette::Palette;

/// All guests, as 'status' shows them, and each lane of the moves under way.
pub(crate) fn text(guests: &[GuestStatus], palette: Palette) -> String {
    let mut text = guests::table(guests, palette);
    for guest in guests {
        let under_way = guest.move_under_way.as_ref();
        let progress = under_way.and_then(|under_way| under_way.progress.as_ref());
        for lane in progress.map_or(&[][..], |progress| &progress.lanes) {
            text.push_str(&format!(
                "  {} lane {}: {} sent, {}\n",
                guest.name,
                lane.lane,
                bytes(lane.sent_bytes),
                rate(lane.rate_bytes_per_s)
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::view::tests::seen;
    use super::*;

    #[test]
    fn a_move_has_its_lanes() {
        let text = text(&[seen("vm1", true).status], Palette::PLAIN);
        assert!(text.contains("vm1: round 2 · 75%"), "{text}");
        assert!(
            text.contains("  vm1 lane 1: 512 MiB sent, 512 MiB/s\n"),
            "{text}"
        );
    }
}
