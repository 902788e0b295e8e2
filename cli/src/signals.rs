//! SIGTERM and SIGINT ask for an orderly stop; the second one ends the process at once. SIGHUP asks a neuron to read its
//! models again.

use thiserror::Error;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit code of a process that was told twice.
const TOLD_TWICE: i32 = 130;

/// The system does not let us listen for signals.
#[derive(Debug, Error)]
#[error("cannot listen for signals")]
pub struct SignalError(#[from] std::io::Error);

/// A token that is cancelled by the first signal.
pub fn stop_on_signal() -> Result<CancellationToken, SignalError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    let told = stop.clone();
    // lives as long as the process, and ends with it
    tokio::spawn(async move {
        for told_before in [false, true] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if told_before {
                tracing::warn!("told twice to stop: ending at once");
                std::process::exit(TOLD_TWICE);
            }
            tracing::info!("told to stop: draining");
            told.cancel();
        }
    });
    Ok(stop)
}

/// Each SIGHUP. From then on it does not end the process.
pub(crate) fn hangups() -> Result<Signal, SignalError> {
    Ok(signal(SignalKind::hangup())?)
}
