use bytes::Bytes;
use seatbelt_dialects::{Aspect, Class};
use seatbelt_schemas::{
    event::OnUnknown,
    meter::Meter,
    neuron::signature::NeuronSecret,
    price::{Price, Rates},
};
use serde_json::json;
use tokio::sync::watch;

use super::*;
use crate::{
    config::{UpstreamConfig, UpstreamModel},
    gate::testing::{Asked, Stub, cap, gate, key},
    receive::{aside::Benches, shares::Shares},
    upstream::client::client,
};

fn upstream(name: &str, kind: Dialect) -> UpstreamConfig {
    let id = ModelId::new(format!("m-{name}")).unwrap();
    UpstreamConfig {
        name: name.to_owned(),
        kind,
        profile: None,
        base_url: "http://127.0.0.1:1/v1".to_owned(),
        allow_fields: Vec::new(),
        errors_are_free: false,
        responses: false,
        threads: false,
        api_key: None,
        deployments: Vec::new(),
        weight: 1,
        priority: 0,
        attempts: None,
        retry_unknown: false,
        models: vec![UpstreamModel::new(id, 1000, 100)],
    }
}

fn planner(stub: &Arc<Stub>) -> Planner {
    let (_sender, neurons) = watch::channel(Vec::new());
    let upstreams = [
        upstream("openai", Dialect::OpenAi),
        upstream("anthropic", Dialect::Anthropic),
    ];
    let (gate, metrics, _) = gate(stub);
    let catalog = Arc::new(Catalog::new(&upstreams, &[], neurons).unwrap());
    let client = client(std::time::Duration::from_secs(1)).unwrap();
    let secret = NeuronSecret::new([7; 32]);
    Planner {
        recipes: Recipes::new(client.clone(), secret, Arc::new(|| 1)),
        counter: Counter {
            client,
            catalog: Arc::clone(&catalog),
            secret: NeuronSecret::new([7; 32]),
            clock: Arc::new(|| 1),
        },
        catalog,
        gate,
        threads: None,
        metrics,
    }
}

fn received(body: Value, is_metered: bool) -> Received {
    let free = || Shares::new("requests", 1, 1).take(None, 1).unwrap();
    let Value::Object(body) = body else {
        panic!("a body is an object")
    };
    Received {
        id: "1".to_owned(),
        caller: Caller {
            key: is_metered.then(|| Arc::new(key())),
            run: None,
            team: None,
            end_user: None,
            on_short: Some(OnShort::Clamp),
            wait: None,
        },
        headers: HeaderMap::new(),
        body,
        exact: None,
        place: free(),
        aside: Aside::of(&Bytes::new(), &Benches::new(1), None),
        room: free(),
    }
}

fn hi(model: &str, extra: &Value) -> Value {
    let mut body =
        json!({"model": model, "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]});
    let fields = body.as_object_mut().unwrap();
    fields.extend(extra.as_object().unwrap().clone());
    body
}

async fn plan(stub: Stub, client: Api, body: Value) -> Result<Plan, &'static str> {
    let planner = planner(&Arc::new(stub));
    let plan = planner.plan(client, received(body, true)).await;
    plan.map_err(|error| error.code())
}

fn capped(meter: Meter) -> Stub {
    Stub {
        caps: vec![cap(meter)],
        ..Stub::default()
    }
}

#[tokio::test]
async fn what_is_wanted_is_the_bound_of_all_choices() {
    let body = hi("m-openai", &json!({"n": 3, "user": "u"}));
    let plan = plan(Stub::default(), Api::Chat, body).await.unwrap();
    let want = plan.want().unwrap().unwrap();
    assert_eq!((want.input_tokens, want.output_tokens), (18, 27));
    assert_eq!(want.on_short, OnShort::Refuse, "three share one maximum");
    assert_eq!(want.end_user.unwrap().as_str(), "u");
    assert_eq!(want.on_unknown, OnUnknown::default());
}

#[tokio::test]
async fn one_choice_may_be_lowered_unless_it_thinks() {
    let on_short = async |extra| {
        let body = hi("m-anthropic", &extra);
        let plan = plan(Stub::default(), Api::Messages, body).await.unwrap();
        plan.want().unwrap().unwrap().on_short
    };
    assert_eq!(on_short(json!({})).await, OnShort::Clamp);
    let thinks = json!({"thinking": {"type": "enabled", "budget_tokens": 5}});
    assert_eq!(on_short(thinks).await, OnShort::Refuse);
}

#[tokio::test]
async fn what_has_no_bound_is_refused_where_a_cap_counts_it() {
    let body = || hi("m-openai", &json!({"n_predict": 5000}));
    for meter in [Meter::Tokens, Meter::Cost, Meter::OutputTokens] {
        let refused = plan(capped(meter), Api::Chat, body()).await;
        assert_eq!(refused.err(), Some("cost_unbounded"), "{meter}");
    }
    assert!(
        plan(capped(Meter::Requests), Api::Chat, body())
            .await
            .is_ok()
    );
    assert!(plan(Stub::default(), Api::Chat, body()).await.is_ok());
}

#[tokio::test]
async fn the_ledger_is_asked_for_caps_only_where_a_request_has_no_bound() {
    let stub = Arc::new(Stub::default());
    let planner = planner(&stub);
    let bounded = received(hi("m-openai", &json!({})), true);
    planner.plan(Api::Chat, bounded).await.unwrap();
    assert_eq!(stub.asked(), []);
    let unbounded = received(hi("m-openai", &json!({"n_predict": 5000})), true);
    planner.plan(Api::Chat, unbounded).await.unwrap();
    assert_eq!(stub.asked(), [Asked::Read]);
}

#[tokio::test]
async fn a_class_that_has_a_price_is_held_by_it_and_two_at_once_have_none() {
    let class = |aspect: Aspect, value: &str| PricedClass {
        class: Class {
            aspect,
            value: value.to_owned(),
            answers_as: Vec::new(),
        },
        price: Price::of(
            ModelId::new(format!("m-openai+{}={value}", aspect.as_str())).unwrap(),
            Rates::flat(1, 1),
        ),
    };
    let mut config = upstream("openai", Dialect::OpenAi);
    config.models[0].classes = vec![
        class(Aspect::ServiceTier, "priority"),
        class(Aspect::Speed, "fast"),
    ];
    let stub = Arc::new(capped(Meter::Cost));
    let planner = Planner {
        catalog: Arc::new(Catalog::new(&[config], &[], watch::channel(Vec::new()).1).unwrap()),
        ..planner(&stub)
    };
    let plan = async |extra: Value| {
        let body = hi("m-openai", &extra);
        let planned = planner.plan(Api::Chat, received(body, true)).await;
        planned.map_err(|error| error.code())
    };
    let priority = plan(json!({"service_tier": "priority"})).await.unwrap();
    let want = priority.want().unwrap().unwrap();
    assert_eq!(want.model.as_str(), "m-openai+service_tier=priority");
    assert_eq!(priority.body["service_tier"], "priority");
    assert_eq!(priority.body["model"], "m-openai");
    let plain = plan(json!({})).await.unwrap();
    assert_eq!(plain.want().unwrap().unwrap().model.as_str(), "m-openai");
    let flex = plan(json!({"service_tier": "flex"})).await;
    assert_eq!(flex.err(), Some("cost_unbounded"));
    let both = plan(json!({"service_tier": "priority", "speed": "fast"})).await;
    assert_eq!(both.err(), Some("cost_unbounded"));
}

#[tokio::test]
async fn a_request_that_is_not_metered_wants_nothing() {
    let stub = Arc::new(capped(Meter::Tokens));
    let body = hi("m-openai", &json!({"n_predict": 5000}));
    let plan = planner(&stub).plan(Api::Chat, received(body, false)).await;
    assert!(plan.unwrap().want().unwrap().is_none());
    let kept = hi("m-openai", &json!({"store": true}));
    let refused = planner(&stub).plan(Api::Chat, received(kept, false)).await;
    assert_eq!(refused.unwrap_err().code(), "invalid_body");
}

#[tokio::test]
async fn a_stream_is_asked_for_its_usage_and_hides_what_the_client_did_not_ask_for() {
    let body = hi("m-openai", &json!({"stream": true}));
    let quiet = plan(Stub::default(), Api::Chat, body).await.unwrap();
    assert_eq!(quiet.body["stream_options"], json!({"include_usage": true}));
    assert!(matches!(
        quiet.face,
        Face::Same {
            hide_usage: true,
            ..
        }
    ));
    let asks = json!({"stream": true, "stream_options": {"include_usage": true}});
    let body = hi("m-openai", &asks);
    let open = plan(Stub::default(), Api::Chat, body).await.unwrap();
    assert!(matches!(
        open.face,
        Face::Same {
            hide_usage: false,
            ..
        }
    ));
    let body = hi("m-openai", &json!({"stream": true}));
    let other = plan(Stub::default(), Api::Messages, body).await.unwrap();
    assert!(matches!(other.face, Face::Messages(_)));
}

#[tokio::test]
async fn a_body_that_cannot_be_planned_is_told_why() {
    let code = async |api, body| plan(Stub::default(), api, body).await.err();
    assert_eq!(
        code(Api::Chat, json!({})).await,
        Some("missing_model_field")
    );
    let odd = hi("m-openai", &json!({"model": 5}));
    assert_eq!(code(Api::Chat, odd).await, Some("invalid_body"));
    let unknown = hi("m-none", &json!({}));
    assert_eq!(code(Api::Chat, unknown).await, Some("model_not_found"));
    let no_place = hi("m-anthropic", &json!({"seed": 5}));
    assert_eq!(code(Api::Chat, no_place).await, Some("invalid_body"));
    let long = "x".repeat(1000 * 128);
    let long = json!({"messages": [{"role": "user", "content": long}]});
    let long = hi("m-openai", &long);
    assert_eq!(code(Api::Chat, long).await, Some("context_length_exceeded"));
}
