# `make quickstart` is all that a new machine with Python 3.11 or later needs. Everything goes into .venv.
# Settings: PYTHON=python3.12, VENV=.venv-312, CONSTRAINTS= (none), ARGS="--no-demo" (for quickstart and test),
# WORKERS=4 (processes of `make test`).

VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
ARGS ?=
WORKERS ?= 2

# Each candidate is run, not only looked for: a version manager's shim may exist and still fail.
TRY_PYTHON = import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c '$(TRY_PYTHON)' >/dev/null 2>&1 && { echo $$p; break; }; done)

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-long lint types site format constraints lock floors bill-of-materials clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.installed-run ## Install dinomed into .venv

quickstart: $(VENV)/.installed-run ## The main job on synthetic lesions, then the demo (took 11 minutes on 2 busy cores)
	$(BIN)/dinomed quickstart $(ARGS)

# Two workers with one thread each take half the time of one worker with two threads.
test: $(VENV)/.installed-test ## Install what the tests need, and run them (but for the long ones)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not long" $(ARGS)

# One file of them, the fuzzing of images, takes as long as all others: a worker that has finished takes tests from another.
test-long: $(VENV)/.installed-test ## Run the long tests: runs in two processes, killed and resumed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m long $(ARGS)

lint: $(VENV)/.installed-dev ## Style and mistakes (ruff)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev ## Types (mypy)
	$(BIN)/mypy

site: $(VENV)/.installed-docs ## Build the documentation site into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

format: $(VENV)/.installed-dev ## Put the code into the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints: $(VENV)/.installed-dev ## Write the versions in .venv to constraints.txt
	{ grep '^#' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable \
		| grep -E '^[A-Za-z0-9._-]+==' | grep -viE '^(dinomed|nvidia-|cuda-|triton|uv=)'; } > constraints.new
	mv constraints.new constraints.txt

floors: ## Install the lowest versions of pyproject.toml into .venv-floors, and run core tests (needs a package index)
	$(PYTHON) .ci/floors.py --workers $(WORKERS) $(ARGS)

# Without the extra `umap`, which is not in the tested set. The marks of the lines cover other systems and versions.
lock: $(VENV)/.installed-dev ## Write requirements.lock: all versions of constraints.txt with hashes (needs a package index)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	rm -f requirements.lock  # otherwise its versions are kept
	$(BIN)/uv pip compile pyproject.toml --extra dev --constraints constraints.txt --universal --generate-hashes \
		--no-emit-index-url --no-annotate --custom-compile-command "make lock" --quiet \
		--python $(BIN)/python --output-file requirements.lock

bill-of-materials: $(VENV)/.installed-run ## Write bom.json: the installed packages and their licences (CycloneDX)
	$(BIN)/python .ci/bill_of_materials.py > bom.json

clean: ## Remove .venv and caches; keeps runs/
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist dinomed.egg-info

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No working Python 3.11 or later with its venv module was found."; \
		echo "Install one (Debian, Ubuntu: apt-get install python3 python3-venv) or name it: make PYTHON=/path/to/python"; \
		exit 2; }
	@"$(PYTHON)" -c '$(TRY_PYTHON)' || { echo "PYTHON=$(PYTHON): needs Python 3.11 or later with its venv module"; exit 2; }
	"$(PYTHON)" -m venv $(VENV)

# .installed-run, .installed-test and .installed-dev: the package alone, or with that extra. uv takes a quarter of
# pip's time; where it cannot be had, pip does the same. Byte code is compiled at once, as pip does: where Python may
# not write it (PYTHONDONTWRITEBYTECODE, a read-only folder), each start would compile torch again, for 20 s and more.
# The mode `compat` of setuptools adds this folder to Python's path. Its default mode adds a finder that is asked last: next
# to a clone named `dinomed`, `import dinomed` would take that folder as an empty package. An unpacked source distribution
# has no links in `dinomed/`, so it needs the finder.
EDITABLE := $(if $(wildcard dinomed/adapters/__init__.py),--config-settings editable_mode=compat )-e

$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing dinomed into $(VENV): a few minutes the first time"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv || echo "uv cannot be had; using pip"
	@if [ -x $(BIN)/uv ]; then installer="$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python"; \
	else installer="$(BIN)/python -m pip install --disable-pip-version-check"; fi; \
	set -x; $$installer $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) $(EDITABLE) ".$(if $(filter run,$*),,[$*])"
	@touch $@
