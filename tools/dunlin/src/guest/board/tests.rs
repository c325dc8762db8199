//! What may be asked of a guest in which state, and what watchers get to see.

use dunlin_engine::report::Phase;

use super::*;
use crate::guest::watch::News;
use crate::render::example;

fn board() -> Arc<Board> {
    let board = Board::new(facts(), GuestState::Running);
    Arc::new(board)
}

fn facts() -> Facts {
    Facts {
        name: "vm1".to_owned(),
        uuid: String::new(),
        kind: "kvm".to_owned(),
        memory_bytes: 0,
        backing: String::new(),
        vcpus: 1,
    }
}

fn order() -> MoveOrder {
    MoveOrder::to("tcp://h:1")
}

fn progress(round: u32) -> Progress {
    Progress {
        phase: Phase::Copying,
        round,
        dirty_pages: 0,
        remaining_pages: 0,
        sent_bytes: 0,
        rate_bytes_per_s: 0,
        eta_ns: None,
        predicted_blackout_ns: None,
        elapsed_ns: 0,
        lanes: Vec::new(),
    }
}

#[test]
fn one_move_at_a_time() {
    let board = board();
    assert!(board.watch().is_err());
    assert!(board.handle().is_err());
    board.begin_move(&order()).unwrap();
    assert_eq!(board.begin_move(&order()).unwrap_err().exit, Exit::Conflict);
    board.end_move(example::failed(Outcome::Refused, "no"));
    assert_eq!(board.state(), GuestState::Running);
    board.begin_move(&order()).unwrap();
    board.end_move(example::moved());
    assert_eq!(board.state(), GuestState::Moved);
    assert!(board.begin_move(&order()).is_err());
}

#[test]
fn a_watcher_gets_every_note_the_newest_progress_and_the_report() {
    let board = board();
    board.begin_move(&order()).unwrap();
    let mut watch = board.watch().unwrap();
    board.note("a");
    board.note("b");
    board.progress(&progress(1));
    board.progress(&progress(2));
    let now = Duration::ZERO;
    assert!(matches!(watch.next(now), News::Note(note) if note == "a"));
    assert!(matches!(watch.next(now), News::Note(note) if note == "b"));
    assert!(matches!(watch.next(now), News::Progress(p) if p.round == 2));
    assert!(matches!(watch.next(now), News::Nothing));
    board.end_move(example::moved());
    assert!(matches!(watch.next(now), News::Over(_)));
    let attendance = board.attend();
    board.see_all_off(Duration::ZERO);
    drop(attendance);
    board.see_all_off(Duration::from_secs(60));
}

#[test]
fn notes_are_bounded() {
    let board = board();
    board.begin_move(&order()).unwrap();
    let mut watch = board.watch().unwrap();
    for number in 0..NOTES_MAX + 10 {
        board.note(&number.to_string());
    }
    assert!(matches!(watch.next(Duration::ZERO), News::Note(note) if note == "10"));
}

#[test]
fn an_end_cancels_the_move_and_waits_for_it() {
    let board = board();
    let handle = board.begin_move(&order()).unwrap();
    assert_eq!(board.request_end(false), Ok(EndAnswer::AfterMove));
    assert!(handle.cancelled());
    board.end_move(example::failed(Outcome::Cancelled, "cancelled"));
    assert_eq!(board.state(), GuestState::Ending);
}

#[test]
fn a_guest_of_unknown_owner_ends_only_by_force() {
    let board = board();
    board.begin_move(&order()).unwrap();
    board.end_move(example::failed(Outcome::Unknown, "lost"));
    assert_eq!(
        board.request_end(false).unwrap_err().exit,
        Exit::UnknownOwner
    );
    assert_eq!(board.state(), GuestState::UnknownOwner);
    assert_eq!(board.request_end(true), Ok(EndAnswer::Now));
}

#[test]
fn a_time_left_is_told_only_while_the_prediction_is_above_the_budget() {
    let board = board();
    let order = order();
    board.begin_move(&order).unwrap();
    let budget_ns = order.max_blackout_ns;
    for (predicted, told) in [
        (None, None),
        (Some(budget_ns), None),
        (Some(budget_ns + 1), Some(7)),
    ] {
        board.progress(&Progress {
            eta_ns: Some(7),
            predicted_blackout_ns: predicted,
            ..progress(1)
        });
        let shown = board.status().move_under_way.unwrap().progress.unwrap();
        assert_eq!(shown.eta_ns, told, "{predicted:?}");
    }
}

#[test]
fn a_guest_that_is_starting_is_not_moved_and_can_be_ended() {
    let board = Board::new(facts(), GuestState::Starting);
    let refusal = board.begin_move(&order()).unwrap_err();
    assert_eq!(refusal.exit, Exit::Conflict);
    assert!(refusal.message.contains("starting"), "{refusal}");
    assert_eq!(board.request_end(false).unwrap(), EndAnswer::Now);
    assert_eq!(board.state(), GuestState::Ending);
}
