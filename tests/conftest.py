"""Strict JAX for every test: float64, no silent rank or dtype promotion."""

import os

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Many small programs, run once: there most of the time is the compiler's. Convolutions
# that are not optimised take minutes, so networks that have them are left out.
_QUICKLY_COMPILED = (
    "kernels",
    "reconstruction",
    "experiments/test_kernel.py",
    "experiments/test_reconstruct.py",
    "experiments/test_sweep.py",
    "experiments/test_distill.py",
    "training/test_linearized.py",
    "training/test_logistic.py",
    "training/test_subspace.py",
    "training/test_train.py",
    "test_kip.py",
    "test_rkip.py",
)
# Exact to the last bits only where products and sums are fused.
_OPTIMISED = ("kernels/test_empirical_methods.py", "reconstruction/test_algebraic.py")


@pytest.fixture(scope="module", autouse=True)
def _compiler(request):
    here = request.path.relative_to(request.config.rootpath / "tests").as_posix()
    quick = here.startswith(_QUICKLY_COMPILED) and here not in _OPTIMISED
    quick &= request.config.option.markexpr != "slow"
    jax.config.update("jax_disable_most_optimizations", quick)
    yield
    # Thousands of compiled programs fill the memory of a worker; few serve two files.
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
