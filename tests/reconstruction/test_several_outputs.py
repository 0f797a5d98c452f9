"""Several outputs: exact images, duals and gates, or nothing is certified."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy.kernels import structured
from ntk_privacy.models import MLP
from ntk_privacy.reconstruction import algebraic
from ntk_privacy.training import linearized

SHAPE = (5, 5, 1)


def _trained(num_images=6, width=128, num_outputs=3, loss=1e-6):
    keys = jax.random.split(jax.random.key(0), 3)
    x = 0.5 * jax.random.normal(keys[0], (num_images, *SHAPE))
    classes = jnp.arange(num_images) % num_outputs
    y = jax.nn.one_hot(classes, num_outputs) - 1.0 / num_outputs
    model = MLP((width, width), num_outputs)
    params_0 = model.init_params(keys[1], SHAPE, jnp.float64)
    kernel = structured.ntk(model, params_0, x, trace_outputs=False)
    spectrum = linearized.decompose(kernel, model.apply_fn(params_0, x), y)
    time = linearized.time_at_loss(spectrum, loss)
    duals = linearized.duals(spectrum, linearized.gradient_flow(time))
    params_t = linearized.params_at(model.apply_fn, params_0, x, duals)
    return model, params_0, params_t, x, duals


def _decode(params_0, params_t, **options):
    return algebraic.reconstruct(
        params_0, params_t, key=jax.random.key(3), image_shape=SHAPE, **options
    )


@pytest.fixture(scope="module")
def victim():
    return _trained()


def test_images_duals_and_gates_are_exact(victim):
    model, params_0, params_t, x, duals = victim
    found = _decode(params_0, params_t)
    assert found.estimated_num_images == len(x)
    assert bool(found.certified.all())
    distance = jnp.sum((x[:, None] - found.images[None]) ** 2, axis=(2, 3, 4))
    order = np.asarray(distance.argmin(1))
    assert sorted(order) == list(range(len(x)))
    chex.assert_trees_all_close(found.images[order], x, atol=1e-8)
    chex.assert_trees_all_close(found.duals[order], duals, rtol=1e-6)
    trace = structured.forward(model, params_0, x)
    chex.assert_trees_all_close(found.activations[order], trace.inputs[1], atol=1e-8)
    np.testing.assert_array_equal(found.gates[order], trace.slopes[1] > 0)


def test_early_stopping_changes_nothing(victim):
    _, params_0, params_t, x, _ = _trained(loss=1e-2)
    found = _decode(params_0, params_t)
    distance = jnp.sum((x[:, None] - found.images[None]) ** 2, axis=(2, 3, 4))
    assert float(distance.min(1).max()) < 1e-12


@pytest.mark.parametrize("layer", ["Dense_0", "Dense_1"])
def test_nothing_false_is_certified_when_weights_are_corrupted(victim, layer):
    _, params_0, params_t, x, _ = victim
    change = params_t[layer]["kernel"] - params_0[layer]["kernel"]
    noise = jax.random.normal(jax.random.key(5), change.shape) * jnp.std(change)
    broken = {
        **params_t,
        layer: {**params_t[layer], "kernel": params_t[layer]["kernel"] + noise},
    }
    try:
        found = _decode(params_0, broken, num_images=len(x))
    except ValueError:
        return  # refused: the messages are tested with one output
    distance = jnp.sum((x[:, None] - found.images[None]) ** 2, axis=(2, 3, 4))
    wrong = np.asarray(distance.min(0)) > 1e-2
    assert not np.any(np.asarray(found.certified) & wrong)


def test_too_few_units_name_the_other_attack():
    _, params_0, params_t, x, _ = _trained(num_images=6, width=30)
    with pytest.raises(ValueError, match=r"kkt\.reconstruct"):
        _decode(params_0, params_t, num_images=len(x))
