//! How far a proof is, for whoever watches a terminal.

use std::{
    io::{self, IsTerminal, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::task::JoinHandle;

use super::source::Source;

/// How often progress is shown.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);
/// Characters of the bar that shows it.
const BAR_WIDTH: u64 = 32;

/// How far it is.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// Events proved.
    pub(super) events: AtomicU64,
    /// Bytes or commits read, out of the source's size.
    pub(super) read: Arc<AtomicU64>,
}

/// Draws a bar on standard error while somebody watches.
pub(super) async fn show_progress(source: &Source, done: &Arc<Done>) -> Option<JoinHandle<()>> {
    if !io::stderr().is_terminal() {
        return None;
    }
    let size = source.size().await;
    let done = Arc::clone(done);
    Some(tokio::spawn(async move {
        loop {
            tokio::time::sleep(PROGRESS_EVERY).await;
            let events = done.events.load(Ordering::Relaxed);
            let line = progress_line(events, done.read.load(Ordering::Relaxed), size);
            let _ = write!(io::stderr(), "\r\x1b[K{line}");
        }
    }))
}

fn progress_line(events: u64, read: u64, size: Option<u64>) -> String {
    let Some(size) = size.filter(|size| *size > 0) else {
        return format!("{events} events verified");
    };
    let of = |whole: u64| {
        let part = u128::from(read.min(size)) * u128::from(whole) / u128::from(size);
        usize::try_from(part).unwrap_or(usize::MAX)
    };
    let (filled, percent) = ("#".repeat(of(BAR_WIDTH)), of(100));
    let width = usize::try_from(BAR_WIDTH).unwrap_or(0);
    format!("[{filled:-<width$}] {percent:>3} %  {events} events verified")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_shows_what_part_was_read() {
        let bar = |read, size| progress_line(7, read, size);
        assert_eq!(bar(0, None), "7 events verified");
        assert_eq!(bar(0, Some(0)), "7 events verified");
        let half = "[################----------------]  50 %  7 events verified";
        assert_eq!(bar(5, Some(10)), half);
        assert!(bar(11, Some(10)).contains("#] 100 %"), "a file that grew");
    }
}
