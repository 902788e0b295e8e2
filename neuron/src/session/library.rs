//! ONNX Runtime's library: found, proved recent enough, and loaded once.

use std::{
    path::{Path, PathBuf},
    sync::Mutex,
};

use ort::{environment::Environment, logging::LogLevel};

use crate::error::NeuronError;

/// The oldest ONNX Runtime 1.x that will do.
const RUNTIME_MINOR_MIN: u32 = 31;

// ONNX Runtime allows one environment in a process; it stays for as long as the process.
static RUNTIME: Mutex<Option<(PathBuf, Environment)>> = Mutex::new(None);

/// The environment of `library`, loaded if it is the first.
pub(super) fn runtime(library: &Path) -> Result<Environment, NeuronError> {
    let mut loaded = RUNTIME
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some((path, environment)) = loaded.as_ref() {
        if path == library {
            return Ok(environment.clone());
        }
        let detail = format!("this process already uses the one at {}", path.display());
        return Err(library_error(library, detail));
    }
    check_version(library)?;
    let builder =
        ort::init_from(library).map_err(|error| library_error(library, error.to_string()))?;
    let environment = builder.with_name("seatbelt").with_telemetry(false).build();
    let environment = environment.map_err(|error| library_error(library, error.to_string()))?;
    // Each message would cross the border before it is thrown away.
    environment.set_log_level(LogLevel::Warning);
    *loaded = Some((library.to_owned(), environment.clone()));
    Ok(environment)
}

fn check_version(library: &Path) -> Result<(), NeuronError> {
    if !library.exists() {
        return Err(library_error(library, "there is no such file".to_owned()));
    }
    match ort::util::probe(library) {
        Some(minor) if minor >= RUNTIME_MINOR_MIN => Ok(()),
        Some(minor) => Err(library_error(
            library,
            format!("it is version 1.{minor}, 1.{RUNTIME_MINOR_MIN} is needed"),
        )),
        None => Err(library_error(
            library,
            "it is not an ONNX Runtime 1.x library for this machine".to_owned(),
        )),
    }
}

fn library_error(library: &Path, detail: String) -> NeuronError {
    NeuronError::Library {
        path: library.to_owned(),
        detail,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The library that `make setup` fetches, or the one the environment names.
    pub(crate) fn fetched() -> PathBuf {
        let set_up =
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.deps/onnxruntime/libonnxruntime.so");
        let path = std::env::var_os("SEATBELT_ORT_LIB").map_or_else(set_up, PathBuf::from);
        assert!(
            path.exists(),
            "ONNX Runtime is not at {}: run `make setup`",
            path.display()
        );
        path
    }

    #[test]
    fn another_library_than_the_loaded_one_is_refused() {
        runtime(&fetched()).unwrap();
        let error = runtime(Path::new("/other/libonnxruntime.so"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("already uses"), "{error}");
    }
}
