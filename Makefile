# Every target sets up what it needs; a fresh Debian with python3 (>= 3.11), venv and make is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROTOS := $(wildcard proto/*.proto)

.PHONY: demo run test clients conformance-suite test-system lint format proto docs bench bench-plot bench-table bench-reference deb clean

$(VENV)/.installed: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c .ci/constraints.txt -e '.[dev]'
	touch $@

## see a real process get its identity (no root needed)
demo: $(VENV)/.installed
	@$(BIN)/python deploy/demo/demo.py

## the agent in the foreground, all its files inside this checkout
run: $(VENV)/.installed
	@mkdir -p .run/entries.d
	@$(BIN)/vouchd run -c config/agent.yaml

## everything that needs neither root nor Docker
test: $(VENV)/.installed clients
	.ci/test

# Environments of their own for tests: foreign Python clients, and the conformance suite. Without a
# package index the tests that need them skip.
clients:
	@PYTHON=$(PYTHON) tests/interop/setup.sh || echo "interoperability clients not installed" >&2
	@$(MAKE) --no-print-directory conformance-suite || echo "conformance suite not installed" >&2

## as root, against real components; nothing may skip
test-system: $(VENV)/.installed
	.ci/test-system

# The conformance suite in an environment of its own, without vouchd.
SUITE := $(shell find tests/conformance -type f -not -name '*.pyc')
conformance-suite: .venv-conformance/.installed
.venv-conformance/.installed: $(SUITE) .ci/constraints.txt
	$(PYTHON) -m venv .venv-conformance
	.venv-conformance/bin/python -m pip install --quiet --disable-pip-version-check \
	  -c .ci/constraints.txt ./tests/conformance
	touch $@

lint: $(VENV)/.installed
	.ci/lint

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

## the benchmarks, as ratios to a bare gRPC server; BENCH="calls storm" runs some only
bench: $(VENV)/.installed
	$(BIN)/python -m tests.bench.bench $(BENCH)

## draw bench-results.json as bench-results.svg; PLOT=file.png chooses another picture
bench-plot: PLOT ?= bench-results.svg
bench-plot: $(VENV)/.installed
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c .ci/constraints.txt -e '.[bench]'
	$(BIN)/python -m tests.bench.plot bench-results.json "$(PLOT)"

## the table of docs/performance.md, from bench-results.json
bench-table: $(VENV)/.installed
	@$(BIN)/python -m tests.bench.summary

## record the ratios that tests/bench/test_regression.py compares with
bench-reference: $(VENV)/.installed
	$(BIN)/python -m tests.bench.bench --write-reference

## a Debian package, build/vouchd_VERSION_ARCH.deb
deb: $(VENV)/.installed
	deploy/debian/build

clean:
	rm -rf $(VENV) .venv-interop .venv-conformance .run build *.egg-info .coverage* .mypy_cache .ruff_cache .pytest_cache
