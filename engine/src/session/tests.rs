//! What either machine does with one order of events. Both against each other, over every order that
//! a small world allows, are in the model (`tests/model`).

use super::source::{Action as SourceAction, Event as SourceEvent, State as SourceState};
use super::{Decision, DestinationSession, SourceSession, StayReason};
use crate::records::verdict::Answer;
use crate::session::destination::{
    Action as DestinationAction, Event as DestinationEvent, State as DestinationState,
};

#[test]
fn before_the_give_up_the_guest_resumes_before_anything_else() {
    let mut session = SourceSession::new();
    let events = [
        SourceEvent::Begin,
        SourceEvent::Welcome,
        SourceEvent::Opened,
        SourceEvent::RoundDone,
        SourceEvent::Converged,
        SourceEvent::Paused,
        SourceEvent::Saved,
        SourceEvent::RoundDone,
        SourceEvent::Collected { dirtied: true },
        SourceEvent::RoundDone,
    ];
    for event in events {
        session.on(event);
    }
    assert_eq!(session.state(), SourceState::Preparing);
    assert_eq!(
        session.on(SourceEvent::Lost),
        vec![
            SourceAction::Resume,
            SourceAction::SendAbort,
            SourceAction::RecordStayed,
            SourceAction::CloseLanes
        ]
    );
}

#[test]
fn law_2_pages_go_out_twice_only_behind_a_fence() {
    let mut session = SourceSession::new();
    let events = [
        SourceEvent::Begin,
        SourceEvent::Welcome,
        SourceEvent::Opened,
        SourceEvent::Converged,
        SourceEvent::Paused,
        SourceEvent::Saved,
        SourceEvent::RoundDone,
    ];
    for event in events {
        session.on(event);
    }
    assert_eq!(
        session.on(SourceEvent::Collected { dirtied: true }),
        vec![SourceAction::FenceLanes, SourceAction::StartFinalRound]
    );
}

#[test]
fn behind_the_give_up_a_cancel_is_not_heeded_and_a_lost_link_holds_the_guest() {
    let mut session = SourceSession {
        state: SourceState::Committed,
    };
    assert!(!session.is_before_give_up());
    assert!(
        session
            .on(SourceEvent::Stop(StayReason::Cancelled))
            .is_empty()
    );
    let held = session.on(SourceEvent::Lost);
    assert_eq!(held.first(), Some(&SourceAction::Hold));
    assert_eq!(held.last(), Some(&SourceAction::Ask));
    assert_eq!(session.state(), SourceState::InDoubt);
    assert!(!session.is_over() && !session.is_before_give_up());
}

#[test]
fn in_doubt_only_an_answer_or_a_person_settles_it() {
    let in_doubt = || SourceSession {
        state: SourceState::InDoubt,
    };
    for answer in Answer::ALL.into_iter().map(Some).chain([None]) {
        let mut session = in_doubt();
        let actions = session.on(SourceEvent::Answered(answer));
        let resumes = actions.contains(&SourceAction::Resume);
        let releases = actions.contains(&SourceAction::RecordReleased);
        assert_eq!(resumes, answer == Some(Answer::Aborted), "{answer:?}");
        let is_theirs = matches!(answer, Some(Answer::Running | Answer::Ended));
        assert_eq!(releases, is_theirs, "{answer:?}");
        assert_eq!(session.is_over(), resumes || releases, "{answer:?}");
    }
    for event in [
        SourceEvent::Aborted,
        SourceEvent::Running,
        SourceEvent::Lost,
        SourceEvent::Stop(StayReason::Cancelled),
    ] {
        let mut session = in_doubt();
        assert!(session.on(event).is_empty(), "{event:?}");
        assert_eq!(session.state(), SourceState::InDoubt);
    }
    let mut session = in_doubt();
    let actions = session.on(SourceEvent::Decided(Decision::ResumeHere));
    assert_eq!(
        actions,
        [
            SourceAction::RecordDecision(Decision::ResumeHere),
            SourceAction::Resume
        ]
    );
}

fn committed() -> DestinationSession {
    let mut session = DestinationSession::new();
    for event in [
        DestinationEvent::Prepare,
        DestinationEvent::Loaded,
        DestinationEvent::Acquired,
        DestinationEvent::Commit,
        DestinationEvent::Recorded,
    ] {
        session.on(event);
    }
    assert_eq!(session.state(), DestinationState::Committed);
    session
}

#[test]
fn behind_commit_the_destination_hands_back_only_what_was_never_entered() {
    let mut session = committed();
    assert_eq!(
        session.on(DestinationEvent::NeverEntered),
        [DestinationAction::RecordAborted]
    );
    assert_eq!(
        session.on(DestinationEvent::Recorded),
        [
            DestinationAction::SendAborted,
            DestinationAction::CloseLanes,
            DestinationAction::Discard,
            DestinationAction::ReleaseOutside,
        ]
    );
    assert_eq!(session.state(), DestinationState::Aborted);
    assert!(session.on(DestinationEvent::Commit).is_empty());

    let mut session = committed();
    let actions = session.on(DestinationEvent::NotEntered);
    assert!(!actions.contains(&DestinationAction::RecordAborted));
    assert_eq!(session.state(), DestinationState::Broken);
}

fn ready() -> DestinationSession {
    let mut session = DestinationSession::new();
    for event in [
        DestinationEvent::Prepare,
        DestinationEvent::Loaded,
        DestinationEvent::Acquired,
    ] {
        session.on(event);
    }
    assert_eq!(session.state(), DestinationState::Ready);
    session
}

#[test]
fn behind_ready_an_abort_that_is_not_recorded_is_not_told() {
    let mut session = ready();
    assert_eq!(
        session.on(DestinationEvent::Failed),
        [DestinationAction::RecordAborted]
    );
    // COMMIT is refused from here on already.
    assert!(session.on(DestinationEvent::Commit).is_empty());
    let actions = session.on(DestinationEvent::NotRecorded);
    assert!(!actions.contains(&DestinationAction::SendAborted));
    assert!(actions.contains(&DestinationAction::ReleaseOutside));
}

/// Nobody can be in doubt about it, so no tombstone is left.
#[test]
fn before_ready_an_abort_is_told_at_once() {
    let mut session = DestinationSession::new();
    let actions = session.on(DestinationEvent::Failed);
    assert_eq!(session.state(), DestinationState::Aborted);
    assert_eq!(actions.first(), Some(&DestinationAction::SendAborted));
    assert_eq!(actions.last(), Some(&DestinationAction::RecordNotCome));
    // Nothing was acquired, so nothing is released.
    assert!(!actions.contains(&DestinationAction::ReleaseOutside));
}

#[test]
fn no_vcpu_is_entered_without_a_record() {
    let mut session = ready();
    assert_eq!(
        session.on(DestinationEvent::Commit),
        [DestinationAction::RecordOwnership]
    );
    let actions = session.on(DestinationEvent::NotRecorded);
    assert_eq!(actions, [DestinationAction::RecordAborted]);
}

#[test]
fn lanes_with_identities_carry_nothing_before_they_are_confirmed() {
    let mut session = SourceSession::new();
    session.on(SourceEvent::Begin);
    session.on(SourceEvent::Welcome);
    let named = session.on(SourceEvent::OpenedUnconfirmed);
    assert_eq!(named, [SourceAction::SendLanes]);
    let mut early = session.clone();
    assert!(
        !early
            .on(SourceEvent::RoundDone)
            .contains(&SourceAction::Judge)
    );
    assert!(early.is_over());
    let confirmed = session.on(SourceEvent::LanesConfirmed);
    assert_eq!(confirmed, [SourceAction::StartRound]);
    // Said once more, it is out of turn: the guest stays.
    assert!(
        session
            .on(SourceEvent::LanesConfirmed)
            .contains(&SourceAction::SendAbort)
    );
    // And so it is where nothing was asked.
    let mut unasked = SourceSession::new();
    for event in [
        SourceEvent::Begin,
        SourceEvent::Welcome,
        SourceEvent::Opened,
    ] {
        unasked.on(event);
    }
    unasked.on(SourceEvent::LanesConfirmed);
    assert_eq!(unasked.state(), SourceState::Stayed(StayReason::PeerFailed));
}

#[test]
fn lanes_are_named_once_and_before_anything_else() {
    use DestinationEvent::{Lanes, LanesConfirmed, Prepare};
    let gives_up = |session: &DestinationSession, event| {
        let actions = session.clone().on(event);
        actions.first() == Some(&DestinationAction::SendAborted)
    };
    let mut session = DestinationSession::new();
    assert!(gives_up(&session, LanesConfirmed));
    assert_eq!(session.on(Lanes), [DestinationAction::ConfirmLanes]);
    assert!(gives_up(&session, Lanes) && gives_up(&session, Prepare));
    assert_eq!(
        session.on(LanesConfirmed),
        [DestinationAction::SendLanesConfirmed]
    );
    assert!(gives_up(&session, Lanes) && gives_up(&session, LanesConfirmed));
    assert_eq!(session.on(Prepare), [DestinationAction::Load]);
    assert!(gives_up(&session, Lanes));
    // A transport without identities has nothing to name.
    assert_eq!(
        DestinationSession::new().on(Prepare),
        [DestinationAction::Load]
    );
}

#[test]
fn ranges_are_opened_and_closed_only_between_the_lanes_and_prepare() {
    use DestinationEvent::{Close, Lanes, LanesConfirmed, Loaded, Open, Prepare, RangesDone};
    let gives_up = |session: &DestinationSession, event| {
        let mut session = session.clone();
        session.on(event);
        matches!(
            session.state(),
            DestinationState::Aborted | DestinationState::Aborting
        )
    };
    let mut session = DestinationSession::new();
    session.on(Lanes);
    // Whose lanes they are is not known yet.
    assert!(gives_up(&session, Open) && gives_up(&session, Close));
    session.on(LanesConfirmed);
    assert_eq!(session.on(Open), [DestinationAction::OpenRanges]);
    assert_eq!(session.on(RangesDone), [DestinationAction::TellRanges]);
    assert_eq!(session.on(Close), [DestinationAction::CloseRanges]);
    session.on(Prepare);
    assert!(gives_up(&session, Open) && gives_up(&session, Close));
    // What is done late is nobody's business any more.
    assert!(session.on(RangesDone).is_empty());
    session.on(Loaded);
    assert!(session.on(RangesDone).is_empty());
    assert_eq!(session.state(), DestinationState::Acquiring);
    assert!(gives_up(&ready(), Open) && gives_up(&ready(), Close));
    assert!(ready().on(RangesDone).is_empty());
}

#[test]
fn the_destination_speaks_of_ranges_only_while_the_source_may_need_them() {
    use SourceEvent::{Closed, Grants};
    let accepts = |session: &SourceSession, event, action| {
        let mut session = session.clone();
        let (state, actions) = (session.state(), session.on(event));
        actions == [action] && session.state() == state
    };
    let both = |session: &SourceSession| {
        let grants = accepts(session, Grants, SourceAction::AcceptGrants);
        let closed = accepts(session, Closed, SourceAction::AcceptClosed);
        assert_eq!(grants, closed);
        grants
    };
    let mut session = SourceSession::new();
    for event in [SourceEvent::Begin, SourceEvent::Welcome] {
        session.on(event);
        assert!(!both(&session));
    }
    session.on(SourceEvent::Opened);
    assert!(both(&session));
    let opened = session.on(SourceEvent::ConvergedUnopened);
    assert_eq!(opened, [SourceAction::OpenPending]);
    assert!(both(&session));
    for event in [
        SourceEvent::Converged,
        SourceEvent::Paused,
        SourceEvent::Saved,
        SourceEvent::RoundDone,
        SourceEvent::Collected { dirtied: true },
        SourceEvent::RoundDone,
    ] {
        session.on(event);
        assert!(both(&session), "{:?}", session.state());
    }
    // READY ends it; and behind the give-up it is as good as a lost connection.
    session.on(SourceEvent::Ready);
    assert!(!both(&session));
    session.on(SourceEvent::GaveUp);
    session.on(Grants);
    assert_eq!(session.state(), SourceState::InDoubt);
}
