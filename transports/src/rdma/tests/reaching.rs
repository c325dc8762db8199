//! Requests for memory that is not open to the peer: the device refuses them.
//!
//! Over iWARP a write completes once TCP has it, so who sent it is not told; the device that refuses
//! ends the connection.

use super::lane::LaneError;
use super::*;

/// How a device may refuse: the request, or the access.
const REFUSALS: [CompletionStatus; 2] = [CompletionStatus(9), CompletionStatus(10)];

fn write(session: &Session, bytes: u32, to_address: u64, to_key: u32) -> Transfer {
    Transfer::Write {
        from: session.own_piece(bytes),
        to_address,
        to_key,
    }
}

/// Sees that a request of the source's is refused, that both lanes end, and that nothing is written.
fn assert_refused(session: Session, transfer: Transfer) {
    let session = refuse(session, transfer);
    session.assert_untouched();
}

/// Sees that a request of the source's is refused, and that both lanes end.
fn refuse(mut session: Session, transfer: Transfer) -> Session {
    let source = session.source_end();
    if session.is_iwarp() {
        post(&source, &[transfer]);
        await_end(&source);
    } else {
        let status = refused(&source, transfer);
        assert!(REFUSALS.contains(&status), "{status}");
    }
    let error = session.destination_lane.next_fence(soon()).unwrap_err();
    assert!(!matches!(error, LaneError::Stalled { .. }), "{error}");
    assert!(
        session.source_lane.fence().is_err() || {
            let fence = lane::FenceNumber(1);
            session.source_lane.wait_fence(fence, PATIENCE).is_err()
        }
    );
    session
}

#[test]
fn a_false_key_opens_nothing() {
    let _pinned = Pinned::watch();
    for wrong in [1, 0x100, 0xffff_ff00, 0x8000_0000] {
        let Some(session) = Session::new() else {
            return;
        };
        let (address, key) = session.target();
        let transfer = write(&session, 4096, address, key ^ wrong);
        assert_refused(session, transfer);
    }
}

#[test]
fn addresses_beside_the_range_are_refused() {
    let _pinned = Pinned::watch();
    let length = u64::from(PAGES) * PAGE_BYTES;
    for (offset, bytes) in [
        (length, 4096),
        (length - 4096, 8192),
        (0_u64.wrapping_sub(4096), 4096),
        (0_u64.wrapping_sub(1), 2),
        (1 << 40, 1),
        (0, PAGES * 4096 + 1),
    ] {
        let Some(session) = Session::new() else {
            return;
        };
        // Local memory longer than the range, so that it is the destination that refuses.
        let big = memory(2 * u64::from(PAGES), 9);
        let domain = session.source.shared.sent.registrar().domain();
        let access = super::super::verbs::Access::Send;
        let whole = run(0, 2 * PAGES);
        let region = super::super::verbs::MemoryRegion::register(domain, &big, whole, access);
        let region = region.ok().unwrap();
        let (address, key) = session.target();
        let transfer = Transfer::Write {
            from: LocalPiece {
                address: region.address(),
                bytes,
                key: region.local_key(),
            },
            to_address: address.wrapping_add(offset),
            to_key: key,
        };
        let begins_inside = offset < length;
        if session.is_iwarp() && begins_inside {
            // Each segment is judged by itself (RFC 5041): those before the end arrive.
            refuse(session, transfer);
        } else {
            assert_refused(session, transfer);
        }
    }
}

#[test]
fn a_lane_that_was_not_confirmed_writes_nothing() {
    let _pinned = Pinned::watch();
    let Some(session) = Session::unconfirmed() else {
        return;
    };
    if session.is_iwarp() {
        // Nothing is registered that it could write, and its own keys open nothing here.
        let early = session.destination.prepare(run(0, PAGES));
        assert!(
            matches!(early, Err(LaneError::Protocol { .. })),
            "{early:?}"
        );
        assert_eq!(session.destination.registrations().made, 0);
        let own = session.own_piece(4096);
        let transfer = write(&session, 4096, own.address, own.key);
        return assert_refused(session, transfer);
    }
    let (address, key) = session.target();
    let transfer = write(&session, 4096, address, key);
    assert_refused(session, transfer);
}

#[test]
fn the_key_of_another_session_opens_nothing() {
    let _pinned = Pinned::watch();
    let (Some(session), Some(other)) = (Session::new(), Session::new()) else {
        return;
    };
    let (address, key) = other.target();
    let transfer = write(&session, 4096, address, key);
    assert_refused(session, transfer);
    other.assert_untouched();
}

#[test]
fn the_destinations_memory_can_be_written_and_not_read() {
    let _pinned = Pinned::watch();
    let Some(session) = Session::new() else {
        return;
    };
    let (from_address, from_key) = session.target();
    // A place that may be written here, so that it is the destination that refuses.
    let place = memory(1, 9);
    let domain = session.source.shared.sent.registrar().domain();
    let access = super::super::verbs::Access::Receive;
    let region = super::super::verbs::MemoryRegion::register(domain, &place, run(0, 1), access);
    let region = region.ok().unwrap();
    let transfer = Transfer::Read {
        into: LocalPiece {
            address: region.address(),
            bytes: 4096,
            key: region.local_key(),
        },
        from_address,
        from_key,
    };
    if session.is_iwarp() && is_answered(&session.source_end(), transfer) {
        assert!(bytes(&place).iter().all(|byte| *byte == 2));
        return;
    }
    assert_refused(session, transfer);
    assert!(bytes(&place).iter().all(|byte| *byte == 9));
}

/// Whether a read of memory that is not open to reads is answered all the same. siw does that: it
/// looks at domain, key and bounds, and at no permission (`siw_qp_sq_proc_tx` in Linux's
/// siw_qp_tx.c, for its READ_RESPONSE). Says so; what it gives is the session's guest, to the
/// session's peer.
fn is_answered(end: &Connection, read: Transfer) -> bool {
    post(end, &[read]);
    let is_answered = completion(end) == Some(CompletionStatus::SUCCESS);
    if is_answered {
        println!("this device lets the peer read what is registered for other uses, as siw does");
    }
    is_answered
}

#[test]
fn the_sources_memory_can_be_neither_written_nor_read_unless_offered() {
    let _pinned = Pinned::watch();
    for is_read in [false, true] {
        let Some(session) = Session::new() else {
            return;
        };
        // What the source sends from has a key too; it opens nothing to the peer.
        let sent = session.source.shared.sent.view();
        let region = sent.region(PageNumber(0)).unwrap();
        let (address, key) = (region.address(), region.remote_key());
        let ranges = session.destination.shared.ranges.view();
        let own = ranges.region(PageNumber(0)).unwrap();
        let own = LocalPiece {
            address: own.address(),
            bytes: 4096,
            key: own.local_key(),
        };
        let transfer = if is_read {
            Transfer::Read {
                into: own,
                from_address: address,
                from_key: key,
            }
        } else {
            Transfer::Write {
                from: own,
                to_address: address,
                to_key: key,
            }
        };
        if session.is_iwarp() {
            let end = session.destination_end();
            if is_read && is_answered(&end, transfer) {
                continue;
            }
            // A read that is refused has ended the connection.
            if !is_read {
                post(&end, &[transfer]);
            }
            await_end(&end);
            assert!(bytes(&session.source_memory).iter().all(|byte| *byte == 1));
            session.assert_untouched();
            continue;
        }
        let status = refused(&session.destination_end(), transfer);
        assert!(REFUSALS.contains(&status), "{status}");
        assert!(bytes(&session.source_memory).iter().all(|byte| *byte == 1));
        session.assert_untouched();
    }
}

#[test]
fn a_write_after_revoking_fails_and_the_queue_is_drained() {
    let _pinned = Pinned::watch();
    let Some(session) = Session::new() else {
        return;
    };
    let (address, key) = session.target();
    let source = session.source_end();
    let right = write(&session, 4096, address, key);
    post(&source, &[right]);
    assert_eq!(
        completions(&source, 1).first().unwrap().status,
        CompletionStatus::SUCCESS
    );
    let destination = session.destination_end();
    session.destination.revoke_all().unwrap();
    // Over iWARP nothing is waited for, and nobody has taken them all.
    let deadline = soon();
    while session.is_iwarp() && !destination.is_drained() && !deadline.passed() {}
    assert!(destination.is_drained());
    let after = bytes(&session.destination_memory);
    session
        .source_memory
        .copy_in(run(0, 1), &[7; PAGE_BYTES as usize])
        .unwrap();
    if session.is_iwarp() {
        // Whether the device takes it is its own affair.
        try_to_post(&source, &[right]);
        await_end(&source);
        std::thread::sleep(Duration::from_millis(50));
    } else {
        refused(&source, right);
    }
    assert_eq!(bytes(&session.destination_memory), after);
}

#[test]
fn retiring_ends_what_the_peer_goes_on_writing() {
    let _pinned = Pinned::watch();
    let Some(mut session) = Session::new() else {
        return;
    };
    let (address, key) = session.target();
    let right = write(&session, 4096, address, key);
    let source = session.source_end();
    let memory = session.source_memory.clone();
    let is_iwarp = session.is_iwarp();
    let (begun, has_begun) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let writing = scope.spawn(move || {
            // Other bytes each time, so that a late write shows.
            for turn in 0_u64.. {
                let bytes: Vec<u8> = turn.to_le_bytes().repeat(PAGE_BYTES as usize / 8);
                memory.copy_in(run(0, 1), &bytes).unwrap();
                try_to_post(&source, &[right]);
                let status = match is_iwarp {
                    true => completion(&source),
                    false => Some(completions(&source, 1).first().unwrap().status),
                };
                if status != Some(CompletionStatus::SUCCESS) {
                    return status;
                }
                let _ = begun.send(turn);
            }
            None
        });
        while has_begun.recv().unwrap() < 3 {}
        session.destination.retire(run(0, PAGES)).unwrap();
        let mut after = bytes(&session.destination_memory);
        let status = writing.join().unwrap();
        if is_iwarp {
            // siw does not wait for the packet that it is copying just then.
            after = bytes(&session.destination_memory);
            std::thread::sleep(Duration::from_millis(50));
        }
        let is_refused = status.is_some_and(|status| REFUSALS.contains(&status));
        assert!(is_refused || is_iwarp, "{status:?}");
        assert_eq!(bytes(&session.destination_memory), after);
    });
    let error = session.destination_lane.next_fence(soon()).unwrap_err();
    assert!(!matches!(error, LaneError::Stalled { .. }), "{error}");
    // Prepared again, it is open under its new key, and not to a lane that has failed.
    let grant = session.destination.prepare(run(0, PAGES)).unwrap();
    let before = bytes(&session.destination_memory);
    session.source.retire(run(0, PAGES)).unwrap();
    session.source.prepare(run(0, PAGES)).unwrap();
    session.source.accept_grants(&[grant]).unwrap();
    let put = session.source_lane.put(&[run(0, 1)]).and_then(|()| {
        let fence = session.source_lane.fence()?;
        session.source_lane.wait_fence(fence, PATIENCE)
    });
    assert!(put.is_err());
    assert_eq!(bytes(&session.destination_memory), before);
}

#[test]
fn a_grant_of_before_opens_nothing_of_what_is_prepared_again() {
    let _pinned = Pinned::watch();
    let Some(session) = Session::new() else {
        return;
    };
    let (address, old_key) = session.target();
    session.destination.retire(run(0, PAGES)).unwrap();
    session.destination.prepare(run(0, PAGES)).unwrap();
    let (_, key) = session.target();
    assert_ne!(old_key, key);
    let transfer = write(&session, 4096, address, old_key);
    assert_refused(session, transfer);
}

#[test]
fn memory_that_the_source_retired_cannot_be_sent_from() {
    let _pinned = Pinned::watch();
    let Some(session) = Session::new() else {
        return;
    };
    let (address, key) = session.target();
    let transfer = write(&session, 4096, address, key);
    session.source.retire(run(0, PAGES)).unwrap();
    let status = refused(&session.source_end(), transfer);
    // This side's memory is not registered for this; rxe says that its queue pair failed, or, since
    // some kernel between 6.1 and 6.12, that it has ended.
    assert!([4, 2, 5].contains(&status.0), "{status}");
    session.assert_untouched();
}
