"""Classifiers trained with a transform of the loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ntk_privacy import curvature
from ntk_privacy.models import ConvNet
from ntk_privacy.training import classification

MODEL = ConvNet(3, 2, depth=1)
KEYS = jax.random.split(jax.random.key(1), 1)
FLAT = functools.partial(curvature.regularize, weight=0.5, step=0.3)


@pytest.fixture(scope="module")
def images():
    x = jax.random.normal(jax.random.key(0), (6, 4, 4, 1))
    return x, jnp.arange(6, dtype=jnp.int32) % 3


def losses(params, x, labels):
    logits = MODEL.apply_fn(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def _train(images, **options):
    return classification.train(
        *images,
        model=MODEL,
        keys=KEYS,
        num_epochs=1,
        learning_rate=0.1,
        operations=(),
        **options,
    )


@pytest.mark.parametrize("regularize", [None, FLAT])
def test_a_step_descends_the_mean_of_the_transformed_loss(images, regularize):
    start = classification.init(images[0], model=MODEL, keys=KEYS)
    start = jax.tree.map(lambda leaf: leaf[0], start.params)
    loss = losses if regularize is None else regularize(losses)
    grads = jax.grad(lambda p: jnp.mean(loss(p, *images)))(start)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, start, grads)
    found = _train(images, weight_decay=0.0, regularize=regularize).params
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a[0], b, rtol=1e-9, atol=1e-12)


def test_the_place_in_a_short_batch_that_counts_nothing_still_counts_nothing(images):
    # Six images in batches of four: the second step sees two.
    same = _train(images, batch_size=4, regularize=lambda loss_fn: loss_fn)
    plain = _train(images, batch_size=4)
    for a, b in zip(*map(jax.tree.leaves, (same.params, plain.params)), strict=True):
        np.testing.assert_array_equal(a, b)
