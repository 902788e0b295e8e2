//! A server that never listens, because it cannot read what it kept of a stream and does not say so: bits that
//! changed in a block can keep nats-server reading it for ever.
//!
//! What only says who is alive right now is set aside, and made again by whoever is. Everything else is the
//! operator's to decide (docs/recovery.md).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use seatbelt_bus::Settings;
use seatbelt_schemas::names::Names;

use super::{NatsServerError, folder::DataFolder};

/// How the server's log tells of a stream that it begins to read, and that it has read.
const BEGUN: &str = "Starting restore for stream '";
const READ: &str = "Restored ";
const OF_STREAM: &str = " for stream '";

/// A stream by the account that it lies in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kept {
    account: String,
    name: String,
}

impl Kept {
    /// As the log names it.
    fn named(told: &str) -> Option<Self> {
        let (account, name) = told.split_once('\'')?.0.split_once(" > ")?;
        let is_plain = |part: &str| !part.is_empty() && !part.contains(['/', '\\']) && part != "..";
        let kept = Self {
            account: account.to_owned(),
            name: name.to_owned(),
        };
        (is_plain(account) && is_plain(name)).then_some(kept)
    }

    /// The stream's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn folder(&self, root: &Path) -> PathBuf {
        let account = root.join("jetstream").join(&self.account);
        account.join("streams").join(&self.name)
    }
}

/// The streams that the server began to read and has not read yet, by its log since it was begun.
pub(super) fn being_read(log: &str) -> BTreeSet<Kept> {
    let mut reading = BTreeSet::new();
    for line in log.lines() {
        if let Some((_, told)) = line.split_once(BEGUN) {
            reading.extend(Kept::named(told));
        } else if line.contains(READ)
            && let Some((_, told)) = line.split_once(OF_STREAM)
            && let Some(read) = Kept::named(told)
        {
            reading.remove(&read);
        }
    }
    reading
}

/// Whether all of them only say who is alive.
pub(super) fn may_be_set_aside(streams: &BTreeSet<Kept>, names: &Names) -> bool {
    let alive = [Settings::leases(names, 1), Settings::neurons(names, 1)];
    let of_these = |kept: &Kept| alive.iter().any(|known| known.stream() == kept.name);
    !streams.is_empty() && streams.iter().all(of_these)
}

/// Moves what the server keeps of a stream out of its way; gives the place. What was there from before is
/// replaced: the newest is what somebody may want to look at.
pub(super) fn set_aside(folder: &DataFolder, stream: &Kept) -> Result<PathBuf, NatsServerError> {
    let (from, aside) = (stream.folder(&folder.root()), folder.root().join("damaged"));
    let to = aside.join(&stream.name);
    let moved = fs::create_dir_all(&aside)
        .and_then(|()| match fs::remove_dir_all(&to) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
        .and_then(|()| fs::rename(&from, &to));
    let failed = |source| NatsServerError::Folder {
        action: "set aside",
        path: from.clone(),
        source,
    };
    moved.map_err(failed)?;
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
[7] 2026/11/26 11:31:26.969340 [INF]   Starting restore for stream 'SEATBELT > KV_SEATBELT_LEASES'
[7] 2026/11/26 11:31:26.969884 [INF]   Starting restore for stream 'SEATBELT > KV_SEATBELT_META'
[7] 2026/11/26 11:31:26.970744 [INF]   Restored 3 messages for stream 'SEATBELT > KV_SEATBELT_META' in 1ms
";
    const READ_TOO: &str =
        "[7] [INF]   Restored 1 messages for stream 'SEATBELT > KV_SEATBELT_LEASES' in 0s";

    #[test]
    fn what_is_being_read_is_what_was_begun_and_is_not_read() {
        let names = Names::default();
        let reading = being_read(LOG);
        let told: Vec<_> = reading.iter().map(|kept| kept.name.as_str()).collect();
        assert_eq!(told, ["KV_SEATBELT_LEASES"]);
        assert!(may_be_set_aside(&reading, &names));
        let all_read = being_read(&format!("{LOG}{READ_TOO}"));
        assert!(all_read.is_empty() && !may_be_set_aside(&all_read, &names));
    }

    #[test]
    fn nothing_but_who_is_alive_is_set_aside() {
        let names = Names::default();
        for name in [
            "SEATBELT_JOURNAL_00",
            "KV_SEATBELT_META",
            "KV_SEATBELT_SNAPSHOTS",
            "OTHER",
        ] {
            let log = format!("{LOG}x {BEGUN}SEATBELT > {name}'\n");
            let reading = being_read(&log);
            assert_eq!(reading.len(), 2, "{name}");
            assert!(!may_be_set_aside(&reading, &names), "{name}");
        }
        // what the log names is a place in the folder
        assert!(being_read(&format!("{BEGUN}../.. > KV_SEATBELT_LEASES'")).is_empty());
        assert!(being_read(&format!("{BEGUN}A > ..'")).is_empty());
    }
}
