# make          what there is
# make demo     a guest moves from one process to another on this machine
#
# Each target installs what it lacks (tools/setup.sh) and says so. A Rust toolchain is assumed.

# More arguments for the program that a target runs: make demo ARGS="--memory 4GiB".
ARGS ?=

CARGO ?= cargo
CARGO_TARGET_DIR ?= $(CURDIR)/target
export CARGO_TARGET_DIR
DUNLIN := $(CARGO_TARGET_DIR)/release/dunlin

# A scenario starts two processes with vCPUs and lanes of their own, more than two cores' worth:
# side by side they would measure each other.
SCENARIO_THREADS ?= 1

# Schedules of the simulation; and the one seed that is played, with all that happens in it.
SCHEDULES ?= 2000
SEED ?=
SIMULATION := $(CARGO) test -p dunlin-engine --locked --features simulation --test simulation

# How many moves with faults; 300 have each fault at least once.
RUNS ?= 300

SETUP := tools/setup.sh

# Beside a newer libclang the one that RDMA's bindings can be made with has to be named.
ifndef LIBCLANG_PATH
LIBCLANG_FOUND := $(shell $(SETUP) --libclang)
ifneq ($(LIBCLANG_FOUND),)
export LIBCLANG_PATH := $(LIBCLANG_FOUND)
endif
endif

.DEFAULT_GOAL := help
.PHONY: help demo build test model simulate chaos planted-bug planted-delays planted-slowness softroce softroce-bench softroce-receipts softroce-chaos rdma-test bench bench-blackout bench-brownout bench-peers bench-profile bench-scaling bench-suite bench-recording bench-rearm receipts lint format deny

help: ## Say what there is
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: build ## Move a running guest between two processes on this machine (ARGS=...)
	$(DUNLIN) demo $(ARGS)

# The program's features: without RDMA where its headers are not there and can't be had.
FEATURES = $$($(SETUP) --has rdma-headers || echo --no-default-features --features compression,telemetry)

build: ## Build the program: target/release/dunlin
	@$(SETUP) rust cc --want rdma-headers
	$(CARGO) build --release --locked -p dunlin $(FEATURES)

test: build ## Run every test: units, properties, and scenarios with the built program
	@$(SETUP) --want ip chromium
	tools/check-needed.sh $(DUNLIN)
	$(CARGO) test --workspace --exclude dunlin --exclude dunlin-tests --locked -- --show-output
	$(CARGO) test -p dunlin $(FEATURES) --locked -- --show-output
	@if $(SETUP) --has rdma-headers; then set -x; $(CARGO) test -p dunlin-transports --features rdma,testing --lib --locked rdma; fi
	$(CARGO) test -p dunlin-engine --features vm-memory --lib --locked vm_memory
	$(CARGO) test -p dunlin-transports --locked --features simulation --lib runtime
	$(SIMULATION) -- --schedules $(SCHEDULES)
	$(CARGO) test -p dunlin-engine --locked --features planted-delays --test planted_delays
	DUNLIN=$(DUNLIN) $(CARGO) test -p dunlin-tests --locked -- --test-threads=$(SCENARIO_THREADS) --show-output

model: ## Walk through all states of the handover, the larger bounds (about a minute)
	@$(SETUP) rust cc
	DUNLIN_MODEL=large $(CARGO) test -p dunlin-engine --test model --locked -- --show-output

simulate: ## Play whole moves under seeds, in virtual time, with faults (SCHEDULES=N, or SEED=N)
	@$(SETUP) rust cc
	$(SIMULATION) -- $(if $(SEED),--seed $(SEED) --trace,--schedules $(SCHEDULES)) $(ARGS)

chaos: build ## Move guests while processes are killed and links are cut (RUNS=300 ARGS=...)
	@$(SETUP) --want ip
	DUNLIN=$(DUNLIN) $(CARGO) run -p dunlin-tests --locked --bin dunlin-chaos -- --runs $(RUNS) $(ARGS)

# The program with the bug has a folder of its own, so that nobody runs it by mistake.
planted-bug: ## See that a planted bug, which makes two owners of a guest, is found
	@$(SETUP) rust cc --want ip rdma-headers
	$(CARGO) test -p dunlin-engine --features planted-split-brain --test model --locked -- --show-output
	$(SIMULATION) --features planted-split-brain -- --schedules $(SCHEDULES) --planted-bug
	$(CARGO) build --locked -p dunlin $(FEATURES) --features planted-split-brain --target-dir $(CARGO_TARGET_DIR)/planted
	DUNLIN=$(CARGO_TARGET_DIR)/planted/debug/dunlin $(CARGO) run -p dunlin-tests --locked --bin dunlin-chaos -- \
		--expect-two-owners --runs 8 --only freeze-incoming/commit --only cut/commit

planted-delays: ## See that a delay in any part of the pause shows in that part alone
	@$(SETUP) rust cc
	$(CARGO) test -p dunlin-engine --locked --features planted-delays --test planted_delays -- --show-output

# Both programs run in turns, so that both see the same machine. The same program against itself has
# to pass, the slowed one has to fail (with exit code 18).
# A threshold of 2 % is nearer to both: harder to pass for the one, and harder to miss for the other.
SLOWNESS := --transports tcp --lanes 1 --memory 256MiB --dirty-rate 0 --guest process --references none --repeat 40 --threshold 2%
planted-slowness: build ## See that a build slowed by a tenth is told from this one (five minutes, and two builds)
	$(CARGO) build --release --locked -p dunlin $(FEATURES) --features planted-slowness --target-dir $(CARGO_TARGET_DIR)/planted
	$(DUNLIN) bench $(SLOWNESS) --against $(DUNLIN)
	$(CARGO_TARGET_DIR)/planted/release/dunlin bench $(SLOWNESS) --against $(DUNLIN); test $$? -eq 18

softroce: build ## Run the RDMA tests in an emulated machine that has RDMA (ARGS=pings: those named so)
	@$(SETUP) rdma-headers module-tools
	tests/softroce/suite machine '$(ARGS)'

# Each kill of a process at each phase is 104 runs (see docs/chaos.md); one takes some 10 s there.
softroce-chaos: build ## Chaos over RDMA, in the emulated machine (RUNS=300 ARGS=...)
	@$(SETUP) rdma-headers module-tools
	$(CARGO) build -p dunlin-tests --locked --bin dunlin-chaos
	tests/softroce/run --timeout 7200 --env DUNLIN=$(DUNLIN) -- $(CARGO_TARGET_DIR)/debug/dunlin-chaos \
		--transport rdma --address 10.77.0.2 --bind 10.77.0.1 --guest kvm --runs $(RUNS) $(ARGS)

rdma-test: ## Run the same tests on this host, if it has an RDMA device (ARGS=pings: those named so)
	@tests/softroce/suite device
	@$(SETUP) rdma-tools
	@$(MAKE) --no-print-directory build
	tests/softroce/suite here '$(ARGS)'

softroce-bench: build ## Compare with QEMU, ib_write_bw and iperf3 in that machine (ARGS="--passes 5")
	@$(SETUP) rdma-headers module-tools
	$(CARGO) build --release --locked -p dunlin-bench --bin softroce_peers
	DUNLIN=$(DUNLIN) tests/softroce/bench $(CARGO_TARGET_DIR)/release/softroce_peers $(ARGS)

# An emulated processor takes its time to enter a guest, and the one that the machine has is everybody's:
# of 100 moves two had a way in of 136 ms, the others of up to 95. And QEMU's have one counter, but Linux
# of some releases takes them for older ones with one each; without tsc=reliable KVM would trust no
# guest's, and a guest would miss the time from leaving until it is read.
softroce-receipts: build ## Check the receipts of 50 moves over TCP and 50 over RDMA in that machine (ARGS="--each")
	@$(SETUP) rdma-headers module-tools
	$(CARGO) build --release --locked -p dunlin-bench --bin receipts
	tests/softroce/run --timeout 3600 --append tsc=reliable -- $(CARGO_TARGET_DIR)/release/receipts --dunlin $(DUNLIN) \
		--transport tcp,rdma --addresses 10.77.0.1 10.77.0.2 --way-in 250000 $(ARGS)

bench: ## Run the micro-benchmarks (about two minutes; ARGS=zero runs those named so)
	@$(SETUP) rust cc
	$(CARGO) bench --locked -p dunlin-bench --bench engine --bench transports -- $(ARGS)

# The programs that compare write what they found into this folder too.
BENCH_RESULTS := $(CARGO_TARGET_DIR)/bench-results

bench-blackout: build ## Measure the pause of guests over loopback (three minutes; ARGS="--only idle --parts")
	$(CARGO) build --release --locked -p dunlin-bench --bin blackout
	@mkdir -p $(BENCH_RESULTS)
	$(CARGO_TARGET_DIR)/release/blackout --dunlin $(DUNLIN) --json $(BENCH_RESULTS)/blackout.json $(ARGS)

bench-brownout: build ## Measure what a move costs the guest while it still runs (five minutes; ARGS="--passes 3")
	$(CARGO) build --release --locked -p dunlin-bench --bin brownout
	$(CARGO_TARGET_DIR)/release/brownout --dunlin $(DUNLIN) $(ARGS)

bench-rearm: ## Measure re-arming of the dirty log, by the size of its granules (two minutes)
	@$(SETUP) rust cc
	$(CARGO) build --release --locked -p dunlin-bench --bin rearm
	$(CARGO_TARGET_DIR)/release/rearm $(ARGS)

# The program without recording, but with all else, has a folder of its own.
SILENT = --features compression$$($(SETUP) --has rdma-headers && echo ,rdma)
bench-recording: build ## Measure what recording costs a move, against a build without it (five minutes)
	$(CARGO) build --release --locked -p dunlin --no-default-features $(SILENT) --target-dir $(CARGO_TARGET_DIR)/silent
	$(CARGO) build --release --locked -p dunlin-bench --bin recording
	$(CARGO_TARGET_DIR)/release/recording --dunlin $(DUNLIN) --without $(CARGO_TARGET_DIR)/silent/release/dunlin $(ARGS)

receipts: build ## Check the receipts of 50 moves (a minute; ARGS="--each --transport rdma --addresses A B")
	$(CARGO) build --release --locked -p dunlin-bench --bin receipts
	$(CARGO_TARGET_DIR)/release/receipts --dunlin $(DUNLIN) $(ARGS)

# Both kinds of guest beside all that is installed: twenty rows of three seconds, in eight passes.
SUITE ?= --transports rdma,tcp,tcp-writev --lanes 1,2 --memory 512MiB --dirty-rate 0,100MiB/s --guest kvm,process
bench-suite: build ## Compare transports, guests and other programs on this host (eight minutes; SUITE=..., ARGS="--repeat 15")
	@$(SETUP) --want iperf3 perftest qemu
	@mkdir -p $(BENCH_RESULTS)
	$(DUNLIN) bench $(SUITE) --json $(BENCH_RESULTS)/suite.json --csv $(BENCH_RESULTS)/suite.csv --html $(BENCH_RESULTS)/suite.html $(ARGS)

bench-peers: build ## Compare with QEMU, iperf3 and plain send and recv (an hour; ARGS="--link loopback --passes 3")
	@$(SETUP) --want ip iperf3 qemu
	$(CARGO) build --release --locked -p dunlin-bench --bin peers --bin raw_socket
	@mkdir -p $(BENCH_RESULTS)
	$(CARGO_TARGET_DIR)/release/peers --dunlin $(DUNLIN) --raw-socket $(CARGO_TARGET_DIR)/release/raw_socket \
		--json $(BENCH_RESULTS)/peers.json $(ARGS)

bench-profile: build ## Say where the processors' time goes in a move (half a minute; ARGS="--lanes 1")
	@$(SETUP) perf
	bench/profile $(DUNLIN) $(BENCH_RESULTS) $(ARGS)

bench-scaling: build ## Measure how a move grows with the guest (ten minutes; ARGS="--only used --passes 3")
	$(CARGO) build --release --locked -p dunlin-bench --bin scaling
	@mkdir -p $(BENCH_RESULTS)
	$(CARGO_TARGET_DIR)/release/scaling --dunlin $(DUNLIN) --json $(BENCH_RESULTS)/scaling.json $(ARGS)

lint: ## Check formatting, lints, documentation, and the licences and sources of dependencies
	@$(SETUP) rust cc rustfmt clippy --want cargo-deny rdma-headers
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --exclude dunlin --all-targets --locked -- -D warnings
	$(CARGO) clippy -p dunlin $(FEATURES) --all-targets --locked -- -D warnings
	$(CARGO) clippy -p dunlin --no-default-features --all-targets --locked -- -D warnings
	@if $(SETUP) --has rdma-headers; then set -x; \
	$(CARGO) clippy -p dunlin-transports --features rdma,testing --all-targets --locked -- -D warnings && \
	$(CARGO) clippy -p dunlin-bench --features rdma --all-targets --locked -- -D warnings; fi
	$(CARGO) clippy -p dunlin-transports --no-default-features --all-targets --locked -- -D warnings
	$(CARGO) clippy -p dunlin-transports --features testing,simulation --all-targets --locked -- -D warnings
	$(CARGO) clippy -p dunlin-engine --no-default-features --all-targets --locked -- -D warnings
	$(CARGO) clippy -p dunlin-engine --all-features --all-targets --locked -- -D warnings
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --no-deps --workspace --exclude dunlin --locked
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --no-deps -p dunlin $(FEATURES) --locked
	@if ! command -v cargo-deny >/dev/null; then echo 'lint: dependencies were not checked'; \
	else set -x; $(CARGO) deny --locked check bans licenses sources; fi

format: ## Format the code
	@$(SETUP) rust rustfmt
	$(CARGO) fmt --all

# Apart from lint: it fetches the advisories of the day, so a change can fail by no fault of its own.
deny: ## Check dependencies, advisories included
	@$(SETUP) rust cc cargo-deny
	$(CARGO) deny --locked check
