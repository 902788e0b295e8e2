//! `audit replay`: every event, one a line, as JSON with all that is stored or as text for people.

use std::{io::Write, process::ExitCode};

use futures::TryStreamExt;
use seatbelt_schemas::{
    commit::Commit, event::StoredEvent, ids::AccountId, position::Partition, time::rfc3339_ms,
};
use serde_json::Value;

use super::{AuditError, source::Source};

pub(super) async fn replay(
    source: &Source,
    json: bool,
    account: Option<&AccountId>,
    out: &mut (dyn Write + Send),
) -> Result<ExitCode, AuditError> {
    let mut commits = match account {
        Some(account) => source.commits_around(account).await?,
        None => source.commits(),
    };
    while let Some(item) = commits.try_next().await? {
        let (partition, at) = (item.partition, item.stored.sequence);
        let commit = Commit::read(&item.stored.payload).map_err(|source| AuditError::Commit {
            partition,
            at,
            source,
        })?;
        for stored in &commit.events {
            if account.is_some_and(|account| stored.event.account != *account) {
                continue;
            }
            let line = line(partition, stored, json)?;
            writeln!(out, "{line}").map_err(AuditError::Output)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn line(partition: Partition, stored: &StoredEvent, json: bool) -> Result<String, AuditError> {
    let event = &stored.event;
    let mut value = stored.to_json().map_err(|source| AuditError::Event {
        partition,
        position: event.position.0,
        source,
    })?;
    if json {
        if let Value::Object(fields) = &mut value {
            fields.insert("partition".to_owned(), partition.0.into());
        }
        return Ok(value.to_string());
    }
    let (time, kind) = (rfc3339_ms(event.at_ms), event.body.kind());
    let data = value.get("data").map_or_else(String::new, Value::to_string);
    Ok(format!(
        "{partition} {:>8} {time} {} {kind} {data}",
        event.position, event.account
    ))
}
