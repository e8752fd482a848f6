# make check   what CI runs, and what must pass before every merge
# make help    all targets

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
CARGO ?= cargo
# Arguments for what is run: make bench ARGS="--rounds 3"
ARGS ?=

PROMTOOL := $(shell command -v promtool)
NEXTEST := $(shell $(CARGO) nextest --version 2>/dev/null)
PROMTOOL_SKIPPED := alerts (promtool is missing: apt-get install -y prometheus)

STEPS := toolchain fmt clippy test doctest doc config alerts

.PHONY: help check $(STEPS) soak chaos demo bench bench-builds detection-report incident audit

help: ## Lists the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

check: ## Runs everything that CI runs: format, lints, tests, docs, configuration, alerts
	@began=$$SECONDS; \
	for step in $(STEPS); do \
		printf -- '--- %s\n' "$$step"; \
		$(MAKE) "$$step" || { echo "make check: FAILED at $$step; alone: make $$step"; exit 1; }; \
	done; \
	echo "make check: passed in $$((SECONDS - began)) s ($(STEPS)); skipped: $(if $(PROMTOOL),nothing,$(PROMTOOL_SKIPPED))"

toolchain: ## Says what is missing to build and check, and how to install it
	@missing=0; \
	need() { "$${@:2}" >/dev/null 2>&1 || { echo "missing: $${*:2:2}; install with: $$1"; missing=1; }; }; \
	need "https://rustup.rs" $(CARGO) --version; \
	need "rustup component add rustfmt" $(CARGO) fmt --version; \
	need "rustup component add clippy" $(CARGO) clippy --version; \
	need "apt-get install -y gcc libc6-dev" cc --version; \
	exit $$missing

fmt: ## Checks the format
	@$(CARGO) fmt --all --check

clippy: ## Lints all targets, warnings are errors
	@$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

test: ## Runs the tests: with cargo nextest where it is installed, else with cargo test
ifneq ($(NEXTEST),)
	@$(CARGO) nextest run --workspace --locked --profile ci
else
	@$(CARGO) test --workspace --locked --all-targets --no-fail-fast
endif

soak: ## Runs the long tests, with the release settings: storms of changes, kills, files good and bad (15 minutes at most)
	@$(CARGO) test --release --workspace --locked --test it --test memory -- --ignored --nocapture --test-threads 1

# Which experiments `make chaos` runs: make chaos ONLY="U1 M2"
ONLY ?=

chaos: ## Breaks, drowns and starves it, and prints what is promised beside what comes of it (10 minutes)
	@TIDEGATE_CHAOS="$(ONLY)" $(CARGO) test --release --locked --test chaos -- --ignored --nocapture --test-threads 1

doctest: ## Runs the examples in the documentation
	@$(CARGO) test --workspace --locked --doc

doc: ## Builds the documentation, warnings are errors
	@RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --locked --no-deps --document-private-items

config: ## Checks the shipped settings and rules with the debug binary
	@$(CARGO) run --quiet --locked --bin tidegate -- check config/

alerts: ## Checks and tests the Prometheus alerts, where promtool is installed
ifneq ($(PROMTOOL),)
	@promtool check rules deploy/prometheus/alerts.yaml
	@promtool test rules deploy/prometheus/alerts_test.yaml
else
	@echo "skipped: $(PROMTOOL_SKIPPED)"
endif

demo: ## Replays the 2020 incident over real sockets, in one process
	@$(CARGO) run --quiet --release --locked --bin tidegate -- demo $(ARGS)

bench: ## Compares CPU per request with nginx and HAProxy, side by side (4 minutes at most)
	@python3 bench/compare.py --build $(ARGS)

bench-builds: ## Compares CPU per request of BUILDS="BEFORE AFTER", two binaries of Tidegate (2 minutes)
	@test -n "$(BUILDS)" || { echo "name two binaries: make bench-builds BUILDS=\"BEFORE AFTER\"; see bench/builds.py"; exit 2; }
	@python3 bench/builds.py $(BUILDS) $(ARGS)

detection-report: ## Measures the detector on recorded traffic: make detection-report DATA=FOLDER (15 minutes at most)
	@test -n "$(DATA)" || { echo "name the folder with the recorded counts: make detection-report DATA=FOLDER; see bench/detection/report.py"; exit 2; }
	@$(CARGO) build --quiet --release --locked --bin tidegate
	@python3 bench/detection/report.py "$(DATA)" --binary "$${CARGO_TARGET_DIR:-target}/release/tidegate" $(ARGS)

incident: ## Replays the incident against `tidegate run`, with nginx and wrk (half a minute)
	@python3 bench/incident.py --build $(ARGS)

audit: ## Checks dependencies: advisories, licences, bans, sources
	@$(CARGO) deny --version >/dev/null 2>&1 || { echo "missing: cargo deny; install with: cargo install --locked cargo-deny"; exit 1; }
	@$(CARGO) deny check $(ARGS)
