# make train            train the quickstart recipe, from nothing
# make train RECIPE=smollm3_ultrafeedback ARGS="beta=0.05"
RECIPE ?= quickstart
ARGS ?=
PYTHON ?= python3
BIN := .venv/bin

# make demo QUICK=1        on a fifth of the questions
QUICK ?=
.PHONY: help install train demo list test lint clean
.DEFAULT_GOAL := help

help: ## Show these targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12
	@echo 'Variables: RECIPE=$(RECIPE) ARGS="beta=0.05 adapter.r=64" PYTHON=$(PYTHON)'

install: .venv/.installed ## Make .venv with the tested versions (constraints.txt)

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "dpo-recipes needs Python 3.11 or newer; $(PYTHON) is older. Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --constraint constraints.txt --editable ".[dev]"
	@touch $@

train: .venv/.installed ## Train RECIPE (default: quickstart) with ARGS
	@$(BIN)/dpo-recipes train $(RECIPE) $(ARGS)

demo: .venv/.installed ## Teach a real model of 135 M parameters to answer plainly
	@$(BIN)/dpo-recipes train $(if $(QUICK),smollm2_135m_quick,smollm2_135m_cpu) $(ARGS)

list: .venv/.installed ## List the recipes
	@$(BIN)/dpo-recipes list

test: .venv/.installed ## Run the tests, one process a core
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal $(ARGS)

lint: .venv/.installed ## Check style (ruff) and types (mypy)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

clean: ## Remove .venv and caches; runs stay
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache
