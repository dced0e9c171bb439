# `make demo` and `make test` are all a newcomer needs: each makes .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin
# Installed from constraints.txt first, so that a range never pulls a build nobody here has tested.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
EACH_CORE := -n auto --dist worksteal

.PHONY: demo test test-slow acceptance check format bench docs clean

.venv/core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e .
	touch $@

.venv/dev: .venv/core
	$(PIP) -e '.[dev]'
	touch $@

demo: .venv/core
	$(BIN)/secsplit demo

test: .venv/dev
	$(ONE_THREAD) $(BIN)/python -m pytest $(EACH_CORE)

test-slow: .venv/dev
	$(ONE_THREAD) $(BIN)/python -m pytest $(EACH_CORE) -m slow --timeout=1800

# The full numbers of every attack and defense, measured against required; about two CPU hours, fails on a miss.
acceptance: .venv/dev
	$(ONE_THREAD) $(BIN)/python -m benchmarks.acceptance

check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit -q -ll -c pyproject.toml -r channels secsplit attacks audits

# Each benchmark prints ratios measured in one run against what a user would pick instead.
bench: .venv/dev
	$(PIP) -e '.[bench]'
	for file in $(filter-out benchmarks/__init__.py benchmarks/acceptance.py,$(wildcard benchmarks/*.py)); do \
	  $(ONE_THREAD) $(BIN)/python -m benchmarks.$$(basename $$file .py) --quick || exit 1; \
	done

docs: .venv/dev
	$(PIP) -e '.[docs]'
	$(BIN)/pdoc --output-directory build/docs channels secsplit attacks audits
	@echo "open build/docs/index.html; the prose is in docs/"

format: .venv/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
