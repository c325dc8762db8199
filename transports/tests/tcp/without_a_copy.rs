//! Lanes that send from guest memory without a copy of the kernel's, though it copies on loopback.

use super::*;

const ALWAYS: Tcp = Tcp {
    mechanism: Mechanism::IoUring,
    zero_copy: ZeroCopy::Always,
    ..AUTOMATIC
};

dunlin_transports::conformance_tests!(ALWAYS);

#[test]
fn a_guest_that_writes_while_its_memory_leaves_arrives_whole_in_the_end() {
    if let Some(reason) = ALWAYS.unavailable() {
        println!("skipped: {reason}");
        return;
    }
    let sent = writing::arrives_whole_in_the_end(&ALWAYS);
    if sent.source.zero_copy_bytes == 0 {
        println!("skipped: no zero-copy send: {}", sent.mechanism);
        return;
    }
    assert_eq!(sent.mechanism, "io_uring, zero-copy (the kernel copies)");
    assert_eq!(sent.destination.payload_bytes, sent.source.payload_bytes);
}

#[test]
fn lanes_by_themselves_find_out_that_the_kernel_copies() {
    if let Some(reason) = ALWAYS.unavailable() {
        println!("skipped: {reason}");
        return;
    }
    let sent = writing::arrives_whole_in_the_end(&AUTOMATIC);
    // One batch of many.
    assert!(sent.source.zero_copy_bytes < sent.source.wire_bytes / 8);
    assert_eq!(sent.mechanism, "io_uring");
}

#[test]
fn lanes_that_are_told_not_to_try_do_not() {
    let off = Tcp {
        zero_copy: ZeroCopy::Off,
        ..AUTOMATIC
    };
    let sent = writing::arrives_whole_in_the_end(&off);
    assert_eq!(sent.source.zero_copy_bytes, 0);
}
