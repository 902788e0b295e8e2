//! `[[upstreams.models.tool]]`: tools that a provider runs, with what a call costs and adds to the input.

use std::collections::BTreeSet;

use seatbelt_gateway::Provided;
use seatbelt_schemas::{amount::TOKENS_PER_REQUEST_MAX, price::Price};

use super::{price::fee, reader::Section};

/// Most such tools of one model.
const TOOLS_MAX: usize = 16;
/// Most calls of one tool in one request.
const CALLS_MAX: u64 = 100;

/// Reads them; their fee goes into the price of their model, which has one for all of them.
pub(super) fn read_tools(section: &mut Section, price: Option<&mut Price>) -> Vec<Provided> {
    let (mut tools, mut kinds, mut fees) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    let is_priced = price.is_some();
    for mut part in section.sections("tool", TOOLS_MAX) {
        let kind = part.required("type", |part| part.text_with("type", kind));
        let fee = part.required("per_call", |part| part.text_with("per_call", fee));
        let calls_max = part.required("calls_max", |part| part.number("calls_max", 1, CALLS_MAX));
        let input_max = part.required("input_max", |part| {
            part.number("input_max", 1, TOKENS_PER_REQUEST_MAX)
        });
        fees.extend(fee.filter(|fee| *fee > 0));
        let problem = match &kind {
            _ if !is_priced => Some("is a tool of a model without a price: give the model one"),
            Some(kind) if !kinds.insert(kind.clone()) => {
                Some("is of a type that another tool of the model has: name each once")
            }
            _ if fees.len() > 1 => Some(
                "costs another fee than a tool before it: a model has one fee per call, which is that or \"0\"",
            ),
            _ => None,
        };
        if let Some(problem) = problem {
            part.mistake("", problem);
        }
        part.finish();
        if let (Some(kind), Some(fee), Some(calls_max), Some(input_max)) =
            (kind, fee, calls_max, input_max)
        {
            tools.push(Provided {
                kind,
                calls_max,
                input_max,
                charged: fee > 0,
            });
        }
    }
    if let Some(price) = price {
        price.fee_per_tool_call = fees.first().copied();
    }
    tools
}

fn kind(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    match (1..=64).contains(&text.len()) && text.bytes().all(plain) {
        true => Ok(text.to_owned()),
        false => Err("is no type of a tool: write one such as \"web_search_20250305\"".to_owned()),
    }
}
