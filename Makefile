# SPDX-License-Identifier: Apache-2.0
# Needs Python 3.11 or newer, make, and a package index. `make help` lists what there is.

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint test-unit test-live test-distributed test-compat docs release-check benchmark-imports clean

# The first Python that is new enough; PYTHON=... chooses another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# Hundreds of test processes import Airflow: without bytecode files each compiles thousands of modules again.
unexport PYTHONDONTWRITEBYTECODE
VENV := .venv
BIN := $(VENV)/bin
STEP := sh .ci/step
INSTALLED := $(VENV)/installed.stamp
# The oldest that is supported, the newest before the one in constraints.txt, and the lowest versions of what the package
# requires with a short selection of the tests.
AIRFLOW ?= 3.1.8 3.2.2 lowest

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED)  ## Make .venv with everything in it, pinned by constraints.txt

$(INSTALLED): pyproject.toml sandbox/pyproject.toml constraints.txt requirements-dev.txt .ci/setup
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and none was found" >&2; exit 1; }
	@$(STEP) "Setting up $(VENV) (under a minute, log in .work/setup.log)" sh .ci/setup "$(PYTHON)" "$(VENV)"
	@touch $@

demo: setup  ## Images to videos in a bucket, on a real local Airflow (KEEP=1 leaves it running)
	@$(BIN)/python demo/run.py $(if $(KEEP),--keep)

# The live tests mostly wait, so they run beside the others; each suite prints its output when it has ended.
test: setup lint  ## All checks, and all tests but those of test-compat and test-distributed
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target test-unit test-live

lint: setup  ## Style, types and layers
	@$(STEP) "Style (ruff check)" $(BIN)/ruff check .
	@$(STEP) "Format (ruff format)" $(BIN)/ruff format --check .
	@$(STEP) "Types (mypy --strict)" $(BIN)/mypy
	@$(STEP) "Layers (import-linter)" $(BIN)/lint-imports

# Four at once on two cores: much of a test is waiting. With loadfile, tests that share something expensive (the
# wheel's environment) stay on one worker. pytest-xdist would begin with the files of the most tests; we begin with the
# folders of the slowest, so that no worker is left alone with a slow file at the end.
test-unit: setup  ## All tests but the live ones; docs and wheel are built in them. ARGS=... goes to pytest
	@$(STEP) "Unit tests, docs and wheel" $(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder -m "not live" \
		$(or $(ARGS),tests/packaging tests/batch tests/secrets tests/landing tests/lineage tests/operators sandbox/tests tests)

test-live: setup  ## Tests that boot Airflow's scheduler and triggerer. ARGS=... goes to pytest
	@$(STEP) "Live tests" $(BIN)/pytest -m live tests/live $(ARGS)
	@$(STEP) "The UI in a browser" $(BIN)/pytest -m live tests/browser

test-distributed:  ## Tests on Celery: Redis, two schedulers, triggerers and workers without a shared disk. ARGS=... goes to pytest
	@$(STEP) "A Celery cluster" sh .ci/distributed "$(PYTHON)" $(ARGS)

test-compat:  ## The suite under other Airflows: AIRFLOW="3.1.8 3.2.2", or any version; and under the next one
	@for version in $(AIRFLOW); do \
		$(STEP) "The suite under Airflow $$version" sh .ci/compat "$(PYTHON)" "$$version" || exit 1; \
	done
	@$(STEP) "The suite under the next Airflow, which may fail" \
		timeout --signal=INT --kill-after=60 1200 sh .ci/compat "$(PYTHON)" prerelease || true

release-check: setup  ## Build both distributions twice, check them, and write an SBOM and the licences of all dependencies
	@$(STEP) "Release files, SBOM and licences" sh .ci/release "$(BIN)/python"

docs: setup  ## Build the documentation into docs/_build/html
	@$(STEP) "Documentation" $(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

benchmark-imports: setup  ## What DAG parsing pays for importing the operators
	@$(BIN)/python benchmarks/import_time.py

clean:  ## Remove all that the other targets made
	rm -rf $(VENV) .venvs .work dist docs/_build demo-output
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
