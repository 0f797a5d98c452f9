"""One image from biases that began at zero: what it is, its error bar, and chance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy import data
from ntk_privacy.models import MLP
from ntk_privacy.reconstruction import known_start

WIDTH, SHAPE = 512, (8, 8, 1)
NET = MLP((WIDTH, 64), 10)


@functools.cache
def _digits():
    found = data.load("digits", task="all_classes", num_train=40, key=jax.random.key(0))
    return np.asarray(found.x_train, np.float32), found.y_train.argmax(1)


def _drawn(count, seed):
    x, labels = _digits()
    rows = np.random.default_rng(seed).permutation(40)[:count]
    return x[rows], labels[rows]


@functools.partial(jax.jit, static_argnames="adam")
def _steps(params, x, labels, decay, *, adam):
    """Minibatches of a half, with momentum, or the signs of that."""

    def loss(p, weights):
        logs = jax.nn.log_softmax(NET.apply_fn(p, x))
        return -jnp.mean(weights * logs[jnp.arange(len(x)), labels])

    def step(t, carry):
        p, pace = carry
        weights = jnp.where((jnp.arange(len(x)) + t) % 2 == 0, 1.5, 0.5)
        grads = jax.grad(loss)(p, weights.astype(jnp.float32))
        pace = jax.tree.map(lambda v, g: 0.9 * v + g, pace, grads)
        moves = jax.tree.map(lambda v: 0.01 * jnp.sign(v), pace) if adam else pace
        return jax.tree.map(lambda a, v: (1 - decay) * a - 0.02 * v, p, moves), pace

    start = jax.tree.map(jnp.zeros_like, params)
    return jax.lax.fori_loop(0, 30, step, (params, start))[0]


def _trained(count, seed, *, adam=False, decay=0.0):
    x, labels = _drawn(count, seed)
    params = NET.init_params(jax.random.key(seed), SHAPE, jnp.float32)
    after = _steps(
        params, jnp.asarray(x), jnp.asarray(labels), jnp.float32(decay), adam=adam
    )
    return params, after, x.reshape(count, -1).astype(np.float64), labels


def _cosine(image, truth):
    """Of the angle between an image and what the training images span."""
    basis = np.linalg.qr(truth.T)[0]
    return np.linalg.norm(basis.T @ image.ravel()) / np.linalg.norm(image)


@pytest.mark.parametrize("how", [{}, {"adam": True}, {"decay": 1e-3}])
def test_one_image_is_read_from_trained_weights_alone(how):
    params, after, x, labels = _trained(1, 0, **how)
    found = known_start.read(after, image_shape=SHAPE)
    # Closed units never move, under any optimiser.
    before = x @ np.asarray(params["Dense_0"]["kernel"], np.float64) > 0
    np.testing.assert_array_equal(found.opened, before[0])
    best = found.readings[0]
    assert best.trait == "opened"
    cosine = (best.image.ravel() @ x[0]) / np.linalg.norm(x)
    assert cosine > 0.93
    assert abs(cosine - np.sqrt(best.share)) < 0.03
    assert found.verdict.word == "approximate"
    assert "nothing is certified" in found.verdict.reason
    assert found.verdict.num_certified == 0
    assert found.largest_angle is not None
    assert found.largest_angle < 0.6
    assert found.classes == (labels[0],)


def test_the_share_that_is_stated_is_that_of_the_images_span():
    """Of 1, 2, 4 and 8 images; and the image is a positive mixture, like their mean."""
    for count in (1, 2, 4, 8):
        found, true = [], []
        for seed in range(3):
            _, after, x, labels = _trained(count, seed)
            told = known_start.read(after, image_shape=SHAPE)
            assert told.classes is not None
            assert set(told.classes) <= set(labels)
            unit = x / np.linalg.norm(x, axis=1, keepdims=True)
            widest = np.arccos(np.clip((unit @ unit.T).min(), -1, 1))
            assert told.largest_angle is not None
            assert told.largest_angle > widest
            for each in told.readings:
                found.append(each.share)
                true.append(_cosine(each.image, x) ** 2)
                if each.trait == "opened":
                    assert each.image.ravel() @ unit.mean(0) > 0.5 * np.linalg.norm(
                        unit.mean(0)
                    )
        np.testing.assert_allclose(np.mean(found), np.mean(true), atol=0.1)


def test_the_error_bar_of_a_pixel_is_its_standard_deviation():
    """Of an image that moved the biases far: intensities, as they are."""
    rng = np.random.default_rng(0)
    x, signals = rng.normal(size=48), 0.4 * rng.normal(size=600)
    kernel = rng.normal(size=(48, 600)) + np.outer(x, signals)
    found = known_start.read(
        {"Dense_0": {"kernel": kernel, "bias": signals}}, image_shape=(6, 8, 1)
    )
    (change,) = found.readings
    assert change.trait == "change"
    scores = (change.image.ravel() - x) / change.error.ravel()
    assert 0.7 < np.sqrt(np.mean(scores**2)) < 1.3
    np.testing.assert_allclose(change.error, 1 / np.linalg.norm(signals), rtol=0.2)
    assert found.largest_angle is None


@pytest.mark.parametrize("units", [40, 80, 256])  # of 64 pixels
def test_biases_that_know_of_no_image_tell_none(units):
    values = {"opened": [], "change": []}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        bias = rng.normal(size=units) * (rng.random(units) < 0.6)
        layer = {"kernel": rng.normal(size=(64, units)), "bias": bias}
        found = known_start.read({"a": layer}, image_shape=SHAPE)
        assert found.verdict.word == "nothing found"
        for each in found.readings:
            values[each.trait].append(each.p_value)
    for each in values.values():
        assert len(each) == 40
        assert min(each) > 1e-4
        assert 0.25 < np.median(each) < 0.75


def test_fewer_units_than_pixels_tell_an_image_or_that_its_error_bar_is_larger():
    rng = np.random.default_rng(1)
    x = rng.normal(size=1024)
    for units, word, told in (
        (32, "nothing found", "too little on the weights to be no chance"),
        (900, "nothing found", "times its contrast"),
        (2400, "approximate", "of its contrast"),
    ):
        kernel = rng.normal(size=(1024, units))
        bias = np.where(x @ kernel > 0, 0.01 * rng.normal(size=units), 0)
        params = {"a": {"kernel": kernel, "bias": bias}}
        found = known_start.read(params, image_shape=(32, 32, 1))
        assert (found.verdict.word, told in found.verdict.reason) == (word, True)
        opened = next(each for each in found.readings if each.trait == "opened")
        assert abs(_cosine(opened.image, x[None]) ** 2 - opened.share) < 0.15


def test_a_normalisation_tells_which_units_opened():
    x, _ = _drawn(1, 2)
    rng = np.random.default_rng(2)
    kernel = jnp.asarray(rng.normal(size=(64, WIDTH)) / 8, jnp.float32)
    head = jnp.asarray(rng.normal(size=(WIDTH, 1)) / 30, jnp.float32)
    ones, zeros = jnp.ones(WIDTH, jnp.float32), jnp.zeros(WIDTH, jnp.float32)
    params = {
        "Dense_0": {"kernel": kernel, "bias": zeros},
        "LayerNorm_0": {"scale": ones, "bias": zeros},
        "Dense_1": {"kernel": head},
    }

    def loss(p):
        z = jnp.asarray(x.reshape(1, 64)) @ p["Dense_0"]["kernel"]
        z = (z - z.mean()) / z.std()
        z = z * p["LayerNorm_0"]["scale"][None] + p["LayerNorm_0"]["bias"][None]
        return jnp.mean((jax.nn.relu(z) @ p["Dense_1"]["kernel"] - 1) ** 2)

    @jax.jit
    def trained(p):
        def step(_, p):
            return jax.tree.map(lambda a, g: a - 0.001 * g, p, jax.grad(loss)(p))

        return jax.lax.fori_loop(0, 20, step, p)

    found = known_start.read(trained(params), image_shape=SHAPE, norm="LayerNorm_0")
    assert [each.trait for each in found.readings] == ["opened"]
    assert _cosine(found.readings[0].image, x.reshape(1, 64)) > 0.9
    assert found.classes is None
    with pytest.raises(ValueError, match="norm='Norm' has no bias in the parameters"):
        known_start.read(params, image_shape=SHAPE, norm="Norm")
    params["LayerNorm_0"]["bias"] = jnp.zeros(3)
    with pytest.raises(ValueError, match=r"has shape \(3,\), the layer 512 units"):
        known_start.read(params, image_shape=SHAPE, norm="LayerNorm_0")


def _layer(**changed):
    rng = np.random.default_rng(0)
    given = {"kernel": rng.normal(size=(64, 32)), "bias": rng.normal(size=32)}
    given = {k: v for k, v in {**given, **changed}.items() if v is not None}
    return {"Dense_0": given}


@pytest.mark.parametrize(
    ("params", "told"),
    [
        (_layer(bias=None), "layer Dense_0 has no bias, whose start would be known"),
        (_layer(bias=np.zeros(32)), "bias of Dense_0 is zero: it was not trained"),
        (_layer(bias=np.full(32, np.nan)), "NaN"),
        (
            _layer(kernel=np.ones((64, 5)), bias=np.ones(5)),
            "has 5 units, too few to tell an image from chance: 16 at least",
        ),
        ({"a": {"kernel": np.ones((9, 32))}}, "No dense layer takes images of 64"),
    ],
)
def test_what_tells_nothing_is_refused_in_a_sentence(params, told):
    with pytest.raises(ValueError, match=told):
        known_start.read(params, image_shape=SHAPE)
