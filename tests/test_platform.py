"""Ways for a processor or an accelerator are chosen by where a computation runs."""

import jax
import jax.numpy as jnp
import pytest

from ntk_privacy import _platform, _versions
from ntk_privacy.models import conv_primitive, convolution


@pytest.fixture
def with_accelerator(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def test_it_is_the_best_device_unless_another_is_chosen(with_accelerator):
    assert _platform.name() == "gpu"
    with jax.default_device(jax.devices("cpu")[0]):
        assert _platform.name() == "cpu"
    with jax.default_device("cpu"):
        assert _platform.name() == "cpu"
    assert _platform.name() == "gpu"


@pytest.mark.skipif(
    not _versions.OWN_PRIMITIVES, reason="this JAX convolves in one way alone"
)
def test_beside_an_accelerator_a_processor_convolves_in_its_own_way(with_accelerator):
    x, kernel = jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 2))

    def names():
        made = jax.make_jaxpr(lambda x: convolution.convolve(x, kernel, 1, None))(x)
        return {equation.primitive.name for equation in made.eqns}

    assert not names() & set(conv_primitive.NAMES)
    with jax.default_device(jax.devices("cpu")[0]):
        assert names() & set(conv_primitive.NAMES)
