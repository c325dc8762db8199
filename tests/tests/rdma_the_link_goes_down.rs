//! The link goes down under a move over RDMA: in the middle of a round, inside the pause, and on both
//! sides of the give-up. Before it the guest goes on at the source, which says why; behind it the
//! guest is kept until the link is back, and then it is settled without a person. And then it can be
//! moved as if nothing had been.
//!
//! It takes the virtual interface below the device down, so it needs root, and the device alone. That
//! next move goes over TCP, since an rxe device may not let anybody connect by then.

use anyhow::{Context, Result};
use dunlin_tests::chaos::arena::{Arena, Fabric, GuestKind, Stage, There};
use dunlin_tests::chaos::fault::{Phase, Victim};
use dunlin_tests::chaos::ledger::judge;
use dunlin_tests::host::has_kvm;
use dunlin_tests::program::eventually;
use dunlin_tests::rdma::Ends;
use dunlin_tests::rdma::wire::Wire;
use serde_json::Value;

/// What a lane says that its device told.
const DOWN: &str = "using the device: port 1 of RDMA device";

/// A move over RDMA that stands at a phase; `None`, and says so, where that can't be.
fn stopped_at(phase: Phase, who: Victim) -> Result<Option<Arena>> {
    let Some(ends) = Ends::here() else {
        return Ok(None);
    };
    if !has_kvm() || Wire::at(ends.destination)?.is_none() {
        return Ok(None);
    }
    let fabric = Fabric::Rdma(ends);
    let stage = Stage {
        fabric,
        kind: GuestKind::Kvm,
        phase,
        has_link: true,
    };
    let mut arena = Arena::set_up(stage, "")?;
    arena.begin(fabric.peer_timeout())?;
    eventually(phase.name(), || Ok(arena.is_stopped(who)))?;
    Ok(Some(arena))
}

/// Hears 'send' out: it ended with `code`.
fn report(arena: &mut Arena, code: i32) -> Result<Value> {
    let send = arena.take_send().context("nobody sends")?;
    send.wait()?.expect_code(code)?.json()
}

/// Sees that nothing is held, that the guest can be moved once more, and that its own ledger is
/// without fault.
fn expect_as_before(mut arena: Arena) -> Result<()> {
    arena.expect_nothing_held()?;
    eventually("the link carries again", || Ok(arena.is_receiver_reached()))?;
    arena.go_over("tcp")?;
    arena.begin(Fabric::Tcp.peer_timeout() * 40)?;
    let moved = report(&mut arena, 0)?;
    assert_eq!(moved["outcome"], "moved", "{moved:#}");
    arena.expect_nothing_held()?;
    end(arena)
}

fn end(mut arena: Arena) -> Result<()> {
    assert_eq!(arena.tear_down()?, Vec::<String>::new());
    assert_eq!(judge(&arena.accounts()), vec![]);
    Ok(())
}

fn loops(arena: &mut Arena) -> u64 {
    match arena.look_here() {
        There::Says(guest) => guest["workload"]["loops"].as_u64().unwrap_or_default(),
        _ => 0,
    }
}

/// The link goes down before the give-up: the source says why, in one of these ways, and runs the
/// guest, while the link is down.
fn stays(phase: Phase, whys: &[&str]) -> Result<()> {
    let Some(mut arena) = stopped_at(phase, Victim::Run)? else {
        return Ok(());
    };
    arena.set_link(false)?;
    arena.signal(Victim::Run, libc::SIGCONT)?;
    let failed = report(&mut arena, 5)?;
    let reason = failed["reason"].as_str().unwrap_or_default();
    println!("{}: {reason}", phase.name());
    assert_eq!(failed["outcome"], "peer-failed", "{failed:#}");
    assert!(whys.iter().any(|why| reason.contains(why)), "{reason}");
    let before = loops(&mut arena);
    eventually("the guest goes on at the source", || {
        Ok(arena.look_here().runs_alone() && loops(&mut arena) > before)
    })?;
    eventually("the destination gives it up", || {
        Ok(arena.look_there() == There::Nothing)
    })?;
    arena.expect_nothing_held()?;
    arena.set_link(true)?;
    expect_as_before(arena)
}

#[test]
fn in_the_middle_of_a_round() -> Result<()> {
    // A lane that waits for the destination to open memory does not look at the device; then it is
    // the silence on the control connection that is noticed.
    stays(Phase::Round, &[DOWN, "the peer was silent"])
}

#[test]
fn while_the_guest_is_paused() -> Result<()> {
    stays(Phase::Paused, &[DOWN])
}

/// The source comes to doubt, and says that it keeps the guest.
fn expect_doubt(arena: &mut Arena) -> Result<()> {
    eventually("the source says that the owner is not known", || {
        Ok(arena.look_here().state() == "unknown-owner")
    })?;
    let There::Says(guest) = arena.look_here() else {
        anyhow::bail!("the source says nothing any more");
    };
    let reason = guest["in_doubt"].as_str().unwrap_or_default();
    println!("in doubt: {reason}");
    assert!(reason.contains("kept paused"), "{guest:#}");
    // It may take long: nothing is pinned meanwhile.
    arena.expect_nothing_held()
}

#[test]
fn commit_does_not_arrive() -> Result<()> {
    let Some(mut arena) = stopped_at(Phase::GivenUp, Victim::Run)? else {
        return Ok(());
    };
    arena.set_link(false)?;
    arena.signal(Victim::Run, libc::SIGCONT)?;
    expect_doubt(&mut arena)?;
    eventually("the destination gives the guest up", || {
        Ok(arena.look_there() == There::Nothing)
    })?;
    arena.set_link(true)?;
    let settled = report(&mut arena, 5)?;
    assert_eq!(settled["in_doubt"]["settled_by"], "answer", "{settled:#}");
    eventually("the source resumes", || Ok(arena.look_here().runs_alone()))?;
    expect_as_before(arena)
}

#[test]
fn the_destination_runs_it_and_the_source_learns_so() -> Result<()> {
    let Some(mut arena) = stopped_at(Phase::Commit, Victim::Incoming)? else {
        return Ok(());
    };
    arena.set_link(false)?;
    arena.signal(Victim::Incoming, libc::SIGCONT)?;
    eventually("the destination runs the guest", || {
        Ok(arena.look_there().state() == "running")
    })?;
    expect_doubt(&mut arena)?;
    arena.set_link(true)?;
    let settled = report(&mut arena, 0)?;
    assert_eq!(settled["in_doubt"]["settled_by"], "answer", "{settled:#}");
    eventually("the source frees the guest", || {
        Ok(arena.look_here() == There::Nothing)
    })?;
    assert!(arena.look_there().runs_alone());
    arena.expect_nothing_held()?;
    end(arena)
}
