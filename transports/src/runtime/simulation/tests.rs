//! Worlds by themselves: what the scenarios rely on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use super::*;
use crate::runtime::{self, Monitor, channel, scope, spawn, sync_channel};

const HOUR: Duration = Duration::from_secs(60 * 60);

/// Four threads that send, sleep and are joined; the order in which their words came.
fn order(seed: u64) -> (Vec<u64>, Ended) {
    World::run(seed, false, |_| {
        let (sender, receiver) = sync_channel(2);
        let threads: Vec<_> = (0..4)
            .map(|number| {
                let sender = sender.clone();
                let work = move || {
                    for round in 0..5 {
                        runtime::sleep(HOUR * (round % 2));
                        sender.send(number).unwrap();
                    }
                };
                spawn(format!("sender-{number}"), work).unwrap()
            })
            .collect();
        drop(sender);
        let mut words = Vec::new();
        while let Ok(word) = receiver.recv() {
            words.push(word);
        }
        for thread in threads {
            thread.join().unwrap();
        }
        words
    })
}

#[test]
fn a_seed_is_one_order_and_another_seed_is_another() {
    let orders: Vec<_> = (0..20).map(order).collect();
    for (seed, (words, ended)) in (0..).zip(&orders) {
        let (again, ended_again) = order(seed);
        assert_eq!((words, ended), (&again, &ended_again));
        assert_eq!(words.len(), 20);
        assert!(ended.took >= 2 * HOUR, "{:?}", ended.took);
    }
    let mut kinds: Vec<_> = orders.into_iter().map(|(words, _)| words).collect();
    kinds.sort();
    kinds.dedup();
    assert!(kinds.len() > 10, "{} orders of 20 seeds", kinds.len());
}

#[test]
fn waits_end_at_their_limit_in_virtual_time() {
    let ((), ended) = World::run(1, false, |world| {
        let (sender, receiver) = channel::<()>();
        let waited = receiver.recv_timeout(HOUR);
        assert_eq!(waited, Err(RecvTimeoutError::Timeout));
        drop(sender);
        assert!(receiver.recv().is_err());
        let monitor = Monitor::new(());
        drop(monitor.wait_timeout(monitor.lock(), HOUR));
        assert!(world.elapsed() >= 2 * HOUR);
    });
    assert!(ended.took < 3 * HOUR);
}

#[test]
fn a_killed_process_runs_no_more_and_a_stopped_one_only_later() {
    for seed in 0..20 {
        World::run(seed, false, |world| {
            let host = world.add_host("host");
            let counts = [(); 3].map(|()| Arc::new(AtomicU64::new(0)));
            let processes: Vec<_> = counts
                .iter()
                .map(|count| {
                    let process = world.add_process(host, "counting");
                    let count = Arc::clone(count);
                    let work = move || {
                        loop {
                            runtime::sleep(Duration::from_secs(1));
                            count.fetch_add(1, Ordering::SeqCst);
                        }
                    };
                    world.spawn_in(process, "count", work).unwrap();
                    process
                })
                .collect();
            runtime::sleep(Duration::from_millis(10_500));
            world.kill(processes[1]);
            world.stop(processes[2]);
            runtime::sleep(Duration::from_secs(10));
            let now = || counts.each_ref().map(|count| count.load(Ordering::SeqCst));
            let [running, killed, stopped] = now();
            assert!((19..=20).contains(&running), "{running}");
            assert!((9..=10).contains(&killed), "{killed}");
            assert_eq!(killed, stopped);
            world.go_on(processes[2]);
            runtime::sleep(Duration::from_secs(10));
            assert_eq!(now()[1], killed);
            assert!(now()[2] > stopped);
        });
    }
}

#[test]
fn a_scope_ends_behind_its_threads() {
    for seed in 0..20 {
        let (ended, _) = World::run(seed, false, |_| {
            let ended = AtomicU64::new(0);
            scope(|scope| {
                let (inner, ended) = (scope.clone(), &ended);
                let work = move || {
                    let later = move || {
                        runtime::sleep(HOUR);
                        ended.fetch_add(1, Ordering::SeqCst);
                    };
                    inner.spawn("inner", later).unwrap();
                    ended.fetch_add(1, Ordering::SeqCst);
                };
                scope.spawn("outer", work).unwrap();
            });
            ended.into_inner()
        });
        assert_eq!(ended, 2);
    }
}

#[test]
fn hosts_have_clocks_of_their_own() {
    World::run(3, false, |world| {
        let hosts = ["a", "b"].map(|name| world.add_host(name));
        let read = |host| {
            let process = world.add_process(host, "reader");
            let (sender, receiver) = channel();
            let work = move || {
                sender
                    .send((monotonic_ns(), boot_id(), runtime::now()))
                    .unwrap()
            };
            world.spawn_in(process, "read", work).unwrap();
            receiver.recv().unwrap()
        };
        let (first, boot, instant) = read(hosts[0]);
        assert_ne!(boot, read(hosts[1]).1);
        world.put_clock_forward(hosts[0], HOUR);
        world.reboot(hosts[0]);
        let (later, other_boot, other_instant) = read(hosts[0]);
        assert!(later.unwrap() - first.unwrap() >= HOUR.as_nanos() as u64);
        assert!(other_instant - instant >= HOUR);
        assert_ne!(boot, other_boot);
    });
}

#[test]
fn a_panic_is_told() {
    let (joined, ended) = World::run(4, false, |_| {
        spawn("careless", || panic!("oh")).unwrap().join().is_err()
    });
    assert!(joined);
    assert_eq!(ended.panics, ["seed 4: scenario/careless panicked: oh"]);
}

#[test]
fn threads_outside_of_worlds_are_as_ever() {
    assert!(current().is_none());
    let (sender, receiver) = sync_channel(1);
    let thread = spawn("free", move || sender.send(5).unwrap()).unwrap();
    assert_eq!(receiver.recv_timeout(HOUR), Ok(5));
    thread.join().unwrap();
    assert!(receiver.recv().is_err());
}
