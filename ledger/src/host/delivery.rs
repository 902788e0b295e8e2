//! How answers get from a writer to those who wait for them.

use seatbelt_schemas::command::ReserveOutcome;

use super::{handle::Asker, task::Task};
use crate::{
    journal::Journal,
    writer::{Reply, Writer},
};

impl<J: Journal> Task<J> {
    /// Gives out the answers that are due; takes back a hold that nobody is there to receive. Of a reserve
    /// that was sent again, one caller who hears of the hold is enough to keep it, now or earlier.
    pub(super) fn deliver(&self, writer: &mut Writer<Asker>) {
        let told = writer.told();
        let answers: Vec<_> = writer.answers().collect();
        let (mut received, mut returned) = (Vec::new(), Vec::new());
        for (waiting, answer) in answers {
            let Asker {
                sender, account, ..
            } = waiting;
            let grant = match &answer {
                Ok(Reply::Reserve(ReserveOutcome::Reserved(grant))) if grant.position > told => {
                    Some(grant.reservation)
                }
                _ => None,
            };
            match (sender.send(answer), grant, account) {
                (Err(_), Some(reservation), Some(account)) => returned.push((account, reservation)),
                (Ok(()), Some(reservation), _) => received.push(reservation),
                _ => {}
            }
        }
        for (account, reservation) in returned {
            if !received.contains(&reservation) {
                writer.undelivered(self.time.ms(), &account, reservation);
            }
        }
    }
}
