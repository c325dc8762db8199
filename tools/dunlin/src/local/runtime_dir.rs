//! The runtime directory: where guests' control sockets, logs and locks are, and whose name is
//! taken.
//!
//! A name belongs to the process that holds the lock on `<name>.lock`. The kernel drops the lock
//! when that process dies, however it dies, so a stale socket can be told from a live one.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::exit::Exit;
use crate::failure::Failure;

/// The longest path of a socket: `sun_path` (unix(7)) without its final NUL.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// How often a lock is tried for whose file vanishes at the same moment.
const LOCK_ATTEMPTS: usize = 16;

/// The directory that holds the control sockets of this user's guests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RuntimeDir {
    path: PathBuf,
}

impl RuntimeDir {
    /// The directory that `--runtime-dir` names, or the usual one.
    pub(crate) fn chosen(named: Option<&Path>) -> Self {
        let path = named.map_or_else(usual_path, Path::to_owned);
        Self { path }
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Creates it where it is missing, and checks that it is this user's alone to write.
    ///
    /// # Errors
    ///
    /// When it is not, or can't be made.
    pub(crate) fn prepare(&self) -> Result<(), Failure> {
        let path = self.path.display();
        match DirBuilder::new().mode(0o700).create(&self.path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(Failure::system(
                    format!("the runtime directory {path} can't be made"),
                    error,
                ));
            }
        }
        self.check()
    }

    /// Checks that it is a directory of this user's, which nobody else can write.
    fn check(&self) -> Result<(), Failure> {
        let path = self.path.display();
        let metadata = std::fs::symlink_metadata(&self.path)
            .map_err(|error| Failure::system(format!("the runtime directory {path}"), error))?;
        let user = rustix::process::geteuid().as_raw();
        if !metadata.is_dir() {
            return Err(Failure::local(format!(
                "the runtime directory {path} is not a directory (a link is not followed); name another with --runtime-dir"
            )));
        }
        if metadata.uid() != user {
            return Err(Failure::local(format!(
                "the runtime directory {path} belongs to user {}, not to {user}; name another with --runtime-dir",
                metadata.uid()
            )));
        }
        if metadata.mode() & 0o022 != 0 {
            return Err(Failure::local(format!(
                "others may write to the runtime directory {path}: 'chmod 700 {path}' makes it safe"
            )));
        }
        Ok(())
    }

    /// As the check of [`RuntimeDir::prepare`], for those who only look: a directory that is not
    /// there holds nothing to be wary of.
    ///
    /// # Errors
    ///
    /// When it is not this user's alone to write.
    pub(crate) fn check_if_there(&self) -> Result<(), Failure> {
        match std::fs::symlink_metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            _ => self.check(),
        }
    }

    /// Where a guest's control socket is.
    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.sock"))
    }

    /// Where the log of a guest that arrived here is.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.log"))
    }

    /// The names that have a socket here, sorted. None where there is no directory.
    ///
    /// # Errors
    ///
    /// When the directory is not this user's, or can't be read.
    pub(crate) fn names(&self) -> Result<Vec<String>, Failure> {
        let failed = |error| {
            Failure::system(
                format!("the runtime directory {}", self.path.display()),
                error,
            )
        };
        let entries = match std::fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        self.check()?;
        let mut names = Vec::new();
        for entry in entries {
            let file_name = entry.map_err(failed)?.file_name();
            let name = file_name
                .to_str()
                .and_then(|name| name.strip_suffix(".sock"));
            if let Some(name) = name.filter(|name| dunlin_engine::guest::valid_guest_name(name)) {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Whether a living process holds the name. A name that can't be asked about counts as held.
    pub(crate) fn is_taken(&self, name: &str) -> bool {
        match File::open(self.lock(name)) {
            Ok(file) => flock(&file, FlockOperation::NonBlockingLockShared).is_err(),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// Takes a name, and opens its control socket. Both are given up when the value is dropped.
    ///
    /// # Errors
    ///
    /// When a living process has the name, or the system refuses.
    pub(crate) fn claim(&self, name: &str) -> Result<(NameClaim, UnixListener), Failure> {
        let socket = self.socket(name);
        if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return Err(Failure::local(format!(
                "the path {} is longer than the {SOCKET_PATH_BYTES_MAX} bytes that a socket may have; name a shorter --runtime-dir",
                socket.display()
            )));
        }
        let lock = self.lock(name);
        let file = self.hold(name, &lock)?;
        let claim = NameClaim {
            socket,
            lock,
            _file: file,
        };
        // The lock is held, so whatever socket is there belongs to a process that died.
        match std::fs::remove_file(&claim.socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Failure::system(
                    format!("the stale socket {}", claim.socket.display()),
                    error,
                ));
            }
            _ => {}
        }
        let failed = |error| {
            Failure::system(
                format!("the control socket {}", claim.socket.display()),
                error,
            )
        };
        let listener = UnixListener::bind(&claim.socket).map_err(failed)?;
        std::fs::set_permissions(&claim.socket, Permissions::from_mode(0o600)).map_err(failed)?;
        Ok((claim, listener))
    }

    fn lock(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.lock"))
    }

    fn hold(&self, name: &str, lock: &Path) -> Result<File, Failure> {
        let failed =
            |error: io::Error| Failure::system(format!("the lock {}", lock.display()), error);
        for _ in 0..LOCK_ATTEMPTS {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(lock)
                .map_err(failed)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(Failure::new(
                        Exit::Conflict,
                        format!(
                            "a guest named '{name}' is already here ({}); 'dunlin status {name}' shows it, --name gives another name",
                            self.path.display()
                        ),
                    ));
                }
                Err(error) => return Err(failed(error.into())),
            }
            // Whoever had the name before may have removed the file between the two calls: a lock
            // on a file that nobody else can find is worth nothing.
            let held = file.metadata().map_err(failed)?;
            match std::fs::symlink_metadata(lock) {
                Ok(there) if there.ino() == held.ino() && there.dev() == held.dev() => {
                    return Ok(file);
                }
                _ => continue,
            }
        }
        Err(Failure::local(format!(
            "the lock {} keeps vanishing",
            lock.display()
        )))
    }
}

/// A name that this process holds, with its socket.
#[derive(Debug)]
pub(crate) struct NameClaim {
    socket: PathBuf,
    lock: PathBuf,
    _file: File,
}

impl Drop for NameClaim {
    fn drop(&mut self) {
        // The lock is held until the file is closed, behind this: nobody else's files are removed.
        // A file that can't be removed is stale, and the next owner of the name replaces it.
        let _ = std::fs::remove_file(&self.socket);
        let _ = std::fs::remove_file(&self.lock);
    }
}

fn usual_path() -> PathBuf {
    if let Some(named) = std::env::var_os("DUNLIN_RUNTIME_DIR").filter(|path| !path.is_empty()) {
        return named.into();
    }
    if let Some(base) = std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty()) {
        return PathBuf::from(base).join("dunlin");
    }
    let user = rustix::process::geteuid();
    if user.is_root() {
        return PathBuf::from("/run/dunlin");
    }
    PathBuf::from(format!("/tmp/dunlin-{}", user.as_raw()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::client::Connection;

    fn temporary() -> (tempfile::TempDir, RuntimeDir) {
        let directory = tempfile::tempdir().unwrap();
        let runtime = RuntimeDir::chosen(Some(&directory.path().join("run")));
        (directory, runtime)
    }

    #[test]
    fn a_name_is_taken_once_and_given_back() {
        let (_keep, runtime) = temporary();
        runtime.prepare().unwrap();
        assert!(!runtime.is_taken("vm1"));
        let (claim, _listener) = runtime.claim("vm1").unwrap();
        assert!(runtime.is_taken("vm1"));
        assert_eq!(runtime.names().unwrap(), ["vm1"]);
        assert_eq!(runtime.claim("vm1").unwrap_err().exit, Exit::Conflict);
        drop(claim);
        assert!(!runtime.is_taken("vm1"));
        assert_eq!(std::fs::read_dir(runtime.path()).unwrap().count(), 0);
        runtime.claim("vm1").unwrap();
    }

    #[test]
    fn the_socket_of_a_dead_process_is_replaced() {
        let (_keep, runtime) = temporary();
        runtime.prepare().unwrap();
        drop(UnixListener::bind(runtime.socket("vm1")).unwrap());
        std::fs::write(runtime.path().join("vm1.lock"), "").unwrap();
        let (claim, _listener) = runtime.claim("vm1").unwrap();
        let mode = std::fs::metadata(&claim.socket).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn nobody_speaks_in_a_directory_that_others_may_write() {
        let (_keep, runtime) = temporary();
        let exit = |runtime: &RuntimeDir| Connection::open(runtime, "vm1").err().unwrap().exit;
        assert_eq!(exit(&runtime), Exit::NoGuest);
        runtime.prepare().unwrap();
        let (_claim, _listener) = runtime.claim("vm1").unwrap();
        assert!(Connection::open(&runtime, "vm1").is_ok());
        std::fs::set_permissions(runtime.path(), Permissions::from_mode(0o777)).unwrap();
        assert_eq!(exit(&runtime), Exit::Local);
    }

    #[test]
    fn a_directory_that_others_may_write_is_refused() {
        let (_keep, runtime) = temporary();
        runtime.prepare().unwrap();
        assert_eq!(
            std::fs::metadata(runtime.path()).unwrap().mode() & 0o777,
            0o700
        );
        std::fs::set_permissions(runtime.path(), Permissions::from_mode(0o777)).unwrap();
        assert!(runtime.prepare().unwrap_err().message.contains("chmod 700"));
        assert!(runtime.names().is_err());
    }

    #[test]
    fn a_link_is_not_followed() {
        let (keep, _) = temporary();
        let link = keep.path().join("link");
        std::os::unix::fs::symlink("/tmp", &link).unwrap();
        let runtime = RuntimeDir::chosen(Some(&link));
        assert!(runtime.prepare().is_err());
    }

    #[test]
    fn a_socket_path_that_is_too_long_is_named() {
        let (keep, _) = temporary();
        let deep = keep.path().join("x".repeat(90));
        let runtime = RuntimeDir::chosen(Some(&deep));
        runtime.prepare().unwrap();
        let failure = runtime.claim("vm1").unwrap_err();
        assert!(failure.message.contains("--runtime-dir"), "{failure}");
    }
}
