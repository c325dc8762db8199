//! The blackout's timeline: parts in order, on the source's clock.

use crate::clock::Timestamp;
use crate::report::{BlackoutPart, REMAINDER, Side};

/// The pause, part by part. The parts do not overlap by construction: none begins before the one
/// before it ends. A part follows from the one before it without a gap: the session's own step from
/// one to the next, and the processor that its thread may lose in it, count with what they lead to.
/// Where a part follows from none, as behind a failure, it says when it began, and what lies between
/// is the remainder.
#[derive(Clone, Debug)]
pub(super) struct Timeline {
    begin: Timestamp,
    moments: Vec<Moment>,
    /// When the next part began, where it says so.
    next_begin: Option<Timestamp>,
}

#[derive(Clone, Debug)]
struct Moment {
    name: &'static str,
    side: Side,
    begin: Timestamp,
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
            // Room for all parts there can be, so that none is made while the guest is paused.
            moments: Vec::with_capacity(32),
            next_begin: None,
        }
    }

    /// When it began.
    pub(super) fn begin(&self) -> Timestamp {
        self.begin
    }

    /// The next part begins now, and what was since the last one ended belongs to none.
    pub(super) fn begins_now(&mut self) {
        self.next_begin = Some(Timestamp::now());
    }

    /// The part `name` ended at `end`. A moment before the one before it (the two clocks' error)
    /// counts as the same moment; but a sending ended no later than the message arrived.
    pub(super) fn mark(&mut self, name: &'static str, side: Side, end: Timestamp) {
        if let Some(last) = self.moments.last_mut().filter(|last| last.is_sending)
            && end < last.end
        {
            last.end = end.max(last.begin);
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
        let last = self.end();
        let begin = self.next_begin.take().map_or(last, |begin| begin.max(last));
        self.moments.push(Moment {
            name,
            side,
            begin,
            end: end.max(begin),
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
        let moments = self.moments.iter();
        moments.map(|moment| (moment.name, moment.side, moment.begin, moment.end))
    }

    /// The parts, and the remainder last: what is between them.
    pub(super) fn parts(&self) -> Vec<BlackoutPart> {
        let between = |from: Timestamp, to: Timestamp| to.since(from).as_nanos() as u64;
        let part = |(name, side, begin, end): (&str, Side, Timestamp, Timestamp)| BlackoutPart {
            name: name.to_owned(),
            side,
            begin_ns: Some(between(self.begin, begin)),
            duration_ns: between(begin, end),
        };
        let mut parts: Vec<_> = self.moments().map(part).collect();
        let told_ns: u64 = parts.iter().map(|part| part.duration_ns).sum();
        parts.push(BlackoutPart {
            name: REMAINDER.to_owned(),
            side: Side::Source,
            begin_ns: None,
            duration_ns: between(self.begin, self.end()).saturating_sub(told_ns),
        });
        parts
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
        assert_eq!(durations, vec![100, 0, 200, 0]);
        assert_eq!(
            durations.iter().sum::<u64>(),
            timeline.end().0 - timeline.begin().0
        );
    }

    #[test]
    fn what_is_between_parts_is_the_remainder() {
        let mut timeline = Timeline::new(Timestamp(1000));
        timeline.mark("park", Side::Source, Timestamp(1100));
        timeline.next_begin = Some(Timestamp(1130));
        timeline.mark("collect", Side::Source, Timestamp(1150));
        // A part can't begin before the one before it ended.
        timeline.next_begin = Some(Timestamp(1140));
        timeline.mark("save-state", Side::Source, Timestamp(1160));
        let parts = timeline.parts();
        let told: Vec<_> = parts
            .iter()
            .map(|part| (part.begin_ns, part.duration_ns))
            .collect();
        let expected = [(Some(0), 100), (Some(130), 20), (Some(150), 10), (None, 30)];
        assert_eq!(told, expected);
        assert_eq!(parts.last().map(|part| part.name.as_str()), Some(REMAINDER));
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
        assert_eq!(durations[1..], [20, 0, 50, 0]);
    }
}
