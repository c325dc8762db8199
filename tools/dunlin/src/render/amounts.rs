//! Amounts as people read them: three significant digits and a unit.

/// A number of bytes, as in `1.5 GiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    // 1023.5 and above would be printed as 1024.
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let unit = UNITS.get(unit).copied().unwrap_or_default();
    format!("{} {unit}", significant(value))
}

/// Bytes a second, as in `1.2 GiB/s`.
pub(crate) fn rate(bytes_per_s: u64) -> String {
    format!("{}/s", bytes(bytes_per_s))
}

/// A duration in nanoseconds, as in `3.1 ms`.
pub(crate) fn nanoseconds(nanoseconds: u64) -> String {
    let value = nanoseconds as f64;
    let (value, unit) = match nanoseconds {
        0 => return "0".to_owned(),
        1..=999 => (value, "ns"),
        1_000..=999_499 => (value / 1e3, "µs"),
        999_500..=999_499_999 => (value / 1e6, "ms"),
        999_500_000..=119_999_999_999 => (value / 1e9, "s"),
        _ => (value / 60e9, "min"),
    };
    format!("{} {unit}", significant(value))
}

/// A count with commas, as in `262,144`.
pub(crate) fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count and its noun, as in `1 page`, `2 pages`.
pub(crate) fn counted(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", count(number))
}

/// Two digits where there is a fraction worth telling, none where there is none.
fn significant(value: f64) -> String {
    if value >= 99.95 {
        format!("{value:.0}")
    } else if value >= 9.995 {
        trimmed(format!("{value:.1}"))
    } else {
        trimmed(format!("{value:.2}"))
    }
}

fn trimmed(text: String) -> String {
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_well() {
        for (value, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1 << 10, "1 KiB"),
            (1 << 30, "1 GiB"),
            (3 << 29, "1.5 GiB"),
            ((1 << 20) - 1, "1 MiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(bytes(value), text);
        }
        for (value, text) in [
            (0, "0"),
            (999, "999 ns"),
            (3_100_000, "3.1 ms"),
            (999_700, "1 ms"),
            (912_345_678, "912 ms"),
            (1_234_567_890, "1.23 s"),
            (600_000_000_000, "10 min"),
        ] {
            assert_eq!(nanoseconds(value), text);
        }
        assert_eq!(count(262_144), "262,144");
        assert_eq!(count(1_000), "1,000");
        assert_eq!(count(999), "999");
        assert_eq!(counted(1, "page"), "1 page");
    }
}
