//! Where the native library of ONNX Runtime is: as told, else where `make setup` puts it.

use std::path::{Path, PathBuf};

use crate::error::NeuronError;

/// Names the library instead of searching for it.
const VARIABLE: &str = "SEATBELT_ONNXRUNTIME";
/// Where `make setup` puts it, seen from the repository's root.
const SET_UP: &str = ".deps/onnxruntime/libonnxruntime.so";

/// What `neuron.onnxruntime` or `SEATBELT_ONNXRUNTIME` says, else `.deps/` beneath the current folder or above
/// this executable.
pub(crate) fn find(told: Option<&Path>) -> Result<PathBuf, NeuronError> {
    if let Some(path) = told {
        return existing("neuron.onnxruntime", path.to_owned());
    }
    if let Some(path) = std::env::var_os(VARIABLE) {
        return existing(VARIABLE, path.into());
    }
    let executable = std::env::current_exe().unwrap_or_default();
    let above = executable.ancestors().skip(1);
    let here = std::env::current_dir().unwrap_or_default();
    let mut looked = Vec::new();
    for folder in std::iter::once(here.as_path()).chain(above) {
        let candidate = folder.join(SET_UP);
        if candidate.is_file() {
            return Ok(candidate);
        }
        looked.push(candidate.display().to_string());
    }
    Err(NeuronError::NoLibrary {
        looked: looked.join(", "),
    })
}

fn existing(setting: &'static str, path: PathBuf) -> Result<PathBuf, NeuronError> {
    match path.is_file() {
        true => Ok(path),
        false => Err(NeuronError::NoLibrary {
            looked: format!("{setting}: {}", path.display()),
        }),
    }
}
