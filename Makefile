# make train: Go2 learns to walk, in minutes on a CPU, and is filmed.     make test: linter, type checker, tests.
# Both set up .venv first. make test-unit runs the unit tests alone, make test-long the slow proofs too; make clean
# removes .venv.
SHELL := /bin/bash
PYTHON ?= $(shell for p in python3.11 python3.12 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
INSTALL := [ $$(id -u) = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq >/dev/null

.PHONY: train test test-unit test-long setup browser lint clean

train: run := outputs/go2/$(shell date +%Y-%m-%d_%H-%M-%S)_small
train: setup
	$(BIN)/python train.py experiment=go2_small hydra.run.dir=$(run)
	@$(BIN)/python -m ppo_lab film $(run) || echo "$(run) is complete, but for a film"

test: setup browser lint
	$(BIN)/python -m pytest -m "not slow"

test-unit: setup
	$(BIN)/python -m pytest -m "not slow" tests/unit

test-long: setup browser lint
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: .venv/installed
	@$(BIN)/python -m ppo_lab.machine.preflight libraries 2>/dev/null \
		|| { $(INSTALL) $$($(BIN)/python -m ppo_lab.machine.preflight packages); } || true
	@$(BIN)/python -m ppo_lab.machine.preflight

browser:  # without it the tests that look at TensorBoard's pages are skipped
	@{ command -v chromium && command -v chromedriver; } >/dev/null || { $(INSTALL) --no-install-recommends chromium chromium-driver; } || true

.venv/installed: pyproject.toml setup.py constraints.txt
	@[ -n "$(PYTHON)" ] || { echo "error: Python 3.11 or 3.12 not found; install one, or: make PYTHON=/path/to/python"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv
