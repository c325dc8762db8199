#!/usr/bin/env bash
# Sees to it that the tools named on the command line are there: installs what is missing, and says
# so. Tools behind `--want` are not needed for the result: without them something is left out.
#
#   tools/setup.sh rust cc --want ip
#   tools/setup.sh --has rdma-headers     only looks: exits with 0 if it is there
#   tools/setup.sh --libclang             the folder of a libclang that is not too new, if there is one
#
# System packages come by apt-get, as root or by sudo where that asks for no password. Otherwise
# the command to run is printed.
set -euo pipefail

# The same as rust-version in Cargo.toml: as-chunks, and let-chains of edition 2024.
readonly RUST_VERSION=1.88

say() { printf 'setup: %s\n' "$*" >&2; }

die() {
    say "$*"
    exit 1
}

# What a tool is missing for when it is only wanted.
left_out() {
    case $1 in
        ip) echo 'tests between network namespaces are skipped' ;;
        chromium) echo 'pages are not looked at in a browser' ;;
        rdma-headers) echo 'RDMA is not built' ;;
        iperf3 | perftest | qemu) echo "what it reaches is not measured beside" ;;
        cargo-deny) echo "licences and sources of dependencies are not checked" ;;
        *) echo 'something is left out' ;;
    esac
}

present() {
    case $1 in
        rust) command -v cargo >/dev/null && command -v rustc >/dev/null ;;
        rustfmt) cargo fmt --version >/dev/null 2>&1 ;;
        clippy) cargo clippy --version >/dev/null 2>&1 ;;
        # A compiler without the C library's start files links nothing.
        cc) command -v cc >/dev/null && echo 'int main(void) { return 0; }' | cc -x c -o /dev/null - 2>/dev/null ;;
        # rdma-sys makes its bindings from the headers; see clang_is_known for what it needs besides.
        rdma-headers) command -v pkg-config >/dev/null && pkg-config --exists libibverbs librdmacm && clang_is_known ;;
        chromium) command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null ;;
        cargo-deny | make) command -v "$1" >/dev/null ;;
        ip) command -v ip >/dev/null || [ -x /sbin/ip ] || [ -x /usr/sbin/ip ] ;;
        iperf3 | perf) command -v "$1" >/dev/null ;;
        perftest) command -v ib_write_bw >/dev/null && command -v ib_read_lat >/dev/null ;;
        qemu) command -v qemu-system-x86_64 >/dev/null ;;
        # The kernel's objtool reads ELF files by libelf.
        module-tools) command -v gcc >/dev/null && command -v make >/dev/null && command -v xz >/dev/null && command -v strip >/dev/null && libelf_is_there ;;
        rdma-tools) command -v ibv_devinfo >/dev/null && command -v rping >/dev/null && PATH=$PATH:/usr/sbin:/sbin command -v rdma >/dev/null ;;
        *) die "there is no tool '$1' that this script knows" ;;
    esac
}

libelf_is_there() {
    local library
    for library in /usr/lib/*/libelf.so.1 /usr/lib{,64}/libelf.so.1 /lib/*/libelf.so.1; do
        if [ -e "$library" ]; then return; fi
    done
    return 1
}

# rdma-sys's bindgen 0.59 fails with clang 16 and newer, and takes the newest that it finds: so the
# Makefile names this folder to it, in LIBCLANG_PATH.
libclang_folder() {
    local library
    for library in /usr/lib/llvm-{15,14,13,12,11}/lib/libclang*.so*; do
        [ -e "$library" ] || continue
        dirname "$library"
        return
    done
    return 1
}

# One that was named is the user's to answer for.
clang_is_known() {
    local library
    for library in ${LIBCLANG_PATH:+"$LIBCLANG_PATH" "$LIBCLANG_PATH"/libclang*.so*}; do
        [ -f "$library" ] && return
    done
    [ -z "${LIBCLANG_PATH:-}" ] && libclang_folder >/dev/null
}

# Where all of RDMA's headers are there but a clang that is old enough, and none can be installed.
say_how_to_get_clang() {
    if clang_is_known || ! { command -v pkg-config && pkg-config --exists libibverbs librdmacm; } >/dev/null; then
        return
    fi
    say "there is no libclang of version 11 to 15, and newer ones are too new for RDMA's bindings (rdma-sys). The
package libclang 14.0.6 of PyPI has one, without compiler headers, which gcc lends:
    python3 -m venv target/libclang && target/libclang/bin/pip install libclang==14.0.6
    export LIBCLANG_PATH=\$(echo $PWD/target/libclang/lib/python3*/site-packages/clang/native)
    export BINDGEN_EXTRA_CLANG_ARGS=-I\$(gcc -print-file-name=include)"
}

rust_is_new_enough() {
    local version
    version=$(rustc --version | cut -d ' ' -f 2 | cut -d - -f 1)
    [ "$(printf '%s\n%s\n' "$RUST_VERSION" "$version" | sort -V | head -n 1)" = "$RUST_VERSION" ]
}

# install TOOL: true when it is there afterwards.
install() {
    case $1 in
        rust)
            die "there is no Rust toolchain; install Rust $RUST_VERSION or newer, for example: apt-get install rustup && rustup default stable"
            ;;
        rustfmt | clippy)
            command -v rustup >/dev/null || { say "'$1' is missing and there is no rustup; install the package that holds it"; return 1; }
            say "installing $1: rustup component add $1"
            rustup component add "$1"
            ;;
        cargo-deny)
            say 'installing cargo-deny (this builds it, three minutes on two cores): cargo install cargo-deny --locked'
            cargo install cargo-deny --locked
            ;;
        cc) apt gcc libc6-dev ;;
        make) apt make ;;
        # A font too, or every letter is a box.
        chromium) apt chromium fonts-dejavu-core ;;
        ip) apt iproute2 ;;
        module-tools) apt make gcc binutils xz-utils libelf1 ;;
        rdma-tools) apt ibverbs-utils ibverbs-providers rdmacm-utils iproute2 ;;
        iperf3) apt iperf3 ;;
        perf) apt linux-perf ;;
        perftest) apt perftest ibverbs-providers ;;
        # The newest that the package sources of this host have: an old one is no fair measure.
        # shellcheck disable=SC2046 # none or two words
        qemu) apt $(from_backports) qemu-system-x86 ;;
        # The one package with a clang that is not too new; Debian 12 has it.
        rdma-headers) apt pkg-config libibverbs-dev librdmacm-dev libclang-14-dev || { say_how_to_get_clang; return 1; } ;;
    esac
}

# What makes apt-get prefer backports; nothing where it has no such source.
from_backports() {
    local suite
    suite=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)-backports
    if apt-cache policy 2>/dev/null | grep -q "n=$suite,"; then echo "-t $suite"; fi
}

apt() {
    local command="apt-get install --no-install-recommends -y $*"
    local as_root=()
    if ! command -v apt-get >/dev/null; then
        say "missing: $* (by their Debian names); there is no apt-get here, install them your way"
        return 1
    fi
    if [ "$(id -u)" -ne 0 ]; then
        if sudo -n true 2>/dev/null; then
            as_root=(sudo -n)
        else
            say "missing: $*; run as root: $command"
            return 1
        fi
    fi
    say "installing: ${as_root[*]:-} $command"
    export DEBIAN_FRONTEND=noninteractive
    # The lists may be absent or old; a failed update shows in the install.
    "${as_root[@]}" apt-get update -qq || true
    # shellcheck disable=SC2086 # the words of the command
    "${as_root[@]}" $command
}

if [ "${1:-}" = --has ]; then
    present "${2:?which tool}"
    exit
fi

if [ "${1:-}" = --libclang ]; then
    libclang_folder
    exit
fi

wanted=false
for tool in "$@"; do
    if [ "$tool" = --want ]; then
        wanted=true
    elif ! present "$tool"; then
        if install "$tool" && present "$tool"; then
            say "$tool is there now"
        elif $wanted; then
            say "without '$tool' $(left_out "$tool")"
        else
            die "'$tool' is needed and could not be installed"
        fi
    elif [ "$tool" = rust ] && ! rust_is_new_enough; then
        die "$(rustc --version) is too old; Rust $RUST_VERSION or newer is needed, for example: rustup update stable"
    fi
done
