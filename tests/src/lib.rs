//! What the end-to-end tests are told with: a stack of real processes on free ports and temporary
//! folders, a foreign upstream that counts, and waits on conditions.
//!
//! Everything started here is stopped here, by its process id; what a process logged is printed when
//! its test fails. Nothing of the product is replaced; only the foreign upstream is our own.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "test support: a failure is a panic that fails the test, with the logs beside it"
)]

pub mod answer;
pub mod example;
pub mod faults;
pub mod foreign;
pub mod nats;
pub mod outside;
pub mod page;
pub mod python;
pub mod stack;
pub mod wait;

mod process;

pub use answer::Answer;
pub use foreign::Foreign;
pub use stack::{Key, Running, Stack, Stopped};
pub use wait::{until, until_within};

/// The repository's root.
pub fn repository() -> std::path::PathBuf {
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap().to_owned()
}

/// The binary under test.
pub fn binary() -> std::path::PathBuf {
    process::seatbelt()
}

/// An HTTP client without retries, proxies or a pool that outlives a restart.
pub fn http_client() -> reqwest::Client {
    // a second installation is refused, and means that the provider is there
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .no_proxy()
        .tcp_nodelay(true)
        .build()
        .unwrap()
}
