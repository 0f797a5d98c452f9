"""The replayed training: its ends, its points, what it explains, what it refuses."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ntk_privacy import _tree
from ntk_privacy.kernels import stationarity, structured
from ntk_privacy.models import MLP
from ntk_privacy.reconstruction import kkt, replay
from ntk_privacy.training import train

SHAPE = (4, 4, 1)
MODEL = MLP((48, 48), 1)


def _norm(tree):
    return float(jnp.sqrt(_tree.squared_norm(tree)))


@pytest.fixture(scope="module")
def setting():
    params_0 = MODEL.init_params(jax.random.key(0), SHAPE, jnp.float64)
    x = jax.random.uniform(jax.random.key(1), (4, *SHAPE), jnp.float64, -1, 1)
    y = jnp.asarray([[1.0], [-1.0], [1.0], [-1.0]], jnp.float64)
    kernel = structured.ntk(MODEL, params_0, x)
    optimizer = train.stable_optimizer(float(jnp.linalg.eigvalsh(kernel)[-1]), 4)

    def trained(stop_loss):
        return train.full_batch(
            MODEL.apply_fn,
            params_0,
            x,
            y,
            optimizer=optimizer,
            max_steps=3000,
            stop_loss=stop_loss,
            chunk=50,
        ).params

    return params_0, trained(1e-9), trained(1e-2), x, y


def _misfit(features, change, x):
    kernel, along = stationarity.normal_equations(MODEL, features, change, x)
    duals = stationarity.best_duals(kernel, along, ridge=1e-10)
    duals = duals.reshape(len(features), len(x), 1)
    square = stationarity.parameter_form(
        MODEL.apply_fn, features, change, x, duals
    ) / _tree.squared_norm(change)
    return float(jnp.sqrt(square))


def test_the_truth_replays_the_training_and_explains_it_better_than_the_line(setting):
    params_0, params_t, _, x, y = setting
    found = replay.replay(MODEL, params_0, params_t, x, y, num_points=5)
    chex.assert_trees_all_equal(found.features[0], params_0)
    chex.assert_trees_all_equal(found.features[-1], params_t)
    assert len(found.features) == 5
    # It stops at 1e-5, the training did at 1e-9.
    assert found.miss < 0.02
    change = _tree.sub(params_t, params_0)
    line = stationarity.features(params_0, params_t, (0.0, 0.25, 0.5, 0.75, 1.0))
    assert _misfit(found.features, change, x) < 0.5 * _misfit(line, change, x)


def test_its_points_lie_on_the_path_at_equal_distances(setting):
    params_0, params_t, _, x, y = setting
    features = replay.replay(
        MODEL, params_0, params_t, x, y, num_points=5, chunk=1, stop_loss=1e-8
    ).features
    steps = [_norm(_tree.sub(b, a)) for a, b in itertools.pairwise(features)]
    # The last chord is shorter than its arc: momentum swings past the end.
    assert max(steps) < 1.1 * min(steps[:3])
    # Every point is within half a step of the training's own, which the line is not.
    line = stationarity.features(params_0, params_t, (0.0, 0.25, 0.5, 0.75, 1.0))
    kernel = structured.ntk(MODEL, params_0, x)
    rate = 0.02 * 4 / float(jnp.linalg.eigvalsh(kernel)[-1])
    optimizer = optax.sgd(rate, momentum=0.9)
    params, state = params_0, optimizer.init(params_0)
    least = np.full((2, 3), np.inf)
    grad = jax.jit(jax.grad(lambda p: 0.5 * jnp.mean((MODEL.apply_fn(p, x) - y) ** 2)))
    for _ in range(300):
        updates, state = optimizer.update(grad(params), state)
        params = optax.apply_updates(params, updates)
        for i, points in enumerate((features, line)):
            away = [_norm(_tree.sub(params, point)) for point in points[1:4]]
            least[i] = np.minimum(least[i], away)
    least /= _norm(_tree.sub(params_t, params_0))
    assert (least[0] < 0.015).all(), least
    assert (least[1] > 0.04).all(), least


def test_an_early_stop_is_found(setting):
    params_0, _, early, x, y = setting
    found = replay.replay(MODEL, params_0, early, x, y, num_points=3, chunk=1)
    assert found.miss < 0.02
    assert 1 < found.steps < 200
    wrong = replay.replay(MODEL, params_0, early, x[::-1], y, num_points=3, chunk=1)
    assert wrong.miss > 5 * found.miss


def test_features_of_the_line_are_what_points_say(setting):
    params_0, params_t, _, _, _ = setting
    given = {
        "key": jax.random.key(3),
        "image_shape": SHAPE,
        "num_images": 4,
        "bounds": (-1.0, 1.0),
        "settings": kkt.Settings(num_steps=4),
    }
    line = stationarity.features(params_0, params_t, (0.0, 0.5, 1.0))
    a = kkt.reconstruct(MODEL, params_0, params_t, points="three", **given)
    b = kkt.reconstruct(MODEL, params_0, params_t, features=line, **given)
    chex.assert_trees_all_close(a.images, b.images, rtol=1e-10)
    chex.assert_trees_all_close(a.losses, b.losses, rtol=1e-10)
    with pytest.raises(ValueError, match=r"features=\(\) is empty: give at least one"):
        kkt.prepare(MODEL, params_0, params_t, features=(), **given)
    with pytest.raises(ValueError, match=r"features\[0\]"):
        kkt.prepare(MODEL, params_0, params_t, features=[{"Dense_0": line[0]}], **given)


def test_faults_are_told(setting):
    params_0, params_t, _, x, y = setting
    with pytest.raises(ValueError, match="num_points=1 must be at least 2"):
        replay.replay(MODEL, params_0, params_t, x, y, num_points=1)
    with pytest.raises(ValueError, match="Lengths differ: images has 4 rows, labels"):
        replay.replay(MODEL, params_0, params_t, x, y[:2])
    with pytest.raises(ValueError, match="are the same: there is no training"):
        replay.replay(MODEL, params_0, params_0, x, y)
    with pytest.raises(ValueError, match="diverges within 5 steps: give an optimizer"):
        replay.replay(MODEL, params_0, params_t, x, y, optimizer=optax.sgd(1e200))
