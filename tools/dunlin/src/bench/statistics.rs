//! What figures say, and how sure that is: medians, spreads, and the median of the passes' ratios with
//! its interval.
//!
//! The interval is a bootstrap's (Efron 1979): passes are drawn with replacement, both sides of a
//! pass together, and the median of the ratios is taken of each draw; the middle 95 % of these
//! medians are the interval. Each ratio is of two runs of one pass, so what they have in common - a
//! slow minute of the machine - is in none of them. The ratio of two medians, which would be read off
//! a table of medians, may take each from another pass: where passes differ by a quarter, its interval
//! is twice as wide. For runs that have nothing in common both are as wide.

use serde::{Deserialize, Serialize};

/// How many times passes are drawn. The ends of the middle 95 % then have some 250 ratios beyond
/// them on each side, enough that another seed moves them by a fraction of the interval's width.
const DRAWS: usize = 10_000;

/// The share of ratios inside the interval.
pub(crate) const CONFIDENCE: f64 = 0.95;

/// With fewer passes nothing is said. If two programs were alike, each pass would be a coin: that
/// all of n passes point the same way happens with a chance of 2 × 2⁻ⁿ, which is below 5 % from 6 on.
pub(crate) const PASSES_MIN: usize = 6;

/// A ratio this close to 1 is no difference that a figure of these runs can carry: processor time is
/// counted in ticks of 10 ms, and a run takes seconds.
pub(crate) const RESOLUTION: f64 = 0.01;

/// The values' spread.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    /// How many there are.
    pub(crate) count: usize,
    /// The least.
    pub(crate) least: f64,
    /// A quarter is below.
    pub(crate) lower_quartile: f64,
    /// The middle.
    pub(crate) median: f64,
    /// A quarter is above.
    pub(crate) upper_quartile: f64,
    /// The most.
    pub(crate) most: f64,
}

impl Spread {
    /// Of some values; `None` of none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values
            .into_iter()
            .filter(|value| value.is_finite())
            .collect();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            count: sorted.len(),
            least: *sorted.first()?,
            lower_quartile: quantile(&sorted, 0.25)?,
            median: quantile(&sorted, 0.5)?,
            upper_quartile: quantile(&sorted, 0.75)?,
            most: *sorted.last()?,
        })
    }
}

/// The median of the passes' ratios.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ratio {
    /// The median as it was measured.
    pub(crate) ratio: f64,
    /// The interval's lower end.
    pub(crate) low: f64,
    /// Its upper end.
    pub(crate) high: f64,
    /// How many passes it is made of.
    pub(crate) passes: usize,
}

impl Ratio {
    /// Of pairs `(measure, judged)`, one a pass: judged over measure. `None` where there are no
    /// pairs, or a value is not above 0.
    pub(crate) fn of(pairs: &[(f64, f64)], seed: u64) -> Option<Self> {
        let usable = |value: f64| value.is_finite() && value > 0.0;
        if !pairs
            .iter()
            .all(|(left, right)| usable(*left) && usable(*right))
        {
            return None;
        }
        let mut ratios: Vec<f64> = pairs.iter().map(|(left, right)| right / left).collect();
        ratios.sort_by(f64::total_cmp);
        let ratio = quantile(&ratios, 0.5)?;
        let mut numbers = Numbers(seed);
        let mut drawn = Vec::with_capacity(ratios.len());
        let mut medians = Vec::with_capacity(DRAWS);
        for _ in 0..DRAWS {
            drawn.clear();
            drawn.extend(
                (0..ratios.len()).filter_map(|_| ratios.get(numbers.below(ratios.len())).copied()),
            );
            drawn.sort_unstable_by(f64::total_cmp);
            medians.push(quantile(&drawn, 0.5)?);
        }
        medians.sort_by(f64::total_cmp);
        let tail = (1.0 - CONFIDENCE) / 2.0;
        Some(Self {
            ratio,
            low: quantile(&medians, tail)?,
            high: quantile(&medians, 1.0 - tail)?,
            passes: pairs.len(),
        })
    }

    /// Whether there are passes enough to say anything.
    pub(crate) fn is_sayable(&self) -> bool {
        self.passes >= PASSES_MIN
    }
}

/// The value below which a share of sorted values lies, between two of them where it falls there.
fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let place = share * sorted.len().checked_sub(1)? as f64;
    let below = sorted.get(place.floor() as usize)?;
    let above = sorted.get(place.ceil() as usize)?;
    Some(below + (above - below) * place.fract())
}

/// Pseudo-random numbers: SplitMix64 (Steele, Lea, Flood 2014). Six lines that will give the same
/// numbers in every later version, so that words about a stored result can be had again.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 up to a limit; the bias is limit / 2⁶⁴.
    fn below(&mut self, limit: usize) -> usize {
        ((u128::from(self.next()) * limit as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Numbers {
        fn between_1_and_2(&mut self) -> f64 {
            1.0 + (self.next() >> 11) as f64 / (1_u64 << 53) as f64
        }
    }

    #[test]
    fn spreads() {
        assert_eq!(Spread::of([]), None);
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0, 5.0, f64::NAN]).unwrap();
        assert_eq!((spread.count, spread.least, spread.most), (5, 1.0, 5.0));
        assert_eq!(
            (spread.lower_quartile, spread.median, spread.upper_quartile),
            (2.0, 3.0, 4.0)
        );
        assert_eq!(Spread::of([1.0, 2.0]).unwrap().median, 1.5);
        assert_eq!(Spread::of([7.0]).unwrap().upper_quartile, 7.0);
    }

    #[test]
    fn random_numbers_are_what_they_were() {
        // The first numbers of the reference implementation for the seed 0.
        let mut numbers = Numbers(0);
        assert_eq!(numbers.next(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(numbers.next(), 0x6e78_9e6a_a1b9_65f4);
        assert!((0..1000).all(|_| numbers.below(3) < 3));
    }

    #[test]
    fn what_both_sides_have_in_common_is_not_in_the_ratio() {
        // Each pass has its own speed, from 1 to 9; the judged side takes exactly 1.1 times.
        let pairs: Vec<(f64, f64)> = (1..=9)
            .map(|pass| (f64::from(pass), f64::from(pass) * 1.1))
            .collect();
        let ratio = Ratio::of(&pairs, 1).unwrap();
        for value in [ratio.ratio, ratio.low, ratio.high] {
            assert!((value - 1.1).abs() < 1e-9, "{ratio:?}");
        }
        assert!(ratio.is_sayable());
        assert!(!Ratio::of(&pairs[..5], 1).unwrap().is_sayable());
    }

    #[test]
    fn the_interval_of_a_known_case() {
        // One of nine passes is an outlier: the median does not see it, the interval hardly.
        let mut pairs = vec![(1.0, 1.0); 8];
        pairs.push((1.0, 50.0));
        let ratio = Ratio::of(&pairs, 7).unwrap();
        assert_eq!((ratio.ratio, ratio.low), (1.0, 1.0));
        assert_eq!(
            ratio.high, 1.0,
            "five outliers of nine draws are rarer than 2.5 %"
        );
        // The binomial says how often at least five of nine draws are one of two outliers: 2.7 %.
        pairs[0] = (1.0, 50.0);
        assert!(Ratio::of(&pairs, 7).unwrap().high > 1.0);
    }

    #[test]
    fn nothing_is_said_of_nothing() {
        assert_eq!(Ratio::of(&[], 1), None);
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(Ratio::of(&[(1.0, 1.0), (bad, 1.0)], 1), None, "{bad}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_interval() {
        // Enough ratios, all different, that the ends of an interval tell its draws.
        let mut numbers = Numbers(42);
        let pairs: Vec<(f64, f64)> = (0..100)
            .map(|_| (numbers.between_1_and_2(), numbers.between_1_and_2()))
            .collect();
        assert_eq!(Ratio::of(&pairs, 3), Ratio::of(&pairs, 3));
        assert_ne!(Ratio::of(&pairs, 3), Ratio::of(&pairs, 4));
    }

    #[test]
    fn intervals_hold_the_truth_about_as_often_as_they_say() {
        // Both sides draw from one distribution, so the truth is 1. Percentile intervals of medians
        // are a little short for few passes; 9 in 10 is what is asked here.
        let mut numbers = Numbers(42);
        let held = (0..200)
            .filter(|trial| {
                let pairs: Vec<(f64, f64)> = (0..15)
                    .map(|_| (numbers.between_1_and_2(), numbers.between_1_and_2()))
                    .collect();
                let ratio = Ratio::of(&pairs, *trial).unwrap();
                (ratio.low..=ratio.high).contains(&1.0)
            })
            .count();
        assert!(held >= 180, "{held} of 200");
    }
}
