//! What is on the feed of one source: all up to a position, and what stands beyond a hole.
//!
//! Pure. A hole is what a stream leaves that lost messages and was appended to since; the events in it
//! are published again, those beyond it are not.

use std::collections::BTreeMap;

use seatbelt_schemas::position::Position;

use crate::store::FeedSequence;

/// Up to where a source is on the feed without a hole, and where its last message stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Published {
    /// Every event up to here is on the feed.
    pub position: Position,
    /// Place of the source's last message on the stream.
    pub sequence: FeedSequence,
    /// Position of that message, which is below `position` where a hole was filled.
    pub last: Position,
    /// How many places of the stream had lost their message when this was so.
    pub removed: u64,
}

/// All that is known of one source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Standing {
    published: Published,
    /// Runs of positions beyond a hole, first to last.
    beyond: BTreeMap<Position, Position>,
}

impl Standing {
    /// As it was left, verified by id.
    pub(super) fn at(published: Published) -> Self {
        Self {
            published,
            beyond: BTreeMap::new(),
        }
    }

    pub(super) fn published(&self) -> Published {
        self.published
    }

    /// Notes how many places of the stream hold no message.
    pub(super) fn saw_removed(&mut self, removed: u64) {
        self.published.removed = removed;
    }

    /// Nothing before this position is expected on the stream.
    pub(super) fn begin_at(&mut self, position: Position) {
        if self.published == Published::default() {
            self.published.position = Position(position.0.saturating_sub(1));
        }
    }

    /// Whether the event at `position` is on the feed.
    pub(super) fn has(&self, position: Position) -> bool {
        let run = || self.beyond.range(..=position).next_back();
        position <= self.published.position || run().is_some_and(|(_, last)| *last >= position)
    }

    /// Notes a message; one that was noted before changes nothing.
    pub(super) fn note(&mut self, position: Position, sequence: FeedSequence) {
        if sequence > self.published.sequence {
            self.published.sequence = sequence;
            self.published.last = position;
        }
        if self.has(position) {
            return;
        }
        let mut run = (position, position);
        if let Some((&first, &last)) = self.beyond.range(..position).next_back()
            && last.next() == position
        {
            run.0 = first;
        }
        if let Some(last) = self.beyond.remove(&position.next()) {
            run.1 = last;
        }
        if self.published.position.next() == run.0 {
            self.published.position = run.1;
        } else {
            self.beyond.insert(run.0, run.1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(noted: &[u64], up_to: u64, beyond: &[(u64, u64)]) {
        let mut standing = Standing::default();
        for (sequence, position) in (1..).zip(noted) {
            standing.note(Position(*position), FeedSequence(sequence));
        }
        assert_eq!(standing.published.position, Position(up_to));
        let runs: Vec<_> = standing.beyond.iter().map(|(a, b)| (a.0, b.0)).collect();
        assert_eq!(runs, beyond);
        let last = noted.last().copied().unwrap_or_default();
        assert_eq!(standing.published.last, Position(last));
        for position in 1..20 {
            let has = noted.contains(&position);
            assert_eq!(standing.has(Position(position)), has, "{position}");
        }
    }

    #[test]
    fn a_hole_is_known_until_it_is_filled() {
        check(&[], 0, &[]);
        check(&[1, 2, 3], 3, &[]);
        check(&[1, 2, 2, 1, 3], 3, &[]);
        check(&[1, 4, 5, 9], 1, &[(4, 5), (9, 9)]);
        check(&[4, 6, 5], 0, &[(4, 6)]);
        check(&[1, 4, 5, 2, 3], 5, &[]);
        check(&[3, 2, 7, 1], 3, &[(7, 7)]);
    }

    #[test]
    fn a_stream_that_is_trimmed_begins_where_it_begins() {
        let mut standing = Standing::default();
        standing.begin_at(Position(7));
        standing.note(Position(7), FeedSequence(1));
        standing.begin_at(Position(9));
        assert_eq!(standing.published.position, Position(7));
    }
}
