//! A response that an upstream keeps, bound to who may go on with it.
//!
//! All keys of a deployment share the operator's key at the upstream, so there any of them could go on with any
//! response. What is bound here says whose it is, where it is kept, and how much there is to read of it.

use serde::{Deserialize, Serialize};

use crate::ids::{AccountId, ModelId};

/// Longest id of a response that is bound.
const ID_BYTES_MAX: usize = 256;

/// A response with its binding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thread {
    /// Version of this shape: 1.
    pub v: u8,
    /// Whose keys may go on with it.
    pub account: AccountId,
    /// The upstream that keeps it.
    pub upstream: String,
    /// The model that answered: another one counts in other tokens.
    pub model: ModelId,
    /// Tokens of its input and output together, which whatever goes on with it reads again.
    pub tokens: u64,
}

impl Thread {
    /// The version that is written.
    pub const VERSION: u8 = 1;

    /// The key of an id; none where it is none that an upstream gives.
    pub fn key(id: &str) -> Option<&str> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        let is_key = !id.is_empty() && id.len() <= ID_BYTES_MAX && id.bytes().all(plain);
        is_key.then_some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire;

    #[test]
    fn an_id_is_a_key_where_no_server_reads_more_into_it() {
        assert_eq!(Thread::key("resp_0a-B"), Some("resp_0a-B"));
        let long = "x".repeat(ID_BYTES_MAX + 1);
        for odd in ["", "a.b", ">", "*", "a b", "é", "a/b", &long] {
            assert_eq!(Thread::key(odd), None, "{odd}");
        }
    }

    #[test]
    fn what_is_written_stays_readable() {
        let thread = Thread {
            v: Thread::VERSION,
            account: AccountId::new("acct").unwrap(),
            upstream: "openai".to_owned(),
            model: ModelId::new("m").unwrap(),
            tokens: 300,
        };
        let bytes = wire::encode(&thread);
        let written = b"\x85\xa1v\x01\xa7account\xa4acct\xa8upstream\xa6openai\xa5model\xa1m\xa6tokens\xcd\x01\x2c";
        assert_eq!(bytes, written);
        assert_eq!(wire::decode::<Thread>("thread", &bytes).unwrap(), thread);
    }
}
