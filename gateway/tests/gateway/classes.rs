//! Classes of service that have a price of their own.

use seatbelt_gateway::{Aspect, Class, PricedClass, Profile};
use seatbelt_ledger::api::{Admin, Ledger};
use seatbelt_schemas::{
    cap::CapSpec,
    command::Change,
    ids::{AccountId, Actor, CommandId, ModelId},
    meter::Meter,
    price::{Price, Rates},
    window::Window,
};
use serde_json::{Value, json};

use crate::support::{Script, Stack, chat_answer, hi, status_and_body, tokens};

const PRIORITY: &str = "test-model+service_tier=priority";
/// Nano-USD for each token.
const PLAIN: u64 = 1_000;
const DEARER: u64 = 3_000;

fn price(model: &str, each: u64) -> Price {
    let rates = Rates::flat(each * 1000, each * 1000);
    Price::of(ModelId::new(model).unwrap(), rates)
}

async fn stack() -> Stack {
    let cap = CapSpec {
        meter: Meter::Cost,
        ..tokens(1_000_000_000, Window::Balance)
    };
    let stack = Stack::start_with(cap, |config| {
        config.upstreams[0].profile = Some(Profile::OpenAi);
        config.upstreams[0].models[0].classes = vec![PricedClass {
            class: Class {
                aspect: Aspect::ServiceTier,
                value: "priority".to_owned(),
                answers_as: Vec::new(),
            },
            price: price(PRIORITY, DEARER),
        }];
    })
    .await;
    for (n, (model, each)) in [("test-model", PLAIN), (PRIORITY, DEARER)]
        .into_iter()
        .enumerate()
    {
        let set = Admin {
            id: CommandId::from_parts(seatbelt_gateway::system_clock()(), 100 + n as u128),
            account: AccountId::system(),
            actor: Actor::system("test"),
            change: Change::SetPrice(price(model, each)),
        };
        stack.ledger.admin(set).await.unwrap();
    }
    stack
}

fn answered(tier: &str) -> Script {
    let mut answer: Value = serde_json::from_str(&chat_answer()).unwrap();
    answer["service_tier"] = json!(tier);
    Script::Whole(200, "application/json", answer.to_string())
}

#[tokio::test]
async fn a_class_is_charged_at_its_own_price_and_another_at_the_hold_at_least() {
    let stack = stack().await;
    let mut before = 0;
    let held = 38;
    for (asked, served, charge) in [
        (None, "default", 15 * PLAIN),
        (Some("priority"), "priority", 15 * DEARER),
        (Some("priority"), "default", 15 * DEARER),
        (None, "priority", held * PLAIN),
        (Some("priority"), "scale", held * DEARER),
    ] {
        stack.upstream.plays(answered(served));
        let mut body = hi(20);
        if let Some(tier) = asked {
            body["service_tier"] = json!(tier);
        }
        assert_eq!(status_and_body(stack.chat(&body)).await.0, 200);
        let sent = stack.upstream.last().body;
        assert_eq!(sent["service_tier"], asked.unwrap_or("default"));
        assert_eq!(sent["model"], "test-model");
        let spent = stack.spent_once_idle().await;
        assert_eq!(spent - before, charge, "{asked:?} served as {served}");
        before = spent;
    }
    let mut flex = hi(20);
    flex["service_tier"] = json!("flex");
    let (status, answer) = status_and_body(stack.chat(&flex)).await;
    assert_eq!(
        (status, &answer["error"]["code"]),
        (400, &json!("cost_unbounded"))
    );
}
