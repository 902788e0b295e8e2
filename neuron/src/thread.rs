//! A thread that owns a model, and the line in front of it.
//!
//! What generates and what embeds differ in what their threads do in a turn. That at most so many requests are in
//! line, that a thread which has ended takes none, that one which hangs is noticed, and that a stop waits for it but
//! not for ever, is here for both.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

pub(crate) use self::health::{Health, Pulse};
use crate::clock::Clock;

mod health;

/// Requests in line and under way, at most so many.
#[derive(Debug)]
pub(crate) struct Line {
    count: AtomicUsize,
    room: usize,
}

impl Line {
    fn new(room: usize) -> Self {
        Self {
            count: AtomicUsize::new(0),
            room,
        }
    }

    /// So many at once, or none.
    fn enter(&self, count: usize) -> bool {
        let room = |now: usize| now.checked_add(count).filter(|after| *after <= self.room);
        let entered = (self.count).fetch_update(Ordering::AcqRel, Ordering::Acquire, room);
        entered.is_ok()
    }

    /// So many have ended.
    pub(crate) fn leave(&self, count: usize) {
        let before = self.count.fetch_sub(count, Ordering::AcqRel);
        debug_assert!(before >= count, "whoever leaves was in line");
    }

    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }
}

/// What a thread has of its handle.
pub(crate) struct Ties<C> {
    pub(crate) inbox: mpsc::Receiver<C>,
    pub(crate) line: Arc<Line>,
    pub(crate) pulse: Arc<Pulse>,
}

/// Requests that were not taken.
#[derive(Debug)]
pub(crate) enum NotTaken<T> {
    /// As many are in line as may.
    Full(T),
    /// The thread has ended.
    Ended(T),
}

/// Handle of a thread that obeys commands.
pub(crate) struct Thread<C> {
    name: &'static str,
    commands: mpsc::Sender<C>,
    line: Arc<Line>,
    pulse: Arc<Pulse>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Hangs up when the thread is at its end.
    ended: Mutex<mpsc::Receiver<()>>,
}

impl<C: Send + 'static> Thread<C> {
    /// Starts it. At most `room` requests are in line and under way.
    pub(crate) fn start(
        name: &'static str,
        room: usize,
        clock: Clock,
        run: impl FnOnce(Ties<C>) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (commands, inbox) = mpsc::channel();
        let (line, pulse) = (Arc::new(Line::new(room)), Arc::new(Pulse::new(clock)));
        let ties = Ties {
            inbox,
            line: Arc::clone(&line),
            pulse: Arc::clone(&pulse),
        };
        let (ending, ended) = mpsc::channel();
        let thread = std::thread::Builder::new().name(name.to_owned());
        let thread = thread.spawn(move || {
            run(ties);
            drop(ending);
        })?;
        Ok(Self {
            name,
            commands,
            line,
            pulse,
            thread: Mutex::new(Some(thread)),
            ended: Mutex::new(ended),
        })
    }

    /// Puts `count` requests in line that come as one command: all of them, or none.
    pub(crate) fn submit(&self, count: usize, command: C) -> Result<(), NotTaken<C>> {
        if !self.line.enter(count) {
            return Err(NotTaken::Full(command));
        }
        self.commands.send(command).map_err(|unsent| {
            self.line.leave(count);
            NotTaken::Ended(unsent.0)
        })
    }

    /// Tells it something, if it is there.
    pub(crate) fn tell(&self, command: C) {
        // A failed send means that the thread is gone, and with it every request.
        let _ = self.commands.send(command);
    }

    /// Requests that can be in line and under way at once.
    pub(crate) fn room(&self) -> usize {
        self.line.room
    }

    /// Requests in line and under way.
    pub(crate) fn busy(&self) -> usize {
        self.line.count()
    }

    /// How it is.
    pub(crate) fn health(&self) -> Health {
        match self.handle().as_ref() {
            Some(thread) if !thread.is_finished() => match self.pulse.is_stuck() {
                true => Health::Stuck,
                false => Health::Well,
            },
            _ => Health::Dead,
        }
    }

    /// Tells it to end and waits for that, at most so long: what hangs is left to the process's end.
    pub(crate) fn stop(&self, last: C, patience: Duration) {
        self.tell(last);
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Timeout) {
            tracing::error!(
                thread = self.name,
                "a run of the model does not end, and is not waited for"
            );
            return;
        }
        let thread = self.handle().take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!(thread = self.name, "the model's thread had panicked");
        }
    }

    fn handle(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_takes_all_that_come_at_once_or_none() {
        let line = Line::new(3);
        assert!(line.enter(2) && !line.enter(2) && line.enter(1));
        assert!(
            !line.enter(usize::MAX),
            "nothing is added up beyond its end"
        );
        line.leave(3);
        assert_eq!(line.count(), 0);
    }

    #[test]
    fn one_that_has_ended_takes_nothing_and_gives_back_what_it_was_given() {
        let run = |ties: Ties<u32>| while ties.inbox.recv().is_ok_and(|told| told > 0) {};
        let thread = Thread::start("test", 1, Clock::system(), run).unwrap();
        thread.submit(1, 5).unwrap();
        assert!(matches!(thread.submit(1, 6), Err(NotTaken::Full(6))));
        thread.stop(0, Duration::from_secs(20));
        assert_eq!(thread.health(), Health::Dead);
        let again = Thread::start("test", 1, Clock::system(), |_: Ties<u32>| {}).unwrap();
        while again.health() != Health::Dead {
            std::thread::yield_now();
        }
        assert!(matches!(again.submit(1, 7), Err(NotTaken::Ended(7))));
        assert_eq!(again.busy(), 0);
    }
}
