//! The link is cut between the source's COMMIT and the destination's RUNNING: the source can't know
//! who owns the guest, keeps it paused and says so. Once the link is back it finds out by itself,
//! and no person has to decide.

use std::time::Duration;

use anyhow::{Context, Result};
use dunlin_tests::chaos::arena::{Arena, Fabric, GuestKind, Stage, There};
use dunlin_tests::chaos::fault::{Phase, Victim};
use dunlin_tests::chaos::ledger::judge;
use dunlin_tests::host::{has_kvm, has_namespaces};
use dunlin_tests::program::eventually;

const PEER_TIMEOUT: Duration = Duration::from_millis(500);

/// A move whose link is cut when `who` stands at `phase`; `who` goes on then, and the source has
/// come to doubt.
fn cut_at(phase: Phase, who: Victim, kind: GuestKind, link: &str) -> Result<Arena> {
    let stage = Stage {
        fabric: Fabric::Tcp,
        kind,
        phase,
        has_link: true,
    };
    let mut arena = Arena::set_up(stage, link)?;
    arena.begin(PEER_TIMEOUT)?;
    eventually(phase.name(), || Ok(arena.is_stopped(who)))?;
    arena.set_link(false)?;
    arena.signal(who, libc::SIGCONT)?;
    eventually("the source says that the owner is not known", || {
        Ok(arena.look_here().state() == "unknown-owner")
    })?;
    let There::Says(guest) = arena.look_here() else {
        anyhow::bail!("the source says nothing any more");
    };
    let reason = guest["in_doubt"].as_str().unwrap_or_default();
    assert!(reason.contains("kept paused"), "{guest:#}");
    Ok(arena)
}

/// Sees that `send` ends with `code`, and that the guest's own ledger is without fault.
fn expect_settled(mut arena: Arena, code: i32) -> Result<()> {
    let report = arena
        .take_send()
        .context("nobody sends")?
        .wait()?
        .expect_code(code)?
        .json()?;
    assert_eq!(report["in_doubt"]["settled_by"], "answer", "{report:#}");
    assert_eq!(arena.tear_down()?, Vec::<String>::new());
    assert_eq!(judge(&arena.accounts()), vec![]);
    Ok(())
}

fn expect_moved(mut arena: Arena) -> Result<()> {
    eventually("the source frees the guest", || {
        Ok(arena.look_here() == There::Nothing)
    })?;
    assert!(arena.look_there().runs_alone());
    expect_settled(arena, 0)
}

fn kinds() -> Vec<GuestKind> {
    let kvm = has_kvm().then_some(GuestKind::Kvm);
    kvm.into_iter().chain([GuestKind::Process]).collect()
}

#[test]
fn the_destination_runs_it_and_the_source_learns_so() -> Result<()> {
    if !has_namespaces() {
        return Ok(());
    }
    for kind in kinds() {
        let mut arena = cut_at(Phase::Commit, Victim::Incoming, kind, "lc")?;
        eventually("the destination runs the guest", || {
            Ok(arena.look_there().state() == "running")
        })?;
        arena.set_link(true)?;
        expect_moved(arena)?;
    }
    Ok(())
}

#[test]
fn the_supervisor_is_killed_and_started_again_meanwhile() -> Result<()> {
    if !has_namespaces() {
        return Ok(());
    }
    for kind in kinds() {
        let mut arena = cut_at(Phase::Commit, Victim::Incoming, kind, "lr")?;
        arena.signal(Victim::Receive, libc::SIGKILL)?;
        arena.restart_receiver()?;
        arena.set_link(true)?;
        expect_moved(arena)?;
    }
    Ok(())
}

#[test]
fn commit_does_not_arrive_and_the_guest_goes_on_at_the_source() -> Result<()> {
    if !has_namespaces() {
        return Ok(());
    }
    for kind in kinds() {
        let mut arena = cut_at(Phase::GivenUp, Victim::Run, kind, "lg")?;
        eventually("the destination gives the guest up", || {
            Ok(arena.look_there() == There::Nothing)
        })?;
        arena.set_link(true)?;
        eventually("the source resumes", || Ok(arena.look_here().runs_alone()))?;
        expect_settled(arena, 5)?;
    }
    Ok(())
}
