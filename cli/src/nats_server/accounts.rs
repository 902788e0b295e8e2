//! The accounts and users of a server's configuration, from what each role may do.
//!
//! The ledger's streams are in one account. A role that is placed apart has an account of its own and
//! reaches only what is imported into it: there the server answers, too, so that no answer ends up on a
//! subject of the ledger (ADR 0033).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use seatbelt_bus::{
    NatsRole, Permissions,
    roles::{LEDGER_ACCOUNT, SERVER_SERVICE},
};
use seatbelt_schemas::{names::Names, position::Partitions};

/// The account of the server's own services.
const SYSTEM_ACCOUNT: &str = "SYS";
/// Services of the system account that may be asked; they only read.
const SYSTEM_SERVICES: [&str; 2] = [SERVER_SERVICE, "$SYS.REQ.SERVER.PING.VARZ"];

/// Where the answers go to the user that is no role: clients use it by themselves.
const FULL_INBOX: &str = "_INBOX.>";

/// How the server knows a user.
#[derive(Debug, Clone)]
pub(crate) enum Credential {
    /// By its public key, which is no secret.
    Nkey(String),
    /// By the words of a configuration: user and password.
    Password(String, String),
}

/// A user that is no role, with all of the ledger's account but what is denied.
#[derive(Debug, Clone)]
pub(crate) struct Full {
    pub(crate) known: Credential,
    /// Subjects that it may not publish to.
    pub(crate) denied: Vec<String>,
}

/// The roles of a ledger on a server.
#[derive(Debug, Clone)]
pub(crate) struct Roles {
    pub(crate) names: Names,
    pub(crate) partitions: Partitions,
    pub(crate) users: Vec<(NatsRole, Credential)>,
}

/// The `accounts` of a server.
pub(crate) fn render(full: Option<&Full>, roles: Option<&Roles>) -> String {
    let mut accounts = BTreeMap::from([(LEDGER_ACCOUNT.to_owned(), Account::default())]);
    let ledger = accounts.entry(LEDGER_ACCOUNT.to_owned()).or_default();
    ledger.users.extend(full.map(full_user));
    for service in SYSTEM_SERVICES {
        ledger.imports.push(service_of(SYSTEM_ACCOUNT, service));
    }
    let mut exports = Exports::default();
    let users = roles.into_iter().flat_map(|of| {
        let users = of.users.iter();
        users.map(move |(role, known)| (of, role, known))
    });
    for (roles, role, known) in users {
        let mut granted = Permissions::of(*role, &roles.names, roles.partitions);
        if *role == NatsRole::Gateway && full.is_some() {
            // whoever comes as the user that is no role asks gateways, too, as another gateway does
            granted.publish.push(FULL_INBOX.to_owned());
        }
        let account = accounts.entry(role.account()).or_default();
        account.users.push(user(known, &granted));
        if role.is_apart() {
            account.imports.extend(exports.to(*role, &granted));
        }
    }
    let services = SYSTEM_SERVICES.map(|service| exported("service", service, None));
    let mut text = format!(
        "system_account: {SYSTEM_ACCOUNT}\naccounts {{\n  {SYSTEM_ACCOUNT} {{{}  }}\n",
        list("exports", &services)
    );
    for (name, account) in &accounts {
        let (jetstream, exports) = match name.as_str() {
            LEDGER_ACCOUNT => ("\n    jetstream: enabled", exports.lines()),
            _ => ("", Vec::new()),
        };
        let _ = writeln!(
            text,
            "  {name} {{{jetstream}{}{}{}  }}",
            list("users", &account.users),
            list("exports", &exports),
            list("imports", &account.imports),
        );
    }
    text.push_str("}\n");
    text
}

#[derive(Default)]
struct Account {
    users: Vec<String>,
    imports: Vec<String>,
}

/// What the ledger's account gives to others, each subject to some accounts.
#[derive(Default)]
struct Exports {
    services: BTreeMap<String, BTreeSet<String>>,
    streams: BTreeMap<String, BTreeSet<String>>,
}

impl Exports {
    /// Exports what a role apart needs; gives the imports of its account.
    fn to(&mut self, role: NatsRole, granted: &Permissions) -> Vec<String> {
        let own = format!("{}.>", role.inbox());
        let mut imports = Vec::new();
        for subject in granted.publish.iter().filter(|subject| **subject != own) {
            if SYSTEM_SERVICES.contains(&subject.as_str()) {
                imports.push(service_of(SYSTEM_ACCOUNT, subject));
                continue;
            }
            imports.push(service_of(LEDGER_ACCOUNT, subject));
            let to = self.services.entry(subject.clone()).or_default();
            to.insert(role.account());
        }
        for subject in &granted.hears {
            imports.push(format!(
                "{{ stream: {{ account: {LEDGER_ACCOUNT}, subject: \"{subject}\" }} }}"
            ));
            let to = self.streams.entry(subject.clone()).or_default();
            to.insert(role.account());
        }
        imports
    }

    fn lines(&self) -> Vec<String> {
        let services = self.services.iter();
        let services = services.map(|(subject, to)| exported("service", subject, Some(to)));
        let streams = self.streams.iter();
        services
            .chain(streams.map(|(subject, to)| exported("stream", subject, Some(to))))
            .collect()
    }
}

fn exported(kind: &str, subject: &str, to: Option<&BTreeSet<String>>) -> String {
    let answers = match kind {
        // one question may have many answers, as a request for messages has
        "service" => ", response_type: stream",
        _ => "",
    };
    let to = to.map(|accounts| {
        let accounts: Vec<_> = accounts.iter().map(String::as_str).collect();
        format!(", accounts: [{}]", accounts.join(", "))
    });
    let to = to.unwrap_or_default();
    format!("{{ {kind}: \"{subject}\"{answers}{to} }}")
}

fn service_of(account: &str, subject: &str) -> String {
    format!("{{ service: {{ account: {account}, subject: \"{subject}\" }} }}")
}

fn full_user(full: &Full) -> String {
    let denied = quoted(&full.denied);
    format!(
        "{{ {}, permissions: {{ publish: {{ deny: [{denied}] }} }} }}",
        login(&full.known)
    )
}

fn user(known: &Credential, granted: &Permissions) -> String {
    let (publish, subscribe) = (quoted(&granted.publish), quoted(&granted.subscribe));
    format!(
        "{{ {}, permissions: {{\n        publish: {{ allow: [{publish}] }},\n        subscribe: {{ allow: [{subscribe}] }} }} }}",
        login(known)
    )
}

fn login(known: &Credential) -> String {
    match known {
        Credential::Nkey(public) => format!("nkey: {public}"),
        Credential::Password(user, password) => format!("user: {user}, password: \"{password}\""),
    }
}

fn quoted(subjects: &[String]) -> String {
    let quoted: Vec<_> = subjects
        .iter()
        .map(|subject| format!("\"{subject}\""))
        .collect();
    quoted.join(", ")
}

/// A list of a block, one entry a line; nothing where there is none.
fn list(name: &str, entries: &[String]) -> String {
    if entries.is_empty() {
        return "\n".to_owned();
    }
    format!(
        "\n    {name}: [\n      {}\n    ]\n",
        entries.join("\n      ")
    )
}
