"""Embeddings from heads of any input length."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ntk_privacy.models import MLP
from ntk_privacy.reconstruction import heads

N, LENGTH, WIDTH = 10, 40, 256
KEY = jax.random.key(0)


def _features():
    """Non-negative features with a common part, as after ReLU and pooling."""
    mix = jax.random.normal(jax.random.key(4), (N + 1, LENGTH), jnp.float32)
    return jax.nn.relu(mix[1:] + 0.5 * mix[:1])


def _head(depth):
    model = MLP((WIDTH,) * depth, 3)
    return model, model.init_params(jax.random.key(1), (LENGTH, 1, 1), jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def _gradient(model, params, rows):
    def loss(p):
        logits = model.apply_fn(p, rows.reshape(len(rows), LENGTH, 1, 1))
        labels = jnp.arange(len(rows)) % 3
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return jax.grad(loss)(params)


@functools.partial(jax.jit, static_argnums=0)
def _trained(model, params, rows):
    def step(p, _):
        return jax.tree.map(lambda a, g: a - 0.05 * g, p, _gradient(model, p, rows)), 0

    return jax.lax.scan(step, params, None, length=50)[0]


def _matched(found, rows):
    squares = ((np.asarray(rows)[:, None] - found.rows[None]) ** 2).sum(-1)
    assert sorted(squares.argmin(1)) == list(range(len(rows)))
    return squares.min(1).max(), squares.argmin(1)


@pytest.mark.parametrize("depth", [1, 2])
def test_one_gradient_of_a_head_tells_every_embedding_and_signal(depth):
    rows, (model, params) = _features(), _head(depth)
    gradient = _gradient(model, params, rows)
    found = heads.decode_gradient(params, gradient, length=LENGTH, key=KEY)
    worst, order = _matched(found, rows)
    assert worst < 1e-6
    assert found.certified.all()

    # What the head sends back to the features is the loss's own gradient in them.
    def loss(rows):
        logits = model.apply_fn(params, rows.reshape(N, LENGTH, 1, 1))
        labels = jnp.arange(N) % 3
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    truth = jax.grad(loss)(rows)
    np.testing.assert_allclose(
        found.backward[order], truth, atol=1e-3 * float(jnp.abs(truth).max())
    )


def test_a_trained_head_tells_every_embedding():
    rows, (model, params) = _features(), _head(1)
    found = heads.decode(params, _trained(model, params, rows), length=LENGTH, key=KEY)
    worst, _ = _matched(found, rows)
    assert worst < 1e-4
    assert found.certified.all()


def test_features_that_move_are_not_certified():
    rows, (model, params) = _features(), _head(1)

    def step(carry, k):
        p, rows = carry
        p = jax.tree.map(lambda a, g: a - 0.05 * g, p, _gradient(model, p, rows))
        return (p, rows + 0.2 * jax.random.normal(k, rows.shape, jnp.float32)), None

    keys = jax.random.split(jax.random.key(5), 30)
    (moved, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, keys))((params, rows))
    found = heads.decode(params, moved, length=LENGTH, key=KEY, max_rounds=1)
    assert not found.certified.any()


def test_bad_input_of_a_head_is_one_sentence():
    rows, (model, params) = _features(), _head(1)
    gradient = _gradient(model, params, rows)
    with pytest.raises(ValueError, match="No dense layer takes images of 41 values"):
        heads.decode_gradient(params, gradient, length=41, key=KEY)
    with pytest.raises(ValueError, match="length=0 must be at least 1"):
        heads.decode(params, params, length=0, key=KEY)
    zero = jax.tree.map(jnp.zeros_like, gradient)
    with pytest.raises(ValueError, match="gradient of the layer Dense_0 is zero"):
        heads.decode_gradient(params, zero, length=LENGTH, key=KEY)
