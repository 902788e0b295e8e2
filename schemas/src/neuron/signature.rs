//! What tells a neuron that a call comes from a gateway of its own deployment: a code over all that bounds
//! the call, made with a secret that both read from the ledger's facts.
//!
//! The code stands in a header beside the hash of the body, so that a stranger is turned away before a
//! byte of his body is read. It holds for one neuron: what one served is nothing to another. Not here:
//! the clock, and what was served before.

use std::fmt;

use ring::hmac;
use sha2::{Digest, Sha256};

use super::{
    HEADER_ACCOUNT, HEADER_DEADLINE_MS, HEADER_GROWS_TO, HEADER_KEY, HEADER_MAX_INPUT_TOKENS,
    HEADER_MAX_OUTPUT_TOKENS, HEADER_RESERVATION,
};
use crate::ids::NeuronId;

/// `v1.<SHA-256 of the body, hex>.<HMAC-SHA256, hex>`.
pub const HEADER_SIGNATURE: &str = "x-seatbelt-signature";
/// First part of the header's value, and of what is signed: another way to sign is another word.
const VERSION: &str = "v1";
/// The headers that are signed, in this order; one that is absent is signed as absent.
const SIGNED: [&str; 6] = [
    HEADER_RESERVATION,
    HEADER_ACCOUNT,
    HEADER_KEY,
    HEADER_MAX_INPUT_TOKENS,
    HEADER_MAX_OUTPUT_TOKENS,
    HEADER_DEADLINE_MS,
];

/// The deployment's secret between gateways and neurons. Never printed.
#[derive(Clone)]
pub struct NeuronSecret([u8; Self::BYTES]);

impl NeuronSecret {
    /// How long it is.
    pub const BYTES: usize = 32;

    /// Takes random bytes.
    pub fn new(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// Signs a call, given the hash of its body; gives the value of [`HEADER_SIGNATURE`].
    pub fn sign(&self, call: &Call<'_>, body: &BodyHash) -> String {
        let code = hmac::sign(&self.key(), &call.text(body));
        format!("{VERSION}.{}.{}", hex::encode(body.0), hex::encode(code))
    }

    /// The hash that the body must have, where the call was signed with this secret.
    pub fn verify(&self, call: &Call<'_>, signature: &[u8]) -> Option<BodyHash> {
        let text = std::str::from_utf8(signature).ok()?;
        let (body, code) = text
            .strip_prefix(VERSION)?
            .strip_prefix('.')?
            .split_once('.')?;
        let mut hash = [0; 32];
        hex::decode_to_slice(body, &mut hash).ok()?;
        let mut told = [0; 32];
        hex::decode_to_slice(code, &mut told).ok()?;
        let body = BodyHash(hash);
        // compares in constant time
        hmac::verify(&self.key(), &call.text(&body), &told).ok()?;
        Some(body)
    }

    /// A code over other parts, hex, for a purpose of its own. Nothing that is signed for one purpose, and no
    /// call, is anything for another.
    pub fn code(&self, purpose: &str, parts: &[&[u8]]) -> String {
        hex::encode(hmac::sign(&self.key(), &told(purpose, parts)))
    }

    /// Whether a code is the one over these parts.
    pub fn vouches(&self, purpose: &str, parts: &[&[u8]], code: &str) -> bool {
        let mut told_code = [0; 32];
        hex::decode_to_slice(code, &mut told_code).is_ok()
            && hmac::verify(&self.key(), &told(purpose, parts), &told_code).is_ok()
    }

    fn key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.0)
    }
}

impl fmt::Debug for NeuronSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NeuronSecret(..)")
    }
}

/// The purpose and each part with its length before it. A call's text begins with another byte.
fn told(purpose: &str, parts: &[&[u8]]) -> Vec<u8> {
    let mut text = vec![0xff];
    for part in [purpose.as_bytes()].iter().chain(parts) {
        text.extend((part.len() as u64).to_be_bytes());
        text.extend(*part);
    }
    text
}

/// SHA-256 of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyHash([u8; 32]);

impl BodyHash {
    pub fn of(body: &[u8]) -> Self {
        Self(Sha256::digest(body).into())
    }
}

/// A call to a neuron, without its body.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    neuron: &'a NeuronId,
    method: &'a str,
    /// The neuron's own: an address may have more in front.
    path: &'a str,
    headers: [Option<&'a [u8]>; SIGNED.len()],
    /// Signed only where it is there, so that a call without it is signed as it ever was.
    grows_to: Option<&'a [u8]>,
}

impl<'a> Call<'a> {
    /// A call with the first value of each header that is signed, where there is one.
    pub fn new(
        neuron: &'a NeuronId,
        method: &'a str,
        path: &'a str,
        header: impl Fn(&'static str) -> Option<&'a [u8]>,
    ) -> Self {
        let headers = SIGNED.map(&header);
        Self {
            neuron,
            method,
            path,
            headers,
            grows_to: header(HEADER_GROWS_TO),
        }
    }

    /// Each part with its length before it, so that no two calls have the same text.
    fn text(&self, body: &BodyHash) -> Vec<u8> {
        let mut text = Vec::with_capacity(512);
        let known = [VERSION, self.neuron.as_str(), self.method, self.path];
        let known = known.map(|part| Some(part.as_bytes()));
        let parts = known.into_iter().chain(self.headers);
        let parts = parts.chain([Some(body.0.as_slice())]);
        // one part more is another text, whatever the parts are
        for part in parts.chain(self.grows_to.map(Some)) {
            text.push(u8::from(part.is_some()));
            let part = part.unwrap_or_default();
            text.extend((part.len() as u64).to_be_bytes());
            text.extend(part);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn neuron() -> NeuronId {
        NeuronId::new("n-1").unwrap()
    }

    fn values() -> [Option<&'static str>; SIGNED.len()] {
        ["r", "a", "k", "3", "4", "99"].map(Some)
    }

    fn call<'a>(neuron: &'a NeuronId, path: &'a str, values: &[Option<&'a str>]) -> Call<'a> {
        let at = |name| SIGNED.iter().position(|signed| *signed == name);
        let value = |name| values[at(name)?].map(str::as_bytes);
        Call::new(neuron, "POST", path, value)
    }

    fn secret() -> NeuronSecret {
        NeuronSecret::new([7; 32])
    }

    fn signed() -> String {
        secret().sign(&call(&neuron(), "/p", &values()), &BodyHash::of(b"body"))
    }

    #[test]
    fn a_code_is_for_its_purpose_and_its_parts_alone() {
        let code = secret().code("runs", &[b"ab", b"c"]);
        let vouches = |purpose, parts: &[&[u8]]| secret().vouches(purpose, parts, &code);
        assert!(vouches("runs", &[b"ab", b"c"]));
        assert!(!vouches("runs", &[b"a", b"bc"]));
        assert!(!vouches("runs", &[b"abc"]));
        assert!(!vouches("run", &[b"ab", b"c"]));
        let other = NeuronSecret::new([8; 32]);
        assert!(!other.vouches("runs", &[b"ab", b"c"], &code));
        for odd in ["", "00", &code[1..], "x"] {
            assert!(!secret().vouches("runs", &[b"ab", b"c"], odd), "{odd:?}");
        }
    }

    #[test]
    fn a_signed_call_is_known_and_names_its_body() {
        let body = secret().verify(&call(&neuron(), "/p", &values()), signed().as_bytes());
        assert_eq!(body, Some(BodyHash::of(b"body")));
    }

    /// Written out, as gateways and neurons of several releases have to agree.
    #[test]
    fn the_code_is_as_it_ever_was() {
        let hash = "230d8358dc8e8890b4c58deeb62912ee2f20357ae92a5cc861b98e68fe31acb5";
        let code = "e1679c877f0c0e80c86271a5659b2a7b3605d3f6604c6516beb9fb161ddcaca7";
        assert_eq!(signed(), format!("v1.{hash}.{code}"));
    }

    #[test]
    fn a_call_of_which_anything_was_changed_is_not_known() {
        let (neuron, other) = (neuron(), NeuronId::new("n-2").unwrap());
        let knows = |call: Call<'_>| secret().verify(&call, signed().as_bytes()).is_some();
        for at in 0..SIGNED.len() {
            for changed in [None, Some(""), Some("5")] {
                let mut values = values();
                values[at] = changed;
                assert!(!knows(call(&neuron, "/p", &values)), "{}", SIGNED[at]);
            }
        }
        assert!(!knows(call(&neuron, "/q", &values())));
        assert!(!knows(call(&other, "/p", &values())));
        let mut get = call(&neuron, "/p", &values());
        get.method = "GET";
        assert!(!knows(get));
        let moved = ["ra", "", "k", "3", "4", "99"].map(Some);
        assert!(!knows(call(&neuron, "/p", &moved)));
    }

    #[test]
    fn how_far_a_reservation_may_grow_is_signed_where_it_is_said() {
        let neuron = neuron();
        let growing = |to: Option<&'static str>| {
            Call::new(&neuron, "POST", "/p", move |name| {
                let signed = SIGNED.iter().position(|signed| *signed == name);
                let value = signed.map_or(to, |at| values()[at]);
                value.map(str::as_bytes)
            })
        };
        let signature = secret().sign(&growing(Some("8")), &BodyHash::of(b"body"));
        let knows = |to| {
            secret()
                .verify(&growing(to), signature.as_bytes())
                .is_some()
        };
        assert!(knows(Some("8")));
        for other in [None, Some(""), Some("9")] {
            assert!(!knows(other), "{other:?}");
        }
        let plain = secret().verify(&growing(None), signed().as_bytes());
        assert!(plain.is_some(), "who says nothing signs as ever");
    }

    #[test]
    fn another_secret_signs_otherwise() {
        let (neuron, values) = (neuron(), values());
        let call = call(&neuron, "/p", &values);
        let other = NeuronSecret::new([8; 32]);
        assert_eq!(other.verify(&call, signed().as_bytes()), None);
    }

    #[test]
    fn what_is_no_signature_is_none() {
        let (neuron, values) = (neuron(), values());
        let call = call(&neuron, "/p", &values);
        let good = signed();
        let zeros = "0".repeat(64);
        let [_, body, code] = good.split('.').collect::<Vec<_>>().try_into().unwrap();
        for bad in [
            String::new(),
            "v1".to_owned(),
            "v1..".to_owned(),
            format!("v2.{body}.{code}"),
            format!("v1.{zeros}.{code}"),
            format!("v1.{body}.{zeros}"),
            format!("v1.{body}.{}", &code[..62]),
            format!("{good}00"),
            format!("v1.{body}.{code}.x"),
        ] {
            assert_eq!(secret().verify(&call, bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(secret().verify(&call, &[0xff, 0xfe]), None);
    }

    #[test]
    fn it_is_not_printed() {
        assert_eq!(format!("{:?}", secret()), "NeuronSecret(..)");
    }
}
