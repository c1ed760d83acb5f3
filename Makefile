# Stoker. `make help` lists the targets; a fresh machine needs Python 3.11 or later and make.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UP_ARGS ?=
PYTEST_ARGS ?=

.PHONY: help up install test check format bench soak lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'

up: install ## start Stoker with the embedded engine and model (UP_ARGS="--port 9000" passes options)
	@exec $(BIN)/stoker up $(UP_ARGS)

install: $(VENV)/.installed ## create .venv and install what Stoker needs to run

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Stoker needs Python 3.11 or later. On Debian, type:"; echo "  apt-get install -y python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "Python's venv module is missing. On Debian, type:"; echo "  apt-get install -y python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The lock names exact versions and hashes; the stamp makes a second start work without a network.
$(VENV)/.installed: requirements.lock pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-dev: requirements-dev.lock $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

test: $(VENV)/.installed-dev ## install what the tests need (system packages when root) and run them all
	@scripts/install-test-packages
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(VENV)/.installed-dev ## ruff, the strict type checker and the import walls
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev ## let ruff rewrite the layout
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-dev ## run the benchmarks and rewrite docs/benchmarks.md
	$(BIN)/python -m bench all
	$(BIN)/python -m bench report

soak: $(VENV)/.installed-dev ## the long tests (kills under load, hours of churn in miniature)
	$(BIN)/python -m pytest -m soak $(PYTEST_ARGS)

lock: $(VENV)/.installed-dev ## compile the lock files anew (names, versions and hashes; no addresses)
	$(PYTHON) -m venv .bench/lock && .bench/lock/bin/pip install --quiet uv
	.bench/lock/bin/uv pip compile pyproject.toml --extra install -o requirements.lock \
	  --generate-hashes --no-emit-index-url --python-version 3.11 --custom-compile-command "make lock" --quiet
	.bench/lock/bin/uv pip compile pyproject.toml --extra install --extra dev -c requirements.lock -o requirements-dev.lock \
	  --generate-hashes --no-emit-index-url --python-version 3.11 --custom-compile-command "make lock" --quiet

clean: ## remove the environment and everything built
	rm -rf $(VENV) .bench build *.egg-info src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
