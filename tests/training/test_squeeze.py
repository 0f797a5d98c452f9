"""Squeezing: the step by hand, going on to the bit, and adversarial losses."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy import curvature
from ntk_privacy.models import ConvNet, ResNet18
from ntk_privacy.training import adversarial, squeeze

MODEL = ResNet18(3, 2, blocks=(1, 1))
MEAN, DEVIATION = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def setting(n=12):
    pixels = jax.random.uniform(jax.random.key(0), (n, 4, 4, 3))
    labels = jnp.arange(n, dtype=jnp.int32) % 3
    classes = labels.astype(pixels.dtype)[:, None, None]
    pixels = pixels.at[..., 0].set((pixels[..., 0] + classes) / 3)
    at = (None, None, None)
    x = (pixels - jnp.asarray(MEAN)[at]) / jnp.asarray(DEVIATION)[at]
    params = MODEL.init_params(jax.random.key(1), (4, 4, 3), x.dtype)
    return params, MODEL.init_stats(x.dtype), x, labels


def test_the_step_is_sgds():
    _, _, x, labels = setting()
    options = {"model": MODEL, "key": jax.random.key(3)}
    start = squeeze.init(x, **options)
    seen = []
    found = squeeze.train(
        x, labels, num_epochs=4, batch_size=12, padding=0, flip=False,
        learning_rate=0.1, warmup_epochs=2, weight_decay=0.01, chunk=1,
        callback=lambda step, state, metrics: seen.append(state), **options,
    )  # fmt: skip
    params, stats = start.params, start.stats
    velocity = jax.tree.map(jnp.zeros_like, params)

    @jax.jit
    def graded(params, stats):
        # One batch holds all images: their order changes nothing but rounding.
        def loss(p):
            logits, after = MODEL.train_fn(p, stats, x)
            return squeeze.cross_entropies(logits, labels).mean(), after

        return jax.grad(loss, has_aux=True)(params)

    # A hundredth and half way to the greatest, then a cosine of two epochs.
    for rate in (0.001, 0.0505, 0.1, 0.05):
        grads, stats = graded(params, stats)
        velocity = jax.tree.map(
            lambda v, g, p: 0.9 * v + g + 0.01 * p, velocity, grads, params
        )
        params = jax.tree.map(lambda p, v, r=rate: p - r * v, params, velocity)
    chex.assert_trees_all_close(found.params, params, rtol=1e-6, atol=1e-8)
    chex.assert_trees_all_close(found.stats, stats, rtol=1e-6, atol=1e-8)
    # From any state it goes on to the same bits.
    again = squeeze.train(
        x, labels, num_epochs=4, batch_size=12, padding=0, flip=False,
        learning_rate=0.1, warmup_epochs=2, weight_decay=0.01, chunk=1,
        state=seen[0], **options,
    )  # fmt: skip
    chex.assert_trees_all_equal(again, found)


def test_it_learns_and_predicts():
    _, _, x, labels = setting(24)
    state = squeeze.train(
        x, labels, model=MODEL, key=jax.random.key(0), num_epochs=30, batch_size=8,
        padding=0,
    )  # fmt: skip
    read = squeeze.predict(state.params, state.stats, x, model=MODEL, batch_size=7)
    assert np.mean(read == np.asarray(labels)) > 0.8


@pytest.mark.parametrize("mode", ["curvature", "loss_difference"])
def test_the_regularised_loss_is_plain_in_training_mode_and_flat_in_evaluation(mode):
    params, stats, x, labels = setting()
    transform = functools.partial(curvature.regularize, weight=2.0, step=0.5, mode=mode)
    plain, after = squeeze.cross_entropy(MODEL, params, stats, x, labels, None)

    def evaluated(params, x, labels):
        return squeeze.cross_entropies(MODEL.eval_fn(params, after, x), labels)

    added = jax.jit(curvature.penalty(evaluated, step=0.5, mode=mode))
    for share, seen in ((1.0, 12), (0.5, 6)):
        regularized = squeeze.Regularized(transform, share)
        loss, new = jax.jit(functools.partial(regularized, MODEL))(
            params, stats, x, labels, None
        )
        want = plain + 2 * added(params, x[:seen], labels[:seen]).mean()
        chex.assert_trees_all_close(loss, want, rtol=1e-9)
        chex.assert_trees_all_close(new, after, rtol=1e-10)
        assert loss > plain


def test_attacks_stay_in_the_ball_and_in_the_box_of_pixels():
    params, stats, x, labels = setting()

    def loss(images):
        return squeeze.cross_entropies(
            MODEL.eval_fn(params, stats, images), labels
        ).sum()

    m, s = np.asarray(MEAN), np.asarray(DEVIATION)
    found = jax.jit(
        lambda x: adversarial.attacked(
            loss,
            x,
            x,
            mean=jnp.asarray(m),
            deviation=jnp.asarray(s),
            eps=0.05,
            step=0.02,
            num_steps=6,
        )
    )(x)
    pixels, clean = np.asarray(found) * s + m, np.asarray(x) * s + m
    assert float(np.max(np.abs(pixels - clean))) == pytest.approx(0.05, abs=1e-9)
    assert float(pixels.min()) >= -1e-12
    assert float(pixels.max()) <= 1 + 1e-12
    assert float(loss(found)) > float(loss(x))


@pytest.mark.parametrize("kind", [adversarial.PGD, adversarial.TRADES])
def test_adversarial_losses(kind):
    params, stats, x, labels = setting()
    near, far = (
        jax.jit(functools.partial(kind(MEAN, DEVIATION, eps=eps), MODEL))(
            params, stats, x, labels, jax.random.key(0)
        )
        for eps in (1e-9, 0.1)
    )
    logits, _ = MODEL.train_fn(params, stats, x)
    plain = squeeze.cross_entropies(logits, labels).mean()
    # A ball of no size is plain training.
    chex.assert_trees_all_close(near[0], plain, rtol=1e-5)
    assert float(far[0]) > float(near[0])


def test_pgd_attacks_the_share_that_it_is_asked_to():
    params, stats, x, labels = setting()
    seen = []

    class Spy:
        eval_fn = staticmethod(MODEL.eval_fn)

        @staticmethod
        def train_fn(params, stats, images):
            seen.append(np.asarray(images))
            return MODEL.train_fn(params, stats, images)

    for share in (1.0, 0.25):
        loss = adversarial.PGD(MEAN, DEVIATION, eps=0.1, num_steps=2, share=share)
        loss(Spy, params, stats, x, labels, jax.random.key(0))
    whole, part = (np.abs(images - np.asarray(x)).max((1, 2, 3)) for images in seen)
    assert (whole > 0).all()
    assert (part > 0).tolist() == [True] * 3 + [False] * 9
    assert max(whole) <= 0.1 / min(DEVIATION) * 1.0001
    with pytest.raises(ValueError, match="share=0 must be above 0"):
        adversarial.PGD(MEAN, DEVIATION, share=0)
    with pytest.raises(ValueError, match=r"share=2 must lie in \[0, 1\]"):
        adversarial.PGD(MEAN, DEVIATION, share=2)


def test_trades_is_cross_entropy_and_divergence():
    params, stats, x, labels = setting()
    losses = []
    for beta in (1.0, 3.0):
        loss = adversarial.TRADES(MEAN, DEVIATION, eps=0.1, beta=beta)
        go = jax.jit(functools.partial(loss, MODEL))
        losses.append(float(go(params, stats, x, labels, jax.random.key(0))[0]))
    # Linear in beta: the rest is a cross-entropy of the clean half.
    entropy = losses[0] - (losses[1] - losses[0]) / 2
    assert losses[1] > losses[0] > entropy > 0


def test_refusals():
    _, _, x, labels = setting()
    options = {"key": jax.random.key(0), "num_epochs": 1}
    with pytest.raises(
        ValueError, match=r"ConvNet has no batch norm.*use models\.ResN"
    ):
        squeeze.train(x, labels, model=ConvNet(3, 4, 1), **options)
    with pytest.raises(ValueError, match="share=0 must be above 0"):
        squeeze.Regularized(curvature.regularize, 0)
    with pytest.raises(ValueError, match="learning_rate=0 must be above 0"):
        squeeze.train(x, labels, model=MODEL, learning_rate=0, **options)
    with pytest.raises(ValueError, match=r"eps=0 must lie in \(0, 1\].* above 0"):
        adversarial.PGD(MEAN, DEVIATION, eps=0)
