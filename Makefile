# Everything a fresh machine needs: `make demo` runs the main job, `make test` the tests.
# Each makes the environment when it is missing.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# For `make demo`: real recordings and a real model instead of the synthetic ones.
CORPUS ?=
MODEL ?=

.DEFAULT_GOAL := help
.PHONY: help env demo test test-all check fix bench mutants gpu-check clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

env: $(READY) ## make the environment in .venv

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(READY) ## the main job end to end; CORPUS=path MODEL=name for real ones
	$(BIN)/python -m classifiers.demo.command $(if $(CORPUS),--corpus '$(CORPUS)') $(if $(MODEL),--model '$(MODEL)')

test: $(READY) ## the tests that CI runs
	$(BIN)/python -m pytest -m 'not slow and not gpu'

test-all: $(READY) ## all tests, full-size models too (many minutes)
	$(BIN)/python -m pytest -m 'not gpu'

check: $(READY) ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

mutants: $(READY) ## plants known faults one at a time; names those that no test notices (an hour; ONLY="words")
	$(BIN)/python tests/mutants.py $(ONLY)

fix: $(READY) ## what lint and format can fix themselves
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## all benchmarks, results in benchmarks/results (hours; `python -m benchmarks NAME` is one)
	$(BIN)/python -m benchmarks

# On the Python that is there: a machine with a GPU often has its own torch, without our extras.
gpu-check: ## what needs a GPU: the engine on CUDA against the CPU, and its speed
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m benchmarks.gpu_check

clean: ## remove what was made, the environment too
	rm -rf $(VENV) build dist *.egg-info demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
