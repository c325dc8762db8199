//! The pause, part by part: who took how long, beside what was predicted.

use dunlin_engine::report::{BlackoutReport, PredictedPart, Side};

use super::amounts::nanoseconds;
use super::palette::Palette;
use super::text::{clipped, wrapped};

/// The longest bar, in columns.
const BAR_COLUMNS: u64 = 32;

/// The pause, in lines.
pub(super) fn lines(blackout: &BlackoutReport, palette: Palette) -> Vec<String> {
    let total = nanoseconds(blackout.total_ns);
    let mut said = format!(
        "predicted {}, budget {}, cap {}",
        nanoseconds(blackout.predicted_ns),
        nanoseconds(blackout.budget_ns),
        nanoseconds(blackout.cap_ns)
    );
    if let Some(seen) = blackout.guest_visible_ns {
        said = format!("the guest saw {}; {said}", nanoseconds(seen));
    }
    let within = blackout.total_ns <= blackout.budget_ns;
    let total = format!("blackout {total}");
    let total = if within {
        palette.good(&total)
    } else {
        palette.careful(&total)
    };
    let mut lines = vec![format!(
        "  {total}  {}",
        palette.faint(&format!("({said})"))
    )];
    let longest = blackout.parts.iter().map(|part| part.duration_ns).max();
    // What took no time is left out: the parts still add up.
    let parts = blackout.parts.iter().filter(|part| part.duration_ns > 0);
    for part in parts {
        let bar = bar(part.duration_ns, longest.unwrap_or(0));
        let (side, bar) = match part.side {
            Side::Source => ("source", palette.source(&bar)),
            Side::Destination => ("destination", palette.destination(&bar)),
            Side::Link => ("link", bar),
        };
        let predicted = blackout
            .predicted_parts
            .iter()
            .find(|predicted| predicted.name == part.name)
            .map(|predicted| {
                let sign = if predicted.is_assumed { '~' } else { '≈' };
                format!("{sign} {}", nanoseconds(predicted.duration_ns))
            })
            .unwrap_or_default();
        let line = format!(
            "    {:<22} {side:<11} {:>8}  {predicted:<10} {bar}",
            clipped(&part.name, 22),
            nanoseconds(part.duration_ns)
        );
        lines.push(line.trim_end().to_owned());
    }
    if blackout.vcpus_ns.len() > 1 {
        let own: Vec<String> = blackout
            .vcpus_ns
            .iter()
            .map(|ns| nanoseconds(*ns))
            .collect();
        lines.extend(wrapped(
            &format!("each vCPU's own pause: {}", own.join(", ")),
            4,
        ));
    }
    let shown = |assumed: &PredictedPart| {
        let mut parts = blackout.parts.iter();
        assumed.is_assumed && parts.any(|part| part.name == assumed.name && part.duration_ns > 0)
    };
    if blackout.predicted_parts.iter().any(shown) {
        lines.push(palette.faint("    ~ was assumed: nothing of it was measured before the pause"));
    }
    match blackout.clock_error_ns {
        Some(0) => {}
        Some(error_ns) => lines.push(palette.faint(&format!(
            "    the destination's parts are placed with an error of up to {}",
            nanoseconds(error_ns)
        ))),
        None => lines.push(palette.faint(
            "    how the destination's clock stands is not known: its parts are in the link's",
        )),
    }
    lines
}

/// A bar as long as `part` is of `longest`, in eighths of a column.
fn bar(part: u64, longest: u64) -> String {
    const EIGHTHS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    if longest == 0 || part == 0 {
        return String::new();
    }
    let eighths = u128::from(part) * u128::from(BAR_COLUMNS) * 8 / u128::from(longest);
    // What took any time at all can be seen.
    let eighths = usize::try_from(eighths).unwrap_or(0).max(1);
    let mut bar = "█".repeat(eighths / 8);
    if let Some(rest) = EIGHTHS
        .get(eighths % 8)
        .filter(|_| !eighths.is_multiple_of(8))
    {
        bar.push(*rest);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;

    #[test]
    fn each_part_that_took_time_is_a_line() {
        let mut blackout = example::moved().blackout.unwrap();
        blackout.parts[0].duration_ns = 0;
        let text = lines(&blackout, Palette::PLAIN).join("\n");
        assert!(!text.contains("park"), "{text}");
        for part in ["final-round", "load-state", "run"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(
            text.contains("the guest saw 3.3 ms; predicted 4 ms"),
            "{text}"
        );
    }

    #[test]
    fn what_was_assumed_is_told_apart() {
        let mut blackout = example::moved().blackout.unwrap();
        let text = |blackout: &_| lines(blackout, Palette::PLAIN).join("\n");
        assert!(!text(&blackout).contains('~'));
        blackout.predicted_parts[0].is_assumed = true;
        let assumed = text(&blackout);
        assert!(
            assumed.contains("~ 2.1 ms") && assumed.contains("was assumed"),
            "{assumed}"
        );
    }

    #[test]
    fn bars_are_in_proportion() {
        assert_eq!(bar(8, 8).chars().count() as u64, BAR_COLUMNS);
        assert_eq!(bar(4, 8).chars().count() as u64, BAR_COLUMNS / 2);
        assert_eq!(bar(1, u64::MAX), "▏");
        assert_eq!(bar(0, 8), "");
    }
}
