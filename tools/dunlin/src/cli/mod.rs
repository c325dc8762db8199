//! The command line: commands, flags, help.
//!
//! | room | what is in it |
//! |---|---|
//! | here | the program and its commands |
//! | [`mod@bench`] | `bench` and what it does with results |
//! | [`guest`] | commands that make guests: `run`, `receive`, `demo` |
//! | [`moves`] | commands that move and steer: `send`, `cancel`, `set` |
//! | [`settle`] | `settle` |
//! | [`looks`] | commands that look and end: `status`, `top`, `report`, `stop`, `doctor`, `completions` |
//! | [`endpoint`] | `host`, `tcp://host:port` |
//! | [`rdma`] | the flags for RDMA |
//! | [`values`] | names, durations, lists |

pub(crate) mod bench;
pub(crate) mod endpoint;
pub(crate) mod guest;
pub(crate) mod looks;
pub(crate) mod moves;
pub(crate) mod rdma;
pub(crate) mod settle;
pub(crate) mod values;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use dunlin_engine::records::directory::StateDirectory;

use self::bench::BenchCommand;

use crate::local::runtime_dir::RuntimeDir;
use crate::local::state_dir;

const ABOUT: &str = "Moves running KVM virtual machines between hosts, with the shortest pause";

const LONG_ABOUT: &str = "\
Moves running KVM virtual machines from one host to another, with the shortest possible pause.

A guest is one process ('dunlin run'). The destination listens ('dunlin receive'). 'dunlin send' \
asks a guest to move there, shows the move live, and prints a receipt of the pause.

See it first: 'dunlin demo' moves a guest between two processes of this machine.";

const EXAMPLES: &str = "\
Examples:
  dunlin demo                                        see a guest move
  dunlin doctor                                      what can this host do?

  host-b$ dunlin receive --listen tcp://0.0.0.0      wait for guests
  host-a$ dunlin run --name vm1 --memory 4GiB        run a guest
  host-a$ dunlin send vm1 --to tcp://host-b          move it

Sizes take binary units (4GiB, 64MiB/s), durations a unit (50ms, 1.5s).
Each command's --help has its flags, examples and exit codes.";

/// The program.
#[derive(Debug, Parser)]
#[command(
    name = "dunlin",
    version,
    about = ABOUT,
    long_about = LONG_ABOUT,
    after_help = EXAMPLES,
    max_term_width = 100,
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do. Each command's own text stands at its arguments: a comment here would replace it.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(guest::Run),
    Send(moves::Send),
    Receive(guest::Receive),
    Status(looks::Status),
    Top(looks::Top),
    Report(looks::ShowReport),
    Cancel(moves::Cancel),
    Set(moves::Set),
    Stop(looks::Stop),
    Settle(settle::Settle),
    Demo(guest::Demo),
    Bench(Box<bench::Bench>),
    Doctor(looks::Doctor),
    Completions(looks::Completions),
    #[command(hide = true)]
    Incoming(guest::Incoming),
}

impl Command {
    /// Whether errors are told as JSON too.
    pub(crate) fn wants_json(&self) -> bool {
        match self {
            Self::Send(send) => send.json,
            Self::Receive(receive) => receive.json,
            Self::Status(status) => status.json,
            Self::Doctor(doctor) => doctor.json,
            Self::Cancel(cancel) => cancel.json,
            Self::Set(set) => set.json,
            Self::Stop(stop) => stop.json,
            Self::Settle(settle) => settle.json,
            Self::Run(_)
            | Self::Demo(_)
            | Self::Report(_)
            | Self::Top(_)
            | Self::Completions(_)
            | Self::Incoming(_) => false,
            Self::Bench(bench) => {
                matches!(&bench.command, Some(BenchCommand::Compare(compare)) if compare.json)
            }
        }
    }
}

/// Where guests' control sockets are.
#[derive(Clone, Debug, Args)]
pub(crate) struct Runtime {
    /// The directory of control sockets [default: $DUNLIN_RUNTIME_DIR, else
    /// $XDG_RUNTIME_DIR/dunlin, else /run/dunlin for root, else /tmp/dunlin-UID]
    #[arg(long, value_name = "DIR")]
    pub(crate) runtime_dir: Option<PathBuf>,
}

impl Runtime {
    /// The directory.
    pub(crate) fn directory(&self) -> RuntimeDir {
        RuntimeDir::chosen(self.runtime_dir.as_deref())
    }
}

/// Where the records of handovers are.
#[derive(Clone, Debug, Args)]
pub(crate) struct State {
    /// The directory of handovers' records; must outlive a restart of the host [default:
    /// $DUNLIN_STATE_DIR, else $XDG_STATE_HOME/dunlin, else /var/lib/dunlin for root, else
    /// ~/.local/state/dunlin]
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
}

impl State {
    /// The directory.
    pub(crate) fn directory(&self) -> StateDirectory {
        state_dir::chosen(self.state_dir.as_deref())
    }
}

/// Commands for what a guest holds outside of this host: disk locks, its place in the network.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(crate) struct HookChoices {
    /// Run by a shell on the destination once a guest is complete and before it runs; unless it
    /// exits with 0, the guest stays on the source. It is inside the pause
    #[arg(long, value_name = "COMMAND")]
    pub(crate) hook_acquire: Option<String>,
    /// Run by a shell once a guest is not here any more: moved away, ended, or never come. Hooks
    /// find DUNLIN_HOOK, _GUEST, _UUID, _EPOCH, _SESSION, _ROLE, _PEER and _REASON in their
    /// environment
    #[arg(long, value_name = "COMMAND")]
    pub(crate) hook_release: Option<String>,
    /// A hook that takes longer is killed, and has failed
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = values::some_duration)]
    pub(crate) hook_timeout: Duration,
}

impl HookChoices {
    /// The same choices on another command line.
    pub(crate) fn as_arguments(&self) -> Vec<String> {
        let acquire = self.hook_acquire.iter().map(|command| ("acquire", command));
        let release = self.hook_release.iter().map(|command| ("release", command));
        let hooks = acquire.chain(release);
        let mut arguments: Vec<String> = hooks
            .map(|(hook, command)| format!("--hook-{hook}={command}"))
            .collect();
        arguments.push(format!(
            "--hook-timeout={}ms",
            self.hook_timeout.as_millis()
        ));
        arguments
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::local::protocol::ZeroCopyChoice;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_explains_itself() {
        for command in Cli::command().get_subcommands_mut() {
            let help = command.render_long_help().to_string();
            if command.is_hide_set() {
                continue;
            }
            for part in ["Exit codes:", "Examples:"] {
                assert!(help.contains(part), "{}: {help}", command.get_name());
            }
            let about = command
                .get_about()
                .map(ToString::to_string)
                .unwrap_or_default();
            let long = command
                .get_long_about()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(about.len() > 10 && !about.ends_with('.'), "{about}");
            assert!(long.len() > about.len(), "{}: {long}", command.get_name());
        }
    }

    #[test]
    fn what_a_send_may_say() {
        let line = "dunlin send vm1 --to tcp://[::1]:9 --max-blackout 20ms --blackout-cap 1s \
             --on-stall switchover --max-bandwidth 64MiB/s --max-rounds 5 --timeout 2min \
             --verify full --lanes 4 --cpus 0,2-3 --bind 10.0.0.1 --tos 46 --io writev \
             --zero-copy off --compress zstd:3 --peer-timeout 3s --json --quiet --report /tmp/r \
             --rdma-device mlx5_0 --rdma-port 1 --rdma-gid-index 3 --rdma-tos 184 --rdma-sl 4 --rdma-pkey 0 --rdma-ack-timeout 12 \
             --poll spin";
        let Command::Send(send) = Cli::try_parse_from(line.split_whitespace())
            .unwrap()
            .command
        else {
            panic!("another command");
        };
        let order = send.order();
        let settings = order.settings();
        assert_eq!(order.to, "tcp://[::1]:9");
        assert_eq!(settings.max_blackout.as_millis(), 20);
        assert_eq!(settings.max_bandwidth, Some(64 << 20));
        assert_eq!(settings.cpus, [0, 2, 3]);
        assert_eq!(order.dscp, Some(46));
        assert_eq!(order.compress, "zstd:3");
        assert_eq!(order.zero_copy, ZeroCopyChoice::Off);
        assert_eq!(order.rdma.as_arguments().len(), 8);
    }

    #[test]
    fn where_less_is_reserved_memory_comes_in_small_pages() {
        use super::values::Prefault;
        for (given, expected) in [
            ("", Prefault::Auto),
            ("--reserve 99", Prefault::Off),
            ("--reserve 25 --prefault on", Prefault::On),
            ("--prefault off", Prefault::Off),
        ] {
            let line = format!("dunlin receive {given}");
            let Command::Receive(receive) = Cli::try_parse_from(line.split_whitespace())
                .unwrap()
                .command
            else {
                panic!("another command");
            };
            assert_eq!(receive.effective_prefault(), expected, "{given}");
        }
    }

    #[test]
    fn what_is_not_given_is_the_engines_default() {
        let Command::Send(send) = Cli::try_parse_from(["dunlin", "send", "vm1", "--to", "tcp://h"])
            .unwrap()
            .command
        else {
            panic!("another command");
        };
        assert_eq!(
            send.order().settings(),
            dunlin_engine::settings::MoveSettings::default()
        );
    }

    #[test]
    fn a_wrong_value_is_named() {
        for (line, named) in [
            ("dunlin send vm1 --to ho/st", "not a host name"),
            ("dunlin send vm1 --to sctp://h", "not a transport"),
            ("dunlin send ../x --to tcp://h", "a guest's name is"),
            (
                "dunlin send vm1 --to tcp://h --max-blackout 50",
                "has no unit",
            ),
            ("dunlin send vm1 --to tcp://h --max-bandwidth 64MiB", "rate"),
            ("dunlin run --name a --memory 1GB", "GiB"),
            ("dunlin set vm1", "required"),
            ("dunlin set vm1 --max-blackout 0s", "more than 0"),
        ] {
            let error = Cli::try_parse_from(line.split_whitespace()).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(named), "{line}: {error}");
        }
    }
}
