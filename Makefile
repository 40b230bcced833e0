# Each target does all its set-up by itself, on a bare Debian machine with Python >= 3.11 and pip.
SHELL := /bin/sh
PROJECTS := pyproject.toml constraints.txt setup.py $(wildcard core/headrace/*.[ch] plugins/*/pyproject.toml plugins/*/setup.py plugins/*/src/*/*.[ch]) tools/set_up.sh
BIN := .venv/bin
MINUTES := 10

.PHONY: help run test lint bench torture soak install clean

help:
	@echo "make run      the example site with a simulated fleet of 200 devices; Ctrl-C drains"
	@echo "make test     all tests (under 10 minutes)"
	@echo "make lint     ruff and mypy"
	@echo "make bench    the benchmarks: figures, not tests"
	@echo "make torture  the crash tests in full, then headrace torture for MINUTES=10       make soak  the long runs in full"
	@echo "make install  the environment in .venv, with the headrace command"

install: .venv/.set-up-run

.venv/.set-up-run: $(PROJECTS)
	@tools/set_up.sh run

.venv/.set-up-dev: $(PROJECTS)
	@tools/set_up.sh dev
	@touch .venv/.set-up-run

run: .venv/.set-up-run
	@exec examples/demo.sh

# the tests start hundreds of processes, which compile our modules again and again where the environment forbids to keep that
test: .venv/.set-up-dev
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n 4 --dist loadgroup $(PYTEST_ARGS)

lint: .venv/.set-up-dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: .venv/.set-up-dev
	@for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

torture: .venv/.set-up-dev
	@HEADRACE_FULL=1 $(BIN)/python -m pytest -q -x tests/crash plugins/queue_pmem/tests plugins/sink_lake/tests plugins/sink_sql/tests plugins/sink_akumuli/tests plugins/transport_zmq/tests
	@$(BIN)/headrace torture examples/tiers.toml --minutes $(MINUTES) $(TORTURE_ARGS)

soak: .venv/.set-up-dev
	@HEADRACE_FULL=1 $(BIN)/python -m pytest -q -x tests/soak

clean:
	@rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache
