# Every target builds the environment if it is missing.
PYTHON ?= python3
BIN := .venv/bin
FAST_TESTS = $(BIN)/python -m pytest -n 2 --dist loadfile -q -m "not slow"
# Tests that need the real files look here; they skip with a reason without them.
export NTK_PRIVACY_DATA ?= $(wildcard ../shared/data)

# What is compiled by these is lowered for accelerators, and takes their branches.
LOWERED = tests/*/test_every_*.py tests/distillation/test_contract.py tests/curvature \
	tests/kernels tests/evaluation/test_robust_accuracy.py \
	tests/reconstruction/test_closed_units.py tests/reconstruction/test_algebraic.py

.PHONY: reconstruct test test-slow test-processors test-lowering notebooks lint format bench clean

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
	$(FAST_TESTS)

test-slow: .venv
	$(BIN)/python -m pytest -q -m slow

# The fast tests as older processors compute them, as this one does, and on one thread.
test-processors: .venv
	@failed=; \
	for isa in SSE4_2 AVX AVX2 own one_thread; do \
		case $$isa in \
		own) flags= ;; \
		one_thread) flags="NPROC=1 OMP_NUM_THREADS=1 XLA_FLAGS=--xla_cpu_multi_thread_eigen=false" ;; \
		*) flags="XLA_FLAGS=--xla_cpu_max_isa=$$isa" ;; \
		esac; \
		echo "== $$isa: $$flags"; \
		env $$flags $(FAST_TESTS) || failed="$$failed $$isa"; \
	done; \
	test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

test-lowering: .venv
	@failed=; \
	for platform in tpu cuda; do \
		echo "== $$platform"; \
		LOWER_FOR=$$platform PYTHONPATH=tests $(BIN)/python -m pytest -q -p lowering \
			-m "not slow" $(LOWERED) || failed="$$failed $$platform"; \
	done; \
	test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

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
