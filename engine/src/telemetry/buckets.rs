//! The buckets in which durations are told to others: 16 to each doubling, from 64 ns up to
//! [`RANGE_NS_MAX`]. A recorder's histogram is finer; its buckets each lie within one of these, so
//! nothing is counted twice or split.

/// The longest duration that is told from a longer one: 2^42 ns, 73 minutes. Recorders take up to
/// an hour; this is where their last bucket ends.
pub const RANGE_NS_MAX: u64 = 1 << RANGE_BITS;

/// How many buckets there are. Formula: 16 for the first 1,024 ns, and 16 for each doubling up to
/// 2^42 ns: 16 + 16 × (42 − 10).
pub const BUCKETS: u16 = 16 + 16 * (RANGE_BITS - UNIT_BITS - SUB_BITS) as u16;

const RANGE_BITS: u32 = 42;

/// The finest bucket is 64 ns wide: the histogram's own resolution where its range begins at
/// 100 ns.
const UNIT_BITS: u32 = 6;

/// 16 buckets to a doubling: each is at most 1/16 as wide as its durations are long.
const SUB_BITS: u32 = 4;

/// Which bucket a duration falls into; the last one for all that is longer.
pub fn bucket_of(duration_ns: u64) -> u16 {
    let units = duration_ns.min(RANGE_NS_MAX - 1) >> UNIT_BITS;
    if units < 1 << SUB_BITS {
        return units as u16;
    }
    let shift = units.ilog2() - SUB_BITS;
    ((shift as u16) << SUB_BITS) + (units >> shift) as u16
}

/// The shortest duration in a bucket, and the end that all of its durations are below. A bucket
/// that does not exist ends and begins at the range's end.
pub fn bucket_bounds(bucket: u16) -> (u64, u64) {
    let begin = |bucket: u16| -> u64 {
        let bucket = u64::from(bucket.min(BUCKETS));
        let shift = (bucket >> SUB_BITS).saturating_sub(1);
        let sub_bucket = bucket - (shift << SUB_BITS);
        sub_bucket << shift << UNIT_BITS
    };
    (begin(bucket), begin(bucket.saturating_add(1)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_follow_each_other_without_gap_from_zero_to_the_end() {
        let mut end = 0;
        for bucket in 0..BUCKETS {
            let (begin, next) = bucket_bounds(bucket);
            assert_eq!(begin, end, "bucket {bucket}");
            assert!(next > begin, "bucket {bucket} is empty");
            assert!(
                next - begin <= (begin / 16).max(64),
                "bucket {bucket} is too wide"
            );
            assert_eq!((bucket_of(begin), bucket_of(next - 1)), (bucket, bucket));
            end = next;
        }
        assert_eq!(end, RANGE_NS_MAX);
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        assert_eq!(bucket_bounds(u16::MAX), (RANGE_NS_MAX, RANGE_NS_MAX));
    }

    #[test]
    fn powers_of_two_are_borders() {
        for bits in UNIT_BITS..RANGE_BITS {
            assert_eq!(bucket_bounds(bucket_of(1 << bits)).0, 1 << bits);
        }
    }

    proptest! {
        #[test]
        fn a_duration_lies_in_its_bucket(duration_ns in 0..RANGE_NS_MAX) {
            let (begin, end) = bucket_bounds(bucket_of(duration_ns));
            prop_assert!(begin <= duration_ns && duration_ns < end);
        }
    }
}
