//! The file of bills: a line for each charge, with the id of the event that made it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Seek, SeekFrom, Write},
    path::Path,
};

use anyhow::Context;
use seatbelt_schemas::event::{Event, EventBody};
use serde::{Deserialize, Serialize};

/// What one event charges.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Bill {
    /// `<ledger>/<partition>/<position>`: the same whenever the event is delivered.
    id: String,
    account: String,
    reservation: String,
    tokens: u64,
    nano_usd: u64,
    requests: u64,
    /// The moment that the spend belongs to, unix ms.
    at_ms: u64,
    /// Reported. What is not was charged by the policy of its key, and is replaced by a report that comes late.
    reported: bool,
}

impl Bill {
    /// Most events charge nothing.
    fn of(id: &str, event: &Event) -> Option<Self> {
        let (reservation, charge, at_ms, reported) = match &event.body {
            EventBody::Settled(it) => (it.reservation, it.charge, it.reserved_at_ms, true),
            EventBody::Expired(it) => (it.reservation, it.charge, it.reserved_at_ms, false),
            _ => return None,
        };
        Some(Self {
            id: id.to_owned(),
            account: event.account.to_string(),
            reservation: reservation.to_string(),
            tokens: charge.tokens,
            nano_usd: charge.cost.unwrap_or(0),
            requests: charge.requests,
            at_ms,
            reported,
        })
    }
}

/// The sum of an account's bills.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Total {
    pub(crate) account: String,
    pub(crate) tokens: u64,
    pub(crate) nano_usd: u64,
    pub(crate) requests: u64,
}

/// The bills so far.
#[derive(Debug)]
pub(crate) struct Book {
    file: File,
    /// Ids that are in the book.
    seen: HashSet<String>,
    /// The bill of each reservation that stands.
    standing: HashMap<String, Bill>,
    /// Lines that are not in the file yet.
    unwritten: Vec<u8>,
}

impl Book {
    /// Reads the file; makes one where there is none.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(path);
        let mut book = Self {
            file: file.with_context(|| format!("cannot open {}", path.display()))?,
            seen: HashSet::new(),
            standing: HashMap::new(),
            unwritten: Vec::new(),
        };
        let whole = book.read().with_context(|| path.display().to_string())?;
        // a line that was being written when the machine stopped: its message was not acknowledged
        book.file.set_len(whole)?;
        book.file.seek(SeekFrom::Start(whole))?;
        Ok(book)
    }

    /// Takes in all whole lines; how many bytes these are.
    fn read(&mut self) -> anyhow::Result<u64> {
        let mut lines = BufReader::new(self.file.try_clone()?);
        let (mut whole, mut line) = (0, String::new());
        while lines.read_line(&mut line)? > 0 && line.ends_with('\n') {
            self.stand(serde_json::from_str(&line)?);
            whole += line.len();
            line.clear();
        }
        Ok(u64::try_from(whole)?)
    }

    /// Takes an event in; nothing where it charges nothing or is there already.
    pub(crate) fn enter(&mut self, id: &str, event: &Event) {
        let Some(bill) = Bill::of(id, event) else {
            return;
        };
        if self.seen.contains(id) {
            return;
        }
        serde_json::to_writer(&mut self.unwritten, &bill).expect("a bill is plain JSON");
        self.unwritten.push(b'\n');
        self.stand(bill);
    }

    /// A report stands before what was charged without one, whichever comes first: what is delivered again
    /// may come behind what followed it.
    fn stand(&mut self, bill: Bill) {
        self.seen.insert(bill.id.clone());
        let known = self.standing.get(&bill.reservation);
        if known.is_none_or(|known| bill.reported || !known.reported) {
            self.standing.insert(bill.reservation.clone(), bill);
        }
    }

    /// Once this returns, what was entered is on the disk.
    pub(crate) fn write(&mut self) -> anyhow::Result<()> {
        if !self.unwritten.is_empty() {
            self.file.write_all(&self.unwritten)?;
            self.file.sync_data()?;
            self.unwritten.clear();
        }
        Ok(())
    }

    /// Of each account, by its name.
    pub(crate) fn totals(&self) -> impl Iterator<Item = Total> {
        let mut totals: BTreeMap<&str, Total> = BTreeMap::new();
        for bill in self.standing.values() {
            let total = totals.entry(&bill.account).or_default();
            total.account.clone_from(&bill.account);
            total.tokens += bill.tokens;
            total.nano_usd += bill.nano_usd;
            total.requests += bill.requests;
        }
        totals.into_values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bill(position: u64, reservation: &str, tokens: u64, reported: bool) -> Bill {
        Bill {
            id: format!("ledger/00/{position}"),
            account: "acct".to_owned(),
            reservation: reservation.to_owned(),
            tokens,
            nano_usd: tokens * 10,
            requests: 1,
            at_ms: 1,
            reported,
        }
    }

    fn total(tokens: u64, requests: u64) -> Vec<Total> {
        let account = "acct".to_owned();
        vec![Total {
            account,
            tokens,
            nano_usd: tokens * 10,
            requests,
        }]
    }

    fn totals(path: &Path) -> Vec<Total> {
        Book::open(path).expect("a book").totals().collect()
    }

    #[test]
    fn a_late_report_stands_in_whatever_order_it_comes() {
        let folder = tempfile::tempdir().expect("a folder");
        let lines = [
            bill(1, "a", 100, false),
            bill(2, "b", 5, true),
            bill(3, "a", 20, true),
        ];
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let path = folder.path().join(format!("{order:?}"));
            let text: Vec<_> = order
                .iter()
                .map(|at| serde_json::to_string(&lines[*at]))
                .collect();
            let text: Result<Vec<_>, _> = text.into_iter().collect();
            std::fs::write(&path, text.expect("JSON").join("\n") + "\n").expect("written");
            assert_eq!(totals(&path), total(25, 2), "{order:?}");
        }
    }

    #[test]
    fn a_line_that_was_cut_off_is_written_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("bills");
        let line = serde_json::to_string(&bill(1, "a", 7, true)).expect("JSON") + "\n";
        std::fs::write(&path, line.clone() + &line[..20]).expect("written");
        assert_eq!(totals(&path), total(7, 1));
        assert_eq!(std::fs::read_to_string(&path).expect("text"), line);
    }
}
