# Every target sets up what it needs. A Debian with python3 (3.11 or later), python3-venv and make is
# enough; `make test-system` needs the packages of `make system-packages` as well.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c .ci/constraints.txt
SUITE := $(shell find tests/conformance -type f -not -name '*.pyc')

.DEFAULT_GOAL := help
.PHONY: help demo run lint format test fuzz clients conformance-suite test-system system-packages proto \
  docs bench bench-plot bench-table bench-reference bench-peers bench-peers-table deb clean clean-state

# A line "## text" above a target is its help.
## this list
help:
	@awk '/^## / { text = substr($$0, 4) } \
	  /^[a-z-]+:/ && text { sub(/:.*/, ""); printf "make %-18s %s\n", $$0, text; text = "" }' \
	  $(MAKEFILE_LIST)

# --- environments --------------------------------------------------------------------------------
# Three sets of packages in one environment: what the agent needs, what the demo needs as well, and
# everything. pip's output is the progress of a minute's work.

$(VENV)/.runtime: pyproject.toml .ci/constraints.txt
	@echo "Installing vouchd and the packages that it needs into $(VENV), once"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) -e .
	@touch $@

$(VENV)/.demo: pyproject.toml .ci/constraints.txt
	@echo "Installing vouchd and the packages that the demo needs into $(VENV), once"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) -e '.[demo]'
	@touch $(VENV)/.runtime $@

$(VENV)/.installed: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -qq -e '.[dev]'
	touch $(VENV)/.runtime $(VENV)/.demo $@

# The conformance suite in an environment of its own, without vouchd.
.venv-conformance/.installed: $(SUITE) .ci/constraints.txt
	$(PYTHON) -m venv .venv-conformance
	.venv-conformance/bin/python -m pip install --quiet --disable-pip-version-check \
	  -c .ci/constraints.txt ./tests/conformance
	touch $@

# --- use -----------------------------------------------------------------------------------------

## show mutual TLS, a refusal and a push, in half a minute after set-up; KEEP=1 leaves the agent running
demo: $(VENV)/.demo
	@KEEP=$(KEEP) $(BIN)/python deploy/demo/demo.py

## run the agent in the foreground, with all its files in .run/
run: $(VENV)/.runtime
	@mkdir -p .run/entries.d
	@$(BIN)/vouchd run -c config/agent.yaml

## build a Debian package, build/vouchd_VERSION_ARCH.deb
deb: $(VENV)/.installed
	deploy/debian/build

# --- tests ---------------------------------------------------------------------------------------

## check style, types, import contracts and generated files
lint: $(VENV)/.installed
	.ci/lint

## run all tests that need neither root nor containers
test: $(VENV)/.installed
	@$(MAKE) --no-print-directory conformance-suite || echo "conformance suite not installed" >&2
	.ci/test

## run the tests against real components, as root; none may skip
test-system: $(VENV)/.installed
	.ci/test-system

## fuzz the HTTP/2 server for a minute; FUZZ=-max_total_time=3600 does it for an hour
fuzz: FUZZ ?= -max_total_time=60
fuzz: $(VENV)/.installed
	@$(PIP) -qq atheris
	@mkdir -p build
	$(BIN)/python tests/fuzz/fuzz_http2.py -verbosity=0 -artifact_prefix=build/fuzz- $(FUZZ)

## install the Debian packages that make test-system needs, as root
system-packages:
	.ci/system-packages install

## build the SPIFFE and gRPC clients of other projects, which make test builds too
clients:
	tests/interop/build

# Without a package index, its tests skip.
## install the conformance suite into .venv-conformance
conformance-suite: .venv-conformance/.installed

# --- generated files -----------------------------------------------------------------------------

## format the code
format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

## generate the message stubs from the .proto files
proto: $(VENV)/.installed
	.ci/generate proto agent/pb
	.ci/generate tests/conformance/proto tests/conformance/workload_api_conformance/pb

## generate the tables in docs/reference, and config/schema, from the code
docs: $(VENV)/.installed
	$(BIN)/python -m deploy.reference

# --- benchmarks ----------------------------------------------------------------------------------

## run the benchmarks; BENCH="calls storm" runs these scenarios only
bench: $(VENV)/.installed
	$(BIN)/python -m tests.bench.bench $(BENCH)

## draw bench-results.json as bench-results.svg; PLOT=file.png draws into another file
bench-plot: PLOT ?= bench-results.svg
bench-plot: $(VENV)/.installed
	$(PIP) -qq -e '.[bench]'
	$(BIN)/python -m tests.bench.plot bench-results.json "$(PLOT)"

## print the table of docs/performance.md, from bench-results.json
bench-table: $(VENV)/.installed
	@$(BIN)/python -m tests.bench.summary

## record the ratios that tests/bench/test_regression.py compares with
bench-reference: $(VENV)/.installed
	$(BIN)/python -m tests.bench.bench --write-reference

## measure beside SPIRE's agent, as root with Go; PEERS="calls start" runs these scenarios only
bench-peers: $(VENV)/.installed
	$(BIN)/python -m tests.peers.bench measure $(PEERS)

## write the table of docs/performance.md, from peers-results.json
bench-peers-table: $(VENV)/.installed
	@$(BIN)/python -m tests.peers.bench table

# --- clean ---------------------------------------------------------------------------------------

## delete environments, caches and build results; keep .run/ with the authority of make run
clean:
	rm -rf $(VENV) .venv-conformance build *.egg-info .coverage* .hypothesis \
	  .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

## delete .run/: the authority, the SVIDs and the entries of make run
clean-state:
	rm -rf .run
