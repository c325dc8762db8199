//! The state directory: where the records of handovers are kept. It outlives processes and the
//! host; what is in it is the engine's ([`dunlin_engine::records`]).

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use dunlin_engine::records::directory::StateDirectory;

use crate::failure::Failure;

/// The directory that `--state-dir` names, or the usual one.
pub(crate) fn chosen(named: Option<&Path>) -> StateDirectory {
    StateDirectory::new(named.map_or_else(usual_path, Path::to_owned))
}

/// Makes the directory where it is missing, and checks it.
///
/// # Errors
///
/// When it can't be made, or others may write to it.
pub(crate) fn prepare(directory: &StateDirectory) -> Result<(), Failure> {
    if let Some(parent) = directory.path().parent() {
        // Where that fails, the directory itself says why.
        let _ = DirBuilder::new().recursive(true).mode(0o700).create(parent);
    }
    directory.prepare().map_err(|error| {
        Failure::local(format!(
            "the state directory: {error}; name another with --state-dir"
        ))
    })
}

fn usual_path() -> PathBuf {
    let named = |variable: &str| {
        std::env::var_os(variable)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(path) = named("DUNLIN_STATE_DIR") {
        return path;
    }
    if let Some(state) = named("XDG_STATE_HOME") {
        return state.join("dunlin");
    }
    match named("HOME") {
        _ if rustix::process::geteuid().is_root() => PathBuf::from("/var/lib/dunlin"),
        Some(home) => home.join(".local/state/dunlin"),
        None => PathBuf::from("/var/tmp/dunlin-state"),
    }
}
