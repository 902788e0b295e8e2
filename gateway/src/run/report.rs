//! The one end of a hold: what is settled, with whose word for it.

use std::{sync::LazyLock, time::Instant};

use seatbelt_dialects::{CallsTold, Least, Served};
use seatbelt_schemas::{
    amount::TOOL_CALLS_MAX,
    event::{OnUnknown, Report, Timings, UsageSource},
    meter::Amounts,
    position::Position,
    usage::{Usage, UsageEvent},
};
use tokio::time::timeout;

use super::{Job, attempts::Stop};
use crate::{
    clock::ms,
    config::USAGE_EVENT_WAIT,
    error::{ApiError, Charged, Seldom},
};

/// What is known of the usage at the end.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) usage: Option<Usage>,
    /// What the upstream said it used at least, where that is no report.
    pub(super) least: Least,
    pub(super) finish: Option<String>,
    /// A bound of the output, where all of it was seen.
    pub(super) output_bytes: Option<u64>,
    /// How the upstream said that it was served.
    pub(super) served: Served,
    /// The client left first: what is not known then is not free by anybody's word.
    pub(super) client_left: bool,
}

/// On which terms an end is decided.
#[derive(Debug, Clone, Copy)]
struct Terms {
    from_neuron: bool,
    /// The choices, where all output is to be seen.
    visible: Option<u64>,
    /// It was served in another class than was priced.
    other_class: bool,
    /// Calls of the provider's tools with a fee: those that were held, and those that the answer tells.
    calls_held: u64,
    calls_told: CallsTold,
    on_unknown: OnUnknown,
}

/// How a hold ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Used(Usage, UsageSource),
    Unknown,
}

impl Job {
    /// The upstream was not heard to its end: gives the hold its end and says what happened.
    pub(super) async fn stopped(&mut self, stop: Stop, known: Known) -> ApiError {
        if let Stop::Unreachable(log) = stop {
            self.release("upstream cannot be reached").await;
            return ApiError::upstream_unreachable(&self.upstream, log);
        }
        let known = Known {
            client_left: matches!(stop, Stop::ClientLeft),
            ..known
        };
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
    /// what was counted where that is a bound, else as the key says of what is not known: at the hold, or
    /// not at all.
    pub(super) async fn settle(&mut self, known: Known) -> Result<Option<Position>, ApiError> {
        let Some(reservation) = self.take_hold().await else {
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
            self.charged = Some(Charged::Nothing);
            return Ok(None);
        }
        let terms = Terms {
            from_neuron: self.is_neurons(),
            visible: self
                .candidate
                .output_is_visible()
                .then_some(self.sent.choices),
            other_class: self.is_other_class(&known.served),
            calls_held: reservation.tool_calls,
            calls_told: known.served.charged_calls(self.candidate.tools()),
            on_unknown: match known.client_left {
                true => OnUnknown::ChargeHold,
                false => reservation.on_unknown,
            },
        };
        let hold = reservation.hold();
        let end = account_for(&hold, &known, event.as_ref(), terms);
        let is_known = !matches!(end, End::Unknown | End::Used(_, UsageSource::Hold));
        self.unknown = (!is_known).then_some(reservation.id);
        let End::Used(usage, source) = end else {
            reservation.release("its usage is not known").await;
            self.charged = Some(Charged::Nothing);
            return Ok(None);
        };
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
        self.billed = Some(usage);
        self.size = Some(match source {
            UsageSource::Upstream | UsageSource::Neuron => usage,
            // what is charged may be less than what was used, by the key's word
            UsageSource::Counted | UsageSource::Hold => Usage {
                input_tokens: usage.input_tokens.max(hold.input_tokens),
                output_tokens: usage.output_tokens.max(hold.output_tokens),
                ..usage
            },
        });
        let position = reservation.settle(report).await?;
        self.charged = Some(match source {
            UsageSource::Hold => Charged::Hold,
            UsageSource::Upstream | UsageSource::Neuron | UsageSource::Counted => Charged::Usage,
        });
        Ok(Some(position))
    }

    /// Binds the response to its account, once it is charged: before that its size is not known, and before its
    /// last word is let go nobody can go on with it.
    pub(super) async fn bind(&mut self, id: impl FnOnce() -> Option<String>) {
        if let (Some(binding), Some(used)) = (&self.binding, self.size) {
            binding.bind(id(), used).await;
        }
    }

    /// Whether nothing was told that could be charged: no tokens, and no call that has a fee.
    pub(super) fn is_nothing(&self, least: &Least, served: &Served) -> bool {
        let calls = served.charged_calls(self.candidate.tools());
        least.is_nothing() && calls.least == 0
    }

    /// Whether an answer was served in another class than was priced: counted, and told once a second for
    /// each upstream and what differs.
    fn is_other_class(&self, served: &Served) -> bool {
        static TOLD: LazyLock<Seldom> = LazyLock::new(Seldom::default);
        let priced = self.candidate.priced(self.class.as_ref());
        let Some((aspect, said)) = priced.and_then(|priced| priced.other(served)) else {
            return false;
        };
        self.metrics.other_class(aspect);
        let (upstream, by) = (&self.upstream, aspect.as_str());
        if let Some(left_out) = TOLD.note(&format!("{upstream} {by}"), Instant::now()) {
            tracing::warn!(
                %upstream, by, said, left_out,
                "an answer was served in another class than was priced: it is charged at the hold at least"
            );
        }
        true
    }

    /// Gives the hold back: nothing was used.
    pub(super) async fn release(&mut self, reason: &str) {
        if let Some(reservation) = self.take_hold().await {
            reservation.release(reason).await;
            self.charged = Some(Charged::Nothing);
        }
    }
}

/// What is settled of a hold, and on whose word: what the answer told, else what the neuron's event
/// says, else what was counted where that is a bound, else as the key says. What was served in a class
/// that has no price ends at the hold, or at what was told where that is more.
fn account_for(hold: &Amounts, known: &Known, event: Option<&UsageEvent>, terms: Terms) -> End {
    let with_told = |usage| Usage {
        tool_calls: terms.calls_told.least.min(TOOL_CALLS_MAX),
        ..usage
    };
    let least = Least {
        usage: with_told(known.least.usage),
        ..known.least
    };
    // calls are part of a report: where they are odd, nothing of it is believed
    let is_believed = !terms.other_class && !terms.calls_told.is_odd;
    if let Some(usage) = known.usage.filter(|_| is_believed).map(with_told) {
        let source = match terms.from_neuron {
            true => UsageSource::Neuron,
            false => UsageSource::Upstream,
        };
        return End::Used(usage, source);
    }
    if let Some(event) = event {
        return End::Used(event.usage.into(), UsageSource::Neuron);
    }
    let held = Usage {
        input_tokens: hold.input_tokens,
        output_tokens: hold.output_tokens,
        tool_calls: terms.calls_held,
        ..Usage::default()
    };
    let counted = known.output_bytes.zip(terms.visible);
    if let Some((bytes, choices)) = counted.filter(|_| !terms.other_class) {
        // one more each for the token that ends a choice
        let output_tokens = held.output_tokens.min(bytes.saturating_add(choices));
        let counted = Usage {
            output_tokens,
            ..held
        };
        return End::Used(least.raise(counted), UsageSource::Counted);
    }
    if terms.on_unknown == OnUnknown::Release && !terms.other_class {
        return match least.is_nothing() {
            true => End::Unknown,
            false => End::Used(least.raise(Usage::default()), UsageSource::Counted),
        };
    }
    match least.raise(held) {
        same if same == held => End::Used(held, UsageSource::Hold),
        // the ledger charges the hold itself for a hold: what is above it has to be said
        more => End::Used(more, UsageSource::Counted),
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};
    use seatbelt_dialects::{Api, Sent, Told};
    use serde_json::{Value, json};

    use super::*;

    fn usage(input_tokens: u64, output_tokens: u64) -> Usage {
        Usage {
            input_tokens,
            output_tokens,
            ..Usage::default()
        }
    }

    const NO_CALLS: CallsTold = CallsTold {
        least: 0,
        is_odd: false,
    };

    const TERMS: Terms = Terms {
        from_neuron: false,
        visible: None,
        other_class: false,
        calls_held: 0,
        calls_told: NO_CALLS,
        on_unknown: OnUnknown::ChargeHold,
    };

    fn end(known: &Known, terms: Terms) -> End {
        account_for(&Amounts::request(100, 50, None), known, None, terms)
    }

    fn settled(known: &Known, from_neuron: bool, visible: Option<u64>) -> (Usage, UsageSource) {
        let terms = Terms {
            from_neuron,
            visible,
            ..TERMS
        };
        match end(known, terms) {
            End::Used(usage, source) => (usage, source),
            End::Unknown => panic!("it is charged"),
        }
    }

    fn told(usage: Usage) -> Known {
        Known {
            usage: Some(usage),
            least: Least { usage, total: 0 },
            output_bytes: Some(9),
            ..Known::default()
        }
    }

    #[test]
    fn calls_of_the_providers_tools_are_charged_as_told_or_as_held() {
        let terms = |least| Terms {
            calls_held: 5,
            calls_told: CallsTold {
                least,
                is_odd: false,
            },
            ..TERMS
        };
        let calls = |known: &Known, terms| match end(known, terms) {
            End::Used(usage, source) => (usage.tool_calls, source),
            End::Unknown => panic!("it is charged"),
        };
        let reported = told(usage(7, 3));
        assert_eq!(calls(&reported, terms(2)), (2, UsageSource::Upstream));
        assert_eq!(calls(&reported, terms(9)), (9, UsageSource::Upstream));
        let nothing = Known::default();
        assert_eq!(calls(&nothing, terms(2)), (5, UsageSource::Hold));
        assert_eq!(calls(&nothing, terms(9)), (9, UsageSource::Counted));
        let free = Terms {
            on_unknown: OnUnknown::Release,
            ..terms(2)
        };
        assert_eq!(calls(&nothing, free), (2, UsageSource::Counted));
        let counted = Known {
            output_bytes: Some(9),
            ..Known::default()
        };
        let seen = Terms {
            visible: Some(1),
            ..terms(2)
        };
        assert_eq!(calls(&counted, seen), (5, UsageSource::Counted));
    }

    #[test]
    fn where_calls_are_odd_nothing_of_their_report_is_believed() {
        let odd = |least, on_unknown| Terms {
            calls_held: 5,
            calls_told: CallsTold {
                least,
                is_odd: true,
            },
            on_unknown,
            ..TERMS
        };
        let reported = Known {
            output_bytes: None,
            ..told(usage(7, 3))
        };
        let with_calls = |usage, tool_calls| Usage {
            tool_calls,
            ..usage
        };
        for (least, on_unknown, expected, source) in [
            (
                0,
                OnUnknown::ChargeHold,
                with_calls(usage(100, 50), 5),
                UsageSource::Hold,
            ),
            (
                9,
                OnUnknown::ChargeHold,
                with_calls(usage(100, 50), 9),
                UsageSource::Counted,
            ),
            (
                2,
                OnUnknown::Release,
                with_calls(usage(7, 3), 2),
                UsageSource::Counted,
            ),
        ] {
            let end = end(&reported, odd(least, on_unknown));
            assert_eq!(end, End::Used(expected, source), "{least}");
        }
    }

    #[test]
    fn what_is_not_known_is_free_only_where_the_key_says_so_and_nothing_was_told() {
        let free = Terms {
            on_unknown: OnUnknown::Release,
            ..TERMS
        };
        let used = |usage, source| End::Used(usage, source);
        assert_eq!(end(&Known::default(), free), End::Unknown);
        let whole = end(&told(usage(7, 3)), free);
        assert_eq!(whole, used(usage(7, 3), UsageSource::Upstream));
        let partly = Known {
            usage: None,
            ..told(usage(7, 0))
        };
        assert_eq!(end(&partly, free), used(usage(7, 0), UsageSource::Counted));
        let visible = Terms {
            visible: Some(1),
            ..free
        };
        assert_eq!(
            end(&partly, visible),
            used(usage(100, 10), UsageSource::Counted)
        );
    }

    #[test]
    fn what_was_served_in_another_class_is_charged_at_the_hold_at_least() {
        for on_unknown in [OnUnknown::ChargeHold, OnUnknown::Release] {
            let other = Terms {
                visible: Some(1),
                other_class: true,
                on_unknown,
                ..TERMS
            };
            let hold = End::Used(usage(100, 50), UsageSource::Hold);
            assert_eq!(end(&told(usage(7, 3)), other), hold);
            let more = End::Used(usage(100, 70), UsageSource::Counted);
            assert_eq!(end(&told(usage(7, 70)), other), more);
        }
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

    /// A count, or what stands in its place.
    fn odd_count() -> impl Strategy<Value = Option<Value>> {
        prop_oneof![
            2 => Just(None),
            8 => (0..500u64).prop_map(|count| Some(json!(count))),
            1 => prop_oneof![Just(json!(null)), Just(json!(-1)), Just(json!("9")), Just(json!(9.5)), Just(json!({}))].prop_map(Some),
        ]
    }

    fn odd_report() -> impl Strategy<Value = Value> {
        let counts = [odd_count(), odd_count(), odd_count()];
        counts.prop_map(|counts| {
            let names = ["prompt_tokens", "completion_tokens", "total_tokens"];
            let told = names.into_iter().zip(counts);
            let told = told.filter_map(|(name, count)| Some((name.to_owned(), count?)));
            Value::Object(told.collect())
        })
    }

    fn said(report: Option<&Value>, name: &str) -> u64 {
        report.and_then(|report| report[name].as_u64()).unwrap_or(0)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(bodies()))]

        #[test]
        fn no_answer_makes_the_charge_fall_below_what_it_says(
            top in proptest::option::of(odd_report()),
            each in vec(proptest::option::of(odd_report()), 1..4),
            text in ".{0,4}",
            tier in proptest::option::of(select(&["default", "priority"][..])),
            (from_neuron, sees_all, releases) in any::<(bool, bool, bool)>(),
        ) {
            let choices: Vec<Value> = each
                .iter()
                .map(|report| json!({"message": {"content": text}, "usage": report}))
                .collect();
            let answer = json!({"choices": choices, "usage": top, "service_tier": tier});
            let sent = Sent { choices: each.len() as u64, long_writes: false };
            let told = Told::read(Api::Chat, sent, answer.to_string().as_bytes()).unwrap();
            let known = Known {
                usage: told.usage,
                least: told.least,
                output_bytes: Some(told.output_bytes),
                ..Known::default()
            };
            let terms = Terms {
                from_neuron,
                visible: sees_all.then_some(sent.choices),
                other_class: tier == Some("priority"),
                calls_held: 0,
                calls_told: NO_CALLS,
                on_unknown: if releases { OnUnknown::Release } else { OnUnknown::ChargeHold },
            };
            let usage = match end(&known, terms) {
                End::Used(usage, _) => usage,
                End::Unknown => Usage::default(),
            };
            let top = top.as_ref();
            let output: u64 = each.iter().map(|report| said(report.as_ref(), "completion_tokens")).sum();
            let most = |name| each.iter().map(|report| said(report.as_ref(), name)).max().unwrap_or(0);
            prop_assert!(usage.input_tokens >= said(top, "prompt_tokens").max(most("prompt_tokens")));
            prop_assert!(usage.output_tokens >= said(top, "completion_tokens").max(output));
            prop_assert!(usage.tokens() >= said(top, "total_tokens").max(most("total_tokens")));
            if terms.other_class {
                prop_assert!(usage.input_tokens >= 100 && usage.output_tokens >= 50, "the hold at least");
            }
        }
    }

    /// How many answers are made: a million in `make nightly`.
    fn bodies() -> u32 {
        let number = std::env::var("SEATBELT_FUZZ_BODIES").ok();
        number.map_or(20_000, |number| {
            number.parse().expect("a number of answers")
        })
    }
}
