//! SIGHUP: a neuron serves the models that its file has now.

use std::path::{Path, PathBuf};

use seatbelt_neuron::Models;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::{config::Config, signals};

/// Reads the file again whenever the process is told to, until `stop`.
pub(super) fn follow(models: Models, file: PathBuf, stop: CancellationToken) {
    let mut hangups = match signals::hangups() {
        Ok(hangups) => hangups,
        Err(error) => return error!(%error, "models are not read again while this runs"),
    };
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                told = hangups.recv() => if told.is_none() { return },
            }
            read_again(&models, &file).await;
        }
    });
}

/// A file with a mistake changes nothing.
async fn read_again(models: &Models, file: &Path) {
    let neuron = match Config::load(file) {
        Ok(config) => config.neuron,
        Err(error) => return error!(%error, "the models stay as they are"),
    };
    let Some(neuron) = neuron else {
        return error!("the configuration has no [neuron] any more: the models stay as they are");
    };
    let count = neuron.models.len();
    match models.reload(neuron.models).await {
        Ok(()) => info!(
            models = count,
            "the models are as the configuration has them now; its other settings wait for a start"
        ),
        Err(error) => error!(%error, "the models stay as they are"),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command, time::Duration};

    use seatbelt_neuron::start_with_sink;
    use seatbelt_schemas::neuron::signature::NeuronSecret;

    use super::*;

    /// A file with the tiny model under these names.
    fn write(file: &Path, names: &[&str]) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let library = root.join(".deps/onnxruntime/libonnxruntime.so");
        let mut text = format!("[neuron]\nid = \"n\"\nonnxruntime = {library:?}\n");
        for name in names {
            let path = root.join("models/tiny");
            text.push_str(&format!(
                "[[neuron.models]]\nid = \"{name}\"\npath = {path:?}\nslots = 1\n"
            ));
        }
        fs::write(file, text).unwrap();
    }

    #[tokio::test]
    async fn the_models_follow_the_file_when_the_process_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("seatbelt.toml");
        write(&file, &["a"]);
        let config = Config::load(&file).unwrap();
        assert_eq!(config.file.as_deref(), Some(&*file));
        let (secret, stop) = (NeuronSecret::new([7; 32]), CancellationToken::new());
        let neuron = config.neuron.unwrap();
        let running = start_with_sink(neuron, secret, None, stop.clone())
            .await
            .unwrap();
        let models = running.models();
        follow(models.clone(), file.clone(), stop.clone());
        let hang_up = || {
            let pid = std::process::id().to_string();
            let told = Command::new("kill").args(["-HUP", &pid]).status().unwrap();
            assert!(told.success());
        };
        let are = async |names: &[&str]| {
            let told = async {
                while models.names() != names {
                    tokio::task::yield_now().await;
                }
            };
            let in_time = tokio::time::timeout(Duration::from_secs(20), told).await;
            assert!(in_time.is_ok(), "{:?} and not {names:?}", models.names());
        };
        are(&["a"]).await;
        write(&file, &["a", "b"]);
        hang_up();
        are(&["a", "b"]).await;
        fs::write(&file, "[neuron]\nmodels = []\n").unwrap();
        read_again(&models, &file).await;
        are(&["a", "b"]).await;
        write(&file, &["b"]);
        hang_up();
        are(&["b"]).await;
        running.stop().await;
    }
}
