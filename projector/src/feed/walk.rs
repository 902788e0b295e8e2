//! A walk over what the feed holds: whether its messages can still be read.
//!
//! Projecting reads only the feed's end. A block of the server's files that was damaged since is met by nobody
//! but whoever bills: the server says that the messages are there, gives none of them, and goes past none. One
//! message is asked for at a time, so far from the last that every block is met, and so seldom that it costs
//! nothing: a million messages take a quarter of an hour.

use std::{convert::Infallible, sync::Arc};

use seatbelt_schemas::chain::in_one_line;
use tokio::time::{Duration, sleep};
use tracing::{debug, error};

use crate::{
    Health,
    store::{FeedSequence, FeedStore, StoreError},
};

/// How often a message is asked for, and how many places further the next one stands: a block of the server's
/// files holds thousands of events.
const WALK_EVERY: Duration = Duration::from_secs(1);
const STEP: u64 = 1000;
/// How often in a row a message has to be missing: the stream may have been made again in between.
const MISSED_MAX: u32 = 3;

/// Where the walk is.
#[derive(Debug, Default)]
struct Walk {
    at: u64,
    missed: u32,
}

/// Walks over the feed, again and again, and tells what cannot be read.
pub(crate) async fn walk(store: Arc<dyn FeedStore>, health: Health) -> Infallible {
    let mut walk = Walk::default();
    let mut told = false;
    loop {
        match walk.step(&*store).await {
            Ok(unread) => {
                if let Some(reason) = unread.as_ref().filter(|_| !told) {
                    error!(reason, "the feed cannot be read");
                }
                told = unread.is_some();
                health.feed_reads(unread);
            }
            // whoever publishes tells of a server that does not answer
            Err(error) => debug!(error = in_one_line(&error), "the feed was not looked at"),
        }
        sleep(WALK_EVERY).await;
    }
}

impl Walk {
    /// Asks for the next message; gives why the feed cannot be read, where that is known. One that is missing
    /// is asked for until it is there again.
    async fn step(&mut self, store: &dyn FeedStore) -> Result<Option<String>, StoreError> {
        let end = store.end().await?;
        // places without a message say nothing where some were removed
        if end.trimmed || end.removed > 0 || end.sequence.0 == 0 {
            *self = Self::default();
            return Ok(None);
        }
        if self.missed == 0 {
            self.at = next(self.at, end.sequence.0);
        }
        let at = self.at.min(end.sequence.0);
        if store.entry(FeedSequence(at)).await?.is_some() {
            self.missed = 0;
            return Ok(None);
        }
        self.missed = self.missed.saturating_add(1);
        Ok((self.missed >= MISSED_MAX).then(|| {
            format!(
                "message {at} of the feed cannot be read, though the server says that it is there: a block of its files is damaged, and whoever bills gets no further"
            )
        }))
    }
}

/// The place after `at`, from the start again once the end was met.
fn next(at: u64, end: u64) -> u64 {
    match at {
        0 => 1,
        at if at >= end => 1,
        at => at.saturating_add(STEP).min(end),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryFeed;
    use crate::{
        feed::message::{EventSource, FeedMessage},
        testing::{commits, opened},
    };
    use seatbelt_schemas::{ids::LedgerId, names::Names, position::Partition};

    #[test]
    fn it_goes_from_start_to_end_and_again() {
        let mut at = 0;
        let places = (0..6).map(|_| {
            at = next(at, 2500);
            at
        });
        assert_eq!(places.collect::<Vec<_>>(), [1, 1001, 2001, 2500, 1, 1001]);
        assert_eq!(next(2500, 7), 1);
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_told_until_it_can() {
        let feed = MemoryFeed::default();
        let mut walk = Walk::default();
        assert_eq!(walk.step(&feed).await.unwrap(), None, "an empty one");
        let commits = commits(&[&[opened("a")]]);
        let source = EventSource {
            ledger: LedgerId::new("l").unwrap(),
            partition: Partition(0),
        };
        let message = FeedMessage::new(&Names::default(), &source, &commits[0].events[0]);
        for _ in 0..2500 {
            feed.put(message.clone());
        }
        feed.hide(1500..2400);
        let mut told = Vec::new();
        for _ in 0..6 {
            told.push(walk.step(&feed).await.unwrap());
        }
        let unread: Vec<_> = told.iter().map(Option::is_some).collect();
        assert_eq!(unread, [false, false, false, false, true, true], "{told:?}");
        assert!(
            told[5].as_ref().unwrap().contains("message 2001"),
            "{told:?}"
        );
        feed.hide(0..0);
        assert_eq!(walk.step(&feed).await.unwrap(), None);
        // holes that the server knows of are mended by whoever publishes
        feed.remove(1000..1001);
        for _ in 0..6 {
            assert_eq!(walk.step(&feed).await.unwrap(), None);
        }
    }
}
