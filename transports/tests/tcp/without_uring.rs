//! Hosts where io_uring is not to be had: an old kernel, or one that is told to refuse it.

use std::io;

use dunlin_transports::conformance::moving;
use dunlin_transports::lane::{LaneError, LaneNumber, LaneTicket, LaneToken, SessionId};

use super::*;

/// Runs `test` on a thread for which `io_uring_setup` fails with `errno`, as it does for the threads
/// that it starts.
fn without_uring(errno: i32, test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let refused = scope.spawn(move || match refuse_uring_setup(errno) {
            Ok(()) => test(),
            Err(error) => println!("skipped: no system call filter: {error}"),
        });
        refused.join().unwrap();
    });
}

/// Filters this thread's system calls, for good; see seccomp(2).
fn refuse_uring_setup(errno: i32) -> io::Result<()> {
    let statement = |code, k, jt, jf| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let setup = libc::SYS_io_uring_setup as u32;
    let refusal = libc::SECCOMP_RET_ERRNO | errno as u32;
    let mut program = [
        // The call's number is first in `seccomp_data`.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, setup, 0, 1),
        statement(libc::BPF_RET | libc::BPF_K, refusal, 0, 0),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: takes numbers only.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `filter` points to the program, which is copied during the call.
    let result = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const filter,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[test]
fn lanes_work_without_it_and_say_so() {
    for errno in [libc::EPERM, libc::ENOSYS] {
        without_uring(errno, || {
            let reason = io::Error::from_raw_os_error(errno);
            assert_eq!(
                AUTOMATIC.endpoint_mechanism(),
                format!("writev (io_uring: {reason})")
            );
            moving::random_traffic_on_many_lanes_compares_equal(&AUTOMATIC);
        });
    }
}

#[test]
fn where_it_is_demanded_the_error_says_what_is_missing() {
    without_uring(libc::EPERM, || {
        let ticket = LaneTicket {
            session: SessionId([1; 16]),
            number: LaneNumber(3),
            token: LaneToken([2; 32]),
        };
        for mechanisms in [
            (Mechanism::IoUring, Mechanism::Auto),
            (Mechanism::Auto, Mechanism::IoUring),
        ] {
            let memory = || MemoryMap::new(Vec::new()).unwrap();
            let off = Compression::Off;
            let auto = ZeroCopy::Auto;
            let pair = pair("127.0.0.1:0", mechanisms, off, auto, memory(), memory());
            let deadline = Deadline::after(Duration::from_secs(30));
            let (opened, accepted) = std::thread::scope(|scope| {
                let opening = scope.spawn(|| pair.source.open_lane(&ticket, deadline).map(|_| ()));
                let tickets = std::slice::from_ref(&ticket);
                let accepted = pair.destination.accept_lane(tickets, deadline).map(|_| ());
                (opening.join().unwrap(), accepted)
            });
            let failed = if mechanisms.0 == Mechanism::IoUring {
                opened
            } else {
                // The other side is let down, and sees that at once.
                assert!(matches!(opened, Err(LaneError::Closed(_))), "{opened:?}");
                accepted
            };
            let error = failed.unwrap_err().to_string();
            let reason = io::Error::from_raw_os_error(libc::EPERM);
            assert_eq!(error, format!("lane 3: setting up io_uring: {reason}"));
        }
    });
}
