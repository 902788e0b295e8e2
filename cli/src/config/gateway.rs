//! `[gateway]`: where it listens and how long and how much it takes.

use std::{net::SocketAddr, time::Duration};

use super::{Secret, reader::Section};

/// Longest that a request may wait for holds to resolve.
const BUDGET_WAIT_MS_MAX: u64 = 60_000;
/// Longest time that one request may take: a day.
const REQUEST_MS_MAX: u64 = 24 * 3_600_000;
/// Longest that the ledger may take to answer.
const LEDGER_MS_MAX: u64 = 60_000;
/// Most requests in progress that can be allowed.
const REQUESTS_MAX: u64 = 1_000_000;
/// Largest request body that can be allowed.
const BODY_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Most memory for bodies that can be allowed.
const BODIES_BYTES_MAX: u64 = 1 << 40;

/// What becomes of an upstream request whose client left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDisconnect {
    /// Read to its end, for its usage.
    Drain,
    /// Cancelled, and charged at the hold.
    Cancel,
}

/// `[gateway]`
#[derive(Debug, Clone)]
pub struct Gateway {
    /// Address for clients; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Address for metrics; port 0 picks a free one.
    pub metrics_listen: SocketAddr,
    /// Whether every request needs a key.
    pub require_auth: bool,
    /// Token of the admin routes; none closes them.
    pub admin_token: Option<Secret>,
    /// Longest wait for open holds to resolve.
    pub budget_wait: Duration,
    /// Largest request body.
    pub body_bytes: usize,
    /// Memory for the bodies of all requests.
    pub bodies_bytes: usize,
    /// Most requests in progress.
    pub requests: usize,
    /// Most connections of clients.
    pub connections: usize,
    /// How long the head of a request may be on its way.
    pub header_timeout: Duration,
    /// How long a client may take nothing of what is written to it.
    pub client_stall: Duration,
    /// How much of what all share one account may take, in percent.
    pub account_share_percent: u8,
    /// Longest time for one request, from its reserve to its last byte.
    pub request_timeout: Duration,
    /// Longest wait for an answer of the ledger, waiting for budget not counted.
    pub ledger_timeout: Duration,
    /// How long an idle connection to an upstream is kept.
    pub pool_idle: Duration,
    /// What becomes of a request whose client left.
    pub on_disconnect: OnDisconnect,
    /// How long running requests may go on after a stop was asked for.
    pub drain: Duration,
}

impl Gateway {
    pub(super) fn read(mut section: Section) -> Self {
        let on_disconnect = [
            ("drain", OnDisconnect::Drain),
            ("cancel", OnDisconnect::Cancel),
        ];
        let gateway = Self {
            listen: address(&mut section, "listen", 8080),
            metrics_listen: address(&mut section, "metrics_listen", 9090),
            require_auth: section.flag("require_auth").unwrap_or(true),
            admin_token: section.text("admin_token").map(Secret::from),
            budget_wait: millis(&mut section, "budget_wait_ms", 0, BUDGET_WAIT_MS_MAX, 2000),
            body_bytes: size(
                &mut section,
                "body_bytes_max",
                1024,
                BODY_BYTES_MAX,
                16 << 20,
            ),
            bodies_bytes: size(
                &mut section,
                "bodies_bytes_max",
                1024,
                BODIES_BYTES_MAX,
                512 << 20,
            ),
            requests: size(&mut section, "requests_max", 1, REQUESTS_MAX, 4096),
            connections: size(&mut section, "connections_max", 1, REQUESTS_MAX, 8192),
            header_timeout: millis(&mut section, "header_timeout_ms", 10, 600_000, 10_000),
            client_stall: millis(&mut section, "client_stall_ms", 10, 3_600_000, 60_000),
            account_share_percent: section
                .number("account_share_percent", 1, 100)
                .and_then(|percent| u8::try_from(percent).ok())
                .unwrap_or(50),
            request_timeout: millis(
                &mut section,
                "request_timeout_ms",
                10,
                REQUEST_MS_MAX,
                600_000,
            ),
            ledger_timeout: millis(&mut section, "ledger_timeout_ms", 10, LEDGER_MS_MAX, 5000),
            pool_idle: millis(&mut section, "pool_idle_ms", 0, 3_600_000, 4000),
            on_disconnect: section
                .word("on_disconnect", &on_disconnect)
                .unwrap_or(OnDisconnect::Drain),
            drain: millis(&mut section, "drain_ms", 0, 600_000, 25_000),
        };
        let same = gateway.listen == gateway.metrics_listen && gateway.listen.port() != 0;
        if same {
            section.mistake(
                "metrics_listen",
                "is the same as gateway.listen: use another port",
            );
        }
        section.finish();
        gateway
    }
}

pub(super) fn address(section: &mut Section, name: &'static str, port: u16) -> SocketAddr {
    let expect = "an address: write one such as \"127.0.0.1:8080\"";
    section
        .parsed(name, expect)
        .unwrap_or(SocketAddr::from(([127, 0, 0, 1], port)))
}

fn size(section: &mut Section, name: &'static str, least: u64, most: u64, default: u64) -> usize {
    let size = section.number(name, least, most).unwrap_or(default);
    usize::try_from(size).unwrap_or(usize::MAX)
}

pub(super) fn millis(
    section: &mut Section,
    name: &'static str,
    least: u64,
    most: u64,
    default: u64,
) -> Duration {
    Duration::from_millis(section.number(name, least, most).unwrap_or(default))
}
