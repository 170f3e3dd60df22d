# Two commands do all the set-up on a fresh machine: `make quickstart` and `make test`.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install -c constraints.txt
OFFLINE := HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

# The tests on real data run when this folder lies beside the checkout; set ALIGNKIT_DATA to another folder, or to
# nothing to skip them.
ifeq ($(origin ALIGNKIT_DATA),undefined)
ifneq ($(wildcard ../shared/data/.),)
export ALIGNKIT_DATA := $(abspath ../shared/data)
endif
endif

# A stamp is newer than pyproject.toml and constraints.txt for as long as the environment fits them.
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev

.PHONY: help quickstart test test-slow lint format build docs bench bench-quick gpu compat mutation clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(INSTALLED)  ## install, then train, save, reload and probe a small reward model, offline
	$(OFFLINE) $(BIN)/python -m alignkit.reward_model.quickstart

test: $(INSTALLED_DEV)  ## install with the dev extra, then run the default test tier, files side by side
	$(PYTEST) -n auto --maxprocesses 4 --dist loadfile

test-slow: $(INSTALLED_DEV)  ## run the slow tier, such as the examples
	$(PYTEST) -m "slow and not gpu"

lint: $(INSTALLED_DEV)  ## ruff, mypy and the import-direction test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src
	$(PYTEST) -q tests/test_imports.py

format: $(INSTALLED_DEV)  ## let ruff fix and format the code, and write the file map
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python docs/file_map.py

build: $(INSTALLED_DEV)  ## build sdist and wheel, check them, and run the wheel in an empty environment elsewhere
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	set -euo pipefail; \
	folder=$$(mktemp -d); \
	trap 'rm -rf "$$folder"' EXIT; \
	$(PYTHON) -m venv "$$folder/venv"; \
	"$$folder/venv/bin/python" -m pip install -c constraints.txt dist/*.whl; \
	cd "$$folder"; \
	venv/bin/python -I -c "import alignkit; print(alignkit.__version__, alignkit.__file__)"; \
	$(OFFLINE) venv/bin/python -I -m alignkit.reward_model.quickstart --steps 5

docs: $(INSTALLED_DEV)  ## build the documentation site in site/, warnings and broken links being errors
	$(OFFLINE) $(BIN)/python docs/build_site.py

bench: $(INSTALLED_DEV)  ## measure everything against its peers; writes benchmarks/results and docs/benchmarks.md
	$(OFFLINE) $(BIN)/python benchmarks/run_all.py

bench-quick: $(INSTALLED_DEV)  ## whether every benchmark runs: toy shapes, nothing that stays
	$(OFFLINE) $(BIN)/python benchmarks/run_all.py --quick

gpu: $(INSTALLED_DEV)  ## on a machine with a GPU: its tests, then every benchmark at the shapes of one
	$(PYTEST) -m gpu --junit-xml=benchmarks/results/gpu_tests.xml
	$(OFFLINE) $(BIN)/python benchmarks/run_all.py

compat:  ## the contract tests with the lowest and the newest allowed versions, in environments of their own
	$(PYTHON) tests/contract/compat.py

mutation: $(INSTALLED_DEV)  ## change the pure modules one place at a time; writes benchmarks/results/mutation.json
	$(PIP_INSTALL) -e ".[mutation]"
	OMP_NUM_THREADS=1 $(OFFLINE) $(BIN)/python -m mutmut run --max-children 2 > mutation.log 2>&1
	$(BIN)/python tests/mutation/report.py

clean:  ## remove builds and caches; .venv stays
	rm -rf build dist site mutants mutation.log .compat .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests examples benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch comes first and alone: the rest then finds it there and does not choose another build of it.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) -e .
	touch $@

$(INSTALLED_DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) -e ".[dev]"
	touch $(INSTALLED) $@
