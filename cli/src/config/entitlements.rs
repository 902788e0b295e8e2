//! `[[entitlements.keys]]`: declared keys with their caps.

use std::collections::{BTreeMap, btree_map::Entry};

use seatbelt_schemas::{
    amount::{AMOUNT_MAX, parse_usd},
    cap::{CAPS_PER_ACCOUNT_MAX, CAPS_PER_SCOPE_MAX, CapSpec, THRESHOLDS_DEFAULT, THRESHOLDS_MAX},
    command::declared_cap_id,
    event::{OnShort, OnUnknown},
    ids::{AccountId, CapId, KeyId, TeamId},
    meter::Meter,
    scope::Scope,
    window::{Period, ROLLING_SECONDS_MAX, Window},
};

use secrecy::SecretString;

use super::{price::multiplier, reader::Section};

/// Most keys one file may declare; beyond that, issue them over the admin routes.
const KEYS_MAX: usize = 10_000;
/// Most caps one key may declare.
const CAPS_MAX: usize = 64;
/// Most teams that one key may name.
const TEAMS_MAX: usize = 256;
/// Longest secret.
const SECRET_LEN_MAX: usize = 512;

/// What the ledger does for this key when a request does not fit, or is never reported.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// Refuse, or lower the output maximum to what fits; where it says nothing, what names no maximum of its own grows
    /// slice by slice.
    pub on_short: Option<OnShort>,
    /// Charge the hold, or release it.
    pub on_unknown: OnUnknown,
}

#[derive(Debug, Clone)]
pub struct DeclaredKey {
    /// What callers send.
    pub secret: SecretString,
    /// The account that pays.
    pub account: AccountId,
    /// The key's public id.
    pub key: KeyId,
    pub team: Option<TeamId>,
    /// Teams that its requests may name instead, where it has none.
    pub teams: Vec<TeamId>,
    /// Its caps, and those of its account declared with it.
    pub caps: Vec<CapSpec>,
    /// Its policies.
    pub policy: Policy,
}

/// A declared account, besides its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountTerms {
    pub account: AccountId,
    /// What all its costs are multiplied by, in millionths.
    pub multiplier_ppm: u64,
}

/// `[[entitlements.accounts]]`: what holds for all keys of an account.
fn read_accounts(section: &mut Section) -> Vec<AccountTerms> {
    let mut accounts: Vec<AccountTerms> = Vec::new();
    for mut part in section.sections("accounts", KEYS_MAX) {
        let account = part.required("account_id", |part| part.text_with("account_id", account));
        let ppm = part.required("multiplier", |part| {
            part.text_with("multiplier", multiplier)
        });
        let known = |known: &AccountTerms| account.as_ref() == Some(&known.account);
        if accounts.iter().any(known) {
            part.mistake("account_id", "is listed twice: list each account once");
        }
        part.finish();
        if let (Some(account), Some(multiplier_ppm)) = (account, ppm) {
            accounts.push(AccountTerms {
                account,
                multiplier_ppm,
            });
        }
    }
    accounts
}

/// A key that nobody uses any more: it is revoked, and what it declared goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetiredKey {
    pub account: AccountId,
    pub key: KeyId,
}

/// What is declared of accounts and keys.
#[derive(Debug)]
pub struct Entitlements {
    pub keys: Vec<DeclaredKey>,
    /// Accounts that pay by a multiplier.
    pub accounts: Vec<AccountTerms>,
    /// Keys that were declared and are revoked.
    pub retired_keys: Vec<RetiredKey>,
}

pub(super) fn read(mut section: Section) -> Entitlements {
    let accounts = read_accounts(&mut section);
    let mut keys = Vec::new();
    let mut seen = Seen::default();
    for part in section.sections("keys", KEYS_MAX) {
        keys.extend(read_key(part, &mut seen));
    }
    let mut retired_keys = Vec::new();
    for part in section.sections("retired_keys", KEYS_MAX) {
        retired_keys.extend(read_retired(part, &seen));
    }
    section.finish();
    Entitlements {
        keys,
        accounts,
        retired_keys,
    }
}

fn read_retired(mut section: Section, seen: &Seen) -> Option<RetiredKey> {
    let account = section.required("account_id", |section| {
        section.text_with("account_id", account)
    });
    let key = section.required("key_id", |section| section.text_with("key_id", id));
    let pair = account.zip(key);
    if let Some(other) = pair.as_ref().and_then(|pair| seen.keys.get(pair)) {
        section.mistake(
            "key_id",
            format!("is in use in {other}: leave one of them out"),
        );
    }
    section.finish();
    pair.map(|(account, key)| RetiredKey { account, key })
}

/// What has been declared so far, with its place: to find what is declared twice.
#[derive(Default)]
struct Seen {
    secrets: BTreeMap<String, String>,
    keys: BTreeMap<(AccountId, KeyId), String>,
    caps: BTreeMap<(AccountId, CapId), (CapSpec, String)>,
    /// How many caps each scope has, and each account.
    scopes: BTreeMap<(AccountId, Scope), usize>,
    accounts: BTreeMap<AccountId, usize>,
}

fn read_key(mut section: Section, seen: &mut Seen) -> Option<DeclaredKey> {
    let secret = section.required("key", |section| section.text_with("key", secret));
    let account = section.required("account_id", |section| {
        section.text_with("account_id", account)
    });
    let key = section.required("key_id", |section| section.text_with("key_id", id));
    let team = section.text_with("team", id);
    let teams = read_teams(&mut section, team.as_ref());
    let policy = read_policy(&mut section);
    let own = Own {
        key: key.as_ref(),
        team: team.as_ref(),
        teams: &teams,
    };
    let caps = read_caps(&mut section, own);
    if let (Some(secret), Some(account), Some(key)) = (&secret, &account, &key) {
        seen.check(&section, secret, account, key, &caps);
    }
    section.finish();
    Some(DeclaredKey {
        secret: secret?.into(),
        account: account?,
        key: key?,
        team,
        teams,
        caps,
        policy,
    })
}

impl Seen {
    fn check(
        &mut self,
        at: &Section,
        secret: &str,
        account: &AccountId,
        key: &KeyId,
        caps: &[CapSpec],
    ) {
        let here = at.place().to_owned();
        if let Some(other) = self.secrets.insert(secret.to_owned(), here.clone()) {
            at.mistake("key", format!("is the same as in {other}"));
        }
        let pair = (account.clone(), key.clone());
        if let Some(other) = self.keys.insert(pair, here) {
            at.mistake(
                "key_id",
                format!("{key} is in {other} already, for the same account"),
            );
        }
        for (n, cap) in caps.iter().enumerate() {
            if caps[..n].iter().any(|other| other.cap == cap.cap) {
                at.mistake("caps", format!("cap {} is declared twice", cap.cap));
            } else {
                self.check_cap(at, account, cap);
            }
        }
    }

    /// The ledger takes no more, and what opens a run needs room beside them.
    fn count_of_account(&mut self, at: &Section, account: &AccountId) {
        let count = self.accounts.entry(account.clone()).or_insert(0);
        *count += 1;
        if *count == CAPS_PER_ACCOUNT_MAX + 1 {
            at.mistake(
                "caps",
                format!(
                    "are more than {CAPS_PER_ACCOUNT_MAX} for account {account}, which is all that one may have: declare caps of the account or of a team in place of many of its keys"
                ),
            );
        }
    }

    fn check_cap(&mut self, at: &Section, account: &AccountId, cap: &CapSpec) {
        match self.caps.entry((account.clone(), cap.cap.clone())) {
            Entry::Occupied(first) if first.get().0 != *cap => at.mistake(
                "",
                format!(
                    "cap {} differs from the one in {}: declare it once",
                    cap.cap,
                    first.get().1
                ),
            ),
            Entry::Occupied(_) => {}
            Entry::Vacant(place) => {
                place.insert((cap.clone(), at.place().to_owned()));
                let of_scope = (account.clone(), cap.scope.clone());
                let count = self.scopes.entry(of_scope).or_insert(0);
                *count += 1;
                if *count == CAPS_PER_SCOPE_MAX + 1 {
                    at.mistake(
                        "caps",
                        format!(
                            "are more than {CAPS_PER_SCOPE_MAX} for {}: every request is checked against all of them",
                            cap.scope
                        ),
                    );
                }
                self.count_of_account(at, account);
            }
        }
    }
}

fn secret(text: &str) -> Result<String, String> {
    let fits = (1..=SECRET_LEN_MAX).contains(&text.len());
    if fits && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "cannot be sent in a header: use 1 to {SECRET_LEN_MAX} visible ASCII characters without spaces"
    ))
}

fn id<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

fn account(text: &str) -> Result<AccountId, String> {
    let account: AccountId = id(text)?;
    match account.is_system() {
        true => Err(format!("{text:?} is reserved: use another account id")),
        false => Ok(account),
    }
}

fn read_policy(section: &mut Section) -> Policy {
    let on_short = [("refuse", OnShort::Refuse), ("clamp", OnShort::Clamp)];
    let on_unknown = [
        ("charge_hold", OnUnknown::ChargeHold),
        ("release", OnUnknown::Release),
    ];
    Policy {
        on_short: section.word("on_short", &on_short),
        on_unknown: section.word("on_unknown", &on_unknown).unwrap_or_default(),
    }
}

/// Teams that a key's requests may name: of a key with a team of its own all are that team's.
fn read_teams(section: &mut Section, own: Option<&TeamId>) -> Vec<TeamId> {
    let named = section.texts("teams", TEAMS_MAX);
    if own.is_some() && !named.is_empty() {
        let problem = "is for keys without a team of their own: leave one of them out";
        section.mistake("teams", problem);
    }
    let mut teams: Vec<TeamId> = Vec::with_capacity(named.len());
    for name in named {
        match TeamId::new(&name) {
            Ok(team) if teams.contains(&team) => {
                section.mistake("teams", format!("has {team} twice: name each team once"));
            }
            Ok(team) => teams.push(team),
            Err(error) => section.mistake("teams", format!("has \"{name}\": {error}")),
        }
    }
    teams
}

/// Whose the caps are that stand with a key.
#[derive(Clone, Copy)]
struct Own<'a> {
    key: Option<&'a KeyId>,
    team: Option<&'a TeamId>,
    teams: &'a [TeamId],
}

fn read_caps(section: &mut Section, own: Own<'_>) -> Vec<CapSpec> {
    let has_window = section.has("window");
    let window = read_window(section).unwrap_or(Window::Balance);
    let has_cap = section.has("hard_cap") || section.has("caps");
    if has_window && !has_cap {
        section.mistake(
            "window",
            "is set, but there is no cap that it could be of: set hard_cap or caps, or leave it out",
        );
    }
    let hard_cap = section.number("hard_cap", 0, AMOUNT_MAX);
    let parts = section.sections("caps", CAPS_MAX);
    let declared = parts
        .into_iter()
        .filter_map(|part| read_cap(part, window, own));
    let mut caps: Vec<CapSpec> = declared.collect();
    let short = hard_cap
        .zip(own.key)
        .and_then(|(limit, key)| spec(Scope::Key(key.clone()), Meter::Tokens, window, limit));
    caps.extend(short);
    caps
}

fn read_cap(mut section: Section, default: Window, own: Own<'_>) -> Option<CapSpec> {
    let meters = [
        Meter::Tokens,
        Meter::Cost,
        Meter::Requests,
        Meter::InputTokens,
        Meter::OutputTokens,
        Meter::Concurrency,
    ];
    let meters = meters.map(|meter| (meter.as_str(), meter));
    let meter = section.required("meter", |section| section.word("meter", &meters));
    let limit = match meter {
        Some(Meter::Cost) => section.required("limit", read_usd),
        _ => section.required("limit", |section| section.number("limit", 0, AMOUNT_MAX)),
    };
    let window = read_window(&mut section).unwrap_or(default);
    let scope = read_scope(&mut section, own);
    let hard = section.flag("hard").unwrap_or(true);
    let thresholds = read_thresholds(&mut section);
    if meter == Some(Meter::Concurrency) && window != Window::Balance {
        section.mistake(
            "window",
            "does not go with meter \"concurrency\", which counts open requests: leave it out",
        );
    }
    section.finish();
    let cap = spec(scope?, meter?, window, limit?)?;
    Some(CapSpec {
        hard,
        thresholds,
        ..cap
    })
}

/// A hard cap with default thresholds; its id follows from what it is. `None` where that is too long.
fn spec(scope: Scope, meter: Meter, window: Window, limit: u64) -> Option<CapSpec> {
    Some(CapSpec {
        cap: CapId::new(declared_cap_id(&scope, meter, window)).ok()?,
        scope,
        meter,
        window,
        limit,
        hard: true,
        thresholds: THRESHOLDS_DEFAULT.to_vec(),
    })
}

fn read_usd(section: &mut Section) -> Option<u64> {
    section.text_with("limit", |text| {
        parse_usd(text).map_err(|error| error.to_string())
    })
}

fn read_scope(section: &mut Section, own: Own<'_>) -> Option<Scope> {
    let words = [("key", 0), ("account", 1), ("team", 2)];
    let scope = section.word("scope", &words).unwrap_or(0);
    let named = section.text_with("team", id::<TeamId>);
    if named.is_some() && scope != 2 {
        section.mistake(
            "team",
            "is set, but the cap is of none: set scope = \"team\"",
        );
    }
    match scope {
        0 => Some(Scope::Key(own.key?.clone())),
        1 => Some(Scope::Account),
        _ => {
            let known = |team: &TeamId| own.team == Some(team) || own.teams.contains(team);
            match named {
                Some(team) if known(&team) => Some(Scope::Team(team)),
                Some(team) => {
                    let problem =
                        format!("is {team}, which is neither the key's team nor among its teams");
                    section.mistake("team", problem);
                    None
                }
                None if own.team.is_none() => {
                    section.mistake("scope", "is \"team\", but the key has none: set its team, or name one of its teams as the cap's team");
                    None
                }
                None => Some(Scope::Team(own.team?.clone())),
            }
        }
    }
}

fn read_thresholds(section: &mut Section) -> Vec<u8> {
    let Some(found) = section.numbers("thresholds", (1, 100), THRESHOLDS_MAX) else {
        return THRESHOLDS_DEFAULT.to_vec();
    };
    if !found.is_sorted_by(|one, next| one < next) {
        section.mistake("thresholds", "are not ascending");
    }
    found
        .into_iter()
        .filter_map(|percent| u8::try_from(percent).ok())
        .collect()
}

fn read_window(section: &mut Section) -> Option<Window> {
    let given = section.has("window");
    let mut part = section.section("window");
    if !given {
        return None;
    }
    let kinds = [("balance", 0), ("rolling", 1), ("calendar", 2)];
    let window = match part.required("kind", |part| part.word("kind", &kinds)) {
        Some(0) => Some(Window::Balance),
        Some(1) => {
            let seconds = part.required("seconds", |part| {
                part.number("seconds", 1, ROLLING_SECONDS_MAX)
            });
            seconds.map(|seconds| Window::Rolling { seconds })
        }
        Some(_) => {
            let periods = [
                ("hour", Period::Hour),
                ("day", Period::Day),
                ("week", Period::Week),
                ("month", Period::Month),
            ];
            let period = part.required("period", |part| part.word("period", &periods));
            period.map(|period| Window::Calendar { period })
        }
        None => return None,
    };
    part.finish();
    window
}
