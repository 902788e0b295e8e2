//! A neuron that cannot do what it is told does not start, and says why.

use seatbelt_neuron::{Device, NeuronConfig, NeuronError};

use crate::common::{config, start_alone, tiny};

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
    for file in std::fs::read_dir(tiny(1).path).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    std::fs::write(folder.path().join("model.onnx"), b"not a graph").unwrap();
    let error = refusal(|config| config.models[0].path = folder.path().to_owned()).await;
    assert!(
        matches!(&error, NeuronError::Model { model, .. } if model == "tiny"),
        "{error}"
    );
}
