//! Promise 1 in the audit: no event takes a hard cap further above its limit than the truth does.

use std::sync::Arc;

use seatbelt_schemas::{
    cap::CapEvidence,
    event::{Event, EventBody, Reserved, Resized},
    ids::{CapId, TeamId},
    scope::Scopes,
};

use crate::account::{Account, Cap};

/// Whose caps an event takes from or gives back to, looked up before it is applied.
pub(super) fn scopes_of(account: &Account, event: &Event) -> Option<Arc<Scopes>> {
    let of_open = |reservation| account.open().get(reservation).map(|open| &open.scopes);
    let scopes = match &event.body {
        EventBody::Reserved(data) => Some(&data.scopes),
        EventBody::Settled(data) => Some(&data.scopes),
        EventBody::Resized(data) => of_open(&data.reservation),
        EventBody::Expired(data) => of_open(&data.reservation),
        _ => None,
    };
    scopes.map(Arc::clone)
}

/// The team that a request named: where its key has one, that is its team in any case, and a budget names none.
pub(super) fn named_team<'a>(
    account: &Account,
    scopes: &'a Scopes,
    is_budget: bool,
) -> Option<&'a TeamId> {
    let own = account.key(&scopes.key).and_then(|key| key.team.as_ref());
    scopes.team.as_ref().filter(|_| own.is_none() && !is_budget)
}

/// Notes how far above its limit each cap stands that the event could take higher. Where the event
/// tells how the caps stood, that has just been proved.
pub(super) fn note_above(
    before: &mut Vec<u64>,
    account: Option<&Account>,
    event: &Event,
    scopes: Option<&Scopes>,
) {
    before.clear();
    match (&event.body, account, scopes) {
        (
            EventBody::Reserved(Reserved { caps, .. }) | EventBody::Resized(Resized { caps, .. }),
            ..,
        ) => {
            let above =
                |cap: &CapEvidence| cap.spent.saturating_add(cap.held).saturating_sub(cap.limit);
            before.extend(caps.iter().map(above));
        }
        (_, Some(account), Some(scopes)) => {
            let caps = account.matching(scopes);
            before.extend(caps.map(|cap| above(cap, event.at_ms)));
        }
        _ => {}
    }
}

/// Promise 1: `spent + held <= limit` at every position. What lies above may only come from the
/// truth (an overrun or a late settle) or from a change of the cap, and only shrinks otherwise.
///
/// Looking at the caps that match the reservation's scopes proves it for every cap of an account in
/// which no run has a budget of its own ([`all_caps_hold`] proves the others), because applying an
/// event changes nothing else that counts, kind by kind:
/// - `reserved`, `resized`, `settled`, `expired` change `held` and `spent` of exactly the matching
///   caps: these are looked at, before and after. They add, remove and reorder no cap.
/// - `released` only lowers `held`, `credited` only raises a limit, `cap_removed` only removes.
/// - `cap_set` and `adjusted` change the one cap they name, and are an operator's word.
/// - every other kind changes no cap's limit, `held` or `spent`; `threshold_crossed` only notes
///   that it was announced.
///
/// Between two events only time passes, which takes slots out of a window and never puts any in.
pub(super) fn caps_hold(
    account: &Account,
    event: &Event,
    scopes: &Scopes,
    before: &[u64],
    overrun: bool,
) -> Result<(), String> {
    if matches!(&event.body, EventBody::Settled(data) if data.late || overrun) {
        return Ok(());
    }
    for (cap, before) in account.matching(scopes).zip(before) {
        let above = above(cap, event.at_ms);
        if above > *before {
            let cap = &cap.spec.cap;
            return Err(format!("takes cap {cap} {above} above its limit"));
        }
    }
    Ok(())
}

/// How far each hard cap of the account stands above its limit, where a run has a budget of its own or
/// is about to: what a run holds moves with what its requests hold and spend, in caps that need not
/// match them, and its caps come and go with it.
pub(super) fn above_everywhere(account: &Account, event: &Event) -> Option<Vec<(CapId, u64)>> {
    let opens = matches!(&event.body, EventBody::Reserved(data) if data.budget.is_some());
    (opens || !account.runs().is_empty()).then(|| {
        let caps = account.caps().iter();
        caps.map(|cap| (cap.spec.cap.clone(), above(cap, event.at_ms)))
            .filter(|(_, above)| *above > 0)
            .collect()
    })
}

/// Promise 1 over every cap of the account, by id.
pub(super) fn all_caps_hold(
    account: &Account,
    event: &Event,
    before: &[(CapId, u64)],
    overrun: bool,
) -> Result<(), String> {
    let excused = match &event.body {
        EventBody::CapSet(_) | EventBody::Adjusted(_) => true,
        EventBody::Settled(data) => data.late || overrun,
        _ => false,
    };
    if excused {
        return Ok(());
    }
    for cap in account.caps() {
        let (above, cap) = (above(cap, event.at_ms), &cap.spec.cap);
        let was = before.iter().find(|(known, _)| known == cap);
        if above > was.map_or(0, |(_, above)| *above) {
            return Err(format!("takes cap {cap} {above} above its limit"));
        }
    }
    Ok(())
}

/// How far a cap is above its limit; a soft one never is.
fn above(cap: &Cap, at_ms: u64) -> u64 {
    let used = cap.spent(at_ms).saturating_add(cap.held);
    if cap.spec.hard {
        used.saturating_sub(cap.limit())
    } else {
        0
    }
}
