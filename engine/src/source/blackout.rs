//! The blackout's timeline: moments in order, each the end of a part, on the source's clock.

use crate::clock::Timestamp;
use crate::report::{BlackoutPart, Side};

/// The pause, part by part. The parts follow each other without gap or overlap by construction: a
/// part reaches from the moment before it to its own.
#[derive(Clone, Debug)]
pub(super) struct Timeline {
    begin: Timestamp,
    moments: Vec<Moment>,
}

#[derive(Clone, Debug)]
struct Moment {
    name: &'static str,
    side: Side,
    end: Timestamp,
    /// The part is the sending of a message, and `end` is when the call returned. The peer may well
    /// have had the message before.
    is_sending: bool,
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
    /// counts as the same moment; but a sending ended no later than the message arrived.
    pub(super) fn mark(&mut self, name: &'static str, side: Side, end: Timestamp) {
        if let Some((last, before)) = self.moments.split_last_mut() {
            let begin = before.last().map_or(self.begin, |moment| moment.end);
            if last.is_sending && end < last.end {
                last.end = end.max(begin);
            }
        }
        self.push(name, side, end, false);
    }

    /// The part `name` ended now, on the source.
    pub(super) fn mark_now(&mut self, name: &'static str) {
        self.push(name, Side::Source, Timestamp::now(), false);
    }

    /// A message was sent: the call that sent it returns now, on the source.
    pub(super) fn mark_sent(&mut self, name: &'static str) {
        self.push(name, Side::Source, Timestamp::now(), true);
    }

    fn push(&mut self, name: &'static str, side: Side, end: Timestamp, is_sending: bool) {
        let end = end.max(self.end());
        self.moments.push(Moment {
            name,
            side,
            end,
            is_sending,
        });
    }

    /// The last moment.
    pub(super) fn end(&self) -> Timestamp {
        self.moments.last().map_or(self.begin, |last| last.end)
    }

    /// The parts, each with its begin and its end.
    pub(super) fn moments(
        &self,
    ) -> impl Iterator<Item = (&'static str, Side, Timestamp, Timestamp)> {
        let begins =
            std::iter::once(self.begin).chain(self.moments.iter().map(|moment| moment.end));
        let part =
            |(begin, moment): (Timestamp, &Moment)| (moment.name, moment.side, begin, moment.end);
        begins.zip(&self.moments).map(part)
    }

    /// The parts.
    pub(super) fn parts(&self) -> Vec<BlackoutPart> {
        let part = |(name, side, begin, end): (&str, Side, Timestamp, Timestamp)| BlackoutPart {
            name: name.to_owned(),
            side,
            duration_ns: end.since(begin).as_nanos() as u64,
        };
        self.moments().map(part).collect()
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

    /// The source's thread loses the processor inside the call that sends: the peer goes on
    /// meanwhile, and the pause ends when the guest runs, not when the call returns.
    #[test]
    fn a_sending_call_that_returns_late_does_not_lengthen_the_pause() {
        let mut timeline = Timeline::new(Timestamp(1000));
        timeline.mark_now("park");
        let begin = timeline.end();
        timeline.push("commit", Side::Source, Timestamp(begin.0 + 5_000), true);
        timeline.mark("commit-on-link", Side::Link, Timestamp(begin.0 + 20));
        timeline.mark("resume", Side::Destination, Timestamp(begin.0 + 70));
        let durations: Vec<_> = timeline
            .parts()
            .iter()
            .map(|part| part.duration_ns)
            .collect();
        assert_eq!(durations[1..], [20, 0, 50]);
    }
}
