//! What slots still hold of requests that ended, and where the next request finds most of its prompt.
//!
//! A prompt that begins as something held begins is not read again from its start, within one account alone:
//! how fast an answer comes must not tell one account what another asked. What is held is given up as soon as
//! its slot is needed. A step costs as much as its highest slot, so who runs takes the lowest free one, and what is
//! held there makes way upward, as long as that is quick. Nothing is moved here: places go out.

use seatbelt_schemas::ids::AccountId;

/// Fewest tokens that are worth the while: a piece of fewer takes no less time.
const WORTH_MIN: usize = 8;
/// Tokens of a prompt that are always read: one alone would go another way through kernels that quantise,
/// and the row after the last has to come from somewhere.
const READ_MIN: usize = 2;
/// Who leaves at most so many tokens of what is held behind goes on with it: the closing of a message is written
/// in another way where it is not the last.
const LEFT_BEHIND_MAX: usize = 8;

/// What a slot holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) account: AccountId,
    /// Tokens in the slot's cache from its start.
    pub(super) tokens: Vec<u32>,
    /// When it was put there: a number that grows.
    pub(super) turn: u64,
}

/// A slot, seen by who looks for a place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held<'a> {
    pub(super) account: Option<&'a AccountId>,
    pub(super) tokens: &'a [u32],
    /// A request runs in it.
    pub(super) busy: bool,
    pub(super) turn: u64,
}

/// Copies between the caches of slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shift {
    /// The first tokens of one slot also into another.
    Copy {
        from: usize,
        to: usize,
        tokens: usize,
    },
    /// The first tokens of two slots change places.
    Swap { slots: [usize; 2], tokens: usize },
}

/// Where a request runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) slot: usize,
    /// To be done before, in this order.
    pub(super) shifts: Vec<Shift>,
    /// Tokens of its prompt that the slot holds then.
    pub(super) reused: usize,
}

/// The place of a prompt; none if no slot is free. At most `movable` tokens of a slot may be shifted at once, none
/// where slots cannot be reached.
pub(super) fn place(
    slots: &[Held<'_>],
    account: Option<&AccountId>,
    prompt: &[u32],
    movable: usize,
) -> Option<Place> {
    let lowest = slots.iter().position(|slot| !slot.busy)?;
    let room = Room {
        slots,
        lowest,
        movable,
    };
    match longest(slots, account, prompt) {
        None => room.anew(),
        Some(found) if room.goes_on(&found) => Some(room.on(&found)),
        Some(found) => room.branched(&found),
    }
}

/// Where a place is looked for.
struct Room<'a> {
    slots: &'a [Held<'a>],
    lowest: usize,
    movable: usize,
}

impl Room<'_> {
    fn within(&self, shift: &Shift) -> bool {
        let (Shift::Copy { tokens, .. } | Shift::Swap { tokens, .. }) = *shift;
        (1..=self.movable).contains(&tokens)
    }

    /// Whether nearly all that was found is gone on with.
    fn goes_on(&self, found: &Found) -> bool {
        let held = &self.slots[found.slot];
        !held.busy && held.tokens.len() <= found.tokens + LEFT_BEHIND_MAX
    }

    /// A place for a prompt of which nothing is held.
    fn anew(&self) -> Option<Place> {
        let slot = if self.movable > 0 {
            self.lowest
        } else {
            stalest(self.slots)?
        };
        Some(Place {
            slot,
            shifts: self.aside(slot, None).into_iter().collect(),
            reused: 0,
        })
    }

    /// A place for what goes on with what is held in a free slot: there, or below.
    fn on(&self, found: &Found) -> Place {
        let (source, lowest) = (found.slot, self.lowest);
        let swap = Shift::Swap {
            slots: [lowest, source],
            tokens: found.tokens.max(self.slots[lowest].tokens.len()),
        };
        let below = source != lowest && self.within(&swap);
        Place {
            slot: if below { lowest } else { source },
            shifts: below.then_some(swap).into_iter().collect(),
            reused: found.tokens,
        }
    }

    /// A place for what begins like something that is needed further: with a copy, which leaves that as it is.
    fn branched(&self, found: &Found) -> Option<Place> {
        let copy = Shift::Copy {
            from: found.slot,
            to: self.lowest,
            tokens: found.tokens,
        };
        if !self.within(&copy) {
            return match self.slots[found.slot].busy {
                true => self.anew(),
                false => Some(Self::here(found)),
            };
        }
        let away = self.aside(self.lowest, Some(found.slot));
        let copy = (found.slot != self.lowest).then_some(copy);
        Some(Place {
            slot: self.lowest,
            shifts: away.into_iter().chain(copy).collect(),
            reused: found.tokens,
        })
    }

    /// Where it was found, the rest of what is held there given up.
    fn here(found: &Found) -> Place {
        Place {
            slot: found.slot,
            shifts: Vec::new(),
            reused: found.tokens,
        }
    }

    /// What is held in `slot`, copied to a free slot that holds nothing, or something older.
    fn aside(&self, slot: usize, but: Option<usize>) -> Option<Shift> {
        let held = &self.slots[slot];
        let free = self.slots.iter().enumerate().filter(|(at, other)| {
            let newer = !other.tokens.is_empty() && other.turn > held.turn;
            *at != slot && Some(*at) != but && !other.busy && !newer
        });
        let to = free.min_by_key(|(_, other)| (!other.tokens.is_empty(), other.turn));
        let shift = to.map(|(to, _)| Shift::Copy {
            from: slot,
            to,
            tokens: held.tokens.len(),
        });
        shift.filter(|shift| self.within(shift))
    }
}

/// The slot that holds most of a prompt.
struct Found {
    slot: usize,
    tokens: usize,
}

fn longest(slots: &[Held<'_>], account: Option<&AccountId>, prompt: &[u32]) -> Option<Found> {
    let account = account?;
    let most = prompt.len().saturating_sub(READ_MIN);
    let own = slots.iter().enumerate();
    let own = own.filter(|(_, held)| held.account == Some(account));
    let found = own.map(|(slot, held)| {
        let same = held.tokens.iter().zip(prompt);
        let tokens = same.take_while(|(held, wanted)| held == wanted).count();
        Found {
            slot,
            tokens: tokens.min(most),
        }
    });
    // Of equals the one that leaves least behind, then the lowest.
    let best = found.min_by_key(|found| {
        let held = &slots[found.slot];
        (usize::MAX - found.tokens, held.busy, held.tokens.len())
    });
    best.filter(|found| found.tokens >= WORTH_MIN)
}

/// The free slot that holds nothing, or what was used longest ago.
fn stalest(slots: &[Held<'_>]) -> Option<usize> {
    let free = slots.iter().enumerate().filter(|(_, held)| !held.busy);
    let stalest = free.min_by_key(|(slot, held)| (!held.tokens.is_empty(), held.turn, *slot));
    stalest.map(|(slot, _)| slot)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const ENDLESS: usize = 1 << 20;

    fn account(name: &str) -> AccountId {
        AccountId::new(name).unwrap()
    }

    /// A slot: whose, what, whether a request runs there, and since when.
    #[derive(Debug, Clone)]
    struct Slot(Option<AccountId>, Vec<u32>, bool, u64);

    fn ann(tokens: &[u32], turn: u64) -> Slot {
        Slot(Some(account("ann")), tokens.to_vec(), false, turn)
    }

    fn empty() -> Slot {
        Slot(None, Vec::new(), false, 0)
    }

    fn busy(slot: Slot) -> Slot {
        Slot(slot.0, slot.1, true, slot.3)
    }

    fn placed(slots: &[Slot], who: Option<&str>, prompt: &[u32], movable: usize) -> Option<Place> {
        let held: Vec<Held<'_>> = (slots.iter())
            .map(|Slot(account, tokens, busy, turn)| Held {
                account: account.as_ref(),
                tokens,
                busy: *busy,
                turn: *turn,
            })
            .collect();
        let who = who.map(account);
        place(&held, who.as_ref(), prompt, movable)
    }

    fn tokens(range: std::ops::Range<u32>) -> Vec<u32> {
        range.collect()
    }

    #[track_caller]
    fn check(found: Option<Place>, slot: usize, shifts: &[Shift], reused: usize) {
        let expected = Place {
            slot,
            shifts: shifts.to_vec(),
            reused,
        };
        assert_eq!(found.expect("a slot is free"), expected);
    }

    #[test]
    fn a_chat_goes_on_where_it_was() {
        let slots = [ann(&tokens(0..40), 1), empty()];
        check(
            placed(&slots, Some("ann"), &tokens(0..60), ENDLESS),
            0,
            &[],
            40,
        );
    }

    #[test]
    fn another_account_and_nobody_find_nothing() {
        let slots = [ann(&tokens(0..40), 1), Slot(None, tokens(0..40), false, 1)];
        for who in [Some("bob"), None] {
            for movable in [ENDLESS, 0] {
                let found = placed(&slots, who, &tokens(0..60), movable);
                assert_eq!(found.unwrap().reused, 0, "{who:?}");
            }
        }
    }

    #[test]
    fn two_tokens_at_least_are_read() {
        let slots = [ann(&tokens(0..40), 1)];
        check(
            placed(&slots, Some("ann"), &tokens(0..40), ENDLESS),
            0,
            &[],
            38,
        );
        check(
            placed(&slots, Some("ann"), &tokens(0..9), ENDLESS),
            0,
            &[],
            0,
        );
        check(
            placed(&slots, Some("ann"), &tokens(0..1), ENDLESS),
            0,
            &[],
            0,
        );
    }

    #[test]
    fn a_chat_above_changes_places_with_what_is_below() {
        let slots = [ann(&tokens(500..600), 2), ann(&tokens(0..40), 1)];
        let swap = Shift::Swap {
            slots: [0, 1],
            tokens: 100,
        };
        let long = tokens(0..60);
        check(placed(&slots, Some("ann"), &long, ENDLESS), 0, &[swap], 40);
        check(placed(&slots, Some("ann"), &long, 99), 1, &[], 40);
        check(placed(&slots, Some("ann"), &long, 0), 1, &[], 40);
    }

    #[test]
    fn another_chat_with_the_same_beginning_leaves_the_first_as_it_is() {
        let first = ann(&tokens(0..40), 1);
        let mut prompt = tokens(0..20);
        prompt.extend(900..950);
        let aside = Shift::Copy {
            from: 0,
            to: 1,
            tokens: 40,
        };
        let found = placed(&[first.clone(), empty()], Some("ann"), &prompt, ENDLESS);
        check(found, 0, &[aside], 20);
        let copy = Shift::Copy {
            from: 0,
            to: 1,
            tokens: 20,
        };
        let running = [busy(first.clone()), empty()];
        check(
            placed(&running, Some("ann"), &prompt, ENDLESS),
            1,
            &[copy],
            20,
        );
        check(placed(&running, Some("ann"), &prompt, 19), 1, &[], 0);
        check(placed(&[first], Some("ann"), &prompt, ENDLESS), 0, &[], 20);
    }

    #[test]
    fn what_is_held_makes_way_to_an_empty_slot_or_to_the_place_of_something_older() {
        let prompt = tokens(700..800);
        let away = |to| Shift::Copy {
            from: 0,
            to,
            tokens: 40,
        };
        let newest = ann(&tokens(0..40), 9);
        let slots = [newest.clone(), ann(&[1; 50], 3), empty()];
        check(
            placed(&slots, Some("bob"), &prompt, ENDLESS),
            0,
            &[away(2)],
            0,
        );
        let slots = [newest, ann(&[1; 50], 3), ann(&[2; 50], 2)];
        check(placed(&slots, None, &prompt, ENDLESS), 0, &[away(2)], 0);
        check(placed(&slots, None, &prompt, 39), 0, &[], 0);
        let slots = [ann(&tokens(0..40), 1), ann(&[1; 50], 3)];
        check(placed(&slots, None, &prompt, ENDLESS), 0, &[], 0);
    }

    #[test]
    fn where_nothing_can_be_moved_the_stalest_slot_is_taken() {
        let slots = [
            ann(&tokens(0..40), 9),
            ann(&[1; 50], 3),
            busy(empty()),
            empty(),
        ];
        check(placed(&slots, None, &tokens(700..800), 0), 3, &[], 0);
        check(placed(&slots[..3], None, &tokens(700..800), 0), 1, &[], 0);
        assert_eq!(placed(&slots[2..3], None, &[1, 2], 0), None);
    }

    fn any_slot() -> impl Strategy<Value = Slot> {
        let who = prop_oneof![Just(None), Just(Some("ann")), Just(Some("bob"))];
        let tokens = (0u32..3, 0usize..40, 0usize..20).prop_map(|(kind, same, own)| {
            let mut tokens = vec![7; same];
            tokens.extend(vec![kind; own]);
            tokens
        });
        (who, tokens, any::<bool>(), 0u64..5)
            .prop_map(|(who, tokens, busy, turn)| Slot(who.map(account), tokens, busy, turn))
    }

    proptest! {
        /// Carried out, the slot holds what was promised, of nobody else, and no running request is touched.
        #[test]
        fn a_place_keeps_its_promise(slots in vec(any_slot(), 1..6), prompt in any_slot(), movable in prop_oneof![Just(0usize), Just(25), Just(ENDLESS)]) {
            let who = prompt.0.as_ref().map(|account| account.as_str().to_owned());
            let found = placed(&slots, who.as_deref(), &prompt.1, movable);
            prop_assert_eq!(found.is_none(), slots.iter().all(|slot| slot.2));
            let Some(place) = found else { return Ok(()) };
            prop_assert!(!slots[place.slot].2, "a free one");
            let mut caches: Vec<Vec<(Option<AccountId>, u32)>> = slots.iter()
                .map(|slot| slot.1.iter().map(|token| (slot.0.clone(), *token)).collect())
                .collect();
            for shift in &place.shifts {
                match *shift {
                    Shift::Copy { from, to, tokens } => {
                        prop_assert!(tokens <= movable && !slots[to].2 && from != to && tokens <= caches[from].len());
                        caches[to] = caches[from][..tokens].to_vec();
                    }
                    Shift::Swap { slots: [a, b], tokens } => {
                        prop_assert!(tokens <= movable && !slots[a].2 && !slots[b].2 && a != b);
                        caches.swap(a, b);
                        caches[a].truncate(tokens);
                        caches[b].truncate(tokens);
                    }
                }
            }
            prop_assert!(place.reused <= prompt.1.len().saturating_sub(READ_MIN));
            let held: Vec<(Option<AccountId>, u32)> = caches[place.slot][..place.reused].to_vec();
            let wanted: Vec<(Option<AccountId>, u32)> = prompt.1[..place.reused].iter().map(|token| (prompt.0.clone(), *token)).collect();
            prop_assert_eq!(held, wanted);
        }
    }
}
