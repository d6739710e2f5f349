# `make demo` and `make test` set up all they need. The first call takes minutes, later ones seconds.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# On Linux the torch that PyPI gives brings CUDA along, some gigabytes. Without an NVIDIA GPU the CPU build will do:
#   make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0

SOURCES := $(wildcard graftlm tests benchmarks scripts)

.PHONY: help demo test lint types docs pytest format benchmark benchmark-name clean
.NOTPARALLEL: # two targets must not install into one environment at once

help:
	@echo "make demo       set up, then build data, tune, align and evaluate on the embedded base"
	@echo "make test       set up, then all checks: lint, types, docs, pytest"
	@echo "make lint       ruff and the import contract"
	@echo "make types      mypy --strict"
	@echo "make docs       the documentation, into site/"
	@echo "make pytest     the tests alone; ARGS='-k routing' picks some"
	@echo "make format     put the code into shape"
	@echo "make benchmark  NAME=sft_vs_trl (any file of benchmarks/), ARGS=..."
	@echo "make clean      remove what the checks leave behind (keeps $(VENV))"
	@echo
	@echo "PYTHON=python3.12 picks the interpreter (3.11 or newer)."

demo: $(VENV)/.run
	$(BIN)/graftlm demo $(ARGS)

test: lint types docs pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/lint-imports --no-logo

types: $(VENV)/.dev
	$(BIN)/mypy

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Two processes of one thread each: made for two cores, and steady on a busy machine.
pytest: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --durations=10 $(ARGS)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

benchmark: benchmark-name $(VENV)/.oracles
	$(BIN)/python benchmarks/$(NAME).py $(ARGS)

benchmark-name: # asked before anything is installed
	@test -f "benchmarks/$(NAME).py" || { \
	  echo "make benchmark needs NAME, one of:" $(filter-out _%,$(basename $(notdir $(wildcard benchmarks/*.py)))) >&2; exit 2; }

clean:
	rm -rf build dist site .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: an environment is brought up to date when pyproject.toml changes.

$(VENV)/.torch: Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "graftlm needs Python 3.11 or newer; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1 | head -n 1)" >&2; \
	  echo "Name another one: make $(or $(MAKECMDGOALS),demo) PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install $(TORCH)
	@touch $@

$(VENV)/.run: pyproject.toml $(VENV)/.torch
	$(PIP) install -e .
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.torch
	$(PIP) install -e '.[dev]'
	@touch $@ $(VENV)/.run

$(VENV)/.oracles: pyproject.toml $(VENV)/.torch
	$(PIP) install -e '.[oracles]'
	@touch $@ $(VENV)/.run
