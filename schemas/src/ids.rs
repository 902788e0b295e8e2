//! Ids as newtypes: what a valid one looks like is decided once, here, at the border.
//!
//! An account id is a safe NATS subject token. Command and reservation ids are ULIDs: their first
//! 48 bits are a time, which bounds where an old id has to be looked for.

use std::{fmt, str::FromStr};

use compact_str::CompactString;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;
use ulid::Ulid;

/// Longest id used as a subject token (account, key, team, run, neuron).
pub const TOKEN_ID_LEN_MAX: usize = 64;
/// Longest id of a thing named by the outside (model, end user, cap, upstream, actor).
pub const NAME_LEN_MAX: usize = 256;

/// An id that cannot be accepted, with the rule it broke.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{what} {found:?} is not valid: use {rule}")]
pub struct InvalidId {
    /// Which kind of id was parsed.
    pub what: &'static str,
    /// The rejected text, cut to 80 characters.
    pub found: String,
    /// The rule in words.
    pub rule: &'static str,
}

fn is_token(text: &str) -> bool {
    (1..=TOKEN_ID_LEN_MAX).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

fn is_name(text: &str) -> bool {
    // most names are printable ASCII: every event has some
    let plain = || text.bytes().all(|b| (b' '..=b'~').contains(&b));
    (1..=NAME_LEN_MAX).contains(&text.len()) && (plain() || !text.chars().any(char::is_control))
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:ident, $rule:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(CompactString);

        impl $name {
            /// Checks `text` and takes it as an id.
            pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidId> {
                let text = text.as_ref();
                if $check(text) {
                    return Ok(Self(CompactString::new(text)));
                }
                Err(InvalidId { what: $what, found: text.chars().take(80).collect(), rule: $rule })
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = CompactString::deserialize(from)?;
                if $check(&text) {
                    return Ok(Self(text));
                }
                Self::new(text.as_str()).map_err(de::Error::custom)
            }
        }
    };
}

text_id!(
    /// Billable owner and unit of consistency. [`AccountId::system`] stands for the partition itself.
    AccountId, "account id", is_token, "1 to 64 characters of A-Z a-z 0-9 _ -"
);
text_id!(
    /// A key's public id; never its secret.
    KeyId, "key id", is_token, "1 to 64 characters of A-Z a-z 0-9 _ -"
);
text_id!(
    /// A team inside an account.
    TeamId, "team id", is_token, "1 to 64 characters of A-Z a-z 0-9 _ -"
);
text_id!(
    /// One agent run inside an account.
    RunId, "run id", is_token, "1 to 64 characters of A-Z a-z 0-9 _ -"
);
text_id!(
    /// A neuron, as it registers itself.
    NeuronId, "neuron id", is_token, "1 to 64 characters of A-Z a-z 0-9 _ -"
);
text_id!(
    /// The id of the whole ledger, made at genesis; first part of every `ce-id`.
    LedgerId, "ledger id", is_token, "1 to 64 characters of A-Z a-z 0-9 _ -"
);
text_id!(
    /// A cap, unique inside its account.
    CapId, "cap id", is_name, "1 to 256 characters without control characters"
);
text_id!(
    /// A model as clients name it.
    ModelId, "model id", is_name, "1 to 256 characters without control characters"
);
text_id!(
    /// The caller's own end user, as the caller names it.
    EndUserId, "end user id", is_name, "1 to 256 characters without control characters"
);
text_id!(
    /// Who gave a command: `key:<id>`, `operator:<name>` or `system:<part>`.
    Actor, "actor", is_name, "1 to 256 characters without control characters"
);

impl AccountId {
    /// The reserved account of events that belong to the partition and to no customer.
    pub fn system() -> Self {
        Self(CompactString::const_new("_"))
    }

    /// Whether this is the reserved account of the partition itself.
    pub fn is_system(&self) -> bool {
        self.0 == "_"
    }
}

impl Actor {
    /// The actor name of a key.
    pub fn key(key: &KeyId) -> Self {
        Self(compact_str::format_compact!("key:{key}"))
    }

    /// The actor name of a part of the system, such as `writer` or `config`.
    pub fn system(part: &str) -> Self {
        Self(compact_str::format_compact!("system:{part}"))
    }

    /// The actor name of an operator.
    pub fn operator(name: &str) -> Self {
        Self(compact_str::format_compact!("operator:{name}"))
    }
}

/// The value of each of the 32 characters in which a ULID is spelled; 32 for all others.
const SPELLING: [u8; 256] = {
    let mut values = [32; 256];
    let digits = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    let mut value = 0;
    while value < 32 {
        values[digits[value as usize] as usize] = value;
        value += 1;
    }
    values
};

/// The bits of a ULID in its one spelling: upper case, and no letter that stands for another. The same
/// command could be sent as two if an id had several.
fn spelled_bits(text: &[u8]) -> Option<u128> {
    let digits: &[u8; ulid::ULID_LEN] = text.try_into().ok()?;
    // the first digit holds the 3 bits that 25 digits of 5 leave
    if SPELLING[usize::from(digits[0])] > 7 {
        return None;
    }
    let mut found = 0;
    let value = |half: &[u8], found: &mut u8| {
        half.iter().fold(0u64, |bits, digit| {
            let value = SPELLING[usize::from(*digit)];
            *found |= value;
            bits << 5 | u64::from(value)
        })
    };
    // 13 digits are 65 bits, of which the first digit leaves the highest two free
    let high = value(&digits[..13], &mut found);
    let (middle, low) = (
        value(&digits[13..14], &mut found),
        value(&digits[14..], &mut found),
    );
    (found < 32).then(|| u128::from(high) << 65 | u128::from(middle) << 60 | u128::from(low))
}

macro_rules! ulid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Ulid);

        impl $name {
            /// An id from a time (unix ms) and 80 random bits.
            pub fn from_parts(at_ms: u64, random: u128) -> Self {
                Self(Ulid::from_parts(at_ms, random))
            }

            /// The time inside the id, unix ms.
            pub fn at_ms(self) -> u64 {
                self.0.timestamp_ms()
            }

            /// The 128 bits of the id.
            pub fn bits(self) -> u128 {
                self.0.0
            }
        }

        impl From<Ulid> for $name {
            fn from(id: Ulid) -> Self {
                Self(id)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.0.array_to_str(&mut [0; ulid::ULID_LEN]))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let rule = "a ULID of 26 characters";
                let invalid = || InvalidId {
                    what: $what,
                    found: text.chars().take(80).collect(),
                    rule,
                };
                spelled_bits(text.as_bytes()).map(|bits| Self(Ulid(bits))).ok_or_else(invalid)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(self.0.array_to_str(&mut [0; ulid::ULID_LEN]))
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                struct Text;
                impl de::Visitor<'_> for Text {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a ULID of 26 characters")
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                from.deserialize_str(Text)
            }
        }
    };
}

ulid_id!(
    /// A command. The same id always has the same outcome.
    CommandId, "command id"
);
ulid_id!(
    /// A reservation: the id of the reserve command that asked for it.
    ReservationId, "reservation id"
);

impl From<CommandId> for ReservationId {
    fn from(id: CommandId) -> Self {
        Self(id.0)
    }
}

impl From<ReservationId> for CommandId {
    fn from(id: ReservationId) -> Self {
        Self(id.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_id_is_a_safe_subject_token() {
        for good in ["a", "acct-cap", "A_9", &"x".repeat(64)] {
            assert_eq!(AccountId::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "a.b", "a b", "a*", ">", "é", &"x".repeat(65)] {
            assert!(AccountId::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_invalid_id_is_refused_on_the_wire_too() {
        let bytes = rmp_serde::to_vec("a.b").unwrap();
        assert!(rmp_serde::from_slice::<AccountId>(&bytes).is_err());
    }

    proptest::proptest! {
        #[test]
        fn a_command_id_is_read_as_the_ulid_that_it_is(bits: u128) {
            let id = CommandId::from(Ulid(bits));
            proptest::prop_assert_eq!(id.to_string().parse(), Ok(id));
        }

        #[test]
        fn a_text_is_a_command_id_only_in_the_spelling_of_a_ulid(text in "[0-8][0-9A-Za-z]{25}|[0-7][0-9A-HJKMNP-TV-Z]{25}|.{0,30}") {
            let spelled = Ulid::from_string(&text).ok().filter(|id| id.to_string() == text);
            proptest::prop_assert_eq!(text.parse().ok(), spelled.map(CommandId::from));
        }
    }

    #[test]
    fn a_command_id_has_one_spelling_and_carries_its_time() {
        let id = CommandId::from_parts(1_700_000_000_000, 7);
        let text = id.to_string();
        assert_eq!(text.parse::<CommandId>().unwrap(), id);
        assert!(text.to_lowercase().parse::<CommandId>().is_err());
        assert_eq!(id.at_ms(), 1_700_000_000_000);
    }
}
