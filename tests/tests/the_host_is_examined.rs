//! `dunlin doctor`, `dunlin completions` and the help: what a person meets first.

use anyhow::Result;
use dunlin_tests::site::Site;

#[test]
fn doctor_says_what_this_host_can_do() -> Result<()> {
    let site = Site::new()?;
    let text = site.run(&["doctor"])?.expect_code(0)?;
    for word in ["kernel", "KVM", "io_uring", "huge pages"] {
        assert!(
            text.stdout.to_lowercase().contains(&word.to_lowercase()),
            "'{word}': {}",
            text.stdout
        );
    }
    let json = site.run(&["doctor", "--json"])?.expect_code(0)?.json()?;
    assert!(
        json["checks"]
            .as_array()
            .is_some_and(|checks| checks.len() > 5),
        "{json:#}"
    );
    Ok(())
}

#[test]
fn completions_for_each_shell() -> Result<()> {
    let site = Site::new()?;
    for shell in ["bash", "zsh", "fish"] {
        let script = site.run(&["completions", shell])?.expect_code(0)?;
        assert!(script.stdout.contains("max-blackout"), "{shell}");
    }
    Ok(())
}

#[test]
fn every_command_has_help() -> Result<()> {
    let site = Site::new()?;
    for command in [
        "demo",
        "run",
        "send",
        "receive",
        "status",
        "cancel",
        "set",
        "doctor",
        "completions",
    ] {
        let help = site.run(&[command, "--help"])?.expect_code(0)?;
        for part in ["Usage:", "Options:", "Examples:", "Exit codes:"] {
            assert!(help.stdout.contains(part), "{command}: no '{part}'");
        }
    }
    Ok(())
}
