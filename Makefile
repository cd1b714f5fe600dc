# Galoo: `make demo` shows it, `make test` proves it, `make build` only makes it. Each installs what it lacks.
#
# One optimised build of the dependencies (profile release) serves the binary, the demo, the tests, the lints and the
# benchmarks. It lives outside the clone, so that a second clone on the same machine starts warm.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

GALOO_CACHE ?= $(HOME)/.cache/galoo
export CARGO_TARGET_DIR ?= $(GALOO_CACHE)/target
export CARGO_TERM_COLOR ?= never
# RocksDB, compiled apart; in a folder of its own for each version of it and each way of compiling it.
export ROCKSDB_LIB_DIR ?= $(GALOO_CACHE)/rocksdb/$(shell grep -A1 'name = "librocksdb-sys"' Cargo.lock | cat - .ci/rocksdb | cksum | cut -d' ' -f1)
export ROCKSDB_STATIC := 1

CARGO_FLAGS := --release --locked
# The tests ask DuckDB (from PyPI) for a second opinion.
export GALOO_PYTHON ?= $(GALOO_CACHE)/venv/bin/python

.PHONY: help setup build demo test bench chaos fuzz lint unit clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what the build and the tests need (Debian; root or sudo)
	@.ci/setup
	@.ci/rocksdb

build: setup ## the optimised binary, at bin/galoo
	cargo build $(CARGO_FLAGS) --workspace --bin galoo
	@mkdir -p bin && install -m 755 $(CARGO_TARGET_DIR)/release/galoo bin/galoo && bin/galoo --version

demo: build ## three nodes, a million events, a kill -9, answers and proofs; DATA=file loads that, ONCE=1 ends by itself
	bin/galoo demo $(if $(DATA),--data "$(DATA)") $(if $(filter-out 0,$(ONCE)),--once)

lint: setup ## formatting, clippy and docs, warnings are errors
	cargo fmt --all --check
	cargo clippy $(CARGO_FLAGS) --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc $(CARGO_FLAGS) --workspace --no-deps --document-private-items

unit: setup ## all tests, without the lints
	cargo test $(CARGO_FLAGS) --workspace

test: lint unit ## everything that must hold: lints, docs, unit, property and process tests
	@echo "make test: all checks passed"

bench: build ## the figures of docs/benchmarks.md; ONLY=load, rollup, reads, writes or storage for some of them
	@.ci/setup bench
	cargo build $(CARGO_FLAGS) --workspace --bins
	$(GALOO_PYTHON) bench/run.py bin/galoo $(CARGO_TARGET_DIR)/release/galoo-bench $(CARGO_TARGET_DIR)/release/galoo-workload \
		$(or $(DATA),$(or $(GALOO_SHARED),../shared)/data/sc2.ndjson.zst) $(ONLY)

chaos: build ## nodes killed for MINUTES=10, and the power of one cut CUTS=40 times at each kind of write; SEED=7 chooses where
	cargo build $(CARGO_FLAGS) --workspace --examples
	GALOO_CHAOS_SECONDS=$$(($(or $(MINUTES),10) * 60)) GALOO_DISK_CUTS=$(or $(CUTS),40) GALOO_DISK_SEED=$(or $(SEED),1) \
		cargo test $(CARGO_FLAGS) --workspace --test process --test disk -- --nocapture

# Room for what the fuzzer finds worth keeping; what breaks something goes to fuzz/corpus and becomes a seed of the tests.
FUZZ_FOLDER := $(GALOO_CACHE)/fuzz

fuzz: setup ## decoders against any bytes; SECONDS_EACH=60 for each of them, ONLY=rows, blocks, log, properties or lines
	RUSTC_WORKSPACE_WRAPPER=$(CURDIR)/fuzz/instrument cargo build $(CARGO_FLAGS) --workspace --features galoo-fuzz/libfuzzer --bin galoo-fuzz
	@for target in $(or $(ONLY),rows blocks log properties lines); do \
		mkdir -p $(FUZZ_FOLDER)/$$target && echo "fuzz: $$target" && \
		GALOO_FUZZ=$$target $(CARGO_TARGET_DIR)/release/galoo-fuzz -max_total_time=$(or $(SECONDS_EACH),60) -timeout=10 \
			-rss_limit_mb=4096 -print_final_stats=1 -verbosity=0 -artifact_prefix=$(FUZZ_FOLDER)/ \
			$(FUZZ_FOLDER)/$$target fuzz/corpus/$$target; \
	done

clean: ## remove what was built (the dependencies too)
	rm -rf bin $(CARGO_TARGET_DIR) $(GALOO_CACHE)/rocksdb
