//! What the projection writes: accounts that changed, the directory, and the record that vouches for them.

use super::*;
use seatbelt_schemas::chain::in_one_line;

impl<J: Journal> Snapshots<J> {
    /// Writes what changed, then vouches for it.
    pub(super) async fn flush(&mut self) -> Result<(), NotKept> {
        self.flushed_at = Instant::now();
        self.write_accounts(Which::All).await?;
        if !self.is_behind() {
            self.check_end().await?;
        }
        self.write_directory().await?;
        let projector = Some(self.projector.clone());
        self.record(projector).await?;
        self.works();
        Ok(())
    }

    /// Writes accounts that changed.
    pub(super) async fn write_accounts(&mut self, which: Which) -> Result<(), NotKept> {
        let (position, at_ms) = (self.tail.head.position, self.tail.head.at_ms);
        let values: Vec<(AccountId, Revision, Written)> = self
            .dirty
            .iter()
            .filter_map(|account| self.accounts.get(account).map(|folded| (account, folded)))
            .filter(|(_, folded)| which == Which::All || folded.head.is_none())
            .map(|(account, folded)| {
                let Folded { state, head, .. } = folded;
                let written = Written::of(account, position, at_ms, state, head.as_ref());
                (account.clone(), folded.revision, written)
            })
            .collect();
        self.small = (Instant::now(), false);
        if which == Which::All {
            let large = values.iter().filter(|(.., written)| written.head.is_some());
            self.pause = pause_after(large.map(|(.., written)| written.size).sum());
        }
        let store = Arc::clone(&self.store);
        let mut writes = stream::iter(values)
            .map(|(account, expected, written)| {
                let store = Arc::clone(&store);
                async move {
                    let revision = written.write(&*store, &account, expected).await?;
                    Ok::<_, WriteError>((account, revision, written.head))
                }
            })
            .buffer_unordered(SNAPSHOTS_IN_FLIGHT_MAX);
        while let Some((account, revision, head)) = writes.try_next().await? {
            self.dirty.remove(&account);
            if let Some(folded) = self.accounts.get_mut(&account) {
                (folded.revision, folded.head) = (revision, head);
            }
        }
        if self.accounts.len() > ACCOUNTS_IN_MEMORY_MAX {
            self.accounts.clear();
        }
        Ok(())
    }

    /// Notes that all is current, if the journal really ends where the projection stands.
    pub(super) async fn check_end(&mut self) -> Result<(), NotKept> {
        let (partition, at) = (self.tail.partition(), self.tail.sequence);
        let asked_at_ms = now_ms();
        match self.journal.end().await {
            Ok(end) if end < at => Err(Halt::Cut { partition, end, at }.into()),
            Ok(end) if end == at => {
                self.checked_at_ms = self.checked_at_ms.max(asked_at_ms);
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(ReadError::Gap { at }) => Err(Halt::Gap { partition, at }.into()),
            Err(ReadError::Unreachable { source, .. }) => Err(self.unreachable(source)),
        }
    }

    async fn record(&mut self, projector: Option<String>) -> Result<(), NotKept> {
        // whatever is in the journal up to a commit was current at the moment of that commit
        self.checked_at_ms = self.checked_at_ms.max(self.tail.head.at_ms);
        let record = PartitionRecord {
            v: RECORD_VERSION,
            projector,
            sequence: self.tail.sequence.0,
            head: self.tail.head.clone(),
            checked_at_ms: self.checked_at_ms,
            history: self.history,
            open: self.open_accounts(),
            directory: match &self.listed {
                Listed::Named(named) => named.clone(),
                Listed::Read { directory, .. } => directory.named().cloned(),
            },
        };
        let key = Names::snapshot_partition_key(self.tail.partition());
        self.revision = self
            .store
            .write(&key, self.revision, record.encode())
            .await?;
        self.recorded = self.tail.sequence;
        self.recorded_position = self.tail.head.position;
        Ok(())
    }

    fn works(&self) {
        self.health
            .works(self.tail.partition(), Component::Snapshots);
    }

    fn open_accounts(&self) -> Option<Vec<AccountId>> {
        let (open, of_all) = &self.open;
        (*of_all && open.len() <= OPEN_ACCOUNTS_MAX).then(|| open.iter().cloned().collect())
    }

    /// Writes what is left and gives the seat up, so that a successor need not wait for it.
    pub(super) async fn leave(mut self) -> Result<(), Stop> {
        let parting = async {
            self.write_accounts(Which::All).await?;
            // whatever is wrong with the journal's end was told already, or the next start tells it
            drop(self.check_end().await);
            self.write_directory().await?;
            self.record(None).await
        };
        match parting.await {
            Err(NotKept::Stop(Stop::Halted(halt))) => Err(Stop::Halted(halt)),
            Err(NotKept::Store(error)) => {
                let partition = self.tail.partition();
                warn!(%partition, error = in_one_line(&error), "the last snapshots were not written: the next start does it");
                Ok(())
            }
            Err(NotKept::Directory(reason)) => {
                let partition = self.tail.partition();
                error!(%partition, reason, "the last snapshots were not written: the next start projects again");
                Ok(())
            }
            Ok(()) | Err(NotKept::Stop(Stop::Fenced) | NotKept::Newer(_)) => Ok(()),
        }
    }
}
