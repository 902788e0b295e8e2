//! A neuron that cannot do what it is told does not start, and says why.

use std::path::Path;

use seatbelt_neuron::{Device, ModelConfig, NeuronConfig, NeuronError};
use seatbelt_schemas::ids::ModelId;

use crate::common::{Neuron, chat, config, start_alone, tiny, with};

async fn refusal(change: impl FnOnce(&mut NeuronConfig)) -> NeuronError {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    change(&mut config);
    start_alone(config, None).await.unwrap_err()
}

#[tokio::test]
async fn cuda_that_is_not_there_is_an_error_and_never_the_cpu() {
    // The library that `make setup` fetches has no CUDA in it, whatever the machine has.
    let error = refusal(|config| config.models[0].device = Device::Cuda).await;
    assert!(matches!(error, NeuronError::Device { .. }), "{error}");
    let text = error.to_string();
    for expected in [
        "tiny",
        "cuda",
        "GPU build of ONNX Runtime",
        "neuron.onnxruntime",
        "device = \"cpu\"",
    ] {
        assert!(text.contains(expected), "{expected} is not in: {text}");
    }
}

#[tokio::test]
async fn a_missing_or_wrong_library_is_an_error_that_says_what_to_run() {
    let wrong = tempfile::NamedTempFile::new().unwrap();
    let places = ["/nowhere/libonnxruntime.so".into(), wrong.path().to_owned()];
    for (n, place) in places.into_iter().enumerate() {
        let error = refusal(|config| config.onnxruntime = Some(place)).await;
        let text = error.to_string();
        let kind = match error {
            NeuronError::NoLibrary { .. } => 0,
            NeuronError::Library { .. } => 1,
            other => panic!("{other}"),
        };
        assert_eq!(kind, n, "{text}");
        assert!(
            text.contains("make setup") && text.contains("neuron.onnxruntime"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn mistakes_in_the_configuration_are_told_together() {
    let error = refusal(|config| (config.models, config.threads) = (vec![tiny(0)], 0)).await;
    assert!(
        matches!(&error, NeuronError::Config(mistakes) if mistakes.len() == 2),
        "{error}"
    );
}

#[tokio::test]
async fn an_address_in_use_is_an_error_that_names_it() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let error = refusal(|config| config.listen = address).await;
    assert!(matches!(error, NeuronError::Listen { address: named, .. } if named == address));
}

#[tokio::test]
async fn a_folder_with_a_broken_graph_is_an_error_that_names_the_model() {
    let folder = tempfile::tempdir().unwrap();
    copy_tiny(folder.path());
    std::fs::write(folder.path().join("model.onnx"), b"not a graph").unwrap();
    let error = refusal(|config| config.models[0].path = folder.path().to_owned()).await;
    assert!(
        matches!(&error, NeuronError::Model { model, .. } if model == "tiny"),
        "{error}"
    );
}

fn copy_tiny(folder: &Path) {
    for file in std::fs::read_dir(tiny(1).path).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
    }
}

#[tokio::test]
async fn caches_that_do_not_fit_their_budget_are_an_error_that_names_the_settings() {
    let error = refusal(|config| {
        config.models[0].context = Some(1024);
        config.models[0].cache_bytes_max = Some(100_000);
    })
    .await;
    let text = error.to_string();
    for expected in ["4 slots", "slots or context", "cache_bytes_max is 1 MB"] {
        assert!(text.contains(expected), "{expected} is not in: {text}");
    }
}

#[tokio::test]
async fn a_model_that_does_not_load_is_left_out_and_the_others_serve() {
    let folder = tempfile::tempdir().unwrap();
    copy_tiny(folder.path());
    std::fs::write(folder.path().join("chat_template.jinja"), "{% for").unwrap();
    let neuron = Neuron::with(|config| {
        config.models.push(ModelConfig {
            id: ModelId::new("broken").unwrap(),
            path: folder.path().to_owned(),
            ..tiny(1)
        });
    })
    .await;
    neuron.says("hi", 3).await;
    let body = with(chat("hi", 3), "model", "broken".into());
    let refused = neuron.post("/v1/chat/completions", &body).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.body.contains("could not be loaded"), "{refused:?}");
    let ready = neuron.get("/health/ready").await;
    assert_eq!(ready.status, 200, "{ready:?}");
    let warnings = &ready.json()["warnings"];
    let told = warnings[0].as_str().unwrap();
    assert!(
        told.contains("model broken") && told.contains("chat template"),
        "{ready:?}"
    );
    assert_eq!(
        neuron.get("/v1/models").await.json()["data"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}
