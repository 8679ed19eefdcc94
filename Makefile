# Every target sets up what it needs; a fresh Debian with python3 (>= 3.11), venv and make is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROTOS := $(wildcard proto/*.proto)

.PHONY: demo run test clients test-system lint format proto schemas bench bench-plot bench-table bench-reference deb clean

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

# Other people's Python clients; offline, the tests that need them say so and skip.
clients:
	@PYTHON=$(PYTHON) tests/interop/setup.sh || echo "interoperability clients not installed" >&2

## as root, against real components; nothing may skip
test-system: $(VENV)/.installed
	.ci/test-system

lint: $(VENV)/.installed
	.ci/lint

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

## generate agent/pb from proto/
proto: $(VENV)/.installed
	.ci/generate agent/pb

## generate config/schema from the models
schemas: $(VENV)/.installed
	VOUCHD_WRITE_SCHEMAS=1 $(BIN)/pytest -q tests/unit/config/test_settings.py -k up_to_date

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
	rm -rf $(VENV) .venv-interop .run build *.egg-info .coverage* .mypy_cache .ruff_cache .pytest_cache
