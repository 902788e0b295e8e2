//! `[gateway]`: where it listens and how long and how much it takes.

use std::net::Ipv6Addr;

use seatbelt_gateway::{
    GatewayConfig, OnDisconnect,
    config::{
        ACCOUNT_SHARE_PERCENT, BODIES_BYTES, BODY_BYTES, BUDGET_WAIT_MS, CLIENT_STALL_MS,
        CONNECTIONS, DRAIN_MS, HEADER_TIMEOUT_MS, LEDGER_TIMEOUT_MS, POOL_IDLE_MS,
        REQUEST_TIMEOUT_MS, REQUESTS, UPSTREAM_IDLE_MS,
    },
};
use secrecy::SecretString;

use super::reader::Section;

/// Most origins of pages that can be listed.
const CORS_ORIGINS_MAX: usize = 256;

/// All but what is served, which other sections say.
pub(super) fn read(mut section: Section) -> GatewayConfig {
    let on_disconnect = [
        ("drain", OnDisconnect::Drain),
        ("cancel", OnDisconnect::Cancel),
    ];
    let plain = GatewayConfig::default();
    let percent = section.setting("account_share_percent", ACCOUNT_SHARE_PERCENT);
    let gateway = GatewayConfig {
        listen: section.address("listen", plain.listen),
        metrics_listen: section.address("metrics_listen", plain.metrics_listen),
        require_auth: section.flag("require_auth").unwrap_or(plain.require_auth),
        admin_token: section.text("admin_token").map(SecretString::from),
        metrics_by_key: section
            .flag("metrics_by_key")
            .unwrap_or(plain.metrics_by_key),
        budget_wait: section.millis("budget_wait_ms", BUDGET_WAIT_MS),
        body_bytes: section.count("body_bytes_max", BODY_BYTES),
        bodies_bytes: section.count("bodies_bytes_max", BODIES_BYTES),
        requests: section.count("requests_max", REQUESTS),
        connections: section.count("connections_max", CONNECTIONS),
        header_timeout: section.millis("header_timeout_ms", HEADER_TIMEOUT_MS),
        client_stall: section.millis("client_stall_ms", CLIENT_STALL_MS),
        cors_origins: cors_origins(&mut section),
        account_share_percent: u8::try_from(percent).unwrap_or(plain.account_share_percent),
        request_timeout: section.millis("request_timeout_ms", REQUEST_TIMEOUT_MS),
        upstream_idle: section.millis("upstream_idle_timeout_ms", UPSTREAM_IDLE_MS),
        ledger_timeout: section.millis("ledger_timeout_ms", LEDGER_TIMEOUT_MS),
        pool_idle: section.millis("pool_idle_ms", POOL_IDLE_MS),
        on_disconnect: section
            .word("on_disconnect", &on_disconnect)
            .unwrap_or(plain.on_disconnect),
        drain: section.millis("drain_ms", DRAIN_MS),
        ..plain
    };
    if gateway.listen == gateway.metrics_listen && gateway.listen.port() != 0 {
        section.mistake(
            "metrics_listen",
            "is the same as gateway.listen: use another port",
        );
    }
    section.finish();
    gateway
}

/// As browsers write an origin, or `*`.
fn cors_origins(section: &mut Section) -> Vec<String> {
    let origins = section.texts("cors_origins", CORS_ORIGINS_MAX);
    for origin in &origins {
        if origin != "*" && !is_origin(origin) {
            section.mistake(
                "cors_origins",
                format!("{origin:?} is not an origin as browsers send it: write \"https://host\" or \"https://host:8443\", in lower case, without a path and without the scheme's own port, or \"*\""),
            );
        }
    }
    origins
}

/// Whether a browser may send it so: any other would be listed and never met.
fn is_origin(origin: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else {
        return false;
    };
    let of = |text: &str, others: &[u8]| {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        !text.is_empty()
            && text
                .bytes()
                .all(|byte| plain(byte) || others.contains(&byte))
    };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let is_host = match host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        Some(address) => address
            .parse::<Ipv6Addr>()
            .is_ok_and(|read| read.to_string() == address),
        None => of(host, b"-._"),
    };
    let is_port = port.is_none_or(|port| {
        let is_own = matches!((scheme, port), ("http", "80") | ("https", "443"));
        let number = port.parse::<u16>();
        !is_own && number.is_ok_and(|number| number > 0 && number.to_string() == port)
    });
    of(scheme, b"+-.") && is_host && is_port
}

#[cfg(test)]
mod tests {
    use super::is_origin;

    #[test]
    fn an_origin_is_taken_as_browsers_send_it_and_not_otherwise() {
        for origin in [
            "https://app.example",
            "http://localhost:3000",
            "http://[::1]:8080",
            "https://127.0.0.1",
            "https://xn--bcher-kva.example",
            "chrome-extension://abcdefgh",
        ] {
            assert!(is_origin(origin), "{origin}");
        }
        for odd in [
            "HTTPS://App.Example",
            "https://app.example:443",
            "http://app.example:80",
            "https://app.example:",
            "https://app.example:0443",
            "https://*.example",
            "https://a b",
            "https://user:pw@x",
            "https://x?q",
            "https://x/",
            "https://",
            "app.example",
            "https://b\u{fc}cher.example",
            "https://[::0001]",
            "null",
        ] {
            assert!(!is_origin(odd), "{odd}");
        }
    }
}
