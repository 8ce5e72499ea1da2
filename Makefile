# What there is to make, with a line on each: make help

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
# Two lines of a recipe never run at once, whatever -j says: the steps time themselves and share bin/.
.NOTPARALLEL:

GO := $(shell command -v go || echo /usr/local/go/bin/go)
export PATH := $(dir $(GO)):$(PATH)

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT  := $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)
# Without what cli needs to write manual pages, and without a debugger's tables: a run that finds nothing to do is hardly
# more than the start of the program.
BUILD   := CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -tags urfave_cli_no_docs -ldflags '$(LDFLAGS)'

FUZZTIME   ?= 20s
ROUNDS     ?= 1000
HISTORIES  ?= 3000
BENCH_SIZE ?= 1024
BENCH_RUNS ?= 3
# The table of growth is for these sizes beside it; 4096 takes ten minutes more, and 25 GiB of disk.
BENCH_SIZES ?= 64 256
BENCH_DIR   ?= bench-data
# More arguments for scripts/bench/bench.py, such as --keep.
BENCHFLAGS ?=
# More arguments for go test, such as GOTESTFLAGS='-run TestShip -v'.
GOTESTFLAGS ?=

# The tests fsync all the time, and none can see whether that works: memory does as well as a disk, many times faster.
SHM := $(shell [ -w /dev/shm ] && [ "$$(df --output=avail -k /dev/shm 2>/dev/null | tail -n 1)" -ge 2097152 ] && echo /dev/shm)
ifneq ($(SHM),)
test race interop kill walk: export TMPDIR := $(SHM)
endif

# A process with the race detector sleeps for a second before it ends; tests start hundreds.
race: export GORACE := atexit_sleep_ms=0

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## bin/zodbrepl, one static binary
	$(BUILD) -o bin/zodbrepl ./cmd/zodbrepl

.PHONY: release
release: ## the same for every platform that is promised: bin/zodbrepl-linux-{amd64,arm64}
	for arch in amd64 arm64; do GOOS=linux GOARCH=$$arch $(BUILD) -o bin/zodbrepl-linux-$$arch ./cmd/zodbrepl; done

.PHONY: test
test: ## all tests that need Go alone
	CGO_ENABLED=0 $(GO) test $(GOTESTFLAGS) ./...

.PHONY: race
race: ## the same under the race detector, which needs a C compiler
	@command -v "$$($(GO) env CC)" >/dev/null || { echo "make race: Go's race detector needs a C compiler ($$($(GO) env CC)): apt-get install gcc libc6-dev" >&2; exit 1; }
	CGO_ENABLED=1 $(GO) test -race -timeout 20m $(GOTESTFLAGS) ./...

.PHONY: interop
interop: ## tests against the real ZODB, ZEO, repozo and OpenSSH; installs what it needs
	scripts/venv.sh
	scripts/debian.sh strace zstd mkfs.xfs:xfsprogs systemd-analyze:systemd ip:iproute2 sshd:openssh-server sftp:openssh-client ocf-tester:resource-agents xmllint:libxml2-utils keepalived curl
	CGO_ENABLED=0 $(GO) test -tags interop -count=1 -timeout 20m $(GOTESTFLAGS) ./scripts/interop/...
	CGO_ENABLED=0 $(GO) test -tags interop -count=1 -timeout 20m $(GOTESTFLAGS) ./scripts/kill -kill.rounds=60
	CGO_ENABLED=0 $(GO) test -count=1 -timeout 20m -v $(GOTESTFLAGS) ./restore -run TestAnyHistoryOfASite -rapid.checks=150

.PHONY: lint
lint: ## gofmt, vet, staticcheck, shellcheck, tidy modules, imports one way
	scripts/lint/lint.sh

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (20s)
	scripts/lint/fuzz.sh $(FUZZTIME)

.PHONY: kill
kill: ## kill backup, ship, watch and recover at random moments, ROUNDS (1000) times
	CGO_ENABLED=0 $(GO) test -count=1 -timeout 0 -v ./scripts/kill -kill.rounds=$(ROUNDS) $(GOTESTFLAGS)

.PHONY: walk
walk: ## random histories of three hosts, held to every promise, HISTORIES (3000) of them
	CGO_ENABLED=0 $(GO) test -count=1 -timeout 0 -v ./restore -run TestAnyHistoryOfASite -rapid.checks=$(HISTORIES) -rapid.seed=0 $(GOTESTFLAGS)

.PHONY: demo
demo: ## see the whole of it in a minute, without Python and root
	@CGO_ENABLED=0 $(GO) run ./scripts/demo

.PHONY: bench
bench: ## ratios against the real repozo, ZODB and cp; BENCH_SIZE (1024) MiB, BENCH_RUNS (3); 15 minutes
	scripts/venv.sh .venv
	$(MAKE) --no-print-directory build
	$(BUILD) -o bin/limit ./scripts/bench/limit
	.venv/bin/python scripts/bench/bench.py --size $(BENCH_SIZE) --sizes '$(BENCH_SIZES)' --runs $(BENCH_RUNS) --dir $(BENCH_DIR) $(BENCHFLAGS)

.PHONY: bench-latency
bench-latency: ## only commits on a ZEO server beside a backup, and what a backup leaves of its cached pages
	$(MAKE) --no-print-directory bench BENCHFLAGS='--tables latency,cache $(BENCHFLAGS)'

.PHONY: bench-sftp
bench-sftp: ## ship against the system's sftp, on loopback and with 50 ms of delay; root, a real sshd; 3 minutes
	scripts/debian.sh sshd:openssh-server sftp:openssh-client
	CGO_ENABLED=0 $(GO) test -tags interop -timeout 30m -run '^$$' -bench Ship -benchtime 3x $(GOTESTFLAGS) ./scripts/interop/sftp

.PHONY: gobench
gobench: ## Go's benchmarks of scanning, hashes, codecs, index, replay, as benchstat reads them
	CGO_ENABLED=0 $(GO) test -run '^$$' -bench . -count 6 $(GOTESTFLAGS) ./filestorage ./incremental ./restore

.PHONY: fixtures
fixtures: ## write fixtures/data again, with the real ZODB
	scripts/venv.sh .venv
	.venv/bin/python fixtures/make.py

.PHONY: clean
clean: ## remove what was built, and the bench's data; the venvs stay
	rm -rf bin bench-data
