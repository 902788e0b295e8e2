//! The commands of docs/recovery.md, run as they stand there.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use seatbelt_ledger::journal::Sequence;
use seatbelt_schemas::{
    ids::AccountId,
    position::{Partition, Partitions},
};

use crate::{
    nats::{self, PATIENCE},
    stack::Stopped,
};

/// Where the embedded server keeps its streams, in its data folder.
pub const STREAMS: &str = "jetstream/SEATBELT/streams";

/// The partition of account `acct-cap`.
pub fn home_of_cap() -> Partition {
    let partitions = Partitions::try_from(4).unwrap();
    partitions.of(&AccountId::new("acct-cap").unwrap())
}

/// The ledger's folder.
pub fn folder(home: &Stopped) -> PathBuf {
    home.config().parent().unwrap().to_owned()
}

/// The folder of a stream, which is there.
pub fn stream(home: &Stopped, name: &str) -> PathBuf {
    let found = folder(home).join("data").join(STREAMS).join(name);
    assert!(found.is_dir(), "no {}", found.display());
    found
}

/// Copies a folder as it is.
pub fn copy(from: &Path, to: &Path) {
    let mut copying = std::process::Command::new("cp");
    let copied = copying.arg("-a").arg(from).arg(to).status();
    assert!(copied.unwrap().success());
}

/// The commands under a heading of docs/recovery.md, for this ledger's partition and sequence.
pub fn commands(heading: &str, sequence: Sequence) -> Vec<String> {
    let page = crate::repository().join("docs/recovery.md");
    let page = fs::read_to_string(page).unwrap();
    let begin = page.find(&format!("\n## {heading}\n")).unwrap() + 1;
    let section = &page[begin..];
    let section = &section[..section[1..]
        .find("\n## ")
        .map_or(section.len(), |at| at + 1)];
    let blocks = section.split("```sh\n").skip(1);
    let lines = blocks.flat_map(|block| block.split("```").next().unwrap().lines());
    let partition = home_of_cap();
    let here = |line: &str| {
        line.replace("--partition 2", &format!("--partition {}", partition.0))
            .replace("--sequence 41", &format!("--sequence {sequence}"))
            .replace("JOURNAL_02", &format!("JOURNAL_{partition}"))
    };
    let lines: Vec<_> = lines.map(here).collect();
    assert!(!lines.is_empty(), "no commands under {heading}");
    lines
}

/// Runs one line of the page in the ledger's folder, with `seatbelt` at hand.
pub async fn shell(home: &Stopped, line: &str) -> Output {
    let binary = crate::stack::program();
    let path = std::env::join_paths(
        std::iter::once(binary.parent().unwrap().to_owned())
            .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    let mut command = tokio::process::Command::new("bash");
    command.args(["-euc", line]).current_dir(folder(home));
    command.env("PATH", path.unwrap()).kill_on_drop(true);
    command.env("SEATBELT__NATS__SERVER", nats::program());
    let output = tokio::time::timeout(PATIENCE * 2, command.output()).await;
    output.unwrap().unwrap()
}

/// Runs lines of the page: those that only tell end with 1, all others must succeed.
pub async fn follow(home: &Stopped, lines: &[String]) -> String {
    let mut told = String::new();
    for line in lines {
        let output = shell(home, line).await;
        let code = i32::from(line.contains("# tells"));
        assert_eq!(output.status.code(), Some(code), "{line}: {output:?}");
        told += &String::from_utf8_lossy(&output.stdout);
        told += &String::from_utf8_lossy(&output.stderr);
    }
    told
}
