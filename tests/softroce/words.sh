# shellcheck shell=bash
# The words of tests.sh that are no programs. Each runs in a shell of its own.

# What carries the first device's packets: RoCE, iWARP.
rdma_kind() {
    local type
    type=$(cat "/sys/class/infiniband/$RDMA_DEVICE_A/node_type" 2>/dev/null)
    case $type in
        *RNIC*) echo iWARP ;;
        *) echo RoCE ;;
    esac
}

# siw of Linux 6.1 holds even root to the limit for locked memory, which is 8 MiB.
[ "$(rdma_kind)" = RoCE ] || ulimit -l unlimited

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

# A place of its own for guests, receivers and their records; all that was started there ends with
# this shell, guests that have arrived too.
make_site() {
    SITE=$(mktemp -d)
    STARTED=()
    trap end_site EXIT
}

end_site() {
    local place
    for place in "$SITE"/*/; do
        [[ $place == *-state/ ]] && continue
        at "$(basename "$place")" stop vm1 >/dev/null 2>&1
    done
    kill "${STARTED[@]}" 2>/dev/null
    rm -rf "$SITE"
}

# at HOST [ARGUMENT...]: dunlin, as if on a host of that name.
at() {
    local host=$1
    shift
    DUNLIN_RUNTIME_DIR=$SITE/$host DUNLIN_STATE_DIR=$SITE/$host-state "$DUNLIN" "$@"
}

# start_guest HOST
start_guest() {
    at "$1" run --name vm1 --guest kvm --memory 64MiB --workload pattern=sequential,hot=8MiB,rate=1MiB/s &
    STARTED+=($!)
    until at "$1" status vm1 >/dev/null 2>&1; do
        kill -0 $! || return 1
        sleep 0.2
    done
}

# start_receiver HOST ADDRESS [ARGUMENT...]: PORT is where it listens.
start_receiver() {
    local host=$1 address=$2 log=$SITE/$1.out
    shift 2
    at "$host" receive --json --listen "auto://$address:0" "$@" >"$log" &
    STARTED+=($!)
    until PORT=$(sed -n 's/.*"endpoint":"[^"]*:\([0-9]*\)".*/\1/p' "$log") && [ -n "$PORT" ]; do
        kill -0 $! || return 1
        sleep 0.2
    done
}

# send HOST ENDPOINT TRANSPORT [ARGUMENT...]: moves the guest, and sees that it arrived over that
# transport, with its memory. What was said of it is in SITE/said.
send() {
    local host=$1 endpoint=$2 transport=$3 report=$SITE/report.json
    shift 3
    at "$host" send vm1 --to "$endpoint" --max-blackout 5s --peer-timeout 20s --report "$report" "$@" >"$SITE/said" 2>&1 ||
        { cat "$SITE/said"; return 1; }
    cat "$SITE/said"
    local expected
    for expected in '"outcome": "moved"' "\"transport\": \"$transport\"" '"equal": true'; do
        grep -qF "$expected" "$report" || { echo "the report has no $expected:"; cat "$report"; return 1; }
    done
    grep -F '"mechanism"' "$report"
}

bracketed() {
    case $1 in
        *:*) echo "[$1]" ;;
        *) echo "$1" ;;
    esac
}

# address_digits ADDRESS: the 32 digits of a GID that is made of it.
address_digits() {
    local groups digits='' left right group
    if [[ $1 != *:* ]]; then
        # shellcheck disable=SC2046 # four numbers
        printf '00000000000000000000ffff%02x%02x%02x%02x' $(tr . ' ' <<<"$1")
        return
    fi
    left=${1%%::*} right=
    [[ $1 != *::* ]] || right=${1#*::}
    read -ra left <<<"${left//:/ }"
    read -ra right <<<"${right//:/ }"
    groups=("${left[@]}")
    while [ $((${#groups[@]} + ${#right[@]})) -lt 8 ]; do groups+=(0); done
    for group in "${groups[@]}" "${right[@]}"; do
        digits+=$(printf '%04x' "0x$group")
    done
    echo "$digits"
}

# gid_index DEVICE ADDRESS: the entry of port 1's table that rdma_cm takes for it, with RoCE v2.
gid_index() {
    local place=/sys/class/infiniband/$1/ports/1 entry index digits
    digits=$(address_digits "$2")
    for entry in "$place"/gids/*; do
        index=${entry##*/}
        # Entries that are not in use can't be read.
        [ "$(tr -d : <"$entry" 2>/dev/null)" = "$digits" ] || continue
        grep -qs v2 "$place/gid_attrs/types/$index" || continue
        echo "$index"
        return
    done
    echo "no entry of $1 is of $2" >&2
    return 1
}

# refused HOST ENDPOINT WORDS [ARGUMENT...]: the guest can't be sent so, which is an error of one line
# that has these words in it, and it stays.
refused() {
    local host=$1 endpoint=$2 words=$3 said status=0
    shift 3
    said=$(at "$host" send vm1 --to "$endpoint" --quiet "$@" 2>&1) || status=$?
    printf '%s\n' "$said"
    [ "$status" -eq 12 ] && [ "$(wc -l <<<"$said")" -eq 1 ] && [[ $said == *"$words"* ]] && at "$host" status vm1
}

# send_over_rdma FROM TO: over the wire, then on to another receiver on the same device, with all
# flags. What iWARP has nothing for is refused there.
send_over_rdma() {
    local to gid flag flags=()
    if [ -z "$1" ] || [ -z "$2" ]; then
        echo 'skipped: the device has no such address'
        return 0
    fi
    make_site
    start_guest a || return 1
    to=$(bracketed "$2")
    start_receiver b "$to" || return 1
    if [ "$(rdma_kind)" = iWARP ]; then
        for flag in --rdma-ack-timeout=16 --rdma-gid-index=0 --rdma-sl=1 --rdma-pkey=0; do
            refused a "rdma://$to:$PORT" "was asked for, and RDMA device $RDMA_DEVICE_A is iWARP" \
                --bind "$1" "$flag" || return 1
        done
    else
        gid=$(gid_index "$RDMA_DEVICE_A" "$1") || return 1
        flags=(--rdma-gid-index "$gid" --rdma-sl 3 --rdma-pkey 0 --rdma-ack-timeout 16)
    fi
    send a "rdma://$to:$PORT" rdma --bind "$1" --rdma-device "$RDMA_DEVICE_A" --rdma-port 1 \
        --rdma-tos 104 "${flags[@]}" --rdma-window 128KiB --pin-budget 32MiB --lanes 2 --compress auto || return 1
    grep -F 'nothing is compressed' "$SITE/said" || return 1
    grep -qF "\"mechanism\": \"$RDMA_DEVICE_A port 1, $(rdma_kind)\"" "$SITE/report.json" || return 1
    start_receiver c "$to" --rdma-device "$RDMA_DEVICE_B" --poll event || return 1
    send b "rdma://$to:$PORT" rdma --poll spin --lanes 1 || return 1
    # What leads elsewhere than asked for is an error.
    start_receiver d "$to" || return 1
    refused c "rdma://$to:$PORT" no_such --rdma-device no_such || return 1
    refused c "rdma://$to:$PORT" 'is reached by port 1, not by 2' --rdma-port 2
}

# Guests in huge pages, which have to be there on both sides.
move_in_huge_pages() {
    local pages=/proc/sys/vm/nr_hugepages before
    before=$(cat "$pages")
    # The guest's 64 MiB, twice, and what is beside them.
    if ! echo $((before + 80)) 2>/dev/null >"$pages" || [ "$(cat "$pages")" -lt $((before + 80)) ]; then
        echo 'skipped: huge pages can not be reserved here'
        return 0
    fi
    local status=0
    move_a_guest --transport rdma --memory-backing hugetlb || status=$?
    echo "$before" >"$pages"
    return "$status"
}

# Both transports and both programs of perftest have a row, with a run that gave something. Guests
# made of threads, and so replays, need a newer kernel than the machine's.
bench_over_rdma() {
    RESULTS=$(mktemp)
    trap 'rm -f "$RESULTS"' EXIT
    "$DUNLIN" bench --transports rdma,tcp --lanes 1 --memory 32MiB --dirty-rate 0 --guest kvm \
        --references ib_write_bw,ib_read_lat --repeat 1 --warm-up 0 --max-blackout 5s --json "$RESULTS" || return 1
    # A row that was left out has no run, and a run without figures has a reason.
    expect_count "$RESULTS" '"outcome": ?"moved"' 2 && expect_count "$RESULTS" '"reason": ?null' 4
}

# expect_count FILE PATTERN COUNT
expect_count() {
    local found
    found=$(grep -oE -- "$2" "$1" | wc -l)
    [ "$found" -eq "$3" ] || { echo "$2 stands $found times, not $3 times, in:"; cat "$1"; return 1; }
}

# Between the ends as they are when the line is run.
send_over_iwarp() {
    send_over_rdma "$RDMA_IPV4_A" "$RDMA_IPV4_B"
}

# auto:// takes RDMA where both sides have it. A destination that can't, for a limit or a device
# that is not there, refuses, and the guest goes over TCP.
auto_picks() {
    make_site
    start_guest a || return 1
    start_receiver b "$RDMA_IPV4_B" || return 1
    send a "auto://$RDMA_IPV4_B:$PORT" rdma || return 1
    start_receiver c "$RDMA_IPV4_A" --rdma-device no_such || return 1
    send b "auto://$RDMA_IPV4_A:$PORT" tcp || return 1
    grep -q 'using tcp, as the destination refused rdma: .*no_such' "$SITE/said" || return 1
    # The loopback address is no device's: rdma_cm knows a way there, and nobody can listen at it.
    start_receiver d 127.0.0.1 || return 1
    send c "auto://127.0.0.1:$PORT" tcp || return 1
    grep -q 'using tcp, as .* no RDMA device leads to 127.0.0.1' "$SITE/said"
}

doctor_sees_rdma() {
    "$DUNLIN" doctor | tee /dev/stderr | grep -q "^ok .* rdma .*$RDMA_DEVICE_A port 1, $(rdma_kind): "
}
