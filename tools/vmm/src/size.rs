//! Sizes and rates as people write them: `4096`, `64MiB`, `100MiB/s`. Binary units only, so that
//! one text means one number of bytes.

use thiserror::Error;

/// The units, largest first, each with its bytes.
const UNITS: [(&str, u64); 4] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
];

/// Why a text is not a size or a rate.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SizeError {
    /// It does not start with a whole number.
    #[error("'{0}' is not a size; write a whole number of bytes, or one with KiB, MiB, GiB or TiB")]
    NotANumber(String),
    /// Its unit is none of the binary ones.
    #[error("'{value}' has the unit '{unit}'; the units are KiB, MiB, GiB and TiB")]
    UnknownUnit {
        /// The whole text.
        value: String,
        /// What stands behind the number.
        unit: String,
    },
    /// It is more than 2^64 - 1 bytes.
    #[error("'{0}' is too large; the most is 2^64 - 1 bytes")]
    TooLarge(String),
    /// A rate does not end in `/s`.
    #[error("'{0}' is not a rate; write a size with '/s' behind it, as in 64MiB/s")]
    NotARate(String),
}

/// Reads a size, in bytes: a whole number, alone or with `KiB`, `MiB`, `GiB` or `TiB` behind it.
///
/// # Errors
///
/// When the text is anything else, or more than a `u64` holds.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(SizeError::NotANumber(text.to_owned()));
    }
    let unit_bytes = if unit.is_empty() {
        1
    } else {
        UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .map(|(_, bytes)| *bytes)
            .ok_or_else(|| SizeError::UnknownUnit {
                value: text.to_owned(),
                unit: unit.to_owned(),
            })?
    };
    // Digits alone fail to parse only by overflow.
    number
        .parse::<u64>()
        .ok()
        .and_then(|count| count.checked_mul(unit_bytes))
        .ok_or_else(|| SizeError::TooLarge(text.to_owned()))
}

/// Reads a rate, in bytes a second: a size with `/s` behind it.
///
/// # Errors
///
/// When the text is anything else, or more than a `u64` holds.
pub fn parse_rate(text: &str) -> Result<u64, SizeError> {
    let size = text
        .strip_suffix("/s")
        .ok_or_else(|| SizeError::NotARate(text.to_owned()))?;
    parse_size(size)
}

/// Writes a number of bytes in the largest unit that holds it exactly; [`parse_size`] reads it
/// back.
pub fn format_size(bytes: u64) -> String {
    UNITS
        .iter()
        .find(|(_, unit)| bytes != 0 && bytes.is_multiple_of(*unit))
        .map_or_else(
            || bytes.to_string(),
            |(name, unit)| format!("{}{name}", bytes / unit),
        )
}

/// Writes a rate in bytes a second; [`parse_rate`] reads it back.
pub fn format_rate(bytes_per_second: u64) -> String {
    format!("{}/s", format_size(bytes_per_second))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read_exactly() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64KiB", 64 << 10),
            ("64MiB", 64 << 20),
            ("1GiB", 1 << 30),
            ("2TiB", 2 << 40),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        assert_eq!(parse_rate("64MiB/s"), Ok(64 << 20));
    }

    #[test]
    fn anything_else_is_refused_with_its_text() {
        for bad in [
            "",
            " ",
            "x",
            "-1",
            "+1",
            "1.5GiB",
            "1 GiB",
            "1GB",
            "1gib",
            "1K",
            "1MiB/s",
            "GiB",
            "18446744073709551616",
            "16777216TiB",
        ] {
            let error = parse_size(bad).unwrap_err();
            assert!(error.to_string().contains(&format!("'{bad}'")), "{error}");
        }
        for bad in ["64MiB", "64MiB/m", "/s", ""] {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(count in any::<u64>(), shift in 0_u32..64) {
            let bytes = count << shift;
            prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
            prop_assert_eq!(parse_rate(&format_rate(bytes)), Ok(bytes));
        }

        #[test]
        fn no_text_panics(text in ".{0,24}") {
            let _ = parse_size(&text);
            let _ = parse_rate(&text);
        }
    }
}
