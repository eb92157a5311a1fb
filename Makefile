# What a person does with this repository. `make` alone lists it.
# Nothing but Python (3.10 or newer, with venv) and make is needed; the rest goes into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Extras whose packages the lock file pins.
LOCKED_EXTRAS := dev export notebook explore docs ray

export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test check notebooks docs bench bench-sweep lock clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with everything in it

demo: $(STAMP) ## find and constrain the false-premise heads of the embedded model
	$(BIN)/interp demo $(ARGS)

test: $(STAMP) ## run the tests (ARGS="-k name" to choose)
	$(BIN)/python -m pytest $(ARGS)

check: $(STAMP) ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: $(STAMP) ## build the documentation into site/
	$(BIN)/python scripts/cli_reference.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: $(STAMP) ## execute the notebooks, keep their outputs (ARGS=--check: execute only)
	$(BIN)/python scripts/run_notebooks.py $(ARGS)

bench: $(STAMP) ## measure what the method gains and costs
	$(BIN)/python benchmarks/faith_table.py $(ARGS)

bench-sweep: $(STAMP) ## time the head sweep against TransformerLens' loop (ten minutes)
	$(BIN)/python benchmarks/head_sweep.py $(ARGS)
	$(BIN)/python benchmarks/sweep_page.py

$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || \
	  { echo "error: there is no $(PYTHON): install Python 3.10 or newer, or run make PYTHON=..." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "error: $(PYTHON) is older than Python 3.10: run make PYTHON=python3.11, say" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "error: $(PYTHON) cannot make virtual environments: install its venv module (python3-venv)" >&2; exit 2; }
	@echo "setting up $(VENV): several minutes the first time"
	@$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(PIP) install -qq -r requirements.lock
	$(PIP) install -qq --no-deps --editable .
	@touch $@

lock: ## resolve requirements.lock anew
	$(PYTHON) -m venv --clear .venv-lock
	.venv-lock/bin/python -m pip --disable-pip-version-check install --quiet uv
	{ echo "# Exact versions for Python 3.10 to 3.13. Made by: make lock"; \
	  echo "# The CUDA libraries are left to torch, which asks for its own."; \
	  echo "torch==2.13.0" | .venv-lock/bin/uv pip compile pyproject.toml \
	    $(addprefix --extra ,$(LOCKED_EXTRAS)) --constraint - --universal --python-version 3.10 \
	    --quiet --no-header --no-annotate $(LOCK_FLAGS) \
	  | grep -Ev '^(nvidia|cuda|triton)'; } > requirements.lock.new
	grep -q '^torch==' requirements.lock.new
	mv requirements.lock.new requirements.lock
	rm -rf .venv-lock

clean: ## remove .venv and everything else that was made, except runs
	rm -rf $(VENV) .venv-lock build dist site .pytest_cache .ruff_cache .hypothesis requirements.lock.new
	find interp probes tests -name __pycache__ -type d -prune -exec rm -rf {} +
