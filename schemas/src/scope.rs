//! What a cap applies to inside an account.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{EndUserId, KeyId, ModelId, RunId, TeamId};

/// What a cap applies to: on the wire `{kind, id}`, without `id` for the account.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", content = "id", rename_all = "snake_case")]
pub enum Scope {
    /// The whole account.
    Account,
    Team(TeamId),
    Key(KeyId),
    Model(ModelId),
    /// One agent run.
    Run(RunId),
    /// One of the caller's end users.
    EndUser(EndUserId),
}

impl Scope {
    /// The kind of scope in one word, as errors and `/v1/key` show it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Account => "account",
            Self::Team(_) => "team",
            Self::Key(_) => "key",
            Self::Model(_) => "model",
            Self::Run(_) => "run",
            Self::EndUser(_) => "end_user",
        }
    }

    /// Where the scope stands in order: kind first, then id. Agrees with `Ord`.
    pub fn sort_key(&self) -> (u8, &str) {
        let rank = match self {
            Self::Account => 0,
            Self::Team(_) => 1,
            Self::Key(_) => 2,
            Self::Model(_) => 3,
            Self::Run(run) => return Self::sort_key_of_run(run),
            Self::EndUser(_) => 5,
        };
        (rank, self.id().unwrap_or(""))
    }

    /// The sort key of a run's scope.
    pub fn sort_key_of_run(run: &RunId) -> (u8, &str) {
        (4, run.as_str())
    }

    /// The id inside the scope; `None` for the account itself.
    pub fn id(&self) -> Option<&str> {
        match self {
            Self::Account => None,
            Self::Team(id) => Some(id.as_str()),
            Self::Key(id) => Some(id.as_str()),
            Self::Model(id) => Some(id.as_str()),
            Self::Run(id) => Some(id.as_str()),
            Self::EndUser(id) => Some(id.as_str()),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.id() {
            None => f.write_str(self.kind()),
            Some(id) => write!(f, "{} {id}", self.kind()),
        }
    }
}

/// Who a request is for: the scopes that its caps are looked up by, besides the account.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Scopes {
    /// The key that pays.
    pub key: KeyId,
    /// The key's team.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<TeamId>,
    /// The model asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelId>,
    /// The agent run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// The caller's end user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_user: Option<EndUserId>,
}

impl Scopes {
    /// The sort keys of every scope of this request, ascending.
    pub fn sort_keys(&self) -> impl Iterator<Item = (u8, &str)> {
        std::iter::once((0, ""))
            .chain(self.team.as_ref().map(|id| (1, id.as_str())))
            .chain(std::iter::once((2, self.key.as_str())))
            .chain(self.model.as_ref().map(|id| (3, id.as_str())))
            .chain(self.run.as_ref().map(|id| (4, id.as_str())))
            .chain(self.end_user.as_ref().map(|id| (5, id.as_str())))
    }

    /// Whether a cap of `scope` applies to this request.
    pub fn matches(&self, scope: &Scope) -> bool {
        match scope {
            Scope::Account => true,
            Scope::Key(id) => *id == self.key,
            Scope::Team(id) => self.team.as_ref() == Some(id),
            Scope::Model(id) => self.model.as_ref() == Some(id),
            Scope::Run(id) => self.run.as_ref() == Some(id),
            Scope::EndUser(id) => self.end_user.as_ref() == Some(id),
        }
    }
}
