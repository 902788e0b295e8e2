//! What connections of a neuron are held to. Strangers who ask for nothing can take neither all files of the process
//! nor a place for long.

use std::time::Duration;

use seatbelt_connections::ConnectionBounds;

/// Most connections at once, where the process may open files enough.
const CONNECTIONS_MAX: usize = 4096;
/// Fewest, whatever the process may open.
const CONNECTIONS_MIN: usize = 16;
/// Of the files that the process may open, what connections may take: 1 in so many. The rest is for models, the
/// outbox and NATS.
const OF_FILES: usize = 2;
/// How long the head of a request may be on its way, and a connection without one stay open. Well above the 4 s after
/// which gateways let go of one that lies idle, so that no request is written into one that is being closed.
const HEADER_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a peer may take nothing of what is written to it. Well above what a gateway allows its own clients by
/// default, since a gateway whose client reads nothing takes nothing here.
const STALL_MAX: Duration = Duration::from_secs(3600);

/// As the machine allows.
pub(super) fn bounds() -> ConnectionBounds {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    ConnectionBounds {
        connections: connections_max(&limits),
        header_timeout: HEADER_TIMEOUT,
        stall_max: STALL_MAX,
    }
}

/// How many connections leave files enough for the rest, given the process's limits as the kernel prints them.
fn connections_max(limits: &str) -> usize {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let files = line.and_then(|line| line.split_whitespace().next());
    match files.map(str::parse::<usize>) {
        Some(Ok(files)) => (files / OF_FILES).clamp(CONNECTIONS_MIN, CONNECTIONS_MAX),
        // unlimited, or not told
        _ => CONNECTIONS_MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_the_rest() {
        let of = |soft: &str| {
            connections_max(&format!(
                "Limit                     Soft Limit           Hard Limit           Units\n\
                 Max open files            {soft}                 1048576              files\n"
            ))
        };
        assert_eq!((of("128"), of("1024"), of("8")), (64, 512, 16));
        assert_eq!((of("1048576"), of("unlimited")), (4096, 4096));
        assert_eq!(connections_max(""), 4096);
    }
}
