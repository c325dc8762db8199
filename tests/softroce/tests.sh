# shellcheck shell=bash
# What runs in the SoftRoCE machine, and on hosts that have RDMA themselves: one line each. Read by
# `suite`, twice: first what these lines need is built, then they are run.
#
#   run       'NAME' SECONDS COMMAND [ARGUMENT...]
#   run_cargo 'NAME' SECONDS 'CARGO ARGUMENTS THAT CHOOSE ONE TEST BINARY' [ARGUMENT OF IT...]
#   over_iwarp LINE          the line, between the machine's two iWARP devices; in the machine only
#   with_guests LINE         the line, in a machine with one CPU: for all that has a KVM guest live
#                            there for seconds (see docs/softroce.md)
#   with_faults LINE         the line, in another machine like that, at the same time if this host has
#                            two CPUs
#
# A test passes if it exits with 0 in that time. In the machine, where all is there, it may not say
# `skipped:`. The words that are no programs (rping_between, move_a_guest, …) are in `words.sh`.
#
# Tests find in their environment: DUNLIN, the program; RDMA_DEVICE_A, RDMA_IPV4_A and RDMA_IPV6_A,
# a device and its addresses; and the same of B, which may be another device or the same.

run 'verbs see the device' 30 ibv_devinfo -d "$RDMA_DEVICE_A"
run 'RDMA pings, IPv4' 60 rping_between "$RDMA_IPV4_A" "$RDMA_IPV4_B"
run 'RDMA pings, IPv6' 60 rping_between "$RDMA_IPV6_A" "$RDMA_IPV6_B"
run_cargo 'conformance of TCP lanes' 600 '-p dunlin-transports --features testing --test conformance' tcp
run_cargo 'RDMA: peers that break the protocol' 300 '-p dunlin-transports --features rdma,testing --lib' rdma::
run_cargo 'conformance of RDMA lanes' 900 '-p dunlin-transports --features rdma,testing --test rdma'
run_cargo 'RDMA: peers that die or lie' 300 '-p dunlin-transports --features rdma,testing --test rdma_faults'
run_cargo 'RDMA: the limit for locked memory' 120 '-p dunlin-transports --features rdma,testing --test rdma_locked_memory'
run_cargo "KVM: state, clocks and the writes of a guest" 120 '-p dunlin-engine --lib' kvm::
with_guests run 'a KVM guest moves over TCP, tracked by the bitmap' 240 move_a_guest --transport tcp --dirty-tracking bitmap
with_guests run 'a KVM guest moves over TCP, tracked by the ring' 240 move_a_guest --transport tcp --dirty-tracking ring
with_guests run 'a KVM guest moves over RDMA, and on' 300 send_over_rdma "$RDMA_IPV4_A" "$RDMA_IPV4_B"
with_guests run 'a KVM guest moves over RDMA, IPv6' 300 send_over_rdma "$RDMA_IPV6_A" "$RDMA_IPV6_B"
with_guests run 'a KVM guest in huge pages moves over RDMA' 240 move_in_huge_pages
with_guests run_cargo 'RDMA: a guest moves in a window of pinned memory' 400 '-p dunlin-tests --test rdma_moves_in_a_window' --test-threads=1 --skip 1_gib
with_guests run 'auto picks RDMA, and TCP where the destination has no RDMA' 300 auto_picks
with_guests run 'the demo moves over RDMA' 240 move_a_guest --transport rdma
with_guests run 'bench measures RDMA, TCP and perftest' 240 bench_over_rdma
run 'doctor sees RDMA' 60 doctor_sees_rdma
over_iwarp run_cargo 'iWARP: conformance of RDMA lanes' 600 '-p dunlin-transports --features rdma,testing --test rdma' conformance::
over_iwarp run_cargo 'iWARP: peers that break the protocol' 300 '-p dunlin-transports --features rdma,testing --lib' rdma::
over_iwarp run_cargo 'iWARP: peers that die or lie' 300 '-p dunlin-transports --features rdma,testing --test rdma_faults'
over_iwarp run_cargo 'iWARP: the limit for locked memory' 120 '-p dunlin-transports --features rdma,testing --test rdma_locked_memory'
with_guests over_iwarp run 'iWARP: a KVM guest moves over RDMA, and on' 300 send_over_iwarp
over_iwarp run 'iWARP: doctor sees RDMA' 60 doctor_sees_rdma
with_guests run_cargo 'no RDMA library, though there is a device' 240 '-p dunlin-tests --test rdma_where_there_is_none' without_the_library
# The last of these: rxe devices under which the wire went down let nobody connect any more, and its
# IPv6 addresses and routes do not come back with it.
run_cargo 'RDMA: the link goes down' 120 '-p dunlin-transports --features rdma,testing --test rdma_link_down'
# The second of these makes devices anew.
with_faults run_cargo 'RDMA: a guest of 1 GiB moves in a window of 128 MiB' 800 '-p dunlin-tests --test rdma_moves_in_a_window' 1_gib
with_faults run_cargo 'RDMA: the link goes down under moves' 600 '-p dunlin-tests --test rdma_the_link_goes_down' --test-threads=1
with_faults run_cargo 'RDMA: less memory may be locked than a guest has' 600 '-p dunlin-tests --test rdma_the_limit_for_locked_memory' --test-threads=1
with_faults run_cargo 'RDMA: processes are killed under moves (chaos)' 900 '-p dunlin-tests --test rdma_moves_with_faults'
