# certbench: `make report` shows the thing, `make test` tests it. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
STAMP_DEV := $(VENV)/.installed-dev
export MPLBACKEND := Agg

.DEFAULT_GOAL := help
.PHONY: help install report test check lint types workflow-lint format docs lock clean benchmarks

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/' | column -t -s:

install: $(STAMP)  ## prepare .venv; its console command is .venv/bin/certbench

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "certbench needs Python >= 3.11; $(PYTHON) is $$($(PYTHON) --version 2>&1). Set PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "Python's venv module is missing: install the package python3-venv (Debian, Ubuntu)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"

$(STAMP): requirements.lock pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

$(STAMP_DEV): requirements-dev.lock $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-dev.lock
	@touch $@

report: $(STAMP)  ## the embedded study: results/report.html (minutes, no download)
	$(BIN)/snakemake --profile profiles/local
	@echo "Open results/report.html"

test: $(STAMP_DEV)  ## all tests
	OMP_NUM_THREADS=1 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -n 2 --dist loadfile -q $(PYTEST_ARGS)

lint: $(STAMP_DEV)  ## format and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP_DEV)  ## types
	$(BIN)/mypy

workflow-lint: $(STAMP_DEV)  ## the workflow's own format and lint
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/snakefmt --check Snakefile workflow/rules
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/snakemake --lint

check: lint types workflow-lint test  ## everything that continuous integration runs

format: $(STAMP_DEV)  ## rewrite in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/snakefmt Snakefile workflow/rules

docs: $(STAMP)  ## docs/configuration.md from the schema and the plug-ins
	$(BIN)/certbench schema --write docs/configuration.md

lock: $(STAMP_DEV)  ## requirements*.lock from what is installed
	$(BIN)/python tools/lock.py

clean:  ## remove results (not the environment)
	rm -rf results .snakemake

.PHONY: install-slurm slurm-test benchmark-planning
install-slurm: $(STAMP)  ## the executor of profiles/slurm, for a cluster's login node
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-slurm.lock

slurm-test: $(STAMP_DEV)  ## one study on a real SLURM on this machine, through every fault (root)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/slurm/run.py

benchmark-planning: $(STAMP)  ## dry run of the full study against a bare Snakemake DAG
	$(BIN)/python benchmarks/planning.py
