//! Many schedules, in processes of their own: a world leaves the threads and the memory of killed
//! processes behind, and a schedule that hangs must not take the others with it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::scenario::{Class, Doubt, play};

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

/// From so many schedules on every kind of end is there.
const SCHEDULES_ENOUGH: usize = 2000;

/// How many failing seeds are shown with their traces.
const TRACES_MAX: usize = 3;

/// How many lines of a trace are shown where the whole was not asked for: from its beginning, and
/// up to the first violation.
const TRACE_LINES: [usize; 2] = [45, 25];

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

/// A schedule as the runner hears of it.
#[derive(Clone, Debug)]
struct Told {
    seed: u64,
    class: Option<Class>,
    doubt: Option<Doubt>,
    faults: Vec<String>,
    violations: Vec<String>,
    steps: u64,
    took: Duration,
    digest: String,
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

fn command(first: u64, count: u64) -> Command {
    let program = std::env::current_exe().expect("this program has a name");
    let mut command = Command::new(program);
    command.args(["--first-seed", &first.to_string()]);
    command.args(["--schedules", &count.to_string()]);
    command
}

// ---- what is told ----

fn tell(all: &[Told], took: Duration) -> ExitCode {
    let mut faults = BTreeMap::<&str, u64>::new();
    for fault in all.iter().flat_map(|told| &told.faults) {
        *faults.entry(fault).or_default() += 1;
    }
    println!("faults:");
    for (fault, count) in &faults {
        println!("  {fault:<24} {count:>6}");
    }
    let failed: Vec<_> = all
        .iter()
        .filter(|told| !told.violations.is_empty())
        .collect();
    for told in failed.iter().take(TRACES_MAX) {
        show(told);
    }
    for told in failed.iter().skip(TRACES_MAX) {
        println!("seed {}: {}", told.seed, told.violations[0]);
    }
    let classes = Class::ALL.map(|(class, words)| {
        let count = all.iter().filter(|told| told.class == Some(class)).count();
        format!("{count} {words}")
    });
    let steps: u64 = all.iter().map(|told| told.steps).sum();
    let virtual_time: Duration = all.iter().map(|told| told.took).sum();
    println!(
        "{:.1} s, {:.0} schedules a second, {} steps and {:.1} s of virtual time each",
        took.as_secs_f64(),
        all.len() as f64 / took.as_secs_f64(),
        steps / (all.len() as u64).max(1),
        virtual_time.as_secs_f64() / (all.len() as f64).max(1.0),
    );
    let doubts = Doubt::ALL.map(|(doubt, words)| {
        let count = all.iter().filter(|told| told.doubt == Some(doubt)).count();
        format!("{count} {words}")
    });
    println!(
        "{} were in doubt for a while: {}",
        all.iter().filter(|told| told.doubt.is_some()).count(),
        doubts.join(", ")
    );
    println!(
        "{} schedules: {}, {} violations",
        all.len(),
        classes.join(", "),
        failed.len()
    );
    println!(
        "{} passed, {} failed",
        all.len() - failed.len(),
        failed.len()
    );
    if let Some(words) = shows_too_little(all) {
        println!("{words}");
        println!("0 passed, 1 failed");
        return ExitCode::FAILURE;
    }
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Schedules in which nothing happens find nothing. What is missing, where there are enough of
/// them to tell.
fn shows_too_little(all: &[Told]) -> Option<String> {
    if all.len() < SCHEDULES_ENOUGH {
        return None;
    }
    let count = |is_it: &dyn Fn(&&Told) -> bool| all.iter().filter(is_it).count();
    let moved = count(&|told| told.class == Some(Class::Moved));
    let unharmed = count(&|told| told.faults.is_empty());
    let missing_doubt = Doubt::ALL
        .into_iter()
        .filter(|(doubt, _)| *doubt != Doubt::Died)
        .find(|(doubt, _)| count(&|told| told.doubt == Some(*doubt)) == 0);
    match missing_doubt {
        Some((_, words)) => Some(format!(
            "no doubt was {words}: the schedules show too little"
        )),
        None if moved * 4 < all.len() || unharmed * 20 < all.len() => Some(format!(
            "{moved} of {} moved, {unharmed} without a fault: the schedules show too little",
            all.len()
        )),
        None => None,
    }
}

/// Tells whether a bug that was planted was found.
fn tell_found(all: &[Told]) -> ExitCode {
    let mut found = all.iter().filter(|told| !told.violations.is_empty());
    let Some(first) = found.next() else {
        println!("the planted bug was not found by {} schedules", all.len());
        println!("0 passed, 1 failed");
        return ExitCode::FAILURE;
    };
    show(first);
    println!(
        "the planted bug was found by {} of {} schedules, first by seed {}",
        1 + found.count(),
        all.len(),
        first.seed
    );
    println!("1 passed, 0 failed");
    ExitCode::SUCCESS
}

/// Plays a failing seed again, and shows how it came to it.
fn show(told: &Told) {
    println!("\nseed {} fails (digest {}):", told.seed, told.digest);
    for violation in &told.violations {
        println!("  {violation}");
    }
    if told.class.is_some() {
        let mut again = command(told.seed, 1);
        let output = again
            .arg("--trace")
            .output()
            .expect("this program can be started again");
        let output = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines: Vec<_> = output.lines().collect();
        let is_violation = |line: &&str| line.contains("VIOLATION");
        let end = lines.iter().position(is_violation);
        let end = end.map_or(lines.len(), |end| end + 1);
        let [head, tail] = TRACE_LINES;
        for (number, line) in lines[..end].iter().enumerate() {
            if number < head || number + tail >= end {
                println!("  {line}");
            } else if number == head {
                println!("  … {} lines …", end - head - tail);
            }
        }
    }
    println!("  again, as a whole: make simulate SEED={}\n", told.seed);
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
