"""Training in practice: what a step does, batches of an epoch, resuming, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy import resume
from ntk_privacy.models import MLP
from ntk_privacy.reconstruction import evidence
from ntk_privacy.training import recipe as recipes
from ntk_privacy.training import victim
from ntk_privacy.training.recipe import Recipe

KEY = jax.random.key(3)
X = np.asarray(jax.random.normal(jax.random.key(0), (6, 2, 3, 1)), np.float32)
SIGNS = np.where(np.arange(6) % 2, 1.0, -1.0).astype(np.float32)[:, None]
CLASSES = np.eye(3, dtype=np.float32)[np.arange(6) % 3] - np.float32(1 / 3)
RATE, DECAY = 0.05, 0.01


def _by_hand(loss, y, steps):
    """Momentum with weight decay on all images, a step at a time."""
    model = MLP((5,), y.shape[1])
    params = model.init_params(KEY, X.shape[1:])

    def mean(params):
        f = model.apply_fn(params, jnp.asarray(X))
        if loss == "mse":
            return jnp.sum((f - y) ** 2) / (2 * y.size)
        if loss == "logistic":
            return jnp.mean(jnp.log1p(jnp.exp(-y * f)))
        right = jnp.sum(jnp.where(y > 0, f, 0), 1)
        return jnp.mean(jnp.log(jnp.sum(jnp.exp(f), 1)) - right)

    velocity = jax.tree.map(jnp.zeros_like, params)
    for _ in range(steps):
        grads = jax.grad(mean)(params)
        velocity = jax.tree.map(
            lambda v, g, p: 0.9 * v + g + DECAY * p, velocity, grads, params
        )
        params = jax.tree.map(lambda p, v: p - RATE * v, params, velocity)
    return params, float(mean(params))


@pytest.mark.parametrize("loss", recipes.LOSSES)
def test_a_step_is_that_of_the_loss_with_momentum_and_decay(loss):
    y = CLASSES if loss == "cross_entropy" else SIGNS
    how = Recipe(loss=loss, learning_rate=RATE, weight_decay=DECAY, num_epochs=3)
    found = victim.train(
        X, y, key=KEY, width=5, depth=1, dynamics="standard", recipe=how
    )
    params, mean = _by_hand(loss, y, 3)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        found.params_t,
        params,
    )
    np.testing.assert_allclose(found.loss, mean, rtol=1e-4)
    assert (found.steps, found.reached, found.objective) == (3, None, loss)
    assert evidence.of(found).objective == loss


def test_an_epoch_sees_every_image_once_the_last_batch_smaller():
    step = recipes._Step(MLP((5,)), Recipe(batch_size=4))
    data = recipes._Data(
        jnp.arange(6.0)[:, None], jnp.asarray(SIGNS), jax.random.key_data(KEY), 0.0
    )
    orders = []
    for epoch in range(2):
        seen = []
        for i in range(2):
            x, _, weights = step.batch(jnp.asarray(2 * epoch + i), data)
            seen += list(np.asarray(x)[np.asarray(weights) > 0, 0])
        assert sorted(seen) == list(range(6))
        orders.append(seen)
    assert orders[0] != orders[1]


class _Killed(Exception):
    pass


def test_killed_in_the_middle_it_ends_with_the_same_bits(tmp_path):
    how = Recipe(loss="logistic", batch_size=4, optimizer="adam", num_epochs=60)
    run = {"key": KEY, "width": 8, "dynamics": "standard", "recipe": how}
    whole = victim.train(X, SIGNS, **run)
    options = {"timer": resume.Timer(), "seconds": 0.0}

    def kill(step, *_):
        if step == 50:
            raise _Killed

    with pytest.raises(_Killed):
        victim.train(
            X, SIGNS, **run, stage=resume.resumed(tmp_path, stop=kill, **options)
        )
    again = victim.train(X, SIGNS, **run, stage=resume.resumed(tmp_path, **options))
    assert (again.steps, whole.steps) == (120, 120)
    jax.tree.map(np.testing.assert_array_equal, again.params_t, whole.params_t)


def test_it_ends_at_the_loss_asked_for_and_says_so():
    how = Recipe(learning_rate=RATE, num_epochs=400)
    run = {"key": KEY, "width": 32, "dynamics": "standard", "recipe": how}
    found = victim.train(X, SIGNS, stop_loss=0.05, **run)
    assert 0.01 < found.loss < 0.05
    assert found.reached
    assert found.steps < 400


def test_one_gradient_is_a_step_of_linearized_training():
    found = victim.one_gradient(X, SIGNS, key=KEY, width=5, depth=1, loss="logistic")
    assert (found.steps, found.dynamics) == (0, "linearized")
    model = MLP((5,))

    def mean(params):
        f = model.apply_fn(params, jnp.asarray(X))
        return jnp.mean(jnp.log1p(jnp.exp(-SIGNS * f)))

    gradient = jax.grad(mean)(found.params_0)
    known = evidence.of(found)
    assert known.is_gradient
    for name, layer in gradient.items():
        moved = known.params_0[name]["kernel"] - known.params_t[name]["kernel"]
        ratio = moved / layer["kernel"]
        step = 2.0 ** np.round(np.log2(np.nanmedian(ratio)))
        np.testing.assert_allclose(moved, step * layer["kernel"], atol=1e-6 * step)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"optimizer": "gd", "batch_size": 2}, r"takes all images at every step; use"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"num_epochs": 0}, "num_epochs=0 must be at least 1"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0 must be at least 0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be above 0"),
    ],
)
def test_a_recipe_checks_itself(given, told):
    with pytest.raises(ValueError, match=told):
        Recipe(**given)


@pytest.mark.parametrize(
    ("y", "given", "told"),
    [
        (SIGNS, {"loss": "cross_entropy"}, "one output a class, the task has 1 in all"),
        (CLASSES, {"loss": "logistic"}, "takes one output, the task has 3: use a bin"),
        (SIGNS, {"learning_rate": 1e30}, "steps: lower the learning rate of the train"),
    ],
)
def test_a_training_that_cannot_be_is_refused_in_a_sentence(y, given, told):
    run = {"key": KEY, "width": 5, "dynamics": "standard"}
    with pytest.raises(ValueError, match=told):
        victim.train(X, y, **run, recipe=Recipe(num_epochs=20, **given))
    with pytest.raises(ValueError, match="dynamics=linearized: a recipe trains the"):
        victim.train(X, SIGNS, key=KEY, width=5, recipe=Recipe())


def test_a_zero_gradient_holds_nothing():
    net = MLP((5,))
    params = net.init_params(KEY, (2, 3, 1))
    zero = jax.tree.map(jnp.zeros_like, params)
    with pytest.raises(ValueError, match="gradient is zero: it holds nothing of"):
        evidence.of_gradient(net, params, zero, image_shape=(2, 3, 1))
