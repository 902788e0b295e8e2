//! What must hold of a journal, computed from its events alone by plain sums: no code of the ledger's
//! state or decisions is used here.

use std::collections::BTreeMap;

use bytes::Bytes;
use seatbelt_schemas::{
    cap::CapSpec,
    commit::{ChainHash, Commit},
    event::{Event, EventBody},
    ids::{AccountId, CapId, CommandId, ReservationId},
    meter::Amounts,
    scope::Scopes,
};

#[derive(Default)]
pub(crate) struct Books {
    caps: BTreeMap<(AccountId, CapId), (CapSpec, u64, i128)>,
    open: BTreeMap<ReservationId, (AccountId, Scopes, Amounts, u64)>,
    charges: BTreeMap<ReservationId, (AccountId, Scopes, Amounts, u64)>,
    ends: BTreeMap<ReservationId, &'static str>,
    pub(crate) causes: BTreeMap<CommandId, Vec<Event>>,
    pub(crate) events: Vec<Event>,
}

impl Books {
    /// Reads a whole journal and checks every promise on the way.
    pub(crate) fn read(journal: &[Bytes]) -> Result<Self, String> {
        let mut books = Self::default();
        let mut prev = ChainHash::default();
        for payload in journal {
            let commit = Commit::decode(payload).map_err(|error| error.to_string())?;
            if commit.prev != prev {
                return Err(format!(
                    "the chain breaks at position {}",
                    commit.first_position
                ));
            }
            prev = ChainHash::of(payload);
            for stored in commit.events {
                books.take(stored.event)?;
            }
        }
        Ok(books)
    }

    fn take(&mut self, event: Event) -> Result<(), String> {
        if event.position.0 != self.events.len() as u64 + 1 {
            return Err(format!(
                "position {} stands at {}",
                event.position,
                self.events.len() + 1
            ));
        }
        if self
            .events
            .last()
            .is_some_and(|last| last.at_ms > event.at_ms)
        {
            return Err(format!("time goes backwards at {}", event.position));
        }
        let account = event.account.clone();
        match &event.body {
            EventBody::CapSet(spec) => {
                let slot =
                    self.caps
                        .entry((account, spec.cap.clone()))
                        .or_insert((spec.clone(), 0, 0));
                slot.0 = spec.clone();
            }
            EventBody::Credited(data) => {
                self.caps.get_mut(&(account, data.cap.clone())).unwrap().1 += data.amount;
            }
            EventBody::Adjusted(data) => {
                self.caps.get_mut(&(account, data.cap.clone())).unwrap().2 +=
                    i128::from(data.delta);
            }
            EventBody::Reserved(data) => {
                self.fits(
                    &event,
                    &data.scopes,
                    &data.hold,
                    &Amounts::default(),
                    data.reservation,
                )?;
                let held = (account, data.scopes.clone(), data.hold, event.at_ms);
                if self.open.insert(data.reservation, held).is_some() {
                    return Err(format!("{} is reserved twice", data.reservation));
                }
            }
            EventBody::Resized(data) => {
                let (_, scopes, old, _) = self
                    .open
                    .get(&data.reservation)
                    .ok_or("resized but not open")?
                    .clone();
                self.fits(&event, &scopes, &data.hold, &old, data.reservation)?;
                self.open.get_mut(&data.reservation).unwrap().2 = data.hold;
            }
            EventBody::Settled(data) if data.late => {
                let charge = self
                    .charges
                    .get_mut(&data.reservation)
                    .ok_or("late but never expired")?;
                if self.ends.insert(data.reservation, "late") != Some("expired") {
                    return Err(format!("{} is settled late twice", data.reservation));
                }
                charge.2 = data.charge;
            }
            EventBody::Settled(data) => self.end(data.reservation, "settled", data.charge)?,
            EventBody::Released(data) => {
                self.end(data.reservation, "released", Amounts::default())?;
            }
            EventBody::Expired(data) => self.end(data.reservation, "expired", data.charge)?,
            _ => {}
        }
        self.causes
            .entry(event.cause)
            .or_default()
            .push(event.clone());
        self.events.push(event);
        Ok(())
    }

    fn end(
        &mut self,
        reservation: ReservationId,
        how: &'static str,
        charge: Amounts,
    ) -> Result<(), String> {
        let Some((account, scopes, _, at_ms)) = self.open.remove(&reservation) else {
            return Err(format!(
                "{reservation} is {how} but not open: {:?}",
                self.ends.get(&reservation)
            ));
        };
        self.ends.insert(reservation, how);
        self.charges
            .insert(reservation, (account, scopes, charge, at_ms));
        Ok(())
    }

    /// Promise 1, at the moment of taking or growing a hold.
    fn fits(
        &self,
        event: &Event,
        scopes: &Scopes,
        hold: &Amounts,
        old: &Amounts,
        reservation: ReservationId,
    ) -> Result<(), String> {
        for ((account, id), (spec, credits, _)) in &self.caps {
            if *account != event.account || !spec.hard || !scopes.matches(&spec.scope) {
                continue;
            }
            let need = hold.held_in(spec.meter).unwrap_or(0);
            let grows = need > old.held_in(spec.meter).unwrap_or(0)
                || !self.open.contains_key(&reservation);
            let (spent, held) = self.stands(account, id, event.at_ms, Some(reservation));
            if grows
                && spent + i128::from(held) + i128::from(need) > i128::from(spec.limit + credits)
            {
                return Err(format!(
                    "position {} breaks cap {id}: {spent} + {held} + {need}",
                    event.position
                ));
            }
        }
        Ok(())
    }

    /// What is spent and held under a cap, by plain sums.
    pub(crate) fn stands(
        &self,
        account: &AccountId,
        cap: &CapId,
        at_ms: u64,
        except: Option<ReservationId>,
    ) -> (i128, u64) {
        let (spec, _, adjusted) = &self.caps[&(account.clone(), cap.clone())];
        let held = self.open.iter().filter(|(id, (owner, scopes, ..))| {
            owner == account && scopes.matches(&spec.scope) && Some(**id) != except
        });
        let held = held
            .map(|(_, (.., hold, _))| hold.held_in(spec.meter).unwrap_or(0))
            .sum();
        let spent = self.charges.values().filter(|(owner, scopes, _, taken)| {
            let counts = spec
                .window
                .slot_gone_ms(spec.window.slot(*taken))
                .is_none_or(|gone| gone > at_ms);
            owner == account && scopes.matches(&spec.scope) && counts
        });
        let spent: i128 = spent
            .map(|(_, _, charge, _)| i128::from(charge.spent_in(spec.meter).unwrap_or(0)))
            .sum();
        (spent + adjusted, held)
    }

    pub(crate) fn caps(&self) -> impl Iterator<Item = (&AccountId, &CapId)> {
        self.caps.keys().map(|(account, cap)| (account, cap))
    }

    pub(crate) fn open(&self) -> usize {
        self.open.len()
    }
}
