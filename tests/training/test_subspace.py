"""Training in coordinates is training: outputs, gradients, every step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ntk_privacy.models import MLP
from ntk_privacy.training import subspace, train


def _problem(parametrization, num_outputs=1, use_bias=True):
    model = MLP((24, 16), num_outputs, use_bias, parametrization)
    params = model.init_params(jax.random.key(0), (5, 4, 2), jnp.float64)
    x = jax.random.normal(jax.random.key(1), (6, 5, 4, 2), jnp.float64)
    y = jax.random.normal(jax.random.key(2), (6, num_outputs), jnp.float64)
    return model, params, x, y


@pytest.mark.parametrize("parametrization", ["standard", "ntk"])
@pytest.mark.parametrize(
    ("num_outputs", "use_bias"), [(1, True), (3, (True, False, False))]
)
@pytest.mark.parametrize("momentum", [None, 0.9])
def test_every_step_is_that_of_plain_training(
    parametrization, num_outputs, use_bias, momentum
):
    model, params, x, y = _problem(parametrization, num_outputs, use_bias)
    small = subspace.to_coordinates(params, x, parametrization=parametrization)
    assert small.images.shape == (6, 6)
    assert small.params["Dense_0"]["kernel"].shape == (6, 24)
    options = {"optimizer": optax.sgd(0.02, momentum), "max_steps": 150}
    plain = train.full_batch(model.apply_fn, params, x, y, **options)
    there = train.full_batch(model.apply_fn, small.params, small.images, y, **options)
    back = small.restore(there.params)
    assert plain.steps == there.steps == 150
    np.testing.assert_allclose(there.loss, plain.loss, rtol=1e-9)
    moved = np.abs(plain.params["Dense_0"]["kernel"] - params["Dense_0"]["kernel"])
    assert moved.max() > 1e-2
    for one, other in zip(
        jax.tree.leaves(plain.params), jax.tree.leaves(back), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-11)
    # Off the training images too.
    new = jax.random.normal(jax.random.key(3), (4, 5, 4, 2), jnp.float64)
    np.testing.assert_allclose(
        model.apply_fn(plain.params, new), model.apply_fn(back, new), atol=1e-10
    )


def test_restoring_what_did_not_move_gives_the_parameters_to_the_bit():
    _, params, x, _ = _problem("standard")
    small = subspace.to_coordinates(params, x)
    jax.tree.map(np.testing.assert_array_equal, small.restore(small.params), params)


def test_images_that_repeat_or_combine_others_add_no_coordinate():
    model, params, x, _ = _problem("standard")
    more = jnp.concatenate([x, x[:2], x[:1] - 3 * x[1:2]])
    small = subspace.to_coordinates(params, more)
    assert small.images.shape == (9, 6)
    np.testing.assert_allclose(
        model.apply_fn(small.params, small.images), model.apply_fn(params, more)
    )
    black = subspace.to_coordinates(params, 0 * x)
    assert black.images.shape == (6, 1)
    np.testing.assert_array_equal(model.apply_fn(black.params, black.images), 0)


def test_the_dtype_is_that_of_the_parameters():
    _, params, x, _ = _problem("standard")
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    small = subspace.to_coordinates(params, x.astype(jnp.float32))
    leaves = jax.tree.leaves((small.params, small.images, small.restore(small.params)))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


def test_images_of_another_size_are_refused():
    _, params, x, _ = _problem("standard")
    with pytest.raises(ValueError, match="32 pixels and channels, the first layer"):
        subspace.to_coordinates(params, x[:, :4])
