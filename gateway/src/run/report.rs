//! The one end of a hold: what is settled, with whose word for it.

use seatbelt_dialects::Least;
use seatbelt_schemas::{
    event::{Report, Timings, UsageSource},
    meter::Amounts,
    position::Position,
    usage::{Usage, UsageEvent},
};
use tokio::time::timeout;

use super::{Job, attempts::Stop};
use crate::{clock::ms, config::USAGE_EVENT_WAIT, error::ApiError};

/// What is known of the usage at the end.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) usage: Option<Usage>,
    /// What the upstream said it used at least, where that is no report.
    pub(super) least: Least,
    pub(super) finish: Option<String>,
    /// A bound of the output, where all of it was seen.
    pub(super) output_bytes: Option<u64>,
}

impl Job {
    /// The upstream was not heard to its end: gives the hold its end and says what happened.
    pub(super) async fn stopped(&mut self, stop: Stop, known: Known) -> ApiError {
        if let Stop::Unreachable(log) = stop {
            self.release("upstream cannot be reached").await;
            return ApiError::upstream_unreachable(&self.upstream, log);
        }
        if let Err(error) = self.settle(known).await {
            return error;
        }
        match stop {
            Stop::Unreachable(log) | Stop::Broke(log) => {
                ApiError::upstream_broke(&self.upstream, log)
            }
            Stop::Failed => ApiError::upstream_broke(&self.upstream, "error within the stream"),
            Stop::Deadline => ApiError::upstream_timeout(&self.upstream),
            Stop::ClientLeft => ApiError::busy("the client left"),
            Stop::Cut => ApiError::busy("the gateway is stopping"),
        }
    }

    /// Settles with the best that is known: what was reported, else what the neuron's event says, else
    /// what was counted where that is a bound, else the hold.
    pub(super) async fn settle(&mut self, known: Known) -> Result<Option<Position>, ApiError> {
        let Some(reservation) = self.reservation.take() else {
            return Ok(None);
        };
        let event = match (known.usage, self.usage_event.take()) {
            (None, Some(event)) => timeout(USAGE_EVENT_WAIT, event).await.ok().flatten(),
            _ => None,
        };
        if let Some(event) = &event
            && event.usage.input_tokens == 0
            && event.usage.output_tokens == 0
        {
            reservation.release("neuron reported no usage").await;
            return Ok(None);
        }
        let visible = self
            .candidate
            .output_is_visible()
            .then_some(self.sent.choices);
        let (usage, source) = account_for(
            &reservation.hold,
            &known,
            event.as_ref(),
            self.is_neurons(),
            visible,
        );
        let report = Report {
            usage,
            upstream: self.upstream.clone(),
            source,
            finish: known.finish,
            timings: Timings {
                first_byte_ms: self.first_byte_ms,
                total_ms: ms(reservation.reserved_at.elapsed()),
            },
        };
        reservation.settle(report).await.map(Some)
    }

    /// Gives the hold back: nothing was used.
    pub(super) async fn release(&mut self, reason: &str) {
        if let Some(reservation) = self.reservation.take() {
            reservation.release(reason).await;
        }
    }
}

/// What is settled of a hold, and on whose word: what the answer told, else what the neuron's event
/// says, else what was counted where that is a bound (`visible`: the choices whose output is all to be
/// seen), else the hold.
fn account_for(
    hold: &Amounts,
    known: &Known,
    event: Option<&UsageEvent>,
    from_neuron: bool,
    visible: Option<u64>,
) -> (Usage, UsageSource) {
    if let Some(usage) = known.usage {
        let source = if from_neuron {
            UsageSource::Neuron
        } else {
            UsageSource::Upstream
        };
        return (usage, source);
    }
    if let Some(event) = event {
        return (event.usage.into(), UsageSource::Neuron);
    }
    let held = Usage {
        input_tokens: hold.input_tokens,
        output_tokens: hold.output_tokens,
        ..Usage::default()
    };
    let most = known.least.raise(held);
    match (known.output_bytes, visible) {
        // one more each for the token that ends a choice
        (Some(bytes), Some(choices)) => {
            let counted = held.output_tokens.min(bytes.saturating_add(choices));
            let counted = Usage {
                output_tokens: counted,
                ..held
            };
            (known.least.raise(counted), UsageSource::Counted)
        }
        // the ledger charges the hold itself for a hold: what is above it has to be said
        _ if most != held => (most, UsageSource::Counted),
        _ => (held, UsageSource::Hold),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(input_tokens: u64, output_tokens: u64) -> Usage {
        Usage {
            input_tokens,
            output_tokens,
            ..Usage::default()
        }
    }

    fn settled(known: &Known, from_neuron: bool, visible: Option<u64>) -> (Usage, UsageSource) {
        account_for(
            &Amounts::request(100, 50, None),
            known,
            None,
            from_neuron,
            visible,
        )
    }

    #[test]
    fn what_was_reported_goes_before_everything_else() {
        let known = Known {
            usage: Some(usage(7, 3)),
            output_bytes: Some(9),
            ..Known::default()
        };
        assert_eq!(
            settled(&known, false, Some(1)),
            (usage(7, 3), UsageSource::Upstream)
        );
        assert_eq!(
            settled(&known, true, Some(1)),
            (usage(7, 3), UsageSource::Neuron)
        );
    }

    #[test]
    fn output_is_counted_only_where_all_of_it_is_seen() {
        let seen = Known {
            output_bytes: Some(9),
            ..Known::default()
        };
        let counted = (usage(100, 11), UsageSource::Counted);
        assert_eq!(settled(&seen, false, Some(2)), counted);
        let hold = (usage(100, 50), UsageSource::Hold);
        assert_eq!(settled(&seen, false, None), hold);
        assert_eq!(settled(&Known::default(), false, Some(2)), hold);
    }

    #[test]
    fn no_charge_is_below_what_was_told_at_least() {
        let told = |usage| Known {
            least: Least { usage, total: 0 },
            output_bytes: Some(9),
            ..Known::default()
        };
        let charged = |least, visible| settled(&told(least), false, visible).0;
        assert_eq!(charged(usage(900, 0), None), usage(900, 50));
        assert_eq!(charged(usage(3, 70), None), usage(100, 70));
        assert_eq!(charged(usage(3, 20), Some(1)), usage(100, 20));
        assert_eq!(charged(usage(3, 2), Some(1)), usage(100, 10));
    }

    #[test]
    fn a_count_is_never_above_the_hold() {
        let long = Known {
            output_bytes: Some(5000),
            ..Known::default()
        };
        let most = (usage(100, 50), UsageSource::Counted);
        assert_eq!(settled(&long, false, Some(1)), most);
    }
}
