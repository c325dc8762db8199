//! One operation's durations on one thread: a histogram, and what is kept exact beside it.

use hdrhistogram::Histogram;

use super::{HISTOGRAM_DIGITS, HISTOGRAM_NS_MAX, HISTOGRAM_NS_MIN};
use crate::telemetry::buckets::{bucket_bounds, bucket_of};
use crate::telemetry::measurements::{Bucket, Summary};

/// The shares of which a summary tells, in thousandths.
const QUANTILES_PERMILLE: [u64; 4] = [500, 900, 990, 999];

pub(super) struct Tally {
    histogram: Histogram<u32>,
    total_ns: u64,
    min_ns: u64,
    max_ns: u64,
}

impl Tally {
    /// An empty one; `None` where the histogram's range is impossible, which it is not.
    pub(super) fn new() -> Option<Self> {
        let (low, high) = (HISTOGRAM_NS_MIN, HISTOGRAM_NS_MAX);
        let histogram = Histogram::new_with_bounds(low, high, HISTOGRAM_DIGITS).ok()?;
        Some(Self {
            histogram,
            total_ns: 0,
            min_ns: u64::MAX,
            max_ns: 0,
        })
    }

    #[inline]
    pub(super) fn record(&mut self, duration_ns: u64) {
        // Never past the range, so this can't fail; and never below it, as the range begins at 0.
        let within = duration_ns.min(HISTOGRAM_NS_MAX);
        if self.histogram.record(within).is_ok() {
            self.total_ns = self.total_ns.saturating_add(duration_ns);
            self.min_ns = self.min_ns.min(duration_ns);
            self.max_ns = self.max_ns.max(duration_ns);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.histogram.is_empty()
    }

    pub(super) fn histogram_bytes(&self) -> usize {
        self.histogram.distinct_values() * size_of::<u32>()
    }

    /// Adds what another thread did.
    pub(super) fn add(&mut self, other: &Self) {
        // Both have the same range.
        if self.histogram.add(&other.histogram).is_ok() {
            self.total_ns = self.total_ns.saturating_add(other.total_ns);
            self.min_ns = self.min_ns.min(other.min_ns);
            self.max_ns = self.max_ns.max(other.max_ns);
        }
    }

    /// In a few numbers.
    pub(super) fn summary(&self) -> Summary {
        let count = self.histogram.len();
        let [p50_ns, p90_ns, p99_ns, p999_ns] =
            QUANTILES_PERMILLE.map(|permille| self.quantile(permille));
        Summary {
            count,
            total_ns: self.total_ns,
            mean_ns: self.total_ns.checked_div(count).unwrap_or(0),
            min_ns: self.min_ns.min(self.max_ns),
            p50_ns,
            p90_ns,
            p99_ns,
            p999_ns,
            max_ns: self.max_ns,
        }
    }

    /// So many of a thousand took no longer.
    fn quantile(&self, permille: u64) -> u64 {
        let count = u128::from(self.histogram.len());
        let rank = (count * u128::from(permille)).div_ceil(1000);
        // The histogram rounds the share of its count up to a rank: half a rank less leaves it no
        // rounding error to trip over.
        let share = (rank as f64 - 0.5) / count as f64;
        match self.histogram.value_at_quantile(share) {
            // Where a bucket's count stopped at its largest, the ranks behind it are not found.
            0 => self.max_ns,
            found => found.clamp(self.min_ns.min(self.max_ns), self.max_ns),
        }
    }

    /// The buckets that are not empty. The histogram's own each lie within one of them.
    pub(super) fn buckets(&self) -> Vec<Bucket> {
        let mut buckets: Vec<Bucket> = Vec::new();
        for step in self.histogram.iter_recorded() {
            let (_, below_ns) = bucket_bounds(bucket_of(step.value_iterated_to()));
            let count = step.count_since_last_iteration();
            match buckets.last_mut() {
                Some(last) if last.below_ns == below_ns => last.count += count,
                _ => buckets.push(Bucket { below_ns, count }),
            }
        }
        buckets
    }
}
