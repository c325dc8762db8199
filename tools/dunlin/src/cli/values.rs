//! The values that flags take: names, sizes, durations, lists of CPUs. Each error names the value
//! and the right form.

use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use dunlin_engine::guest::{GUEST_NAME_BYTES_MAX, valid_guest_name};
use dunlin_engine::layout::Backing;
use dunlin_engine::pin_budget::{PIN_BUDGET_BYTES_MIN, PinBudget};
use dunlin_engine::settings::{OnStall, Verify};
use dunlin_transports::lane::LANES_MAX;
use dunlin_vmm::size::{format_size, parse_size};
use dunlin_vmm::spec::DirtyTracking;

/// The highest CPU number that Linux knows (`CONFIG_NR_CPUS` on x86-64).
const CPU_MAX: usize = 8191;

/// A guest's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GuestName(pub(crate) String);

impl FromStr for GuestName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if valid_guest_name(text) {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "a guest's name is 1 to {GUEST_NAME_BYTES_MAX} of A-Z a-z 0-9 . _ - and starts with a letter, a digit or _"
        ))
    }
}

/// How many lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lanes(pub(crate) Option<u16>);

impl FromStr for Lanes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self(None));
        }
        match text.parse() {
            Ok(lanes) if (1..=LANES_MAX).contains(&lanes) => Ok(Self(Some(lanes))),
            _ => Err(format!(
                "lanes are 'auto' or a number from 1 to {LANES_MAX}"
            )),
        }
    }
}

/// How much memory is registered at once.
pub(crate) fn pin_budget(text: &str) -> Result<PinBudget, String> {
    match text {
        "auto" => return Ok(PinBudget::Auto),
        "unlimited" => return Ok(PinBudget::Unlimited),
        _ => {}
    }
    match parse_size(text) {
        Ok(bytes) if bytes >= PIN_BUDGET_BYTES_MIN => Ok(PinBudget::Bytes(bytes)),
        Ok(_) => Err(format!(
            "a pin budget is at least {}, or 'unlimited' or 'auto'",
            format_size(PIN_BUDGET_BYTES_MIN)
        )),
        Err(error) => Err(format!("{error}; or 'unlimited' or 'auto'")),
    }
}

/// A pin budget as it is written.
pub(crate) fn pin_budget_text(budget: PinBudget) -> String {
    match budget {
        PinBudget::Auto => "auto".to_owned(),
        PinBudget::Unlimited => "unlimited".to_owned(),
        PinBudget::Bytes(bytes) => format_size(bytes),
    }
}

/// A share in percent, more than nothing.
pub(crate) fn percent(text: &str) -> Result<u8, String> {
    let digits = text.strip_suffix('%').unwrap_or(text);
    match digits.parse() {
        Ok(percent @ 1..=100) => Ok(percent),
        _ => Err("a share is a whole number from 1 to 100, in percent".to_owned()),
    }
}

/// CPUs, as in `0,2-5`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CpuList(pub(crate) Vec<usize>);

impl FromStr for CpuList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |piece: &str| {
            piece
                .parse()
                .ok()
                .filter(|cpu| *cpu <= CPU_MAX)
                .ok_or_else(|| format!("'{piece}' is not a CPU number; a list looks like 0,2-5"))
        };
        let mut cpus = Vec::new();
        for piece in text.split(',') {
            let (first, last) = match piece.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => (number(piece)?, number(piece)?),
            };
            if first > last {
                return Err(format!("'{piece}' runs backwards; a list looks like 0,2-5"));
            }
            for cpu in first..=last {
                if !cpus.contains(&cpu) {
                    cpus.push(cpu);
                }
            }
        }
        Ok(Self(cpus))
    }
}

/// Reads a duration: `50ms`, `1.5s`, `300us`, `2min`, `1h`. A unit is needed: a bare number is as
/// often meant as seconds as it is as milliseconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let form = || "a duration looks like 300us, 50ms, 1.5s, 2min or 1h".to_owned();
    let digits = text
        .find(|letter: char| !letter.is_ascii_digit() && letter != '.')
        .ok_or_else(|| format!("'{text}' has no unit; {}", form()))?;
    let (number, unit) = text.split_at(digits);
    let unit_seconds = match unit {
        "ns" => 1e-9,
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(form()),
    };
    let number: f64 = number.parse().map_err(|_| form())?;
    // A century bounds it, so that no sum of a deadline can overflow.
    const CENTURY_SECONDS: f64 = 100.0 * 366.0 * 86_400.0;
    let seconds = number * unit_seconds;
    if seconds > CENTURY_SECONDS {
        return Err("that is longer than a century".to_owned());
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| form())
}

/// As [`duration`], but more than nothing.
pub(crate) fn some_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("it has to be more than 0".to_owned()),
        duration => Ok(duration),
    }
}

/// Which kind of guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum GuestKind {
    /// A KVM virtual machine where /dev/kvm can be used, otherwise threads of a process
    #[default]
    Auto,
    /// A KVM virtual machine
    Kvm,
    /// Threads of a process; needs no KVM
    Process,
}

/// What backs guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackingChoice {
    /// A memfd
    #[default]
    Memfd,
    /// Huge pages, which have to be reserved (vm.nr_hugepages)
    Hugetlb,
    /// Private anonymous memory
    Anon,
}

impl From<BackingChoice> for Backing {
    fn from(choice: BackingChoice) -> Self {
        match choice {
            BackingChoice::Memfd => Self::Memfd,
            BackingChoice::Hugetlb => Self::Hugetlb,
            BackingChoice::Anon => Self::Anonymous,
        }
    }
}

/// What backs an arriving guest's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReceiveBacking {
    /// What the source has
    #[default]
    Same,
    /// A memfd
    Memfd,
    /// Huge pages, which have to be reserved (vm.nr_hugepages)
    Hugetlb,
    /// Private anonymous memory
    Anon,
}

impl ReceiveBacking {
    /// The backing that was asked for; `None`: what the source has.
    pub(crate) fn backing(self) -> Option<Backing> {
        match self {
            Self::Same => None,
            Self::Memfd => Some(Backing::Memfd),
            Self::Hugetlb => Some(Backing::Hugetlb),
            Self::Anon => Some(Backing::Anonymous),
        }
    }
}

/// When an arriving guest's memory is backed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Prefault {
    /// As data comes, in huge pages where the host has them, and ahead of it by the processors that
    /// lanes leave
    #[default]
    Auto,
    /// All of it before the move begins, what the guest never touched as well
    On,
    /// As data comes, in small pages: what a guest does not use takes nothing
    Off,
}

/// How a KVM guest's writes are tracked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum TrackingChoice {
    /// The bitmap where it can be cleared by parts, otherwise the ring
    #[default]
    Auto,
    /// KVM's dirty bitmap
    Bitmap,
    /// KVM's dirty ring
    Ring,
}

impl From<TrackingChoice> for DirtyTracking {
    fn from(choice: TrackingChoice) -> Self {
        match choice {
            TrackingChoice::Auto => Self::Auto,
            TrackingChoice::Bitmap => Self::Bitmap,
            TrackingChoice::Ring => Self::Ring,
        }
    }
}

/// What happens when rounds don't help any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum StallChoice {
    /// The move ends and the guest stays
    #[default]
    Abort,
    /// Pause although the prediction is over the budget, never over the cap
    Switchover,
}

impl From<StallChoice> for OnStall {
    fn from(choice: StallChoice) -> Self {
        match choice {
            StallChoice::Abort => Self::Abort,
            StallChoice::Switchover => Self::Switchover,
        }
    }
}

/// How the two memories are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum VerifyChoice {
    /// After the handover, page by page, where the guest can check itself; costs no blackout
    #[default]
    Auto,
    /// Not at all
    Off,
    /// By digests of all memory inside the pause; costs blackout
    Full,
}

impl From<VerifyChoice> for Verify {
    fn from(choice: VerifyChoice) -> Self {
        match choice {
            VerifyChoice::Auto => Self::Auto,
            VerifyChoice::Off => Self::Off,
            VerifyChoice::Full => Self::Full,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit_and_keep_their_value() {
        for (text, nanoseconds) in [
            ("50ms", 50_000_000_u128),
            ("1.5s", 1_500_000_000),
            ("300us", 300_000),
            ("2min", 120_000_000_000),
            ("1h", 3_600_000_000_000),
            ("7ns", 7),
        ] {
            assert_eq!(duration(text).unwrap().as_nanos(), nanoseconds, "{text}");
        }
        for bad in [
            "",
            "50",
            "ms",
            "-1s",
            "1 s",
            "1.2.3s",
            "5parsecs",
            "1e9s",
            "999999999h",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert!(some_duration("0ms").is_err());
    }

    #[test]
    fn cpu_lists() {
        assert_eq!("0,2-4,3".parse(), Ok(CpuList(vec![0, 2, 3, 4])));
        for bad in ["", "a", "3-1", "0,,1", "0-", "9999"] {
            assert!(bad.parse::<CpuList>().is_err(), "{bad}");
        }
    }

    #[test]
    fn lanes_have_bounds() {
        assert_eq!("auto".parse(), Ok(Lanes(None)));
        assert_eq!("64".parse(), Ok(Lanes(Some(64))));
        assert!("0".parse::<Lanes>().is_err());
        assert!("65".parse::<Lanes>().is_err());
    }

    #[test]
    fn pin_budgets_have_a_least_size_and_keep_their_value() {
        for budget in [
            PinBudget::Auto,
            PinBudget::Unlimited,
            PinBudget::Bytes(8 << 20),
            PinBudget::Bytes(3 << 30),
        ] {
            assert_eq!(pin_budget(&pin_budget_text(budget)), Ok(budget));
        }
        for bad in ["", "0", "7MiB", "8MB", "none", "-1"] {
            let error = pin_budget(bad).unwrap_err();
            assert!(error.contains("'unlimited' or 'auto'"), "{error}");
        }
    }

    #[test]
    fn names_can_not_leave_the_directory() {
        for bad in ["", "../x", ".x", "-x", "a/b", "a b"] {
            assert!(bad.parse::<GuestName>().is_err(), "{bad}");
        }
        assert!("vm1".parse::<GuestName>().is_ok());
    }
}
