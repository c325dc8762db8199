//! Figures for people.

use crate::spread::Spread;

/// What stands where there is no figure.
pub const NONE: &str = "-";

/// The median in a unit, and the least and the most behind it: two cells.
pub fn spread(spread: Option<Spread>, unit: f64, digits: usize) -> [String; 2] {
    let Some(spread) = spread else {
        return [NONE.to_owned(), String::new()];
    };
    let [median, least, most] =
        [spread.median, spread.least, spread.most].map(|value| value / unit);
    [
        format!("{median:.digits$}"),
        format!("({least:.digits$}-{most:.digits$})"),
    ]
}

/// One figure.
pub fn figure(value: Option<f64>, digits: usize) -> String {
    value.map_or(NONE.to_owned(), |value| format!("{value:.digits$}"))
}

/// Columns under headings: the first to the left, the others to the right.
#[derive(Clone, Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table.
    pub fn new(headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Self {
        let headings = headings
            .iter()
            .map(|heading| (*heading).to_owned())
            .collect();
        Self {
            rows: std::iter::once(headings).chain(rows).collect(),
        }
    }

    /// As lines.
    pub fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::from(" ");
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                line += &if column == 0 {
                    format!(" {cell:<width$}")
                } else {
                    format!("  {cell:>width$}")
                };
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [
            vec!["long name".to_owned(), "1".to_owned()],
            vec!["x".to_owned(), "1000".to_owned()],
        ];
        let table = Table::new(&["", "of"], rows);
        assert_eq!(
            table.text(),
            "               of\n  long name     1\n  x          1000\n"
        );
    }
}
