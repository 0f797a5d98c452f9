"""Strict JAX for every test: float64, no silent rank or dtype promotion."""

import contextlib
import functools
import gc
import os
import pathlib

# Programs of tests are kept in a folder that is named, or nowhere; so are those of the
# processes that they start.
os.environ.setdefault(
    "JAX_ENABLE_COMPILATION_CACHE",
    str(int(bool(os.environ.get("NTK_PRIVACY_TEST_PROGRAMS")))),
)

import jax
import jax.numpy as jnp
import pytest

# XLA's emitters of old compile in two thirds of the time, and one module of LLVM in
# place of many in two thirds of that. Only where the flags are known to be there: one
# that is not ends the process.
_FLAGS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_configure(config):
    # Tracing makes many objects and little garbage, among all those of the imports.
    gc.set_threshold(100_000, 50, 100)
    if config.option.markexpr == "slow":
        return
    # What modules compute while they are collected is compiled in haste too.
    jax.config.update("jax_disable_most_optimizations", True)
    if jax.__version_info__[:2] == (0, 10):
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} {_FLAGS}"
        from jax._src.interpreters import mlir

        mlir.make_ir_context = functools.partial(_ir_context, mlir.make_ir_context)


def pytest_sessionstart():
    """Takes the programs that earlier runs compiled; nothing else is kept of them."""
    programs = os.environ.get("NTK_PRIVACY_TEST_PROGRAMS")
    if not programs:
        return
    # Here, not above: the shape checks are installed before the package is imported.
    from ntk_privacy import compilation_cache

    own = compilation_cache.default_folder().name
    folder = compilation_cache.enable(os.path.join(programs, own))
    if folder is None:  # it warned
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"
        return
    config = jax.config
    # Compiled in haste, most of them; there are many.
    config.update("jax_persistent_cache_min_compile_time_secs", 0.03)
    _rarely_bounded(folder, config.jax_compilation_cache_max_size)
    os.environ.update(
        JAX_COMPILATION_CACHE_DIR=str(folder),
        JAX_COMPILATION_CACHE_MAX_SIZE=str(config.jax_compilation_cache_max_size),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.03",
        JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
    )


def _rarely_bounded(folder: pathlib.Path, most: int) -> None:
    """Lets JAX bound a folder that is half full at the start, and no other.

    At every new program it reads a file of each that is there, holding a lock: of four
    thousand 0.2 s, which is more than most of them took to compile.
    """
    from jax._src import lru_cache

    if sum(kept.stat().st_size for kept in folder.glob("*-cache")) < most / 2:
        lru_cache.LRUCache._evict_if_needed = lambda cache, *, additional_size=0: None


def pytest_collection_finish():
    """What the imports made is not looked through for garbage again."""
    gc.collect()
    gc.freeze()


@functools.cache
def _ir_context(make):
    """One for all programs of a file, where JAX makes one for each: 5 ms and 1 MB."""
    return make()


@functools.cache
def _compiles_float16():
    try:
        one = jnp.ones(3, jnp.float16)
        jax.jit(lambda x: x.astype(jnp.float32))(one).block_until_ready()
    except jax.errors.JaxRuntimeError:
        return False
    return True


@contextlib.contextmanager
def _what_xla_compiles():
    """Skips what XLA itself cannot compile: float16 for SSE4.2."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "materialize symbols" in str(error) and not _compiles_float16():
            pytest.skip("XLA compiles no float16 for this processor")
        raise


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item):
    """Most of a small test's time is the compiler's; optimised code computes the same.

    Before the fixtures, which compile too. What is held to a use of memory, and some of
    what is held to rounding, is marked `optimized`; slow tests are compiled in full.
    """
    marks = {mark.name for mark in item.iter_markers()}
    quick = not marks & {"optimized", "slow"}
    jax.config.update("jax_disable_most_optimizations", quick)
    with _what_xla_compiles():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    """Runs the test, where it can be compiled."""
    with _what_xla_compiles():
        return (yield)


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Thousands of compiled programs fill a worker's memory; few serve two files."""
    yield
    jax.clear_caches()
    _ir_context.cache_clear()


@pytest.fixture(autouse=True)
def programs_of_slow_tests_go(request):
    """A thousand networks of a census leave more programs than a process may map."""
    yield
    if request.node.get_closest_marker("slow"):
        jax.clear_caches()


@pytest.fixture(scope="session")
def load_oracle():
    """The function that gives neural-tangents; skips, or fails if it is required."""
    # Here, not above: the shape checks are installed before the package is imported.
    from ntk_privacy.kernels import neural_tangents

    def load():
        try:
            return neural_tangents.load()
        except ImportError as error:
            required = os.environ.get("NTK_PRIVACY_REQUIRE_ORACLE") == "1"
            (pytest.fail if required else pytest.skip)(str(error))

    return load


@pytest.fixture(scope="session")
def nt(load_oracle):
    """neural-tangents, the oracle of kernels."""
    return load_oracle()
