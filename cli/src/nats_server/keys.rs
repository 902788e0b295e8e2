//! Keys by which users are known: the seed is the secret, the server is told the public key alone.

use nkeys::{KeyPair, KeyPairType};
use seatbelt_bus::{Identity, NatsRole};

/// The key of a user.
pub(crate) struct UserKey(KeyPair);

impl UserKey {
    pub(crate) fn new() -> Self {
        let mut random = [0; 32];
        getrandom::fill(&mut random).expect("the system gives random bytes");
        let pair = KeyPair::new_from_raw(KeyPairType::User, random);
        Self(pair.expect("32 bytes are a key"))
    }

    /// The one of a seed; `None` where the text is none of a user's.
    pub(crate) fn from_seed(seed: &str) -> Option<Self> {
        let pair = KeyPair::from_seed(seed.trim()).ok()?;
        matches!(pair.key_pair_type(), KeyPairType::User).then_some(Self(pair))
    }

    pub(crate) fn public(&self) -> String {
        self.0.public_key()
    }

    pub(crate) fn seed(&self) -> String {
        self.0.seed().expect("it was made with its seed")
    }

    pub(crate) fn identity(&self, role: NatsRole) -> Identity {
        let identity = Identity::read(&self.seed());
        identity.expect("a seed is a login").as_role(role)
    }
}

impl std::fmt::Debug for UserKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UserKey({})", self.public())
    }
}
