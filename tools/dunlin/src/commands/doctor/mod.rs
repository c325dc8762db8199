//! `dunlin doctor`: what this host can do for moving guests. It looks and changes nothing.
//!
//! | room | what is in it |
//! |---|---|
//! | here | the command, and how findings look |
//! | [`checks`] | the checks |

mod checks;

use std::io;

use serde::Serialize;

use crate::cli::looks::Doctor;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::render::palette::Palette;

/// How a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// As it should be.
    Ok,
    /// It works, with less speed or fewer choices.
    Limited,
    /// It is not there.
    Missing,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    /// What was looked at.
    name: &'static str,
    /// How it is.
    state: State,
    /// What was found.
    found: String,
    /// What that means; empty where it goes without saying.
    meaning: String,
    /// The command that changes it.
    remedy: Option<String>,
}

impl Finding {
    fn new(name: &'static str, state: State, found: impl Into<String>) -> Self {
        Self {
            name,
            state,
            found: found.into(),
            meaning: String::new(),
            remedy: None,
        }
    }

    fn meaning(self, meaning: impl Into<String>) -> Self {
        Self {
            meaning: meaning.into(),
            ..self
        }
    }

    fn remedy(self, remedy: impl Into<String>) -> Self {
        Self {
            remedy: Some(remedy.into()),
            ..self
        }
    }
}

/// All findings, as JSON.
#[derive(Serialize)]
struct Diagnosis {
    /// Whether a guest can be moved from here.
    can_move_guests: bool,
    checks: Vec<Finding>,
}

/// A finding without what it means and without advice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Fact {
    /// What was looked at.
    pub(crate) name: &'static str,
    /// `ok`, `limited`, `missing`.
    pub(crate) state: String,
    /// What was found.
    pub(crate) found: String,
}

/// What is found on this host.
pub(crate) fn facts() -> Vec<Fact> {
    let state = |state: State| match state {
        State::Ok => "ok",
        State::Limited => "limited",
        State::Missing => "missing",
    };
    let fact = |finding: Finding| Fact {
        name: finding.name,
        state: state(finding.state).to_owned(),
        found: finding.found,
    };
    checks::all().into_iter().map(fact).collect()
}

/// Looks at this host.
pub(crate) fn run(arguments: &Doctor) -> Result<Exit, Failure> {
    let diagnosis = diagnose();
    if arguments.json {
        super::print_json(&diagnosis)?;
    } else {
        super::print(&rendered(&diagnosis, Palette::of(&io::stdout())))?;
    }
    Ok(if diagnosis.can_move_guests {
        Exit::Done
    } else {
        Exit::No
    })
}

fn diagnose() -> Diagnosis {
    let checks = checks::all();
    // Either kind of guest will do: KVM's brings its own dirty tracking.
    let works = |name: &str| {
        checks
            .iter()
            .any(|check| check.name == name && check.state != State::Missing)
    };
    Diagnosis {
        can_move_guests: works(checks::KVM) || works(checks::PROCESS_TRACKING),
        checks,
    }
}

fn rendered(diagnosis: &Diagnosis, palette: Palette) -> String {
    let mut text = String::new();
    for check in &diagnosis.checks {
        let state = match check.state {
            State::Ok => palette.good("ok     "),
            State::Limited => palette.careful("limited"),
            State::Missing => palette.bad("missing"),
        };
        text.push_str(&format!("{state}  {:<18} {}\n", check.name, check.found));
        if !check.meaning.is_empty() {
            text.push_str(&format!("{:28}{}\n", "", palette.faint(&check.meaning)));
        }
        if let Some(remedy) = &check.remedy {
            text.push_str(&format!("{:28}→ {remedy}\n", ""));
        }
    }
    let verdict = if diagnosis.can_move_guests {
        palette.good("Guests can be moved from here. 'dunlin demo' shows it.")
    } else {
        palette.bad("No guest can be moved from here: neither KVM nor process tracking works.")
    };
    text.push_str(&format!("\n{verdict}\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_ok_says_what_it_means() {
        let diagnosis = diagnose();
        assert!(diagnosis.checks.len() >= 10);
        for check in &diagnosis.checks {
            assert!(!check.found.is_empty(), "{check:?}");
            assert!(
                check.state == State::Ok || !check.meaning.is_empty(),
                "{check:?}"
            );
        }
    }

    #[test]
    fn findings_are_lines() {
        let check = Finding::new("kvm", State::Missing, "no /dev/kvm")
            .meaning("only process guests run here")
            .remedy("modprobe kvm");
        let text = rendered(
            &Diagnosis {
                can_move_guests: false,
                checks: vec![check],
            },
            Palette::PLAIN,
        );
        assert!(
            text.starts_with("missing  kvm                no /dev/kvm\n"),
            "{text}"
        );
        assert!(text.contains("→ modprobe kvm"), "{text}");
        assert!(text.contains("No guest can be moved"), "{text}");
    }
}
