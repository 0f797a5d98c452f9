# Every target builds the environment if it is missing.
PYTHON ?= python3
BIN := .venv/bin
# Tests that need the real files look here; they skip with a reason without them.
export NTK_PRIVACY_DATA ?= $(wildcard ../shared/data)

.PHONY: reconstruct test test-slow notebooks lint format bench clean

.venv: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	# An oracle of the tests only. Its own dependency on TensorFlow is not needed.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt neural-tangents
	touch $@

reconstruct: .venv
	$(BIN)/python -m experiments.reconstruct --dataset=digits --width=4096 --workdir=runs/digits

test: .venv
	$(BIN)/python -m pytest -n 2 --dist loadfile -q -m "not slow"

test-slow: .venv
	$(BIN)/python -m pytest -q -m slow

notebooks: .venv
	$(BIN)/python -m pytest -q tests/test_notebooks.py

lint: .venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

format: .venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv
	for b in benchmarks/bench_*.py; do $(BIN)/python -m benchmarks.$$(basename $$b .py) || exit 1; done

clean:
	rm -rf .venv
