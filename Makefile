# `make demo` shows CoreVital on a real model, `make test` runs the tests; both need only Python.

PYTHON ?= python3
# Installed before everything else. Where the default wheel brings more than is wanted (CUDA, say),
# name another index too (PIP_EXTRA_INDEX_URL in the environment) or another build here.
TORCH ?= torch==2.13.0
# Another transformers to use, in a virtual environment of its own:
#   make test TRANSFORMERS='transformers==4.57.*'
TRANSFORMERS ?=
# What of the tests is run, and how.
PYTEST ?= --cov --cov-report=term
# Most tests wait for one core; each process has the real model in memory.
PARALLEL ?= -n auto --maxprocesses 4 --dist worksteal

# The oldest release that is supported, and the tests that depend on the release.
OLDEST := transformers==4.57.*
OLDEST_TESTS := $(addprefix tests/,capture cli end_to_end telemetry test_instrumentor.py zoo)

PROMPT ?= What is the capital of France, and why is it famous?

name = $(shell printf %s '$(1)' | tr -cs '[:alnum:].' -)
VENV := .venv$(if $(TRANSFORMERS),-$(call name,$(TRANSFORMERS)))
BIN := $(VENV)/bin
# Stamps: a step is done again only when what it depends on has changed.
BASE := $(VENV)/.base-$(call name,$(PYTHON) $(TORCH))
PACKAGE := pyproject.toml src/corevital/version.py

.PHONY: demo test test-oldest lint types venv clean

demo: $(VENV)/.demo
	@model=$$($(BIN)/python scripts/smollm2.py) && \
	$(BIN)/corevital run --model "$$model" --prompt '$(PROMPT)' --max-new-tokens 60

test: $(VENV)/.dev
	$(BIN)/pytest $(PARALLEL) $(PYTEST)

test-oldest:
	$(MAKE) test TRANSFORMERS='$(OLDEST)' PYTEST='$(OLDEST_TESTS)'

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.dev
	$(BIN)/mypy

venv: $(VENV)/.dev

clean:
	rm -rf .venv .venv-*

$(BASE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "CoreVital needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install '$(TORCH)'
	@touch $@

$(VENV)/.demo: $(BASE) $(PACKAGE)
	$(BIN)/python -m pip install --editable '.[gguf]' $(if $(TRANSFORMERS),'$(TRANSFORMERS)')
	@touch $@

$(VENV)/.dev: $(BASE) $(PACKAGE)
	$(BIN)/python -m pip install --editable '.[dev]' $(if $(TRANSFORMERS),'$(TRANSFORMERS)')
	@touch $@
