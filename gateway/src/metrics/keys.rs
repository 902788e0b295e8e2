//! What is counted of each key: its holds and its spend here, the caps that bind it, its refusals.
//!
//! A key is a label from its first metered request on, up to a bound: those beyond it are counted together, as
//! key `_` of account `_`. Limits and remainders are those of the last decision on a request of the key.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock, RwLock},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use seatbelt_schemas::{
    cap::CapStanding,
    command::Refusal,
    ids::{AccountId, KeyId},
    meter::{Amounts, Meter},
    usage::Usage,
};

use super::{REASONS, level, reason_at};

/// Most keys that are labels of their own.
const KEYS_MAX: usize = 1000;
/// Stands for all others, and is no account's id.
const OTHERS: &str = "_";
const METERS: [Meter; 6] = [
    Meter::Requests,
    Meter::Tokens,
    Meter::InputTokens,
    Meter::OutputTokens,
    Meter::Cost,
    Meter::Concurrency,
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Whose {
    account: String,
    key: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Capped {
    account: String,
    key: String,
    meter: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    account: String,
    key: String,
    reason: &'static str,
}

/// Every key that was seen.
pub(super) struct Keys {
    known: RwLock<Seen>,
    others: Arc<OfKey>,
    families: Arc<Families>,
}

#[derive(Default)]
struct Seen {
    keys: HashMap<AccountId, HashMap<KeyId, Arc<OfKey>>>,
    count: usize,
}

#[derive(Default)]
struct Families {
    spent_tokens: Family<Whose, Counter>,
    spent_cost: Family<Whose, Counter>,
    held_tokens: Family<Whose, Gauge>,
    held_cost: Family<Whose, Gauge>,
    limit: Family<Capped, Gauge>,
    remaining: Family<Capped, Gauge>,
    refusals: Family<ByReason, Counter>,
}

/// What is counted of one key, looked up once for each request.
pub(crate) struct OfKey {
    whose: Whose,
    families: Arc<Families>,
    spent_tokens: Counter,
    spent_cost: Counter,
    held_tokens: Gauge,
    held_cost: Gauge,
    /// Limit and remainder of the tightest cap by meter, once one was met.
    caps: [OnceLock<(Gauge, Gauge)>; METERS.len()],
    refusals: [OnceLock<Counter>; REASONS.len()],
    /// Whether the caps that it meets are one key's.
    is_one: bool,
}

impl Keys {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let families = Arc::new(Families::default());
        families.register(registry);
        Self {
            known: RwLock::default(),
            others: Arc::new(OfKey::new(OTHERS, OTHERS, &families)),
            families,
        }
    }

    pub(super) fn of(&self, account: &AccountId, key: &KeyId) -> Arc<OfKey> {
        let unpoisoned = "no holder of the lock panics";
        let find = |known: &Seen| known.keys.get(account)?.get(key).map(Arc::clone);
        if let Some(found) = find(&self.known.read().expect(unpoisoned)) {
            return found;
        }
        let mut known = self.known.write().expect(unpoisoned);
        if let Some(found) = find(&known) {
            return found;
        }
        if known.count >= KEYS_MAX {
            return Arc::clone(&self.others);
        }
        let new = Arc::new(OfKey::new(account.as_str(), key.as_str(), &self.families));
        let of_account = known.keys.entry(account.clone()).or_default();
        of_account.insert(key.clone(), Arc::clone(&new));
        known.count += 1;
        new
    }
}

impl Families {
    fn register(&self, registry: &mut Registry) {
        let spent = "settled by this gateway, by key";
        registry.register(
            "seatbelt_gateway_key_spent_tokens",
            format!("Tokens {spent}"),
            self.spent_tokens.clone(),
        );
        registry.register(
            "seatbelt_gateway_key_spent_nano_usd",
            format!("Cost {spent}"),
            self.spent_cost.clone(),
        );
        let held = "held by open reservations of this gateway, by key";
        registry.register(
            "seatbelt_gateway_key_held_tokens",
            format!("Tokens {held}"),
            self.held_tokens.clone(),
        );
        registry.register(
            "seatbelt_gateway_key_held_nano_usd",
            format!("Cost {held}"),
            self.held_cost.clone(),
        );
        let last = "of the tightest cap in a meter at the last decision on a request of the key";
        registry.register(
            "seatbelt_gateway_key_limit",
            format!("Limit {last}"),
            self.limit.clone(),
        );
        registry.register(
            "seatbelt_gateway_key_remaining",
            format!("What is left {last}"),
            self.remaining.clone(),
        );
        registry.register(
            "seatbelt_gateway_key_refusals",
            "Requests refused by a cap, by key and reason",
            self.refusals.clone(),
        );
    }
}

impl OfKey {
    fn new(account: &str, key: &str, families: &Arc<Families>) -> Self {
        let whose = Whose {
            account: account.to_owned(),
            key: key.to_owned(),
        };
        Self {
            spent_tokens: families.spent_tokens.get_or_create(&whose).clone(),
            spent_cost: families.spent_cost.get_or_create(&whose).clone(),
            held_tokens: families.held_tokens.get_or_create(&whose).clone(),
            held_cost: families.held_cost.get_or_create(&whose).clone(),
            caps: Default::default(),
            refusals: Default::default(),
            is_one: account != OTHERS,
            families: Arc::clone(families),
            whose,
        }
    }

    /// A hold was taken, and these caps bind it.
    pub(crate) fn held(&self, hold: &Amounts, caps: &[CapStanding]) {
        self.held_tokens.inc_by(level(hold.tokens));
        self.held_cost.inc_by(level(hold.cost.unwrap_or(0)));
        for (meter, levels) in METERS.iter().zip(&self.caps) {
            let counted = caps.iter().filter(|cap| cap.meter == *meter);
            if let Some(cap) = counted.min_by_key(|cap| cap.available()) {
                self.met(cap, levels);
            }
        }
    }

    pub(crate) fn not_held(&self, hold: &Amounts) {
        self.held_tokens.dec_by(level(hold.tokens));
        self.held_cost.dec_by(level(hold.cost.unwrap_or(0)));
    }

    pub(crate) fn spent(&self, usage: &Usage, cost: Option<u64>) {
        self.spent_tokens
            .inc_by(usage.input_tokens.saturating_add(usage.output_tokens));
        self.spent_cost.inc_by(cost.unwrap_or(0));
    }

    pub(crate) fn refused(&self, refusal: &Refusal) {
        if let Some(n) = reason_at(refusal.reason) {
            let counter = self.refusals[n].get_or_init(|| {
                let labels = ByReason {
                    account: self.whose.account.clone(),
                    key: self.whose.key.clone(),
                    reason: refusal.reason.as_str(),
                };
                self.families.refusals.get_or_create(&labels).clone()
            });
            counter.inc();
        }
        let at = METERS.iter().position(|meter| *meter == refusal.cap.meter);
        if let Some(n) = at {
            self.met(&refusal.cap, &self.caps[n]);
        }
    }

    fn met(&self, cap: &CapStanding, levels: &OnceLock<(Gauge, Gauge)>) {
        if !self.is_one {
            return;
        }
        let (limit, remaining) = levels.get_or_init(|| {
            let labels = Capped {
                account: self.whose.account.clone(),
                key: self.whose.key.clone(),
                meter: cap.meter.as_str(),
            };
            let limit = self.families.limit.get_or_create(&labels).clone();
            (
                limit,
                self.families.remaining.get_or_create(&labels).clone(),
            )
        });
        limit.set(level(cap.limit));
        remaining.set(level(cap.available()));
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode_registry;
    use seatbelt_schemas::{ids::CapId, scope::Scope, window::Window};

    use super::*;

    fn cap(limit: u64, spent: u64) -> CapStanding {
        CapStanding {
            cap: CapId::new("c").unwrap(),
            scope: Scope::Account,
            meter: Meter::Tokens,
            window: Window::Balance,
            limit,
            spent,
            held: 0,
            resets_at_ms: None,
        }
    }

    fn keys() -> (Keys, Registry) {
        let mut registry = Registry::default();
        (Keys::new(&mut registry), registry)
    }

    #[track_caller]
    fn shows(registry: &Registry, line: &str) {
        let mut text = String::new();
        encode_registry(&mut text, registry).unwrap();
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }

    #[test]
    fn a_key_shows_what_it_holds_spends_and_has_left() {
        let (keys, registry) = keys();
        let (account, key) = ("acct".parse().unwrap(), "k".parse().unwrap());
        let hold = Amounts::request(3, 4, Some(9));
        let own = keys.of(&account, &key);
        own.held(&hold, &[cap(100, 40), cap(50, 1)]);
        keys.of(&account, &key).held(&hold, &[]);
        own.not_held(&hold);
        let usage = Usage {
            input_tokens: 2,
            output_tokens: 3,
            ..Usage::default()
        };
        own.spent(&usage, Some(7));
        for line in [
            "seatbelt_gateway_key_held_tokens{account=\"acct\",key=\"k\"} 7",
            "seatbelt_gateway_key_held_nano_usd{account=\"acct\",key=\"k\"} 9",
            "seatbelt_gateway_key_spent_tokens_total{account=\"acct\",key=\"k\"} 5",
            "seatbelt_gateway_key_spent_nano_usd_total{account=\"acct\",key=\"k\"} 7",
            "seatbelt_gateway_key_limit{account=\"acct\",key=\"k\",meter=\"tokens\"} 50",
            "seatbelt_gateway_key_remaining{account=\"acct\",key=\"k\",meter=\"tokens\"} 49",
        ] {
            shows(&registry, line);
        }
    }

    #[test]
    fn keys_beyond_the_bound_are_counted_together() {
        let (keys, registry) = keys();
        let account: AccountId = "acct".parse().unwrap();
        let hold = Amounts::request(1, 0, None);
        for n in 0..KEYS_MAX + 3 {
            let own = keys.of(&account, &format!("k{n}").parse().unwrap());
            own.held(&hold, &[cap(5, 0)]);
        }
        let others = "seatbelt_gateway_key_held_tokens{account=\"_\",key=\"_\"} 3";
        shows(&registry, others);
        let mut text = String::new();
        encode_registry(&mut text, &registry).unwrap();
        let series = text.matches("key_limit{").count();
        assert_eq!(series, KEYS_MAX, "the caps of many keys are no one's");
    }
}
