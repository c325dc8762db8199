#!/usr/bin/env bash
# Sees to it that programs have no link-time need for the RDMA libraries: they are looked up at run
# time, so that the programs start on hosts without them. One direct call of a library's function
# brings the need back.
#
#   tools/check-needed.sh target/release/dunlin …
set -euo pipefail

[ $# -gt 0 ] || { echo "check-needed: name the programs to look at" >&2; exit 2; }
for program in "$@"; do
    needed=$(readelf --dynamic "$program") || exit 2
    if found=$(grep -E 'NEEDED.*(libibverbs|librdmacm)' <<<"$needed"); then
        echo "check-needed: $program does not start where these are missing:" >&2
        echo "$found" >&2
        exit 1
    fi
    if found=$(nm --dynamic --undefined-only "$program" | grep -E ' (ibv|rdma)_'); then
        echo "check-needed: $program calls these directly, without looking them up:" >&2
        echo "$found" >&2
        exit 1
    fi
    echo "check-needed: $program needs neither libibverbs nor librdmacm to start"
done
