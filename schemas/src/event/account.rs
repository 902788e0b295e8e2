//! Events of an account: what an operator changes, and what a cap announces.

use serde::{Deserialize, Serialize};

use crate::ids::{CapId, KeyId, TeamId};

/// An account exists from here on; or one that exists pays by another multiplier from here on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountOpened {
    /// What all its costs are multiplied by, in millionths; it stays as it is where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multiplier_ppm: Option<u64>,
}

/// A key exists from here on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeyIssued {
    /// The key's public id.
    pub key: KeyId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<TeamId>,
    /// SHA-256 of the secret, hex, for keys whose secret we made. Declared keys have none here: their
    /// secrets are chosen by people and must not be guessable from a public event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_sha256: Option<String>,
}

/// A key reserves nothing from here on; open reservations run to their end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRevoked {
    pub key: KeyId,
    /// Why, in the operator's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A cap is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapRemoved {
    pub cap: CapId,
}

/// A balance was topped up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credited {
    /// The cap whose limit grows.
    pub cap: CapId,
    /// By how much, in the meter's unit.
    pub amount: u64,
    /// Why, in the operator's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What is spent was corrected by hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adjusted {
    /// The cap whose spend changes, in the window of now.
    pub cap: CapId,
    /// Added to what is spent, in the meter's unit; may be negative.
    pub delta: i64,
    /// Why, in the operator's words.
    pub reason: String,
}

/// Spend crossed a share of a limit, once per window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThresholdCrossed {
    pub cap: CapId,
    /// The share, in per cent.
    pub percent: u8,
    /// The limit, credits included.
    pub limit: u64,
    /// What is spent.
    pub spent: u64,
}
