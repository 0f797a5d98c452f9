# Every target builds the environment if it is missing.
PYTHON ?= python3
BIN := .venv/bin
FAST_TESTS = $(BIN)/python -m pytest -n 2 --dist loadfile -q -m "not slow"
# Tests that need the real files look here; they skip with a reason without them.
export NTK_PRIVACY_DATA ?= $(wildcard ../shared/data)

# What is compiled by these is lowered for accelerators, and takes their branches: every
# program of the package, once at least, which the run itself looks at.
LOWERED = $(shell cat tests/lowered.txt)

UV ?= $(BIN)/uv
# Where no interpreter is named, uv looks for it; pyenv shows the one that is asked for.
PYTHON311 ?= $(shell PYENV_VERSION=3.11 $(UV) python find --system 3.11)
PYTHON312 ?= $(shell PYENV_VERSION=3.12 $(UV) python find --system 3.12)
PYTHON313 ?= $(shell PYENV_VERSION=3.13 $(UV) python find --system 3.13)
VERSIONS = lowest colab newest
# The Python between: the newest versions, the main job alone.
QUICK_VERSIONS = $(VERSIONS) newest312
# The broad part of the fast tests that runs in each of them.
BROAD_TESTS = tests/test_checks.py tests/test_checkpoint.py tests/test_loop.py \
	tests/test_method.py tests/test_notebooks.py tests/test_programs.py \
	tests/test_public_names.py \
	tests/test_resume.py tests/test_versions.py tests/data tests/models tests/training \
	tests/curvature tests/poisoning tests/reports tests/evasion/test_every_attack.py \
	tests/distillation/test_contract.py tests/reconstruction/test_closed_units.py \
	tests/reconstruction/test_algebraic.py tests/kernels/test_structured.py \
	tests/kernels/test_empirical.py

.PHONY: reconstruct test test-slow test-examples test-processors test-versions \
	test-versions-quick test-lowering test-wheel \
	docs docs-links notebooks lint format bench clean

.venv: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	# An oracle of the tests only. Its own dependency on TensorFlow is not needed.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt neural-tangents
	touch $@

reconstruct: .venv
	$(BIN)/python -m experiments.reconstruct --dataset=digits --width=4096 --workdir=runs/digits

# What was compiled is kept for the next run, by kind of processor; `make clean` forgets.
test: .venv
	NTK_PRIVACY_TEST_PROGRAMS=$${NTK_PRIVACY_TEST_PROGRAMS-$(CURDIR)/.jax_cache} $(FAST_TESTS)

test-slow: .venv
	$(BIN)/python -m pytest -q -m slow

# Examples of docstrings that take seconds each; `make test` runs the others. Compiled
# in haste, as those of `-m slow` alone are not (tests/conftest.py).
test-examples: .venv
	NTK_PRIVACY_TEST_PROGRAMS=$${NTK_PRIVACY_TEST_PROGRAMS-$(CURDIR)/.jax_cache} \
		$(BIN)/python -m pytest -q -m "slow or optimized" tests/test_docstrings.py

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
		LOWER_FOR=$$platform LOWER_TABLE=1 PYTHONPATH=tests $(BIN)/python -m pytest -q \
			-p lowering -m "not slow" $(LOWERED) || failed="$$failed $$platform"; \
	done; \
	test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

# Built, installed outside of the checkout and run there.
test-wheel: .venv
	$(BIN)/python -m pytest -q tests/test_packaging.py

# The lowest versions that are asked for, Colab's, and the newest. Into Colab's the
# package is installed as a notebook does it, and pip must leave what is there.
.versions/lowest/installed .versions/colab/installed: pyproject.toml tests/colab.txt
.versions/newest/installed .versions/newest312/installed: pyproject.toml
# What is the newest is asked again after a day.
.PHONY: $(shell find .versions/newest*/installed -mtime +0 2>/dev/null)

.versions/lowest/installed: | .venv
	@test -n "$(PYTHON311)" || { echo "Name a Python 3.11 in PYTHON311."; exit 1; }
	$(UV) venv --quiet --clear --python "$(PYTHON311)" .versions/lowest
	$(UV) pip install --quiet --python .versions/lowest \
		--resolution lowest-direct -e ".[test]"
	touch $@

.versions/colab/installed: | .venv
	@test -n "$(PYTHON313)" || { echo "Name a Python 3.13 in PYTHON313."; exit 1; }
	$(UV) venv --quiet --clear --seed --python "$(PYTHON313)" .versions/colab
	$(UV) pip install --quiet --python .versions/colab -r tests/colab.txt
	$(LEAVES_COLAB)
	$(UV) pip install --quiet --python .versions/colab -c tests/colab.txt -e ".[test]"
	touch $@

.versions/newest/installed: | .venv
	@test -n "$(PYTHON313)" || { echo "Name a Python 3.13 in PYTHON313."; exit 1; }
	$(UV) venv --quiet --clear --python "$(PYTHON313)" .versions/newest
	$(UV) pip install --quiet --python .versions/newest --upgrade -e ".[test]"
	touch $@

.versions/newest312/installed: | .venv
	@test -n "$(PYTHON312)" || { echo "Name a Python 3.12 in PYTHON312."; exit 1; }
	$(UV) venv --quiet --clear --python "$(PYTHON312)" .versions/newest312
	$(UV) pip install --quiet --python .versions/newest312 --upgrade -e ".[test]"
	touch $@

LEAVES_COLAB = .versions/colab/bin/python -m pip install --dry-run \
	--disable-pip-version-check -e . > .versions/colab/dry_run.txt \
	&& ! grep -E "^Would install.* (jax|jaxlib|numpy|flax)-[0-9]" .versions/colab/dry_run.txt

# The broad part in each environment.
test-versions: $(VERSIONS:%=.versions/%/installed)
	@failed=; for name in $(VERSIONS); do \
		echo "== $$name"; \
		env -u NTK_PRIVACY_REQUIRE_ORACLE \
			NTK_PRIVACY_TEST_PROGRAMS=$(CURDIR)/.versions/$$name/programs \
			.versions/$$name/bin/python -m pytest -n 2 --dist loadfile -q -m "not slow" \
			$(BROAD_TESTS) || failed="$$failed $$name"; \
	done; \
	test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

# The main job in each, which must recover ten of ten digits, and what was asked for.
test-versions-quick: $(QUICK_VERSIONS:%=.versions/%/installed)
	$(LEAVES_COLAB)
	@failed=; for name in $(QUICK_VERSIONS); do \
		echo "== $$name"; \
		python=.versions/$$name/bin/python; work=.versions/$$name/digits; \
		rm -rf "$$work"; \
		{ $$python -m experiments.reconstruct --dataset=digits --num_train=10 --width=256 \
			--workdir="$$work" --noprogress \
		&& $$python -c "import json, sys; r = json.load(open(sys.argv[1])); \
			sys.exit(r['num_recovered'] != 10)" "$$work/results.json" \
		&& $$python -m pytest -q tests/test_versions.py; } || failed="$$failed $$name"; \
	done; \
	test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

# The site has an environment of its own, so that `.venv` stays quick to build.
.venv-docs/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	touch $@

SPHINX = JAX_PLATFORMS=cpu .venv-docs/bin/python -m sphinx -W --keep-going -q

# Tables from the stored files, pages from docstrings, notebooks run; warnings are errors.
docs: .venv-docs/installed
	.venv-docs/bin/python -m benchmarks.tables
	$(SPHINX) -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

# Links to elsewhere, the README's too: needs the network. Its links to files of the
# checkout are followed by tests/test_readme.py.
docs-links: .venv-docs/installed
	$(SPHINX) -t links -D nb_execution_mode=off -D suppress_warnings=myst.xref_missing \
		-b linkcheck docs docs/_build/links

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
	rm -rf .venv .venv-docs .versions .jax_cache docs/_build docs/_notebooks docs/api
