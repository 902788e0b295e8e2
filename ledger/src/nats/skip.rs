//! An operator's word that messages at a journal's end are no commits.
//!
//! One append says it, conditional on the journal's end like any other: the `writer_started` that names
//! each message by its place and hash. Every reader then steps over exactly those. Where a commit stood
//! that was damaged, its events are given up, which is an adoption as well
//! ([`adopt`](super::adopt)): what was derived from it is taken out. A run that ends half way there is made
//! whole by `adopt-journal`.

use std::fmt;

use futures::TryStreamExt;
use seatbelt_bus::{Nats, ProvisionError};
use seatbelt_schemas::{
    commit::ChainHash,
    position::Partition,
    skipped::{SKIPPED_MAX, Skipped, Stray},
};
use thiserror::Error;

use super::{
    Doubt, NatsJournal, OpenError,
    adopt::{AdoptError, Adoption, server_ms},
};
use crate::{
    journal::{
        AppendError, Journal, ReadError, Sequence, Stored,
        strays::{self, StrayVerdict},
    },
    outcomes::HOT_MAX,
    recovery::RecoveryError,
    resume::{Resume, ResumeError, Resumed},
    writer::Word,
};

/// Why nothing was skipped, by what to do next.
#[derive(Debug, Error)]
pub enum SkipError {
    /// Nothing is to be done.
    #[error("the journal of partition {0} ends with a commit: there is nothing to skip")]
    Nothing(Partition),
    /// There is no journal yet to go on from.
    #[error(
        "no commit stands before sequence 1 of partition {0}: nothing is lost with that stream, so remove it from the server and start the gateways"
    )]
    Empty(Partition),
    /// No word helps: commits are missing or damaged in the middle.
    #[error(
        "sequence {at} of partition {partition} is a commit of this journal, but one before it is missing or damaged: restore the stream from a backup"
    )]
    Middle { partition: Partition, at: Sequence },
    /// More messages than one word can name.
    #[error("more than {SKIPPED_MAX} messages of partition {0} are no commits: restore the stream")]
    TooMany(Partition),
    /// Name exactly what is to be skipped.
    #[error(
        "what stands at the end of partition {partition} and is no commit: sequence {found}; name exactly these"
    )]
    Others {
        partition: Partition,
        /// What is there.
        found: Sequences,
    },
    /// Its events would be given up.
    #[error(
        "sequence {at} of partition {partition} was a commit that is damaged ({by} says so): restore the stream from a backup; if there is none, --give-up goes on without its events"
    )]
    Damaged {
        partition: Partition,
        at: Sequence,
        /// Who knows.
        by: &'static str,
    },
    /// The journal or its witnesses cannot be read, or another decision comes first.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// What stands before it does not hold together.
    #[error("the journal before it cannot be read")]
    Journal(#[from] RecoveryError),
    /// Somebody appends, or nobody knows: run the command again.
    #[error("the word was not written: stop the gateways and run the command again")]
    Append(#[from] AppendError),
    /// What was derived could not be taken out.
    #[error(
        "the word is written, what was derived is not all taken out: finish with `adopt-journal`"
    )]
    Derived(#[from] AdoptError),
}

impl From<ProvisionError> for SkipError {
    fn from(error: ProvisionError) -> Self {
        OpenError::from(error).into()
    }
}

impl From<ReadError> for SkipError {
    fn from(error: ReadError) -> Self {
        OpenError::from(error).into()
    }
}

/// Sequences, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequences(pub Vec<u64>);

impl fmt::Display for Sequences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places: Vec<String> = self.0.iter().map(u64::to_string).collect();
        f.write_str(&places.join(", "))
    }
}

/// What stands at a journal's end and is no commit.
#[derive(Debug)]
pub struct FoundStrays {
    /// The last commit before it.
    pub after: Sequence,
    /// Each message.
    pub messages: Vec<Stray>,
    /// Who knows that a commit stood there, where somebody does.
    pub damaged: Option<&'static str>,
    resumed: Resumed,
}

/// Looks at what stands at the journal's end and is no commit; changes nothing.
pub async fn find(nats: &Nats, adoption: &Adoption) -> Result<FoundStrays, SkipError> {
    let partition = adoption.partition;
    let journal = NatsJournal::open_existing(nats, &adoption.names, partition).await?;
    let (resume, strays) = read(&journal, partition).await?;
    let Some(first) = strays.first().map(|stray| stray.sequence) else {
        look(nats, adoption).await?;
        return Err(SkipError::Nothing(partition));
    };
    if first == Sequence(1) {
        return Err(SkipError::Empty(partition));
    }
    let looks_so = match strays::judge(resume.head(), &strays) {
        StrayVerdict::Strays => false,
        StrayVerdict::Damaged => true,
        StrayVerdict::Middle(at) => return Err(SkipError::Middle { partition, at }),
    };
    let seen = look(nats, adoption).await?.filter(|(at, _)| *at >= first);
    let damaged = match seen {
        Some((_, by)) => Some(by),
        None => looks_so.then_some("its own header"),
    };
    Ok(found(resume, &strays, damaged))
}

fn found(mut resume: Resume, strays: &[Stored], damaged: Option<&'static str>) -> FoundStrays {
    let after = resume.tail();
    if let Some(last) = strays.last() {
        resume.step_over(last.sequence);
    }
    let message = |stray: &Stored| Stray::of(stray.sequence.0, &stray.payload);
    FoundStrays {
        after,
        messages: strays.iter().map(message).collect(),
        damaged,
        resumed: resume.finish(),
    }
}

/// Who saw another commit in the journal than is there now, and where.
async fn look(
    nats: &Nats,
    adoption: &Adoption,
) -> Result<Option<(Sequence, &'static str)>, SkipError> {
    match adoption.witnesses(nats).look().await {
        Ok(()) => Ok(None),
        Err(OpenError::Doubt(Doubt::Replaced { by, at, .. })) => Ok(Some((at, by))),
        Err(other) => Err(other.into()),
    }
}

/// Folds the journal as far as it goes, and gives what stands after that.
async fn read(
    journal: &NatsJournal,
    partition: Partition,
) -> Result<(Resume, Vec<Stored>), SkipError> {
    let mut resume = Resume::from_start(partition, HOT_MAX);
    let mut strays: Vec<Stored> = Vec::new();
    let mut commits = journal.replay(Sequence(0), journal.end().await?);
    while let Some(stored) = commits.try_next().await? {
        let at = stored.sequence;
        if at <= resume.tail() {
            continue;
        }
        match resume.check(&stored) {
            Ok(_) if !strays.is_empty() => return Err(SkipError::Middle { partition, at }),
            Ok(commit) => resume
                .take(&stored, &commit)
                .expect("without snapshots nothing can disagree"),
            Err(ResumeError::Disagrees(_)) => {
                unreachable!("without snapshots nothing can disagree")
            }
            Err(ResumeError::Chain(_)) => {
                // behind a message that nobody had skipped there is no word
                let skipped = match strays.is_empty() {
                    true => strays::step_over(journal, resume.head(), &stored).await?,
                    false => None,
                };
                match skipped {
                    Some(last) => resume.step_over(last),
                    None if strays.len() >= SKIPPED_MAX => {
                        return Err(SkipError::TooMany(partition));
                    }
                    None => strays.push(stored),
                }
            }
        }
    }
    Ok((resume, strays))
}

/// Has the messages at the journal's end skipped, which must be exactly those asked for; gives the place of
/// the commit that says so. `give_up` also goes on behind one commit that is damaged.
pub async fn skip(
    nats: &Nats,
    adoption: &Adoption,
    asked: &[u64],
    give_up: bool,
) -> Result<Sequence, SkipError> {
    let partition = adoption.partition;
    let found = find(nats, adoption).await?;
    let places: Vec<u64> = found.messages.iter().map(|stray| stray.sequence).collect();
    if places != asked {
        let found = Sequences(places);
        return Err(SkipError::Others { partition, found });
    }
    let at = found.after.next();
    if let Some(by) = found.damaged {
        match (give_up, places.len()) {
            (false, _) => return Err(SkipError::Damaged { partition, at, by }),
            (true, 1) => {}
            (true, _) => return Err(SkipError::Middle { partition, at }),
        }
    }
    let journal = NatsJournal::reopen(nats, &adoption.names, partition, adoption.replicas).await?;
    let gives_up = found.damaged.is_some();
    let last = say(adoption, &journal, found).await?;
    if gives_up {
        adoption.forget(nats).await?;
        adoption.witnesses(nats).replace(&journal, last).await?;
    }
    Ok(last.0)
}

async fn say(
    adoption: &Adoption,
    journal: &NatsJournal,
    found: FoundStrays,
) -> Result<(Sequence, ChainHash), SkipError> {
    let reason = match found.damaged {
        None => "a message that is no commit".to_owned(),
        Some(by) => format!("a damaged commit ({by} says so) whose events are given up"),
    };
    let given_up = found.damaged.map(|_| reason.clone());
    let word = Word {
        adopted: given_up.map(|reason| adoption.adopted(found.after, reason)),
        skipped: Some(Skipped {
            messages: found.messages,
            reason,
            by: adoption.by.clone(),
        }),
    };
    let now_ms = server_ms(journal).await?;
    Ok(adoption.say(journal, found.resumed, now_ms, word).await?)
}
