//! Processes: started in a group of their own, so that a terminal's Ctrl-C reaches them only through
//! this program, waited for within bounds, and ended with whoever started them.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{Interrupted, Stop};

/// How often something is looked at again.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// How long a process may take to end that was asked to.
const FAREWELL_MAX: Duration = Duration::from_secs(5);

/// How much of a log is told when a process fails: its end.
const LOG_BYTES: usize = 400;

/// The longest output that is read: a report with a hundred thousand rounds stays below it.
const OUTPUT_BYTES_MAX: u64 = 64 << 20;

/// A process that ends with this value.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts it, with nothing to read unless the command says otherwise.
    pub(crate) fn start(command: &mut Command) -> Result<Self, Stop> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command
            .process_group(0)
            .spawn()
            .map_err(|error| Stop::failed(format!("{name} can't start"), error))?;
        Ok(Self { child, name })
    }

    /// Its id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it prints, if that is piped.
    pub(crate) fn take_output(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// What it reads, if that is piped.
    pub(crate) fn take_input(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// When it takes longer than `limit`, or somebody has had enough.
    pub(crate) fn wait(
        &mut self,
        limit: Duration,
        interrupted: Interrupted<'_>,
    ) -> Result<ExitStatus, Stop> {
        let mut status = None;
        let name = self.name.clone();
        wait_for(&format!("{name} to end"), limit, interrupted, || {
            status = self.ended();
            Ok(status.is_some())
        })?;
        status.ok_or_else(|| Stop::Failed(format!("{name} has no exit status")))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_some() {
            return;
        }
        if let Some(id) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may have ended by now; its number stays its own until it is waited for.
            let _ = kill_process(id, Signal::TERM);
        }
        let begun = Instant::now();
        while self.ended().is_none() {
            if begun.elapsed() > FAREWELL_MAX {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            thread::sleep(LOOK_INTERVAL);
        }
    }
}

/// Sees that a process ends that is no child of this one. `mark` is on its command line, so that a
/// number that was given to another process is left alone.
pub(crate) fn see_off(process: u32, mark: &Path) {
    let mark = mark.to_string_lossy();
    let is_there = || {
        std::fs::read(format!("/proc/{process}/cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains(mark.as_ref()))
    };
    let begun = Instant::now();
    while is_there() {
        if begun.elapsed() > FAREWELL_MAX {
            if let Some(id) = i32::try_from(process).ok().and_then(Pid::from_raw) {
                let _ = kill_process(id, Signal::KILL);
            }
            return;
        }
        thread::sleep(LOOK_INTERVAL);
    }
}

/// Looks again and again until `is_so`.
///
/// # Errors
///
/// When it takes longer than `limit`, somebody has had enough, or looking fails.
pub(crate) fn wait_for(
    what: &str,
    limit: Duration,
    interrupted: Interrupted<'_>,
    mut is_so: impl FnMut() -> Result<bool, Stop>,
) -> Result<(), Stop> {
    let begun = Instant::now();
    loop {
        if is_so()? {
            return Ok(());
        }
        if interrupted() {
            return Err(Stop::Interrupted);
        }
        if begun.elapsed() >= limit {
            return Err(Stop::Failed(format!(
                "waited {} s for {what}",
                limit.as_secs_f64()
            )));
        }
        thread::sleep(LOOK_INTERVAL);
    }
}

/// Waits, unless somebody has had enough.
pub(crate) fn pause(duration: Duration, interrupted: Interrupted<'_>) -> Result<(), Stop> {
    let begun = Instant::now();
    wait_for("nothing", Duration::MAX, interrupted, || {
        Ok(begun.elapsed() >= duration)
    })
}

/// Runs a command to its end and gives what it printed.
///
/// # Errors
///
/// When it does not end well, with what it complained about.
pub(crate) fn output_of(
    command: &mut Command,
    directory: &Path,
    limit: Duration,
    interrupted: Interrupted<'_>,
) -> Result<String, Stop> {
    let printed = directory.join("printed");
    let complained = directory.join("complained");
    command
        .stdin(Stdio::null())
        .stdout(create(&printed)?)
        .stderr(create(&complained)?);
    let mut process = Process::start(command)?;
    let status = process.wait(limit, interrupted)?;
    if !status.success() {
        let words = format!("{} {}", last_words(&printed), last_words(&complained));
        return Err(Stop::failed(
            format!("{} ended with {status}", process.name),
            words.trim(),
        ));
    }
    text_of(&printed)
}

/// Makes a file.
pub(crate) fn create(path: &Path) -> Result<File, Stop> {
    File::create(path).map_err(|error| Stop::failed("a temporary file", error))
}

/// A file's text, as far as it is of a reasonable length.
pub(crate) fn text_of(path: &Path) -> Result<String, Stop> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(OUTPUT_BYTES_MAX).read_to_string(&mut text))
        .map_err(|error| Stop::failed("a temporary file", error))?;
    Ok(text)
}

/// The end of a log, as one line.
pub(crate) fn last_words(path: &Path) -> String {
    let text = text_of(path).unwrap_or_default();
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let line = lines.join("; ");
    let letters = line.chars().count();
    line.chars()
        .skip(letters.saturating_sub(LOG_BYTES))
        .collect()
}

/// Where a program is, by `$PATH`.
pub(crate) fn installed(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(name).is_file())
}

/// How long a program may take to tell its version.
const VERSION_MAX: Duration = Duration::from_secs(5);

/// The version that an installed program tells of itself: the first number with a point in it.
pub(crate) fn version_of(program: &str) -> Option<String> {
    let directory = tempfile::tempdir().ok()?;
    let printed = directory.path().join("printed");
    let output = create(&printed).ok()?;
    let errors = output.try_clone().ok()?;
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null());
    let mut process = Process::start(command.stdout(output).stderr(errors)).ok()?;
    // Some end with a failure where they have done what was asked.
    process.wait(VERSION_MAX, &|| false).ok()?;
    let text = text_of(&printed).ok()?;
    let words = text.split_whitespace();
    let mut words = words.map(|word| word.trim_end_matches(','));
    let is_version = |word: &&str| {
        word.contains('.')
            && word.split('.').all(|part| {
                !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric())
            })
            && word.starts_with(|letter: char| letter.is_ascii_digit())
    };
    words.find(is_version).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: Interrupted<'static> = &|| false;

    #[test]
    fn what_a_command_prints_or_complains_about() {
        let directory = tempfile::tempdir().unwrap();
        let run = |script: &str, limit| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            output_of(&mut command, directory.path(), limit, NOBODY)
        };
        let long = Duration::from_secs(60);
        assert_eq!(run("echo a", long), Ok("a\n".to_owned()));
        let Err(Stop::Failed(reason)) = run("echo why >&2; exit 3", long) else {
            panic!("it failed");
        };
        assert!(reason.contains("exit status: 3: why"), "{reason}");
        assert!(run("sleep 60", Duration::ZERO).is_err());
        assert!(installed("sh") && !installed("no such program"));
        assert_eq!(version_of("no such program"), None);
        assert!(version_of("bash").is_none_or(|version| version.starts_with(char::is_numeric)));
    }

    #[test]
    fn who_has_had_enough_is_heard() {
        let mut process = Process::start(Command::new("sleep").arg("60")).unwrap();
        let outcome = process.wait(Duration::from_secs(60), &|| true);
        assert_eq!(outcome, Err(Stop::Interrupted));
    }
}
