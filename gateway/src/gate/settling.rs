//! Settles that are known here and not yet known to last.
//!
//! What an upstream reported nobody else may know. It is kept, and sent again, for as long as the ledger
//! can take it; bounded in number and in time. What has to be given up all the same is counted and
//! logged with its numbers, so that a person can correct the account. Nothing is decided here.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use seatbelt_ledger::{
    Pauses,
    account::LATE_SETTLE_MS_MAX,
    api::{Ack, Answer, CommandError, Ledger, Resolution, Settle},
};
use seatbelt_schemas::{
    event::UsageSource,
    ids::{CommandId, ReservationId},
    meter::Amounts,
    position::Position,
    usage::Usage,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

use crate::{
    clock::Clock,
    config::LAST_WORD,
    metrics::{GivenUp, Metrics},
};

/// Most settles kept at once: with the task of each about 2 KB, 64 MB in all. A further one is given up.
const KEPT_MAX: usize = 32_768;
/// Of these, sent again at the same time: a ledger that is back must not be flooded.
const AGAIN_AT_ONCE_MAX: usize = 256;
/// How long after the hold's deadline a settle is kept. A ledger that was away for a day ends the hold
/// when it is back, and takes a late settle for a day from then on.
const KEPT_MS_MAX: u64 = 2 * LATE_SETTLE_MS_MAX;
/// Pause before a settle is sent again: doubled each time.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The way to the answer that a settle lasts.
pub(crate) type Lasting = BoxFuture<'static, Answer<Resolution>>;

/// A settle with what is known of its reservation.
#[derive(Debug)]
pub(crate) struct Unsettled {
    pub(crate) command: Settle,
    pub(crate) hold: Amounts,
    pub(crate) deadline_ms: u64,
    /// What was charged, of one that was taken.
    pub(crate) charge: Option<Amounts>,
}

impl Unsettled {
    /// Makes another one of a settle that the ledger does not take: `false` where there is no other.
    ///
    /// A clock that is ahead makes ids that the ledger takes for none; so first the same report goes out
    /// under an id of the time of its reservation, which the ledger took. Only then is it the report.
    pub(crate) fn corrected(&mut self) -> bool {
        if self.is_at_hold() {
            return false;
        }
        if self.command.id.at_ms() == self.command.reservation.at_ms() {
            self.at_hold();
        }
        self.command.id = of_its_time(self.command.reservation);
        true
    }

    fn at_hold(&mut self) {
        self.command.report.usage = Usage {
            input_tokens: self.hold.input_tokens,
            output_tokens: self.hold.output_tokens,
            ..Usage::default()
        };
        self.command.report.source = UsageSource::Hold;
        self.command.report.finish = None;
    }

    fn is_at_hold(&self) -> bool {
        self.command.report.source == UsageSource::Hold
            && self.command.id.at_ms() == self.command.reservation.at_ms()
    }
}

/// An id that is as old as a reservation, for a command that ends it.
pub(super) fn of_its_time(reservation: ReservationId) -> CommandId {
    CommandId::from_parts(reservation.at_ms(), Ulid::new().random())
}

/// What all settles of a gateway share.
pub(crate) struct Settling {
    ledger: Arc<dyn Ledger>,
    clock: Clock,
    patience: Duration,
    metrics: Arc<Metrics>,
    /// The gateway waits no longer.
    cut: CancellationToken,
    rooms: Arc<Semaphore>,
    again: Semaphore,
}

impl Settling {
    pub(crate) fn new(
        ledger: Arc<dyn Ledger>,
        clock: Clock,
        patience: Duration,
        metrics: Arc<Metrics>,
        cut: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            ledger,
            clock,
            patience,
            metrics,
            cut,
            rooms: Arc::new(Semaphore::new(KEPT_MAX)),
            again: Semaphore::new(AGAIN_AT_ONCE_MAX),
        })
    }

    /// Keeps a settle until it lasts; `None` where there is no room, and it was given up.
    pub(crate) fn keep(self: &Arc<Self>, unsettled: Unsettled) -> Option<Kept> {
        let Ok(room) = Arc::clone(&self.rooms).try_acquire_owned() else {
            self.give_up(&unsettled, GivenUp::Full, "as many as are kept at most");
            return None;
        };
        self.metrics.settle_kept();
        Some(Kept {
            settling: Arc::clone(self),
            unsettled,
            over: false,
            _room: room,
        })
    }

    /// The gateway waits no longer: what was sent last has had its time to be answered.
    async fn stopped(&self) {
        self.cut.cancelled().await;
        sleep(LAST_WORD).await;
    }

    /// Counts and tells what the ledger will not hear of.
    pub(crate) fn give_up(&self, unsettled: &Unsettled, why: GivenUp, detail: &str) {
        self.metrics.settle_given_up(why);
        let Unsettled {
            command,
            hold,
            charge,
            ..
        } = unsettled;
        let usage = &command.report.usage;
        tracing::error!(
            reason = why.as_str(),
            detail,
            reservation = %command.reservation,
            account = %command.account,
            by = ?command.actor,
            input_tokens = usage.input_tokens,
            output_tokens = usage.output_tokens,
            cost_nano_usd = charge.and_then(|charge| charge.cost),
            held_tokens = hold.tokens,
            held_nano_usd = hold.cost,
            "a settle was given up: compare the account with these numbers, and adjust it"
        );
    }
}

/// A settle that is kept. It tells where it is dropped before it is over.
pub(crate) struct Kept {
    settling: Arc<Settling>,
    unsettled: Unsettled,
    over: bool,
    _room: OwnedSemaphorePermit,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.settling.metrics.settle_not_kept();
        if !self.over {
            let settling = &self.settling;
            settling.give_up(&self.unsettled, GivenUp::Stopped, "the gateway stopped");
        }
    }
}

/// What an answer leads to.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Lasts(Position),
    Again,
    AgainCorrected,
    GiveUp(GivenUp),
}

/// What to do after an answer, or after none.
fn next(answer: Option<&Answer<Resolution>>, too_late: bool) -> Next {
    match answer {
        Some(Ok(resolution)) => Next::Lasts(resolution.position),
        None | Some(Err(CommandError::Unavailable { .. })) if too_late => {
            Next::GiveUp(GivenUp::Late)
        }
        None | Some(Err(CommandError::Unavailable { .. })) => Next::Again,
        // no answer is withheld, and nothing is lost, for what an upstream says of itself
        Some(Err(CommandError::Invalid { .. })) => Next::AgainCorrected,
        Some(Err(CommandError::AlreadyResolved { .. })) => Next::GiveUp(GivenUp::Ended),
        Some(Err(_)) => Next::GiveUp(GivenUp::Refused),
    }
}

impl Kept {
    /// Waits for the answer that the settle lasts, and sends it again where that does not come; where
    /// it lasts then. There is none yet to wait for where it is not known to be taken.
    pub(crate) async fn until_it_lasts(mut self, lasting: Option<Lasting>) -> Option<Position> {
        let settling = Arc::clone(&self.settling);
        tokio::select! {
            biased;
            position = self.followed(lasting) => position,
            // dropped here, which tells
            () = settling.stopped() => None,
        }
    }

    async fn followed(&mut self, lasting: Option<Lasting>) -> Option<Position> {
        let settling = Arc::clone(&self.settling);
        let mut pauses = Pauses::new(PAUSE_FIRST, PAUSE_MAX);
        let mut answer = match lasting {
            Some(lasting) => timeout(settling.patience, lasting).await.ok(),
            None => self.again().await,
        };
        let until_ms = self.unsettled.deadline_ms.saturating_add(KEPT_MS_MAX);
        loop {
            let too_late = (settling.clock)() >= until_ms;
            let next = match next(answer.as_ref(), too_late) {
                Next::AgainCorrected if self.unsettled.corrected() => Next::Again,
                Next::AgainCorrected => Next::GiveUp(GivenUp::Refused),
                next => next,
            };
            match next {
                Next::Lasts(position) => {
                    self.over = true;
                    return Some(position);
                }
                Next::Again | Next::AgainCorrected => {}
                Next::GiveUp(why) => {
                    self.over = true;
                    let detail = answer.and_then(Result::err);
                    let detail = detail.map_or_else(String::new, |error| error.to_string());
                    settling.give_up(&self.unsettled, why, &detail);
                    return None;
                }
            }
            sleep(pauses.draw()).await;
            answer = self.again().await;
        }
    }

    async fn again(&self) -> Option<Answer<Resolution>> {
        let settling = &self.settling;
        let _turn = settling.again.acquire().await.ok()?;
        let command = self.unsettled.command.clone();
        let sent = settling.ledger.settle(command, Ack::Durable);
        timeout(settling.patience, sent).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    };

    use super::*;
    use futures::FutureExt;
    use seatbelt_ledger::{
        api::{
            Admin, AdminOutcome, Read, Release, Reserve, ReserveOutcome, Resize, Standing, Taken,
        },
        testing::Payer,
    };

    const POSITION: Position = Position(7);
    const DEADLINE_MS: u64 = 1_000;

    fn lasts() -> Resolution {
        Resolution {
            position: POSITION,
            amounts: Amounts::zero(),
        }
    }

    fn reservation() -> ReservationId {
        ReservationId::from_parts(1, 2)
    }

    fn unsettled() -> Unsettled {
        Unsettled {
            command: Payer::new("acct", "key").settle(reservation(), 5),
            hold: Amounts::request(3, 40, None),
            deadline_ms: DEADLINE_MS,
            charge: None,
        }
    }

    fn away() -> CommandError {
        CommandError::unavailable("away")
    }

    fn ended() -> CommandError {
        CommandError::AlreadyResolved {
            reservation: reservation(),
            position: POSITION,
        }
    }

    /// A ledger that is away for some tries, and for two hours at each of them, and then answers.
    struct Scripted {
        tries: AtomicUsize,
        away: usize,
        then: Answer<Resolution>,
        now_ms: AtomicU64,
        sent: Mutex<Vec<Settle>>,
    }

    impl Scripted {
        fn sent(&self) -> Vec<Settle> {
            self.sent.lock().unwrap().clone()
        }
    }

    impl Ledger for Scripted {
        fn settle(&self, command: Settle, _: Ack) -> BoxFuture<'_, Answer<Resolution>> {
            self.sent.lock().unwrap().push(command);
            let before = self.tries.fetch_add(1, SeqCst);
            let answer = if before < self.away {
                self.now_ms.fetch_add(2 * 3_600_000, SeqCst);
                Err(away())
            } else {
                self.then.clone()
            };
            async move { answer }.boxed()
        }

        fn settle_early(&self, _: Settle) -> BoxFuture<'_, Answer<Taken>> {
            unreachable!("it was sent before")
        }

        fn reserve(&self, _: Reserve) -> BoxFuture<'_, Answer<ReserveOutcome>> {
            unreachable!("only settles are kept")
        }

        fn resize(&self, _: Resize) -> BoxFuture<'_, Answer<Resolution>> {
            unreachable!("only settles are kept")
        }

        fn release(&self, _: Release) -> BoxFuture<'_, Answer<Resolution>> {
            unreachable!("only settles are kept")
        }

        fn read(&self, _: Read) -> BoxFuture<'_, Answer<Standing>> {
            unreachable!("only settles are kept")
        }

        fn admin(&self, _: Admin) -> BoxFuture<'_, Answer<AdminOutcome>> {
            unreachable!("only settles are kept")
        }
    }

    struct World {
        ledger: Arc<Scripted>,
        metrics: Arc<Metrics>,
        cut: CancellationToken,
        settling: Arc<Settling>,
    }

    fn world(away: usize, then: Answer<Resolution>) -> World {
        let ledger = Arc::new(Scripted {
            tries: AtomicUsize::new(0),
            away,
            then,
            now_ms: AtomicU64::new(0),
            sent: Mutex::default(),
        });
        let time = Arc::clone(&ledger);
        let (metrics, cut) = (Arc::new(Metrics::new(true)), CancellationToken::new());
        let settling = Settling::new(
            Arc::clone(&ledger) as Arc<dyn Ledger>,
            Arc::new(move || time.now_ms.load(SeqCst)),
            Duration::from_secs(5),
            Arc::clone(&metrics),
            cut.clone(),
        );
        World {
            ledger,
            metrics,
            cut,
            settling,
        }
    }

    impl World {
        async fn follow(&self, lasting: Option<Lasting>) -> Option<Position> {
            let kept = self.settling.keep(unsettled()).unwrap();
            kept.until_it_lasts(lasting).await
        }

        #[track_caller]
        fn given_up(&self, expected: Option<GivenUp>) {
            let text = self.metrics.text();
            for why in GivenUp::ALL {
                let name = "seatbelt_gateway_settles_given_up_total";
                let count = u8::from(expected == Some(why));
                let line = format!("{name}{{reason=\"{}\"}} {count}", why.as_str());
                assert!(
                    text.lines().any(|found| found == line),
                    "{line} is not in\n{text}"
                );
            }
            let none = "seatbelt_gateway_settles_kept 0";
            assert!(text.lines().any(|found| found == none), "{text}");
        }
    }

    fn ready(answer: Answer<Resolution>) -> Option<Lasting> {
        Some(async move { answer }.boxed())
    }

    #[track_caller]
    fn check(answer: Option<&Answer<Resolution>>, late: bool, expected: &Next) {
        assert_eq!(next(answer, late), *expected);
    }

    #[test]
    fn what_comes_next_is_told_by_the_answer_and_the_time() {
        let gives_up = |why| Next::GiveUp(why);
        check(Some(&Ok(lasts())), true, &Next::Lasts(POSITION));
        let nothing = Err(away());
        for answer in [None, Some(&nothing)] {
            check(answer, false, &Next::Again);
            check(answer, true, &gives_up(GivenUp::Late));
        }
        let invalid = Err(CommandError::invalid("no"));
        let refused = gives_up(GivenUp::Refused);
        check(Some(&invalid), true, &Next::AgainCorrected);
        let ended = Err(ended());
        check(Some(&ended), false, &gives_up(GivenUp::Ended));
        let reservation = reservation();
        let unknown = Err(CommandError::UnknownReservation { reservation });
        check(Some(&unknown), false, &refused);
    }

    #[tokio::test]
    async fn a_settle_that_lasts_is_not_sent_again() {
        let world = world(0, Ok(lasts()));
        assert_eq!(world.follow(ready(Ok(lasts()))).await, Some(POSITION));
        assert_eq!(world.ledger.tries.load(SeqCst), 0);
        world.given_up(None);
    }

    #[tokio::test]
    async fn a_settle_outlives_an_outage_of_hours() {
        let world = world(3, Ok(lasts()));
        assert_eq!(world.follow(ready(Err(away()))).await, Some(POSITION));
        assert_eq!(world.ledger.tries.load(SeqCst), 4);
        world.given_up(None);
    }

    #[tokio::test]
    async fn a_settle_is_given_up_once_the_ledger_could_not_take_it() {
        let world = world(usize::MAX, Ok(lasts()));
        let until_ms = DEADLINE_MS + KEPT_MS_MAX;
        world.ledger.now_ms.store(until_ms - 1, SeqCst);
        assert_eq!(world.follow(None).await, None);
        world.given_up(Some(GivenUp::Late));
    }

    #[tokio::test]
    async fn a_settle_after_another_end_is_counted() {
        let world = world(1, Err(ended()));
        assert_eq!(world.follow(None).await, None);
        world.given_up(Some(GivenUp::Ended));
    }

    #[tokio::test]
    async fn a_settle_that_is_invalid_keeps_its_report_under_an_older_id_first() {
        let world = world(0, Ok(lasts()));
        let invalid = ready(Err(CommandError::invalid("no")));
        assert_eq!(world.follow(invalid).await, Some(POSITION));
        let sent = world.ledger.sent();
        assert_eq!(sent.len(), 1);
        assert_eq!(sent[0].id.at_ms(), reservation().at_ms());
        assert_eq!(sent[0].report, unsettled().command.report);
        world.given_up(None);
    }

    #[tokio::test]
    async fn a_settle_that_is_invalid_under_any_id_is_charged_at_the_hold() {
        let world = world(0, Err(CommandError::invalid("no")));
        assert_eq!(world.follow(None).await, None);
        let sources = world
            .ledger
            .sent()
            .into_iter()
            .map(|sent| sent.report.source);
        let told = unsettled().command.report.source;
        assert_eq!(sources.collect::<Vec<_>>(), [told, told, UsageSource::Hold]);
        world.given_up(Some(GivenUp::Refused));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_hears_out_what_lasts() {
        let world = world(0, Ok(lasts()));
        world.cut.cancel();
        let late = async {
            sleep(LAST_WORD / 2).await;
            Ok(lasts())
        };
        assert_eq!(world.follow(Some(late.boxed())).await, Some(POSITION));
        world.given_up(None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_counts_what_it_leaves() {
        let world = world(usize::MAX, Ok(lasts()));
        world.cut.cancel();
        assert_eq!(world.follow(None).await, None);
        world.given_up(Some(GivenUp::Stopped));
        drop(world.settling.keep(unsettled()));
        let twice = "{reason=\"stopped\"} 2";
        assert!(world.metrics.text().contains(twice), "a task that dies too");
    }

    #[test]
    fn what_there_is_no_room_for_is_counted() {
        let world = world(0, Ok(lasts()));
        let kept: Vec<_> = (0..KEPT_MAX)
            .map(|_| world.settling.keep(unsettled()))
            .collect();
        assert!(kept.iter().all(Option::is_some));
        assert!(world.settling.keep(unsettled()).is_none());
        let mut kept: Vec<_> = kept.into_iter().flatten().collect();
        kept.iter_mut().for_each(|kept| kept.over = true);
        drop(kept);
        world.given_up(Some(GivenUp::Full));
    }
}
