//! The blackout's timeline: moments in order, each the end of a part, on the source's clock.

use crate::clock::Timestamp;
use crate::report::{BlackoutPart, Side};

/// The pause, part by part. The parts follow each other without gap or overlap by construction: a
/// part reaches from the moment before it to its own.
#[derive(Clone, Debug)]
pub(super) struct Timeline {
    begin: Timestamp,
    moments: Vec<(String, Side, Timestamp)>,
}

impl Timeline {
    /// A pause that began at `begin`, when the first vCPU was parked.
    pub(super) fn new(begin: Timestamp) -> Self {
        Self {
            begin,
            moments: Vec::with_capacity(24),
        }
    }

    /// When it began.
    pub(super) fn begin(&self) -> Timestamp {
        self.begin
    }

    /// The part `name` ended at `end`. A moment before the one before it (the two clocks' error)
    /// counts as the same moment.
    pub(super) fn mark(&mut self, name: &str, side: Side, end: Timestamp) {
        let end = end.max(self.end());
        self.moments.push((name.to_owned(), side, end));
    }

    /// The part `name` ended now, on the source.
    pub(super) fn mark_now(&mut self, name: &str) {
        self.mark(name, Side::Source, Timestamp::now());
    }

    /// The last moment.
    pub(super) fn end(&self) -> Timestamp {
        self.moments.last().map_or(self.begin, |(_, _, end)| *end)
    }

    /// The parts.
    pub(super) fn parts(&self) -> Vec<BlackoutPart> {
        let begins = std::iter::once(self.begin).chain(self.moments.iter().map(|moment| moment.2));
        let part =
            |(begin, (name, side, end)): (Timestamp, &(String, Side, Timestamp))| BlackoutPart {
                name: name.clone(),
                side: *side,
                duration_ns: end.since(begin).as_nanos() as u64,
            };
        begins.zip(&self.moments).map(part).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up_to_the_whole_even_where_clocks_disagree() {
        let mut timeline = Timeline::new(Timestamp(1000));
        timeline.mark("park", Side::Source, Timestamp(1100));
        timeline.mark("prepare", Side::Link, Timestamp(1050));
        timeline.mark("load-state", Side::Destination, Timestamp(1300));
        let durations: Vec<_> = timeline
            .parts()
            .iter()
            .map(|part| part.duration_ns)
            .collect();
        assert_eq!(durations, vec![100, 0, 200]);
        assert_eq!(
            durations.iter().sum::<u64>(),
            timeline.end().0 - timeline.begin().0
        );
    }
}
