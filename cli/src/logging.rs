//! Logs: to standard error only, filtered by `SEATBELT_LOG`, as text or JSON lines.

use std::io::IsTerminal;

use thiserror::Error;
use tracing_subscriber::{EnvFilter, filter::ParseError, fmt};

/// Names what is logged, such as `info` or `seatbelt_gateway=debug,info`.
const VARIABLE: &str = "SEATBELT_LOG";
/// What is logged otherwise: our own news, and only trouble of others.
const DEFAULT: &str = "info,async_nats=warn,ort=warn,tokenizers=warn";

/// How logs are written.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// The filter does not parse.
#[derive(Debug, Error)]
#[error("{VARIABLE} is not a log filter: write one such as \"info\" or \"seatbelt_gateway=debug\"")]
pub struct LogFilterError(#[from] ParseError);

/// Starts logging, once per process.
pub fn start(format: LogFormat) -> Result<(), LogFilterError> {
    let wanted = std::env::var(VARIABLE).unwrap_or_default();
    let filter = match wanted.as_str() {
        "" => DEFAULT,
        wanted => wanted,
    };
    let filter = EnvFilter::try_new(filter)?;
    // A line that cannot be written, for a full disk or a reader that went away, is lost. To say so there as well would
    // panic, in the midst of whatever was to be told.
    let builder = fmt()
        .log_internal_errors(false)
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(colours()).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

/// Colours are for people at a terminal who have not declined them (<https://no-color.org>).
fn colours() -> bool {
    let declined = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !declined && std::io::stderr().is_terminal()
}
