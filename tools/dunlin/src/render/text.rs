//! Text that fits: no wider than the receipt, and without what a terminal would obey.

/// The widest line of a receipt.
pub(super) const COLUMNS: usize = 100;

/// What the peer says of itself, without control characters that a terminal would obey.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|letter| if letter.is_control() { '?' } else { letter })
        .collect()
}

/// The first `columns` letters of a text.
pub(super) fn clipped(text: &str, columns: usize) -> String {
    printable(text).chars().take(columns).collect()
}

/// Breaks a text into lines of at most [`COLUMNS`], each with `indent` spaces before it. A word
/// that is longer than a line is broken too.
pub(super) fn wrapped(text: &str, indent: usize) -> Vec<String> {
    let room = COLUMNS.saturating_sub(indent).max(1);
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut columns = 0;
    for word in printable(text).split_whitespace() {
        let mut letters: Vec<char> = word.chars().collect();
        if columns > 0 && columns + 1 + letters.len() > room {
            lines.push(std::mem::take(&mut line));
            columns = 0;
        }
        if columns > 0 {
            line.push(' ');
            columns += 1;
        }
        while letters.len() > room {
            let behind = letters.split_off(room);
            lines.push(letters.iter().collect());
            letters = behind;
        }
        columns += letters.len();
        line.extend(letters);
    }
    if !line.is_empty() {
        lines.push(line);
    }
    let margin = " ".repeat(indent);
    lines
        .into_iter()
        .map(|line| format!("{margin}{line}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_words_are_broken_and_lines_fit() {
        let text = format!("short {} end", "x".repeat(250));
        let lines = wrapped(&text, 4);
        assert!(lines.iter().all(|line| line.chars().count() <= COLUMNS));
        assert!(lines.iter().all(|line| line.starts_with("    ")));
        let letters: String = lines.concat().split_whitespace().collect();
        assert_eq!(letters.len(), 250 + "shortend".len());
    }

    #[test]
    fn control_characters_are_shown_as_question_marks() {
        assert_eq!(printable("a\u{1b}[31m\nb\u{9b}"), "a?[31m?b?");
    }
}
