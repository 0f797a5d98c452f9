"""Images from embeddings, through a trunk that is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy.models import ConvNet
from ntk_privacy.reconstruction import through_trunk

SHAPE, KEY, F32 = (6, 6, 1), jax.random.key(0), jnp.float32


@pytest.fixture(autouse=True)
def _ordinary_promotion():
    """Adam of optax does not pass the strict one."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def _images(n=3):
    noise = jax.random.uniform(jax.random.key(1), (n, *SHAPE), F32)
    for axis in (1, 2):
        noise = noise + jnp.roll(noise, 1, axis)
    return noise / 4


def _conv(params, x, stride=1):
    out = jax.lax.conv_general_dilated(
        x, params["kernel"], (stride, stride), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    out = jax.nn.relu(out + params["bias"][None, None, None])
    return out.reshape(len(x), -1)


def _params(channels):
    kernel = jax.random.normal(jax.random.key(2), (3, 3, 1, channels), F32) / 3
    return {"kernel": kernel, "bias": jnp.linspace(-0.1, 0.1, channels, dtype=F32)}


WIDE = functools.partial(_conv, _params(8))  # 288 features of 36 pixels
NARROW = functools.partial(_conv, _params(2), stride=2)  # 18 features
GIVEN = {"key": KEY, "image_shape": SHAPE, "bounds": (0.0, 1.0), "num_steps": 150}


def _squares(found, x):
    return ((found.images - np.asarray(x)) ** 2).sum((1, 2, 3))


def test_a_trunk_that_keeps_all_is_inverted_exactly():
    x = _images()
    start = through_trunk.invert(WIDE, WIDE(x), **GIVEN)
    found = through_trunk.solve(WIDE, WIDE(x), start, bounds=(0.0, 1.0))
    assert found.is_only.all()
    assert _squares(found, x).max() < 1e-6
    assert found.misfits.max() < 1e-4
    assert not start.is_only.any()


def test_a_trunk_that_loses_information_yields_an_image_that_agrees_and_no_claim():
    x = _images()
    start = through_trunk.invert(NARROW, NARROW(x), **GIVEN)
    found = through_trunk.solve(NARROW, NARROW(x), start, bounds=(0.0, 1.0))
    assert found.misfits.max() < 0.2
    assert not found.is_only.any()
    # It tells of its images what is so.
    rows = np.asarray(NARROW(x))
    scale = np.linalg.norm(rows - rows.mean(0), axis=1)
    miss = np.linalg.norm(NARROW(jnp.asarray(found.images)) - rows, axis=1)
    np.testing.assert_allclose(found.misfits, miss / scale, rtol=1e-3, atol=1e-5)


def test_features_enough_that_see_no_whole_image_make_no_claim():
    x = _images()

    def twice(x):  # as many features as pixels, of half of them
        half = x[:, :3].reshape(len(x), -1)
        return jnp.concatenate([half, half], axis=1)

    start = through_trunk.invert(twice, twice(x), **GIVEN)
    found = through_trunk.solve(twice, twice(x), start, bounds=(0.0, 1.0))
    assert found.misfits.max() < 1e-4
    assert not found.is_only.any()


def test_the_smoothest_restart_that_agrees_is_taken():
    misfits = np.array([[1.0, 1.0], [0.02, 0.5], [0.01, 0.01]]) ** 2
    weights = np.array([0.1, 0.01, 0.001])
    assert list(through_trunk._smoothest(misfits, weights)) == [2, 2]
    assert list(through_trunk._smoothest(misfits * [[1], [0.5], [1]], weights)) == [
        1,
        2,
    ]


def test_the_kernels_own_gradient_holds_at_the_truth_and_nowhere_near():
    x, params = _images(), _params(2)
    signals = jax.random.normal(jax.random.key(3), NARROW(x).shape, F32)
    embed = functools.partial(_conv, stride=2)

    def loss(p):
        return jnp.sum(embed(p, x) * signals)

    gradient = jax.grad(loss)(params)
    made = through_trunk.kernel_equations(embed, params, signals, gradient)
    near = jax.tree.map(
        lambda a, b: float(jnp.abs(a - b).max()), made.fn(x), made.values
    )
    far = through_trunk._relative(made.fn(x[::-1]), made.values)
    assert max(jax.tree.leaves(near)) < 1e-4
    assert far > 1e-2
    plain = through_trunk.invert(NARROW, NARROW(x), **GIVEN)
    both = through_trunk.invert(NARROW, NARROW(x), equations=made, **GIVEN)
    off = [
        float(through_trunk._relative(made.fn(jnp.asarray(f.images)), made.values))
        for f in (plain, both)
    ]
    assert off[1] < 0.5 * off[0]


def test_a_convnet_of_the_library_is_a_trunk():
    net = ConvNet(width=4, depth=1, norm="none", pooling="none")
    params = net.init_params(KEY, SHAPE, F32)
    x = _images(1)
    fn = functools.partial(net.embed_fn, params)
    found = through_trunk.invert(fn, fn(x), **GIVEN)
    assert found.misfits.max() < 0.1


def test_bad_input_is_one_sentence():
    rows = np.asarray(WIDE(_images()))
    with pytest.raises(ValueError, match="embeddings have length 7: give the trunk"):
        through_trunk.invert(WIDE, rows[:, :7], **GIVEN)
    with pytest.raises(ValueError, match="embeddings"):
        through_trunk.invert(WIDE, rows * np.nan, **GIVEN)
    with pytest.raises(ValueError, match="intensity and a larger one"):
        through_trunk.invert(WIDE, rows, **{**GIVEN, "bounds": (1.0, 0.0)})
    with pytest.raises(ValueError, match="weights is empty"):
        through_trunk.invert(WIDE, rows, weights=(), **GIVEN)
