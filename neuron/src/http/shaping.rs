//! Where shapes are read: beside all else, and within a time.
//!
//! However small a body is, its shape may take seconds, and a thread that reads one cannot be stopped. So nobody but others
//! with shapes waits for one, whoever waits gives up after a while, and with that his place is another's. What still reads
//! then goes on to its end, and where too many do, no shape is read until some have ended.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, oneshot},
    time::timeout,
};

use super::error::ErrorAnswer;

/// So long may reading a shape take, and so long is waited for those of others.
const READING_TIME_MAX: Duration = Duration::from_secs(30);
/// Shapes that nobody waits for any more and that are still being read.
const RUNAWAYS_MAX: usize = 2;

/// Places for reading shapes.
#[derive(Debug)]
pub(crate) struct Shaping {
    places: Semaphore,
    threads: Arc<Semaphore>,
    patience: Duration,
}

impl Shaping {
    pub(crate) fn new(cores: usize) -> Self {
        Self::with(cores.div_ceil(2), READING_TIME_MAX)
    }

    fn with(places: usize, patience: Duration) -> Self {
        Self {
            places: Semaphore::new(places),
            threads: Arc::new(Semaphore::new(places + RUNAWAYS_MAX)),
            patience,
        }
    }

    /// What `reading` gives, of the shape that `field` asks for.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        field: &'static str,
        reading: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ErrorAnswer> {
        let busy = || ErrorAnswer::busy("others' shapes are being read: try again");
        let place = timeout(self.patience, self.places.acquire()).await;
        let _place = place.map_err(|_| busy())?;
        let thread = Arc::clone(&self.threads).try_acquire_owned();
        let thread = thread.map_err(|_| busy())?;
        let (told, read) = oneshot::channel();
        // Not one of the runtime's, whose end would wait for it.
        let reader = std::thread::Builder::new()
            .name("shape".to_owned())
            .spawn(move || {
                let read = reading();
                // Held to the end, although nobody may wait for it any more.
                drop(thread);
                drop(told.send(read));
            });
        let broke = |why: &dyn std::fmt::Display| {
            ErrorAnswer::engine(format!("reading the shape broke off: {why}"))
        };
        reader.map_err(|error| broke(&error))?;
        match timeout(self.patience, read).await {
            Ok(read) => read.map_err(|error| broke(&error)),
            Err(_) => {
                let message = format!("{field} takes too long to read: say a simpler schema");
                Err(ErrorAnswer::unsupported(field, message))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_takes_too_long_gives_its_place_to_others_until_too_many_do() {
        let shaping = Shaping::with(1, Duration::from_millis(50));
        let (end, gate) = channel::<()>();
        let gate = Arc::new(std::sync::Mutex::new(gate));
        for _ in 0..=RUNAWAYS_MAX {
            let gate = Arc::clone(&gate);
            let slow = move || drop(gate.lock().map(|gate| gate.recv()));
            let refused = shaping.read("response_format", slow).await.unwrap_err();
            assert_eq!(refused.json()["error"]["param"], "response_format");
            assert!(!refused.is_unused());
        }
        let refused = shaping.read("response_format", || 7).await.unwrap_err();
        assert!(refused.is_unused(), "another neuron may have room");
        drop(end);
        loop {
            if let Ok(read) = shaping.read("response_format", || 7).await {
                assert_eq!(read, 7);
                return;
            }
        }
    }

    #[tokio::test]
    async fn who_leaves_gives_his_place_back() {
        let shaping = Shaping::with(1, Duration::from_secs(60));
        let (end, gate) = channel::<()>();
        let slow = shaping.read("response_format", move || gate.recv());
        assert!(timeout(Duration::from_millis(20), slow).await.is_err());
        assert_eq!(shaping.read("response_format", || 7).await.unwrap(), 7);
        drop(end);
    }
}
