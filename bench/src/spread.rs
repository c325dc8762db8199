//! Medians of several runs, and how far these are apart.

use serde::Serialize;

/// Several values of one figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one; of an even number, the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// Nine in ten are no larger.
    pub p90: f64,
    /// The most.
    pub most: f64,
}

impl Spread {
    /// Of some values; `None` when there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let upper = *values.get(middle)?;
        let lower = if values.len().is_multiple_of(2) {
            *values.get(middle.checked_sub(1)?)?
        } else {
            upper
        };
        // The nearest rank: the smallest value that nine in ten do not exceed.
        let rank = (values.len() * 9).div_ceil(10);
        Some(Self {
            median: (lower + upper) / 2.0,
            least: *values.first()?,
            p90: *values.get(rank.checked_sub(1)?)?,
            most: *values.last()?,
        })
    }
}

/// The middle of some values.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    Spread::of(values).map(|spread| spread.median)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_the_middle() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(median([5.0, 1.0, 2.0]), Some(2.0));
        let four = Spread::of([4.0, 1.0, 2.0, 10.0]).unwrap();
        assert_eq!((four.least, four.median, four.most), (1.0, 3.0, 10.0));
    }

    #[test]
    fn nine_in_ten_are_no_larger_than_p90() {
        let twenty = Spread::of((1..=20).map(f64::from)).unwrap();
        assert_eq!(twenty.p90, 18.0);
        assert_eq!(Spread::of([7.0]).unwrap().p90, 7.0);
    }
}
