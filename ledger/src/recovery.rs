//! Reads a partition's journal from its beginning to its end and folds it.

use futures::StreamExt;
use seatbelt_schemas::position::Partition;
use thiserror::Error;
use tracing::warn;

use crate::{
    journal::{Journal, ReadError, Sequence, Stored},
    outcomes::Outcomes,
    partition::{ChainError, PartitionState},
};

/// Pause between tries to read a journal that cannot be reached.
const RETRY: std::time::Duration = std::time::Duration::from_millis(250);

/// A partition as its journal tells it.
#[derive(Debug)]
pub struct Recovered {
    /// Its state.
    pub state: PartitionState,
    /// Its recent commands.
    pub outcomes: Outcomes,
    /// The last commit read.
    pub tail: Sequence,
}

/// Why a partition cannot be served: its journal is damaged. Nothing was changed.
#[derive(Debug, Error)]
pub enum RecoveryError {
    /// A commit does not continue the journal.
    #[error("the journal cannot be continued at sequence {at}: run `seatbelt audit verify`")]
    Chain {
        /// Where.
        at: Sequence,
        /// What does not fit.
        #[source]
        source: ChainError,
    },
    /// A commit is missing.
    #[error("the journal cannot be read: run `seatbelt audit verify`")]
    Damaged(#[source] ReadError),
}

/// Folds the whole journal. Waits for a journal that cannot be reached; ends with an error only where
/// what stands there is wrong.
pub async fn recover<J: Journal>(
    journal: &J,
    partition: Partition,
) -> Result<Recovered, RecoveryError> {
    let state = PartitionState::new(partition);
    let mut recovered = Recovered {
        state,
        outcomes: Outcomes::default(),
        tail: Sequence(0),
    };
    loop {
        match catch_up(journal, &mut recovered).await {
            Ok(()) => return Ok(recovered),
            Err(CatchUpError::Stop(error)) => return Err(error),
            Err(CatchUpError::Again(error)) => {
                warn!(%partition, %error, "journal cannot be reached, trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

enum CatchUpError {
    Again(ReadError),
    Stop(RecoveryError),
}

impl From<ReadError> for CatchUpError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Unreachable { .. } => Self::Again(error),
            ReadError::Gap { .. } => Self::Stop(RecoveryError::Damaged(error)),
        }
    }
}

async fn catch_up<J: Journal>(journal: &J, recovered: &mut Recovered) -> Result<(), CatchUpError> {
    let end = journal.end().await?;
    let mut commits = journal.replay(recovered.tail, end);
    while recovered.tail < end {
        let Some(stored) = commits.next().await else {
            return Err(ReadError::Gap {
                at: recovered.tail.next(),
            }
            .into());
        };
        recovered.fold(&stored?).map_err(CatchUpError::Stop)?;
    }
    Ok(())
}

impl Recovered {
    fn fold(&mut self, stored: &Stored) -> Result<(), RecoveryError> {
        let at = stored.sequence;
        let commit = self
            .state
            .check(&stored.payload)
            .map_err(|source| RecoveryError::Chain { at, source })?;
        for event in commit.events.iter().map(|stored| &stored.event) {
            self.state.apply(event);
            self.outcomes
                .apply(event, self.state.account(&event.account));
        }
        let hash = seatbelt_schemas::commit::ChainHash::of(&stored.payload);
        self.state.committed(commit.epoch, hash);
        self.tail = at;
        Ok(())
    }
}
