"""Strict JAX for every test: float64, no silent rank or dtype promotion."""

import os

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_configure(config):
    """Compiles for seconds rather than for speed, except where tests run for long."""
    if config.option.markexpr != "slow":
        jax.config.update("jax_disable_most_optimizations", True)


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
