//! Many schedules, in processes of their own: a world leaves the threads and the memory of killed
//! processes behind, and a schedule that hangs must not take the others with it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::judgement::{Class, Doubt};
use super::scenario::play;
use super::telling::{Told, tell, tell_found};

/// How it is called.
pub(crate) const USAGE: &str = "\
flags behind '--':
  --schedules N    how many schedules (2000)
  --first-seed N   the first one's seed (1); the others count up from there
  --seed N         only this one
  --trace          say what happens in it
  --jobs N         how many processes at a time (as many as there are cores)
  --planted-bug    succeed where the schedules find one";

/// So many schedules are played by one process.
const SCHEDULES_OF_PROCESS: u64 = 100;

/// A schedule takes some 10 ms. One that takes this long waits for something real.
const HANG: Duration = Duration::from_secs(120);

/// What was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Flags {
    schedules: u64,
    first_seed: u64,
    trace: bool,
    jobs: usize,
    /// There is a bug to be found.
    is_planted: bool,
    /// Plays the schedules itself and tells of each in a line for the runner.
    is_child: bool,
}

impl Flags {
    /// Reads the command line. Flags of the usual test harness that ask for nothing are passed
    /// over, so that `cargo test -- --show-output` works here too.
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut flags = Self {
            schedules: 2000,
            first_seed: 1,
            trace: false,
            jobs: std::thread::available_parallelism().map_or(1, usize::from),
            is_planted: false,
            is_child: false,
        };
        while let Some(word) = words.next() {
            let mut number = || {
                let value = words.next().unwrap_or_default();
                let number = value.parse::<u64>();
                number.map_err(|_| format!("{word} wants a number, not '{value}'"))
            };
            match word.as_str() {
                "--schedules" => flags.schedules = number()?,
                "--first-seed" => flags.first_seed = number()?,
                "--seed" => {
                    flags.first_seed = number()?;
                    flags.schedules = 1;
                }
                "--jobs" => flags.jobs = number()?.clamp(1, 256) as usize,
                "--trace" => flags.trace = true,
                "--planted-bug" => flags.is_planted = true,
                "--child" => flags.is_child = true,
                "--show-output" | "--nocapture" | "-q" | "--quiet" => {}
                _ => return Err(format!("there is no flag '{word}'")),
            }
        }
        Ok(flags)
    }
}

/// Plays what was asked for.
pub(crate) fn run(flags: &Flags) -> ExitCode {
    if flags.is_child {
        play_as_child(flags);
        return ExitCode::SUCCESS;
    }
    if flags.trace {
        return play_with_trace(flags);
    }
    play_all(flags)
}

// ---- one process's share ----

/// What separates a line's fields, and the words of one field: in no text of ours.
const FIELD: char = '\u{1f}';
const WORDS: char = '\u{1e}';

fn play_as_child(flags: &Flags) {
    let mut out = std::io::stdout();
    for seed in flags.first_seed..flags.first_seed + flags.schedules {
        let mut judged = play(seed, false);
        if seed == flags.first_seed && play(seed, false).digest != judged.digest {
            let words = "played again, the same seed is another schedule";
            judged.violations.push(words.to_owned());
        }
        let class = Class::ALL
            .iter()
            .position(|(class, _)| *class == judged.class);
        let doubt = Doubt::ALL
            .iter()
            .position(|(doubt, _)| Some(*doubt) == judged.doubt);
        let line = [
            seed.to_string(),
            class.unwrap_or_default().to_string(),
            doubt.map_or_else(String::new, |doubt| doubt.to_string()),
            match judged.again {
                Some(again) => u8::from(again == Class::Moved).to_string(),
                None => String::new(),
            },
            judged.steps.to_string(),
            judged.took.as_nanos().to_string(),
            format!("{:016x}", judged.digest),
            judged.faults.join(&WORDS.to_string()),
            judged.violations.join(&WORDS.to_string()),
        ];
        let line = line.join(&FIELD.to_string()).replace('\n', " ");
        writeln!(out, "{line}").expect("the runner reads what its processes tell");
    }
}

fn parse(line: &str) -> Option<Told> {
    let mut fields = line.split(FIELD);
    let mut next = || fields.next();
    let words = |field: &str| -> Vec<String> {
        let words = field.split(WORDS).filter(|word| !word.is_empty());
        words.map(str::to_owned).collect()
    };
    Some(Told {
        seed: next()?.parse().ok()?,
        class: Class::ALL
            .get(next()?.parse::<usize>().ok()?)
            .map(|(class, _)| *class),
        doubt: next()?
            .parse::<usize>()
            .ok()
            .and_then(|doubt| Some(Doubt::ALL.get(doubt)?.0)),
        moved_again: next()?.parse::<u8>().ok().map(|moved| moved == 1),
        steps: next()?.parse().ok()?,
        took: Duration::from_nanos(next()?.parse().ok()?),
        digest: next()?.to_owned(),
        faults: words(next()?),
        violations: words(next()?),
    })
}

// ---- all of them ----

fn play_all(flags: &Flags) -> ExitCode {
    let begun = Instant::now();
    let end = flags.first_seed + flags.schedules;
    let next = AtomicU64::new(flags.first_seed);
    let all = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..flags.jobs {
            scope.spawn(|| {
                loop {
                    let first = next.fetch_add(SCHEDULES_OF_PROCESS, Ordering::SeqCst);
                    if first >= end {
                        return;
                    }
                    let told = play_share(first, SCHEDULES_OF_PROCESS.min(end - first));
                    all.lock().unwrap().extend(told);
                }
            });
        }
    });
    let mut all = all.into_inner().unwrap();
    all.sort_by_key(|told: &Told| told.seed);
    if flags.is_planted {
        return tell_found(&all);
    }
    tell(&all, begun.elapsed())
}

/// Has processes of their own play schedules; one that hangs or dies costs one schedule.
fn play_share(first: u64, count: u64) -> Vec<Told> {
    let mut told = Vec::new();
    let end = first + count;
    let mut seed = first;
    while seed < end {
        let failure = play_in_process(seed, end - seed, &mut told);
        seed = told
            .last()
            .map_or(seed, |last: &Told| last.seed + 1)
            .max(seed);
        if let Some(words) = failure {
            told.push(Told {
                seed,
                class: None,
                doubt: None,
                moved_again: None,
                faults: Vec::new(),
                violations: vec![words],
                steps: 0,
                took: Duration::ZERO,
                digest: String::new(),
            });
            seed += 1;
        }
    }
    told
}

fn play_in_process(first: u64, count: u64, told: &mut Vec<Told>) -> Option<String> {
    let mut child = command(first, count)
        .arg("--child")
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program can be started again");
    let out = child.stdout.take().expect("its output is a pipe");
    let (sender, lines) = channel();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let failure = loop {
        match lines.recv_timeout(HANG) {
            Ok(line) => match parse(&line) {
                Some(one) => told.push(one),
                None => break Some(format!("its process said '{line}'")),
            },
            Err(RecvTimeoutError::Timeout) => {
                break Some(format!(
                    "it hangs: nothing for {} s of real time",
                    HANG.as_secs()
                ));
            }
            Err(RecvTimeoutError::Disconnected) => break None,
        }
    };
    if failure.is_some() {
        child.kill().expect("an own process can be killed");
    }
    let status = child.wait().expect("an own process ends");
    reader.join().expect("reading lines does not panic");
    failure.or_else(|| (!status.success()).then(|| format!("its process died: {status}")))
}

pub(crate) fn command(first: u64, count: u64) -> Command {
    let program = std::env::current_exe().expect("this program has a name");
    let mut command = Command::new(program);
    command.args(["--first-seed", &first.to_string()]);
    command.args(["--schedules", &count.to_string()]);
    command
}

fn play_with_trace(flags: &Flags) -> ExitCode {
    let mut has_failed = false;
    for seed in flags.first_seed..flags.first_seed + flags.schedules {
        let judged = play(seed, true);
        for line in &judged.trace {
            println!("{line}");
        }
        for violation in &judged.violations {
            println!("VIOLATION: {violation}");
        }
        has_failed |= !judged.violations.is_empty();
        println!(
            "seed {seed}: {:?}, {} steps, {:.3} s of virtual time, digest {:016x}",
            judged.class,
            judged.steps,
            judged.took.as_secs_f64(),
            judged.digest
        );
    }
    if has_failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
