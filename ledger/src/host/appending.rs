//! One append to its definite end: what is not known is tried again, and what was refused for its place is
//! looked at.
//!
//! Nothing is told before it is definite. Whoever drops this leaves the append as it is.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use super::clock::HostClock;
use crate::journal::{AppendError, Journal, Sequence};

/// First and longest pause between tries.
pub(super) const RETRY_FIRST: Duration = Duration::from_millis(20);
pub(super) const RETRY_LONGEST: Duration = Duration::from_secs(1);
/// How often in a row a journal must be found shorter than it was before that is believed: a server
/// that has just become its leader may not have taken in all that was acknowledged.
const SHORT_READS: u32 = 5;

/// What came of an append.
#[derive(Debug)]
pub(super) enum Ended {
    /// It landed here.
    Landed(Sequence),
    /// This stands in its place: itself, or another writer's commit.
    Found(Bytes),
    /// The journal is shorter than it was.
    Gone,
    /// The journal takes nothing: why.
    Refused(String),
}

/// Appends until it is known what came of it.
pub(super) async fn append<J: Journal>(
    journal: Arc<J>,
    clock: HostClock,
    expected: Sequence,
    payload: Bytes,
) -> Ended {
    let (mut pause, mut short) = (RETRY_FIRST, 0);
    loop {
        match journal.append(expected, payload.clone()).await {
            Ok(sequence) => return Ended::Landed(sequence),
            Err(AppendError::Refused { detail }) => return Ended::Refused(detail),
            Err(AppendError::Unknown { .. }) => {}
            Err(AppendError::WrongSequence { expected }) => {
                if let Some(ended) = look(&*journal, expected.next(), &mut short).await {
                    return ended;
                }
            }
        }
        clock.sleep(pause).await;
        pause = (pause * 2).min(RETRY_LONGEST);
    }
}

/// What stands where an append belongs that was refused for its place. Nothing may stand there yet: with
/// copies on several servers an append meets an earlier try of itself that is still being replicated.
/// Only an end before the place, read again and again, says that the journal shrank.
async fn look<J: Journal>(journal: &J, sequence: Sequence, short: &mut u32) -> Option<Ended> {
    match journal.get(sequence).await {
        Ok(Some(found)) => return Some(Ended::Found(found.payload)),
        Ok(None) => {}
        // the append is tried again and leads back here
        Err(_) => return None,
    }
    match journal.end().await {
        Ok(end) if end.next() < sequence => *short += 1,
        Ok(_) => *short = 0,
        Err(_) => {}
    }
    (*short >= SHORT_READS).then_some(Ended::Gone)
}
