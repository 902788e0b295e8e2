//! How a neuron makes itself known, and the headers that a request carries to it.

use serde::{Deserialize, Serialize};

use crate::ids::{ModelId, NeuronId};

pub mod signature;

/// Where a neuron answers chats.
pub const PATH_CHAT: &str = "/v1/chat/completions";
/// Where a neuron goes on with a text.
pub const PATH_COMPLETIONS: &str = "/v1/completions";
/// Where a neuron counts the tokens of a prompt.
pub const PATH_TOKENIZE: &str = "/tokenize";

/// Where a neuron hands out a tokenizer and chat template; the body is `{"name": NAME}`.
pub const PATH_RECIPE: &str = "/recipe";

/// Where a neuron is told that more output is held for an answer under way. The reservation and the new maximum stand in
/// the headers, the rest in the body: a [`LimitCall`].
pub const PATH_LIMIT: &str = "/limit";

/// The reservation that pays for the request.
pub const HEADER_RESERVATION: &str = "x-seatbelt-reservation";
/// The account, for the usage event.
pub const HEADER_ACCOUNT: &str = "x-seatbelt-account";
/// The key id, for the usage event.
pub const HEADER_KEY: &str = "x-seatbelt-key";
/// Most input tokens that were reserved.
pub const HEADER_MAX_INPUT_TOKENS: &str = "x-seatbelt-max-input-tokens";
/// Most output tokens that were reserved.
pub const HEADER_MAX_OUTPUT_TOKENS: &str = "x-seatbelt-max-output-tokens";
/// Most output tokens that may come to be reserved while the request runs. Where it is there, an answer that has written
/// all that is reserved waits for more.
pub const HEADER_GROWS_TO: &str = "x-seatbelt-output-grows-to";
/// When the reservation ends, unix ms.
pub const HEADER_DEADLINE_MS: &str = "x-seatbelt-deadline-ms";
/// On a refusal: nothing was done for the request, and its reservation may be used at another neuron.
pub const HEADER_UNUSED: &str = "x-seatbelt-unused";

/// Why gateways cannot call a neuron at this address, if so: it has to be `http://HOST:PORT`, or `https`, and may
/// have a path in front of the neuron's own.
pub fn url_mistake(url: &str) -> Option<&'static str> {
    let plain = |letter: char| letter.is_ascii_graphic() && letter != '\\';
    let after = |scheme| url.strip_prefix(scheme);
    let Some(rest) = after("http://").or_else(|| after("https://")) else {
        return Some("does not begin with http:// or https://");
    };
    if !rest.chars().all(plain) {
        return Some("has a character that no address has");
    }
    if rest.contains(['?', '#', '@']) {
        return Some("has more than a host, a port and a path");
    }
    let authority = rest.split('/').next().unwrap_or_default();
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    match port {
        _ if host.is_empty() => Some("names no host"),
        _ if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) => {
            Some("names an IPv6 address without brackets")
        }
        Some(port) if !is_port(port) => Some("has a port that is none"),
        _ => None,
    }
}

/// A model that a neuron serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeuronModel {
    pub id: ModelId,
    /// Most tokens of input and output together.
    pub context: u64,
    /// Most output tokens of one request.
    pub output: u64,
    /// Requests that run at once.
    pub slots: u32,
    /// The name of its tokenizer and chat template: the SHA-256 of what is handed out under [`PATH_RECIPE`], in
    /// hexadecimal digits. Older neurons name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<String>,
    /// Whether it takes requests now. Written only where it does not; older neurons never say so.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub ready: bool,
    /// Whether what is reserved of output may grow while it answers. Written only where it may; older neurons never
    /// say so.
    #[serde(default, skip_serializing_if = "is_not")]
    pub grows: bool,
    /// Whether it is in memory. Written only where it is not: it is loaded for the first request, which waits for that.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub loaded: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde asks")]
fn is_not(said: &bool) -> bool {
    !*said
}

/// What a neuron is told at [`PATH_LIMIT`] besides the new maximum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitCall {
    /// Answered once as many output tokens were written, or an answer waits for more, or all have ended.
    pub written: u64,
    /// Answered by then in any case, ms.
    pub wait_ms: u64,
    /// No more will be held: what waits ends.
    pub last: bool,
}

/// How a request stands whose reservation grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitTold {
    /// Output tokens that would be written if every answer were as long as the longest one is.
    pub written: u64,
    /// An answer has written all that is reserved, and waits for more.
    pub waits: bool,
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde asks")]
fn is_yes(said: &bool) -> bool {
    *said
}

/// What a neuron writes to KV `SEATBELT_NEURONS` under its id, again and again while it lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeuronRecord {
    /// Version of this shape: 1.
    pub v: u8,
    pub neuron: NeuronId,
    /// Where it listens, such as `http://127.0.0.1:9100`.
    pub url: String,
    /// `cpu` or `cuda`.
    pub device: String,
    /// What it serves.
    pub models: Vec<NeuronModel>,
    /// Requests running.
    pub active: u32,
    /// Requests waiting.
    pub queued: u32,
    /// When this was written, unix ms.
    pub at_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire;

    #[test]
    fn an_address_is_one_that_can_be_called() {
        for good in [
            "http://127.0.0.1:9100",
            "http://gpu-box:9100/",
            "https://gpu.example/neuron/1",
            "http://[::1]:9100",
            "http://[::1]",
        ] {
            assert_eq!(url_mistake(good), None, "{good}");
        }
        for (bad, says) in [
            ("gpu-box:9100", "http://"),
            ("", "http://"),
            ("ftp://gpu-box", "http://"),
            ("http://", "no host"),
            ("http://:9100", "no host"),
            ("http://gpu box:9100", "character"),
            ("http://u:p@gpu-box:9100", "more than"),
            ("http://gpu-box:9100?a=b", "more than"),
            ("http://gpu-box:", "port"),
            ("http://gpu-box:http", "port"),
            ("http://gpu-box:0", "port"),
            ("http://gpu-box:99999", "port"),
            ("http://::1:9100", "brackets"),
        ] {
            let mistake = url_mistake(bad).unwrap_or_default();
            assert!(mistake.contains(says), "{bad}: {mistake}");
        }
    }

    /// As written by a neuron that never said whether it is ready.
    const OLDER: &str = r#"{"id":"tiny","context":64,"output":32,"slots":1}"#;

    #[test]
    fn who_does_not_say_is_ready_and_who_is_ready_does_not_say() {
        let mut model: NeuronModel = serde_json::from_str(OLDER).unwrap();
        assert!(model.ready && model.loaded);
        assert_eq!(serde_json::to_string(&model).unwrap(), OLDER);
        model.ready = false;
        let json = serde_json::to_string(&model).unwrap();
        assert!(json.ends_with(r#","ready":false}"#), "{json}");
        model.loaded = false;
        assert_eq!(
            wire::decode::<NeuronModel>("a model", &wire::encode(&model)).unwrap(),
            model
        );
    }
}
