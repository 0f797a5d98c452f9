"""Compiling is most of these tests' time; optimised code computes the same."""

import jax
import pytest


@pytest.fixture(autouse=True)
def compiled_in_haste():
    """Turns most of XLA's optimisations off: mathematics alone is tested."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
