# The project's vocabulary. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
# Installed first and alone: any other way of asking for torch may fetch gigabytes of CUDA packages. On a GPU
# machine, name the build for it: make quickstart TORCH='torch==2.13.0 --index-url ...'
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
# Tests run side by side, each on one thread.
WORKERS ?= auto
# Compiled modules are kept: tests start hundreds of processes, and each would compile all of dpo again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help quickstart install install-dev test test-slow faults check fmt wheel quickstart-assets clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

quickstart: install ## install into .venv and train the built-in model on the built-in preferences (no network needed after)
	$(BIN)/dpo train +experiment=quickstart

install: $(VENV)/.installed ## install into .venv what running needs

install-dev: $(VENV)/.installed-dev ## install into .venv what developing and testing need as well

# Neighbouring tests stay on one worker, which makes what they share once.
test: install-dev ## install and run the tests (under 5 minutes on 2 cores)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

test-slow: install-dev ## the tests that take minutes
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m slow

faults: install-dev ## what a run survives: strange files, kills, signals, a long run; the last four go on where they were cut off
	$(BIN)/python -m pytest -q -n $(WORKERS) -m faults
	$(BIN)/python scripts/faults.py kills
	$(BIN)/python scripts/faults.py signals
	$(BIN)/python scripts/faults.py caches
	$(BIN)/python scripts/faults.py soak

check: install-dev ## formatting, linter, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

fmt: install-dev ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheel: install-dev ## build dist/*.whl
	$(BIN)/python -m build --wheel

quickstart-assets: install-dev ## build the quickstart's model and data again from their seed and compare with the shipped ones
	$(BIN)/python scripts/build_quickstart.py --check

clean: ## remove what was built (not the runs)
	rm -rf $(VENV) dist build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet $(TORCH)
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.torch
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.torch
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@ $(VENV)/.installed
