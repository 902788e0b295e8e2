//! What is answered where nothing is served: in the envelope of whoever asked, with what to set instead.

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderValue, Uri, header},
    response::Response,
};
use seatbelt_dialects::Dialect;

use crate::error::{ApiError, Case};

/// Only Anthropic's SDKs send it, with every request.
const ANTHROPIC_VERSION: &str = "anthropic-version";
/// Longest path that is shown back.
const PATH_CHARS_MAX: usize = 100;

/// What clients ask for below their base URL, and in whose dialect.
const BELOW_A_BASE: [(&str, Dialect); 7] = [
    ("/messages/count_tokens", Dialect::Anthropic),
    ("/messages", Dialect::Anthropic),
    ("/chat/completions", Dialect::OpenAi),
    ("/completions", Dialect::OpenAi),
    ("/embeddings", Dialect::OpenAi),
    ("/responses", Dialect::OpenAi),
    ("/models", Dialect::OpenAi),
];

/// In whose dialect somebody asks.
pub(super) fn dialect(uri: &Uri, headers: &HeaderMap) -> Dialect {
    let below = below_a_base(uri.path()).map(|(_, dialect)| dialect);
    match below {
        _ if headers.contains_key(ANTHROPIC_VERSION) => Dialect::Anthropic,
        Some(dialect) => dialect,
        None => Dialect::OpenAi,
    }
}

/// What a path comes to below whatever it begins with.
fn below_a_base(path: &str) -> Option<(&'static str, Dialect)> {
    let path = path.trim_end_matches('/');
    BELOW_A_BASE
        .into_iter()
        .find(|(below, _)| path.ends_with(below))
}

pub(super) async fn not_found(uri: Uri, headers: HeaderMap) -> Response {
    let dialect = dialect(&uri, &headers);
    let path: String = uri.path().chars().take(PATH_CHARS_MAX).collect();
    let message = format!("there is no route {path}: {}", instead(&path, dialect));
    unread(ApiError::new(Case::RouteNotFound, message).into_response(dialect))
}

/// Nobody read the body: the connection ends, and says so, or the next request on it would be lost.
fn unread(mut response: Response) -> Response {
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
    response
}

/// What would do. SDKs write the rest of a path themselves: OpenAI's behind `/v1`, Anthropic's with it.
fn instead(path: &str, dialect: Dialect) -> String {
    match (below_a_base(path), dialect) {
        (Some((below, _)), Dialect::OpenAi) => format!(
            "it is /v1{below} here, so set base_url to the address of this gateway with one /v1 at its end"
        ),
        (Some((below, _)), Dialect::Anthropic) => format!(
            "it is /v1{below} here, so set base_url to the address of this gateway without any path"
        ),
        (None, Dialect::OpenAi) => "see GET /v1/models and POST /v1/chat/completions".to_owned(),
        (None, Dialect::Anthropic) => "see GET /v1/models and POST /v1/messages".to_owned(),
    }
}

pub(super) async fn method_not_allowed(uri: Uri, request: Request) -> Response {
    let message = format!("{} does not take {}", uri.path(), request.method());
    let dialect = dialect(&uri, request.headers());
    unread(ApiError::new(Case::MethodNotAllowed, message).into_response(dialect))
}

pub(super) async fn not_served(uri: Uri, headers: HeaderMap) -> Response {
    let instead = match uri.path() {
        path if path.starts_with("/admin/") => {
            "declare accounts, keys and caps in the configuration file"
        }
        path if path.starts_with("/v1/responses/") => {
            "responses are not kept: send their items again with POST /v1/responses"
        }
        _ => "use POST /v1/chat/completions or POST /v1/messages",
    };
    ApiError::route_not_served(uri.path(), instead).into_response(dialect(&uri, &headers))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn an_error_is_wrapped_as_whoever_asked_reads_it() {
        let of = |path: &str| dialect(&path.parse().unwrap(), &HeaderMap::new());
        assert_eq!(of("/v1/messages"), Dialect::Anthropic);
        assert_eq!(of("/v1/v1/messages"), Dialect::Anthropic);
        assert_eq!(of("/v1/messages/count_tokens"), Dialect::Anthropic);
        assert_eq!(of("/v1/messagesx"), Dialect::OpenAi);
        assert_eq!(of("/v1/chat/completions"), Dialect::OpenAi);
        let version = HeaderValue::from_static("2023-06-01");
        let sdk = HeaderMap::from_iter([(ANTHROPIC_VERSION.parse().unwrap(), version)]);
        assert_eq!(
            dialect(&"/nowhere".parse().unwrap(), &sdk),
            Dialect::Anthropic
        );
    }

    #[test]
    fn a_wrong_base_url_is_told_with_the_right_one() {
        let told = |path: &str| {
            let dialect = dialect(&path.parse().unwrap(), &HeaderMap::new());
            instead(path, dialect)
        };
        for path in [
            "/chat/completions",
            "/v1/v1/chat/completions",
            "/openai/v1/chat/completions/",
        ] {
            let told = told(path);
            assert!(told.contains("it is /v1/chat/completions here"), "{told}");
            assert!(told.contains("with one /v1"), "{told}");
        }
        let messages = told("/v1/v1/messages");
        assert!(messages.contains("it is /v1/messages here"), "{messages}");
        assert!(messages.contains("without any path"), "{messages}");
        assert!(told("/v1/nothing").contains("POST /v1/chat/completions"));
    }
}
