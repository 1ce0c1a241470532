# make demo: a network trained to its limit, and the page that shows it.   make test: the whole suite.
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP     = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_EXTRA)

.PHONY: demo test test-fast test-slow coverage lint package bench gallery docs faults fuzz clean

demo: $(VENV)/.report
	$(BIN)/equipoise demo

test: $(VENV)/.test
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest -q -n auto --dist worksteal

test-fast: $(VENV)/.test  # without the long tests and doctests, annotations unchecked, one case of each long family
	UNCHECKED=1 $(BIN)/python -m pytest -q -n auto --dist worksteal -m 'not slow and not long' tests

test-slow: $(VENV)/.test  # what `make test` shows by a sample, and longer experiments
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m slow

coverage: $(VENV)/.dev  # the files below 90% of statements
	$(BIN)/python -m pytest -q -n auto --dist worksteal --cov --cov-report=
	$(BIN)/coverage report --sort=cover --skip-covered

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache

package:  # the wheel and the source distribution; the wheel is tried in an empty environment
	rm -rf dist build/builder build/empty
	$(PYTHON) -m venv build/builder && build/builder/bin/python -m pip install --quiet --disable-pip-version-check build
	build/builder/bin/python -m build --quiet --outdir dist
	$(PYTHON) -m venv build/empty
	build/empty/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_EXTRA) dist/*.whl
	cd build && empty/bin/python ../tests/helpers/try_wheel.py

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/flow_depth.py
	$(BIN)/python benchmarks/flow_scale.py residual
	$(BIN)/python benchmarks/flow_scale.py convnet
	$(BIN)/python benchmarks/laws_cost.py
	$(BIN)/python benchmarks/planted_bugs.py
	$(BIN)/python benchmarks/refresh.py
	$(BIN)/python benchmarks/activity.py
	$(BIN)/python benchmarks/optimizers.py
	$(BIN)/python benchmarks/watch_overhead.py
	$(BIN)/python benchmarks/first_result.py
	$(BIN)/python benchmarks/comparison.py
	$(BIN)/python benchmarks/start.py
	$(BIN)/python benchmarks/setup.py
	$(BIN)/python benchmarks/large_laws.py 8 4096
	$(BIN)/python benchmarks/analyze.py --only speed

gallery: $(VENV)/.test
	$(BIN)/equipoise gallery run --all || test $$? -eq 1  # a claim that fails is a finding, for the page to show
	$(BIN)/equipoise gallery run --papers || test $$? -eq 1
	$(BIN)/equipoise gallery report
	$(BIN)/python -m pytest -q -m slow

docs: $(VENV)/.docs  # docs/_build/html/index.html; every warning is an error, the examples on the pages run in `make test`
	$(BIN)/python -m sphinx -q -W --keep-going -n -b html -d docs/_build/doctrees docs docs/_build/html
	@echo "docs/_build/html/index.html"

faults: $(VENV)/.test  # the whole campaign; tests/test_faults.py runs a sample
	$(BIN)/python benchmarks/faults/runs.py kills --count 1000
	$(BIN)/python benchmarks/faults/runs.py kills --cold-cli --count 20
	$(BIN)/python benchmarks/faults/runs.py folders --count 10000
	$(BIN)/python benchmarks/faults/checkpoints.py --count 10000 --seconds 3600
	$(BIN)/python benchmarks/faults/watch_loops.py

fuzz: $(VENV)/.test  # an hour over all readers: files of the right form that say odd things, then broken ones
	$(BIN)/python benchmarks/faults/fuzz.py --seconds 1800
	$(BIN)/python benchmarks/faults/checkpoints.py --count 100000000 --seconds 1800

clean:
	rm -rf docs/_build docs/api docs/claims docs/examples
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# One stamp per set of extras: `make test` after `make demo` adds only what is missing.
$(VENV)/.%: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[$*]'
	@touch $@
