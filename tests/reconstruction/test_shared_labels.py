"""Labels of images that were read from a gradient: right, or not said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy.models import MLP
from ntk_privacy.reconstruction import evidence, shared_labels
from ntk_privacy.training import recipe

SHAPE = (6, 6, 1)


def _shared(objective, labels, *, outputs=3, parametrization="standard", learnt=0):
    keys = jax.random.split(jax.random.key(0))
    net = MLP((48, 40), outputs, parametrization=parametrization)
    params = net.init_params(keys[0], SHAPE)
    x = jax.random.normal(keys[1], (len(labels), *SHAPE), jnp.float32)

    def loss(p):
        return recipe.mean_loss(net, p, x, labels, loss=objective)

    slope = jax.jit(jax.grad(loss))
    for _ in range(learnt):
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, slope(params))
    known = evidence.of_gradient(
        net, params, slope(params), image_shape=SHAPE,
        objective=objective, labels=np.asarray(labels),
    )  # fmt: skip
    return known, x


def _codes(outputs):
    return jnp.eye(outputs, dtype=jnp.float32)[jnp.asarray([0, 2, 1, 1, 0])] - (
        1 / outputs
    )


@pytest.mark.parametrize("parametrization", ["standard", "ntk"])
@pytest.mark.parametrize("objective", ["mse", "cross_entropy"])
@pytest.mark.parametrize("learnt", [0, 20])
def test_labels_are_those_of_the_loss(objective, parametrization, learnt):
    y = _codes(3)
    known, x = _shared(objective, y, parametrization=parametrization, learnt=learnt)
    read = shared_labels.read(known, np.asarray(x))
    assert read is not None
    np.testing.assert_allclose(read.codes[read.chosen], y, atol=1e-6)
    assert read.clear.all()


@pytest.mark.parametrize("objective", ["mse", "logistic"])
def test_one_output_tells_its_sign(objective):
    y = jnp.asarray([[1.0], [-1.0], [-1.0], [1.0]], jnp.float32)
    known, x = _shared(objective, y, outputs=1)
    read = shared_labels.read(known, np.asarray(x))
    assert read is not None
    np.testing.assert_array_equal(read.codes[read.chosen], y)
    assert read.clear.all()


def test_nothing_is_clear_where_an_image_is_wrong_or_missing_or_the_loss_another():
    y = _codes(3)
    known, x = _shared("cross_entropy", y, learnt=20)
    wrong = np.asarray(x).copy()
    wrong[0] = wrong[0, ::-1]
    for images in (wrong, np.asarray(x)[1:]):
        read = shared_labels.read(known, images)
        assert read is not None
        assert not read.clear.any()
    other, _ = _shared("mse", y, learnt=20)
    changed = evidence.dataclasses.replace(other, objective="cross_entropy")
    read = shared_labels.read(changed, np.asarray(x))
    assert read is not None
    assert not read.clear.all()


def test_labels_are_of_gradients_of_fewer_images_than_units():
    known, x = _shared("mse", _codes(3))
    assert shared_labels.read(known, np.zeros((0, *SHAPE), np.float32)) is None
    assert shared_labels.read(known, np.zeros((41, *SHAPE), np.float32)) is None
    whole = evidence.dataclasses.replace(known, is_gradient=False)
    assert shared_labels.read(whole, np.asarray(x)) is None
    linear = evidence.dataclasses.replace(known, network=MLP((), 3))
    assert shared_labels.read(linear, np.asarray(x)) is None
