//! Where the `nats-server` program is: told by the environment, put there by `make setup`, or installed.

use std::env;
use std::path::{Path, PathBuf};

use super::NatsServerError;

/// Names the program to run instead of searching.
const VARIABLE: &str = "SEATBELT_NATS_SERVER";
const SET_UP: &str = ".deps/nats-server/nats-server";

/// Finds the program: `SEATBELT_NATS_SERVER`, else `.deps/` beneath the current folder or above this
/// executable, else the search path.
///
/// # Errors
/// It is nowhere; the error says where was looked. A variable that names no file is an error too.
pub fn find_nats_server() -> Result<PathBuf, NatsServerError> {
    if let Some(told) = env::var_os(VARIABLE) {
        return first_file([PathBuf::from(told)], []);
    }
    let executable = env::current_exe().unwrap_or_default();
    let above = executable.ancestors().skip(1).map(Path::to_owned);
    let set_up = env::current_dir()
        .ok()
        .into_iter()
        .chain(above)
        .map(|folder| folder.join(SET_UP));
    let path = env::var_os("PATH").unwrap_or_default();
    first_file(
        set_up,
        env::split_paths(&path).map(|folder| folder.join("nats-server")),
    )
}

/// The program that `nats.server` names.
///
/// # Errors
/// It is no file.
pub fn nats_server_at(path: &Path) -> Result<PathBuf, NatsServerError> {
    first_file([path.to_owned()], [])
}

pub(super) fn first_file(
    set_up: impl IntoIterator<Item = PathBuf>,
    installed: impl IntoIterator<Item = PathBuf>,
) -> Result<PathBuf, NatsServerError> {
    let mut looked = Vec::new();
    for candidate in set_up {
        if candidate.is_file() {
            return Ok(candidate);
        }
        looked.push(candidate.display().to_string());
    }
    let looked = || looked.join(", ");
    installed
        .into_iter()
        .find(|file| file.is_file())
        .ok_or_else(|| NatsServerError::BinaryMissing { looked: looked() })
}
