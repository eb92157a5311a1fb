# What a person does with this repository. `make` alone lists it.
# Nothing but Python (3.10 or newer, with venv) and make is needed; the rest goes into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# What tests, checks, notebooks and docs need beyond what a user does.
DEV_STAMP := $(VENV)/.installed-dev
# Extras whose packages the lock file pins.
LOCKED_EXTRAS := dev export notebook explore docs ray quantized harness
# TransformerLens 3, whose hooked model is a HookedTransformer, in an environment that reads all
# other packages from .venv.
HT_VENV := .venv-hooked-transformer
HT_LOCK := requirements-hooked-transformer.lock
HT_STAMP := $(HT_VENV)/.installed
# What is tested there: what computes with a hooked model, which differs between the two. What is
# done with the numbers (files, runs, tables, prompts, MoELoRA on plain transformers) is the same.
HT_TESTS := $(addprefix tests/,models patching interventions inspection evaluation probes test_generation.py \
  test_end_to_end.py heads/test_locate.py heads/test_sources.py premises/test_knowledge.py \
  tasks/test_encoding.py tasks/test_ioi.py cli/test_patch.py moelora/test_hooked.py \
  $(addprefix experts/,test_collect.py test_effects.py test_heads.py test_planted_heads.py \
    test_similarity.py test_specialization.py) \
  $(addprefix runs/,test_determinism.py test_dtype_check.py test_identities.py test_patch.py))
# In those folders, what runs no model (texts, templates, arithmetic on numbers that are given), or only models that
# TransformerLens 3 does not hook.
HT_SAME := $(addprefix tests/,$(addprefix models/,test_answer_place.py test_spans.py test_template_clock.py \
    test_templates.py test_rotary.py) \
  $(addprefix patching/,test_alignment.py test_batch.py test_clipped.py test_edits.py test_metrics.py test_result.py \
    test_significance.py test_stability.py) \
  $(addprefix probes/,test_calibration.py test_locating.py test_pairing.py test_scoring.py))
# What takes little and covers much, for the edit loop: texts, tables, files, arithmetic by hand.
FAST_TESTS := $(addprefix tests/,premises tasks/test_pairs.py heads test_checked.py \
  $(addprefix files/,test_cells.py test_documents.py test_list_cells.py) \
  test_moved.py test_progress.py test_type_checks.py cli/test_config.py \
  $(addprefix patching/,test_micro.py test_batch.py test_alignment.py test_circuit.py \
    test_metrics.py test_edits.py test_significance.py test_stability.py test_result.py) \
  $(addprefix moelora/,test_config.py test_layer.py test_numbers.py test_options.py \
    test_tasks_formats.py test_tasks_reading.py) \
  $(addprefix probes/,test_calibration.py test_pairing.py test_scoring.py) \
  $(addprefix runs/,test_shards.py test_identity.py))

# Processes that run tests side by side, one thread each: make test JOBS=1 for one.
JOBS ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
# Modules are compiled once, not by every process; the notebooks' plugin is slow to import.
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(1)/bin/python -m pytest -p no:nbmake \
  --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup setup-dev demo compiled test test-fast test-hooked-transformer check notebooks docs \
  bench bench-sweep bench-gpu bench-operators lock \
  lock-hooked-transformer clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-23s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with what a user needs

setup-dev: $(DEV_STAMP) ## add what tests, checks, notebooks and docs need

demo: $(STAMP) ## find and constrain the false-premise heads of the embedded model
	$(BIN)/interp demo $(ARGS)

test: $(DEV_STAMP) ## run the tests (ARGS="-k name" to choose)
	$(call PYTEST,$(VENV)) $(if $(ARGS),$(ARGS),--ignore tests/browser)
# By themselves: a page has its time to load.
	$(if $(ARGS),,PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -p no:nbmake tests/browser)

test-fast: $(DEV_STAMP) ## run those that take little, for the edit loop
	$(call PYTEST,$(VENV)) $(FAST_TESTS) $(ARGS)

# By itself, or each process that runs tests would do it.
compiled: $(DEV_STAMP) ## compile the tests and what they import, with the checks of types
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -p no:nbmake -q --collect-only \
	  --ignore tests/browser >/dev/null

# Types and shapes of the same functions are checked in the other environment.
test-hooked-transformer: $(HT_STAMP) ## run those that compute with a hooked model on TransformerLens 3.9
	$(call PYTEST,$(HT_VENV)) --jaxtyping-packages= $(HT_TESTS) $(addprefix --ignore=,$(HT_SAME)) $(ARGS)

check: $(DEV_STAMP) ## lint, formatting, spelling, the order of the rooms, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/lint-imports --no-cache
	$(BIN)/pyright

docs: $(DEV_STAMP) ## build the documentation into site/
	$(BIN)/python scripts/cli_reference.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: $(DEV_STAMP) ## execute the notebooks, keep their outputs (ARGS=--check: execute only)
	$(BIN)/python scripts/run_notebooks.py --jobs $(JOBS) $(ARGS)

bench: $(STAMP) ## measure what the method gains and costs
	$(BIN)/python benchmarks/faith_table.py $(ARGS)

bench-sweep: $(STAMP) ## time the head sweep against TransformerLens' loop (ten minutes)
	$(BIN)/python benchmarks/head_sweep.py $(ARGS)
	$(BIN)/python benchmarks/sweep_page.py

bench-gpu: $(STAMP) ## time sweeps, training steps and a search on a GPU (six minutes; ARGS=--tiny to try)
	$(BIN)/python benchmarks/gpu.py $(ARGS)

bench-operators: $(STAMP) ## count what sweeps and training steps start (ARGS="--against FOLDER" to compare)
	$(BIN)/python benchmarks/operators.py $(ARGS)

# $(call environment,folder): an empty one, unless there is one that runs
define environment
	@command -v $(PYTHON) >/dev/null || \
	  { echo "error: there is no $(PYTHON): install Python 3.10 or newer, or run make PYTHON=..." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "error: $(PYTHON) is older than Python 3.10: run make PYTHON=python3.11, say" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "error: $(PYTHON) cannot make virtual environments: install its venv module (python3-venv)" >&2; exit 2; }
	@echo "setting up $(1): several minutes the first time"
	@$(1)/bin/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(1)
endef

# What pip installed, without the packages' own tests; files that are no Python of this version are
# left to whoever imports them.
COMPILE := 'import compileall, re, sysconfig; \
  compileall.compile_dir(sysconfig.get_path("purelib"), quiet=2, workers=0, rx=re.compile("/tests?/"))'

# $(call install,folder,what): by pip, quietly. It compiles modules on one processor, which takes as
# long as all the rest; here they are compiled afterwards, on all.
define install
	$(1)/bin/python -m pip --disable-pip-version-check install -qq --no-compile $(2)
	@$(1)/bin/python -c $(COMPILE)
endef

# The package with what it needs itself, in the versions of the lock.
$(STAMP): requirements.lock pyproject.toml
	$(call environment,$(VENV))
	$(call install,$(VENV),--constraint requirements.lock --editable .)
	@touch $@

SITE_PACKAGES := 'import sysconfig; print(sysconfig.get_path("purelib"))'
# With an argument, a folder: reads its packages too, after the environment's own.
BELOW := 'import pathlib, sys, sysconfig; \
  file = pathlib.Path(sysconfig.get_path("purelib"), "below.pth"); \
  file.write_text(f"import site; site.addsitedir({sys.argv[1]!r})\n")'

# All of the lock.
$(DEV_STAMP): $(STAMP)
	$(call install,$(VENV),-r requirements.lock)
	@touch $@

# Its own packages come first; the rest, this package included, is found where .venv has it.
$(HT_STAMP): $(HT_LOCK) $(DEV_STAMP)
	$(call environment,$(HT_VENV))
	$(call install,$(HT_VENV),--no-deps -r $(HT_LOCK))
	$(HT_VENV)/bin/python -c $(BELOW) $$($(BIN)/python -c $(SITE_PACKAGES))
	@touch $@

# $(call resolve,lock,extras,command that prints constraints)
define resolve
	$(PYTHON) -m venv --clear .venv-lock
	.venv-lock/bin/python -m pip --disable-pip-version-check install --quiet uv
	{ echo "# Exact versions for Python 3.10 to 3.13. Made by: make $@"; \
	  echo "# The CUDA libraries are left to torch, which asks for its own."; \
	  { $(3); } | .venv-lock/bin/uv pip compile pyproject.toml \
	    $(addprefix --extra ,$(2)) --constraint - --universal --python-version 3.10 \
	    --quiet --no-header --no-annotate $(LOCK_FLAGS) \
	  | grep -Ev '^(nvidia|cuda|triton)'; } > $(1).new
	grep -q '^torch==' $(1).new
	mv $(1).new $(1)
	rm -rf .venv-lock
endef

lock: ## resolve requirements.lock anew
	$(call resolve,requirements.lock,$(LOCKED_EXTRAS),echo torch==2.13.0)

lock-hooked-transformer: ## resolve requirements-hooked-transformer.lock anew: what requirements.lock has otherwise
	$(call resolve,$(HT_LOCK),dev ray,echo "transformer-lens==3.9.*"; grep -v ^transformer-lens= requirements.lock)
	awk 'NR == FNR { known[$$1]; next } /^#/ || !($$1 in known)' requirements.lock $(HT_LOCK) > $(HT_LOCK).new
	mv $(HT_LOCK).new $(HT_LOCK)

clean: ## remove .venv and everything else that was made, except runs
	rm -rf $(VENV) $(HT_VENV) .venv-lock build dist site .pytest_cache .ruff_cache .hypothesis requirements*.lock.new
	find interp probes tests -name __pycache__ -type d -prune -exec rm -rf {} +
