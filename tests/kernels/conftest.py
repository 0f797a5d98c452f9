"""Compiling is most of these tests' time; optimised code computes the same."""

import jax
import pytest

# What these hold to a tolerance is rounding, or memory: as users compile it.
_AS_USERS_DO = ("arccosine", "infinite", "neural_tangents", "monte_carlo")


@pytest.fixture(autouse=True)
def compiled_in_haste(request):
    """Turns most of XLA's optimisations off where mathematics alone is tested."""
    name = f"{request.path.stem}::{request.node.name}"
    if any(word in name for word in (*_AS_USERS_DO, "float32", "memory")):
        yield
        return
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
