//! Answers of upstreams as users of other gateways met them: `tests/cases/upstream-answers.json` holds what was
//! asked, what came, and what is right; here each is played and looked at.

use std::path::Path;

use seatbelt_gateway::{Dialect, MaxField, UpstreamConfig, UpstreamModel};
use seatbelt_ledger::api::{Admin, Ledger};
use seatbelt_schemas::{
    cap::CapSpec,
    command::Change,
    ids::{AccountId, Actor, CapId, CommandId, ModelId},
    meter::Meter,
    price::{Price, Rates},
    window::Window,
};
use serde_json::Value;

use crate::support::{Script, Stack, tokens};

/// What has to come of a case.
enum Right {
    /// So many nano-USD are charged, and the answer is delivered.
    Cost(u64),
    /// At least so many, with an answer.
    CostAtLeast(u64),
    /// The hold, or what was counted: more than what was told.
    More,
    /// The same, and a stream ends in an error.
    MoreAndBroken,
    /// The status, and what is charged for it where that is known.
    Status(u16, Option<u64>),
    /// 400 that names the field, and nobody was asked.
    Refused(&'static str),
    /// The answer says this.
    Says(&'static [&'static str]),
    /// This field went out.
    Sent(&'static str),
}

/// Nano-USD of a token: the prices of the cases in USD per million.
const INPUT: u64 = 1_000;
const OUTPUT: u64 = 2_000;
const CACHED: u64 = 100;
const WRITTEN: u64 = 1_250;

fn right(id: &str) -> Right {
    match id {
        "U1-float" | "U3-string" | "U4-zeros" | "U6-a-nooutput" => Right::More,
        "U9-running-usage-done" | "U11-a-delta-null" => Right::More,
        "U7-early-usage-eof" | "T7-early-usage-eof" => Right::MoreAndBroken,
        "U12-cache-write" => Right::Cost(100 * WRITTEN),
        "U14-1h" => Right::CostAtLeast(200 * INPUT),
        "U16-iterations" => Right::Refused("context_management"),
        "U20-zeros-last" => Right::Cost(100 * INPUT + 5 * OUTPUT),
        "B1-chat-template" => Right::Refused("chat_template"),
        "B2-search-parameters" => Right::Refused("search_parameters"),
        "B5-provider" => Right::Refused("provider"),
        "O1-cached-beside" => Right::Cost(CACHED + OUTPUT),
        "O3-error-200" => Right::Status(502, Some(0)),
        "O5-a-overloaded" => Right::Cost(INPUT + OUTPUT),
        "O7-gzip" | "O12-empty-200" => Right::Status(502, None),
        "O9-choice-usage" => Right::Cost(INPUT + OUTPUT),
        "O16-deepseek-hit" => Right::Cost(100 * CACHED),
        "T1-refusal" => Right::Says(&["I cannot.", "\"stop_reason\":\"refusal\""]),
        "T3-parts" => Right::Says(&["\"text\":\"answer\""]),
        "T5-surrogate-stream" => Right::Says(&["lost ", " too"]),
        "T8-max-field" => Right::Sent("max_completion_tokens"),
        "T10-upstream-401" => Right::Status(502, Some(0)),
        other => panic!("{other} is a case that nothing is expected of"),
    }
}

async fn stack() -> Stack {
    let cap = CapSpec {
        meter: Meter::Cost,
        cap: CapId::new("money").unwrap(),
        ..tokens(1_000_000_000_000, Window::Balance)
    };
    let model = |id: &str| UpstreamModel::new(ModelId::new(id).unwrap(), 200_000, 8192);
    let stack = Stack::start_with(cap, |config| {
        config.upstreams[0].models = vec![
            model("m"),
            UpstreamModel {
                max_field: MaxField::MaxCompletionTokens,
                ..model("g5")
            },
        ];
        let openai = &config.upstreams[0];
        let base_url = openai.base_url.trim_end_matches("/v1").to_owned();
        let anthropic = UpstreamConfig {
            name: "anthropic".to_owned(),
            kind: Dialect::Anthropic,
            base_url,
            models: vec![model("c")],
            ..openai.clone()
        };
        config.upstreams.push(anthropic);
    })
    .await;
    let rates = Rates {
        cached_input: CACHED * 1000,
        cache_write: WRITTEN * 1000,
        cache_write_long: Some(2 * INPUT * 1000),
        ..Rates::flat(INPUT * 1000, OUTPUT * 1000)
    };
    for (n, id) in ["m", "g5", "c"].into_iter().enumerate() {
        let set = Admin {
            id: CommandId::from_parts(seatbelt_gateway::system_clock()(), 100 + n as u128),
            account: AccountId::system(),
            actor: Actor::system("test"),
            change: Change::SetPrice(Price::of(ModelId::new(id).unwrap(), rates)),
        };
        stack.ledger.admin(set).await.unwrap();
    }
    stack
}

/// What the upstream says, status and headers as the case writes them.
fn script(case: &Value) -> Script {
    let mut lines = case["upstream_head"].as_str().unwrap().split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap();
    let headers = lines.filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let body = case["upstream_body"].as_str().unwrap().to_owned();
    Script::Head(status.parse().unwrap(), headers.collect(), body)
}

#[tokio::test]
async fn each_case_ends_as_is_right() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/upstream-answers.json");
    let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert!(cases.len() >= 27);
    let stack = stack().await;
    let mut before = 0;
    for case in &cases {
        let id = case["id"].as_str().unwrap();
        let hits = stack.upstream.hits();
        stack.upstream.plays(script(case));
        let post = stack.post(case["path"].as_str().unwrap(), &case["request"]);
        let response = post.send().await.unwrap();
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        let spent = stack.spent_once_idle().await;
        let charged = spent - before;
        before = spent;
        let shown = format!("{id}: {status}, {charged} nano-USD: {text}");
        match right(id) {
            Right::Cost(cost) => assert_eq!((status, charged), (200, cost), "{shown}"),
            Right::CostAtLeast(cost) => assert!(status == 200 && charged >= cost, "{shown}"),
            Right::More => assert!(status == 200 && charged > 10 * OUTPUT, "{shown}"),
            Right::MoreAndBroken => {
                assert!(charged > 3 * OUTPUT && text.contains("error"), "{shown}");
                assert!(
                    !text.contains("[DONE]") && !text.contains("message_stop"),
                    "{shown}"
                );
            }
            Right::Status(right, cost) => {
                assert_eq!(status, right, "{shown}");
                assert!(cost.is_none_or(|cost| cost == charged), "{shown}");
                assert!(!text.contains("sk-ab"), "{shown}");
            }
            Right::Refused(field) => {
                let error: Value = serde_json::from_str(&text).unwrap();
                let told = (&error["error"]["message"], status, stack.upstream.hits());
                assert!(told.0.as_str().unwrap().contains(field), "{shown}");
                assert_eq!((told.1, told.2, charged), (400, hits, 0), "{shown}");
            }
            Right::Says(texts) => {
                let all = texts.iter().all(|said| text.contains(said));
                assert!(status == 200 && all, "{shown}");
            }
            Right::Sent(field) => {
                let sent = stack.upstream.last().body;
                assert!(
                    sent.get(field).is_some() && sent.get("max_tokens").is_none(),
                    "{sent}"
                );
            }
        }
    }
}
