# shellcheck shell=bash
# The words of tests.sh that are no programs. Each runs in a shell of its own.

# rping_between FROM TO: a client at FROM sends to a server at TO and compares what comes back, by
# RDMA reads and writes over a connection that rdma_cm made.
rping_between() {
    local server status=0
    if [ -z "$1" ] || [ -z "$2" ]; then
        echo 'skipped: the device has no such address'
        return 0
    fi
    rping -s -a "$2" -C 10 &
    server=$!
    # A client that comes before the server listens is refused.
    until rdma resource show cm_id | grep -q "LISTEN.* pid $server "; do
        kill -0 "$server" 2>/dev/null || return 1
        sleep 0.1
    done
    rping -c -a "$2" -I "$1" -C 10 -V || status=$?
    wait "$server" || status=$?
    return "$status"
}

# move_a_guest [ARGUMENT...]: small, and with time enough for an emulated machine.
move_a_guest() {
    "$DUNLIN" demo --guest kvm --memory 64MiB --workload pattern=sequential,hot=8MiB,rate=1MiB/s \
        --max-blackout 5s "$@"
}
