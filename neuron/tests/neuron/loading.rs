//! Models that do not fit the memory together, that are loaded by name, and that come and go with the configuration.

use std::{path::Path, time::Duration};

use futures::future::join_all;
use seatbelt_neuron::{AdminToken, ModelConfig, NeuronConfig};
use seatbelt_schemas::ids::ModelId;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::common::{Answer, Neuron, chat, open, tiny, with, workspace};

const CHAT: &str = "/v1/chat/completions";
const LOAD: &str = "/models/load";
const UNLOAD: &str = "/models/unload";

/// The tiny model under another name.
fn named(id: &str) -> ModelConfig {
    ModelConfig {
        id: ModelId::new(id).unwrap(),
        context: Some(1024),
        ..tiny(1)
    }
}

fn vectors() -> ModelConfig {
    let path = workspace().join("models/tiny-encoder");
    ModelConfig::new(ModelId::new("vectors").unwrap(), path)
}

fn asks(model: &str) -> Value {
    with(chat("hi", 3), "model", model.into())
}

/// How a model stands, as `/models` says.
async fn told(neuron: &Neuron, model: &str) -> Value {
    let all = neuron.get("/models").await.json();
    let all = all["data"].as_array().unwrap().clone();
    let found = all.into_iter().find(|told| told["id"] == model);
    found.unwrap_or_else(|| panic!("{model} is not told"))
}

async fn state(neuron: &Neuron, model: &str) -> String {
    told(neuron, model).await["state"]
        .as_str()
        .unwrap()
        .to_owned()
}

/// How often a model was loaded.
async fn loads(neuron: &Neuron, model: &str) -> u64 {
    let text = neuron.get("/metrics").await.body;
    let name = format!("seatbelt_neuron_loads_total{{model=\"{model}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    line.map_or(0, |count| count.parse().unwrap())
}

/// What the model takes in memory, as a neuron says that has room for all.
async fn memory(model: ModelConfig) -> u64 {
    let id = model.id.clone();
    let neuron = Neuron::with(|config| config.models = vec![model]).await;
    let bytes = told(&neuron, id.as_str()).await["memory_bytes"].as_u64();
    neuron.stop().await;
    bytes.unwrap()
}

/// A neuron with room for one of these and a half.
async fn narrow(models: Vec<ModelConfig>, change: impl FnOnce(&mut NeuronConfig)) -> Neuron {
    let one = memory(models[0].clone()).await;
    Neuron::with(|config| {
        config.models = models;
        config.memory_bytes_max = Some(one * 3 / 2);
        change(config);
    })
    .await
}

/// Long answers that nobody reads: a model has work until they are dropped. They are no streams, so that this thread
/// has nothing to do with them.
async fn busy(neuron: &Neuron, model: &str) -> Vec<TcpStream> {
    let body = with(chat("hi", 1000), "model", model.into());
    let body = with(body, "ignore_eos", true.into());
    let mut open_ones = Vec::new();
    for _ in 0..40 {
        open_ones.push(
            open(
                neuron.address(),
                "POST",
                CHAT,
                &[],
                body.to_string().as_bytes(),
            )
            .await,
        );
    }
    let active = format!("seatbelt_neuron_active{{model=\"{model}\"}} 1");
    while !neuron.get("/metrics").await.body.contains(&active) {
        tokio::task::yield_now().await;
    }
    open_ones
}

#[tokio::test]
async fn two_that_do_not_fit_together_take_turns_and_say_the_same() {
    let neuron = narrow(vec![named("a"), named("b")], |_| {}).await;
    assert_eq!(
        (state(&neuron, "a").await, state(&neuron, "b").await),
        ("ready".to_owned(), "unloaded".to_owned())
    );
    let first = neuron.post(CHAT, &asks("a")).await;
    for model in ["b", "a", "b"] {
        let answer = neuron.post(CHAT, &asks(model)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.text(), first.text());
        assert_eq!(state(&neuron, model).await, "ready");
        let other = if model == "a" { "b" } else { "a" };
        assert_eq!(state(&neuron, other).await, "unloaded");
    }
    assert_eq!(
        (loads(&neuron, "a").await, loads(&neuron, "b").await),
        (2, 2)
    );
    neuron.reports.exactly(4).await;
    assert_eq!(neuron.get("/health/ready").await.status, 200);
}

#[tokio::test]
async fn many_who_ask_at_once_share_one_load() {
    let neuron = narrow(vec![named("a"), named("b")], |_| {}).await;
    let body = asks("b");
    let answers = join_all((0..8).map(|_| neuron.post(CHAT, &body))).await;
    assert!(
        answers.iter().all(|answer| answer.status == 200),
        "{answers:?}"
    );
    assert_eq!(loads(&neuron, "b").await, 1);
}

#[tokio::test]
async fn one_with_work_stays_and_who_waits_for_its_memory_is_told_to_come_back() {
    let soon = Duration::from_millis(200);
    let neuron = narrow(vec![named("a"), named("b")], |config| {
        (config.load_wait, config.queue) = (soon, 64);
    })
    .await;
    let at_work = busy(&neuron, "a").await;
    let refused = neuron.post(CHAT, &asks("b")).await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (503, "model_loading"),
        "{refused:?}"
    );
    assert_eq!(refused.header("retry-after"), Some("5"));
    assert_eq!(refused.header("x-seatbelt-unused"), Some("1"));
    assert_eq!(
        (
            state(&neuron, "a").await.as_str(),
            loads(&neuron, "b").await
        ),
        ("ready", 0)
    );
    let by_name = neuron.post(LOAD, &json!({ "model": "b" })).await;
    assert_eq!(by_name.status, 503, "{by_name:?}");
    drop(at_work);
    let mut answer = neuron.post(CHAT, &asks("b")).await;
    while answer.code() == "model_loading" {
        answer = neuron.post(CHAT, &asks("b")).await;
    }
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test]
async fn what_fits_no_memory_fails_by_name_and_the_others_serve() {
    let one = memory(named("a")).await;
    let large = ModelConfig {
        slots: Some(9),
        ..named("large")
    };
    let neuron = Neuron::with(|config| {
        config.models = vec![named("a"), large];
        config.memory_bytes_max = Some(one);
    })
    .await;
    let told = told(&neuron, "large").await;
    assert_eq!(told["state"], "failed");
    let reason = told["reason"].as_str().unwrap();
    assert!(
        reason.contains("neuron.memory_bytes_max") && reason.contains("fewer slots"),
        "{reason}"
    );
    assert_eq!(neuron.post(CHAT, &asks("large")).await.status, 503);
    assert_eq!(neuron.post(CHAT, &asks("a")).await.status, 200);
    assert_eq!(neuron.get("/health/live").await.status, 200);
}

#[tokio::test]
async fn an_encoder_leaves_and_comes_like_any_other() {
    let decoder = memory(named("a")).await;
    let neuron = Neuron::with(|config| {
        config.models = vec![named("a"), vectors()];
        config.memory_bytes_max = Some(decoder + 1000);
    })
    .await;
    let embed = json!({ "model": "vectors", "input": "hi" });
    let vectors = async || {
        let answer = neuron.post("/v1/embeddings", &embed).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["data"].clone()
    };
    assert_eq!(state(&neuron, "vectors").await, "unloaded");
    let first = vectors().await;
    assert_eq!(state(&neuron, "a").await, "unloaded");
    assert_eq!(neuron.post(CHAT, &asks("a")).await.status, 200);
    assert_eq!(state(&neuron, "vectors").await, "unloaded");
    assert_eq!(vectors().await, first);
}

#[tokio::test]
async fn models_are_loaded_and_unloaded_by_name_with_the_admin_token_alone() {
    let neuron = Neuron::with(|config| {
        config.models = vec![named("a"), named("b")];
        (config.admin_token, config.queue) = (Some(AdminToken::new("let me")), 64);
    })
    .await;
    let admin = async |path: &str, token: &str, model: &str| -> Answer {
        let token = format!("Bearer {token}");
        let headers = [("authorization", token.as_str())];
        neuron
            .post_with(path, &headers, &json!({ "model": model }))
            .await
    };
    for path in [LOAD, UNLOAD] {
        let stranger = neuron.post(path, &json!({ "model": "a" })).await;
        assert_eq!(stranger.status, 401, "{stranger:?}");
        assert_eq!(admin(path, "let", "a").await.code(), "invalid_admin_token");
        assert_eq!(admin(path, "let me", "c").await.code(), "model_not_found");
    }
    let unloaded = admin(UNLOAD, "let me", "a").await;
    assert_eq!(
        unloaded.json(),
        json!({ "model": "a", "state": "unloaded" })
    );
    assert_eq!(state(&neuron, "a").await, "unloaded");
    assert_eq!(admin(UNLOAD, "let me", "a").await.status, 200, "it is out");
    let loaded = admin(LOAD, "let me", "a").await;
    assert_eq!(loaded.json(), json!({ "model": "a", "state": "ready" }));
    assert_eq!(
        (
            admin(LOAD, "let me", "a").await.status,
            loads(&neuron, "a").await
        ),
        (200, 2)
    );
    let at_work = busy(&neuron, "a").await;
    let refused = admin(UNLOAD, "let me", "a").await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (409, "model_busy")
    );
    drop(at_work);
    // An answer that nobody waits for ends with the step under way.
    while admin(UNLOAD, "let me", "a").await.status != 200 {}
    assert_eq!(
        neuron.post(CHAT, &asks("a")).await.status,
        200,
        "it is loaded when it is asked for"
    );
}

#[tokio::test]
async fn a_graph_that_is_mended_is_loaded_after_all() {
    let folder = tempfile::tempdir().unwrap();
    copy(&tiny(1).path, folder.path());
    let graph = folder.path().join("model.onnx");
    let whole = std::fs::read(&graph).unwrap();
    std::fs::write(&graph, b"not a graph").unwrap();
    let broken = ModelConfig {
        path: folder.path().to_owned(),
        ..named("broken")
    };
    let neuron = Neuron::with(|config| config.models = vec![named("a"), broken]).await;
    let told_of = told(&neuron, "broken").await;
    assert_eq!(told_of["state"], "failed");
    assert!(
        told_of["reason"].as_str().unwrap().contains("model broken"),
        "{told_of}"
    );
    let refused = neuron.post(CHAT, &asks("broken")).await;
    assert!(refused.body.contains("could not be loaded"), "{refused:?}");
    let refused = neuron.post(LOAD, &json!({ "model": "broken" })).await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (500, "engine_error")
    );
    std::fs::write(&graph, whole).unwrap();
    let loaded = neuron.post(LOAD, &json!({ "model": "broken" })).await;
    assert_eq!(loaded.status, 200, "{loaded:?}");
    assert_eq!(neuron.post(CHAT, &asks("broken")).await.status, 200);
}

fn copy(from: &Path, to: &Path) {
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

#[tokio::test]
async fn models_come_and_go_and_what_runs_ends_as_it_began() {
    let neuron = Neuron::with(|config| config.models = vec![named("a"), named("b")]).await;
    let models = neuron.running.models();
    let long = with(asks("a"), "max_tokens", 400.into());
    let alone = neuron.post(CHAT, &long).await.text();
    let (answer, reloaded) = tokio::join!(neuron.post(CHAT, &long), async {
        let active = "seatbelt_neuron_active{model=\"a\"} 1";
        while !neuron.get("/metrics").await.body.contains(active) {
            tokio::task::yield_now().await;
        }
        models.reload(vec![named("b"), named("c"), vectors()]).await
    });
    reloaded.unwrap();
    assert_eq!((answer.status, answer.text()), (200, alone), "it had begun");
    assert_eq!(
        neuron.post(CHAT, &asks("a")).await.code(),
        "model_not_found"
    );
    assert_eq!(neuron.post(CHAT, &asks("c")).await.status, 200);
    assert_eq!(loads(&neuron, "b").await, 1, "it is as it was");
    let embed = json!({ "model": "vectors", "input": "hi" });
    assert_eq!(neuron.post("/v1/embeddings", &embed).await.status, 200);
    let refused = models
        .reload(vec![named("b"), named("b")])
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("configured twice"),
        "{refused}"
    );
    assert_eq!(
        neuron.post(CHAT, &asks("c")).await.status,
        200,
        "nothing was changed"
    );
    let other = ModelConfig {
        output: Some(2),
        ..named("c")
    };
    models.reload(vec![other]).await.unwrap();
    let short = neuron.post(CHAT, &asks("c")).await;
    assert_eq!(short.json()["usage"]["completion_tokens"], 2, "{short:?}");
    neuron.stop().await;
}
