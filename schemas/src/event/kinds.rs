//! All kinds of version 1, and how the one that an event names is read.

use std::marker::PhantomData;

use serde::{Deserialize, Deserializer, Serialize, de};

use super::{
    AccountOpened, Adjusted, CapRemoved, Credited, Expired, Genesis, KeyIssued, KeyRevoked,
    Overrun, Refused, Released, Reserved, Resized, Settled, ThresholdCrossed, WriterStarted,
};
use crate::{cap::CapSpec, price::Price};

/// What is read of an event's `data`.
pub trait Body: Sized {
    /// Reads `data` straight into the type that `kind` names.
    fn read<'de, D: Deserializer<'de>>(kind: &str, from: D) -> Result<Self, D::Error>;
}

/// The kind that was read, so that `data` behind it is read as that.
pub(super) struct BodySeed<'a, B>(pub(super) &'a str, pub(super) PhantomData<B>);

impl<B> Clone for BodySeed<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for BodySeed<'_, B> {}

impl<'de, B: Body> de::DeserializeSeed<'de> for BodySeed<'_, B> {
    type Value = B;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<B, D::Error> {
        B::read(self.0, from)
    }
}

macro_rules! kinds {
    ($($variant:ident = $kind:literal),* $(,)?) => {
        /// What happened: one variant per kind of version 1, and whatever a newer build wrote.
        #[derive(Debug, Clone, PartialEq)]
        pub enum EventBody {
            $(#[doc = concat!("`", $kind, "`")] $variant($variant),)*
            /// A kind that this build does not know; readers skip it.
            Unknown {
                /// Its name.
                kind: String,
                /// Its data, as it is.
                data: rmpv::Value,
            },
        }

        /// Every kind of version 1.
        pub const KINDS: &[&str] = &[$($kind),*];

        impl EventBody {
            /// The kind's name on the wire.
            pub fn kind(&self) -> &str {
                match self {
                    $(Self::$variant(_) => $kind,)*
                    Self::Unknown { kind, .. } => kind,
                }
            }
        }

        $(impl From<$variant> for EventBody {
            fn from(data: $variant) -> Self {
                Self::$variant(data)
            }
        })*

        impl Serialize for EventBody {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                match self {
                    $(Self::$variant(data) => data.serialize(to),)*
                    Self::Unknown { data, .. } => data.serialize(to),
                }
            }
        }

        impl Body for EventBody {
            fn read<'de, D: Deserializer<'de>>(kind: &str, from: D) -> Result<Self, D::Error> {
                match kind {
                    $($kind => $variant::deserialize(from).map(Self::$variant),)*
                    kind => Ok(Self::Unknown { kind: kind.to_owned(), data: rmpv::Value::deserialize(from)? }),
                }
            }
        }
    };
}

/// `price_set` carries a whole price.
pub type PriceSet = Price;
/// `cap_set` carries a whole cap.
pub type CapSet = CapSpec;

kinds! {
    Genesis = "genesis",
    WriterStarted = "writer_started",
    AccountOpened = "account_opened",
    KeyIssued = "key_issued",
    KeyRevoked = "key_revoked",
    CapSet = "cap_set",
    CapRemoved = "cap_removed",
    Credited = "credited",
    Adjusted = "adjusted",
    PriceSet = "price_set",
    Reserved = "reserved",
    Resized = "resized",
    Refused = "refused",
    Settled = "settled",
    Released = "released",
    Expired = "expired",
    Overrun = "overrun",
    ThresholdCrossed = "threshold_crossed",
}
