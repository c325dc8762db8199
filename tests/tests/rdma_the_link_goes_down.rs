//! The link goes down under a move over RDMA: in the middle of a round, inside the pause, and on both
//! sides of the give-up. Before it the guest goes on at the source, which says why; behind it the
//! guest is kept until the link is back, and then it is settled without a person. And then it can be
//! moved as if nothing had been.
//!
//! It takes the virtual interface below the device down, so it needs root, and the device alone. That
//! next move goes over TCP, since an rxe device may not let anybody connect by then.

use anyhow::{Context, Result, bail, ensure};
use dunlin_tests::chaos::arena::{Arena, Fabric, GuestKind, Stage, There};
use dunlin_tests::chaos::fault::{Phase, Victim};
use dunlin_tests::chaos::ledger::judge;
use dunlin_tests::chaos::run::was_busy;
use dunlin_tests::host::has_kvm;
use dunlin_tests::program::eventually;
use dunlin_tests::rdma::Ends;
use dunlin_tests::rdma::wire::Wire;
use serde_json::Value;

/// What the device said, in the words of a lane or of who waits for the other side.
const DOWN: &str = "port 1 of RDMA device";

/// How often a move is begun again that ended before its phase came, because the machine kept a peer
/// from speaking for so long.
const ATTEMPTS_MAX: u32 = 4;

/// How long a side may be silent, as a multiple of the fabric's own measure: here it is not the
/// silence alone that tells, and everything emulated may stand still for some seconds.
const PATIENCE: u32 = 3;

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
    for _ in 0..ATTEMPTS_MAX {
        let mut arena = Arena::set_up(stage, "")?;
        arena.begin(fabric.peer_timeout() * PATIENCE)?;
        eventually(phase.name(), || {
            Ok(arena.is_stopped(who) || arena.has_sent_ended())
        })?;
        if arena.is_stopped(who) {
            return Ok(Some(arena));
        }
        let why = arena.look_here().last_move();
        println!("'{}' did not come{why}", phase.name());
        ensure!(was_busy(&why), "the move ended before its phase");
        arena.tear_down()?;
    }
    bail!("the machine is too busy to get there")
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

/// The link goes down before the give-up: the source says so, and runs the guest, while the link is
/// down.
fn stays(phase: Phase) -> Result<()> {
    let Some(mut arena) = stopped_at(phase, Victim::Run)? else {
        return Ok(());
    };
    arena.set_link(false)?;
    arena.signal(Victim::Run, libc::SIGCONT)?;
    let failed = report(&mut arena, 5)?;
    let reason = failed["reason"].as_str().unwrap_or_default();
    println!("{}: {reason}", phase.name());
    assert_eq!(failed["outcome"], "peer-failed", "{failed:#}");
    assert!(
        reason.contains(DOWN) && reason.contains("is down"),
        "{reason}"
    );
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
    stays(Phase::Round)
}

#[test]
fn while_the_guest_is_paused() -> Result<()> {
    stays(Phase::Paused)
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
