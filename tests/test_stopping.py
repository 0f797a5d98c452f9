"""A callback that returns True stops a loop, and its state goes on to the same bits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ntk_privacy import kip, rkip
from ntk_privacy.kernels import infinite
from ntk_privacy.models import MLP
from ntk_privacy.poisoning import perturbation
from ntk_privacy.reconstruction import kkt
from ntk_privacy.training import train

KERNEL = infinite.mlp(depth=1)
X = jax.random.normal(jax.random.key(0), (12, 2, 2, 1), jnp.float32)
Y = jnp.where(jnp.arange(12) % 2, 1.0, -1.0).astype(jnp.float32)[:, None]


def _at(limit, states):
    def stop(step, state, metrics):
        states.append((step, state))
        return step >= limit

    return stop


@pytest.mark.parametrize("method", [kip, rkip])
def test_a_distillation_stops(method):
    options = {"kernel_fn": KERNEL, "key": jax.random.key(1), "images_per_class": 1}
    options |= {"num_steps": 9, "chunk": 3}
    states = []
    part = method.distill(X, Y, callback=_at(3, states), **options)
    assert [step for step, _ in states] == [3]
    assert len(part.losses) == 3
    assert not part.nonfinite
    rest = method.distill(X, Y, state=part.state, **options)
    whole = method.distill(X, Y, **options)
    np.testing.assert_array_equal(rest.images, whole.images)


def test_training_stops_and_is_not_called_converged():
    net = MLP((8,))
    params = net.init_params(jax.random.key(1), X.shape[1:], jnp.float32)
    states = []
    options = {"optimizer": optax.sgd(1e-3), "max_steps": 9, "chunk": 3}
    options["stop_loss"] = 1e-12
    part = train.full_batch(
        net.apply_fn, params, X, Y, callback=_at(3, states), **options
    )
    assert part.steps == 3
    assert not part.converged
    rest = train.full_batch(net.apply_fn, params, X, Y, state=part.state, **options)
    whole = train.full_batch(net.apply_fn, params, X, Y, **options)
    jax.tree.map(np.testing.assert_array_equal, rest.params, whole.params)


def test_a_search_stops():
    net = MLP((8, 8))
    before, after = (
        net.init_params(jax.random.key(i), X.shape[1:], jnp.float32) for i in (1, 2)
    )
    attack = kkt.prepare(
        net,
        before,
        after,
        key=jax.random.key(3),
        image_shape=X.shape[1:],
        num_images=4,
        bounds=(-1.0, 1.0),
    )
    states = []
    part = kkt.run(attack, chunk=5, callback=_at(10, states))
    assert [step for step, _ in states] == [5, 10]
    assert len(part.losses) == 10


def test_the_crafting_of_poisons_stops():
    def objective(images, key, data):
        del key, data
        return jnp.sum(images**2)

    clean = jnp.round(jnp.abs(X[:2]) * 20).clip(0, 255) / 255
    states = []
    out = perturbation.craft(
        clean,
        objective,
        key=jax.random.key(0),
        bound=8 / 255,
        num_steps=8,
        num_restarts=1,
        num_draws=1,
        chunk=2,
        callback=_at(4, states),
    )
    assert [step for step, _ in states] == [2, 4]
    assert len(out.losses) == 4
