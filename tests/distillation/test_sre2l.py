"""Recovery: its loss by hand, its views, its bounds; CDA's curriculum."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy.distillation import cda, sre2l
from ntk_privacy.models import ConvNet, ResNet18
from ntk_privacy.models.resnet import Moments

MODEL = ResNet18(3, 2, blocks=(1, 1))
MEAN, DEVIATION = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def network():
    x = jax.random.normal(jax.random.key(0), (9, 4, 4, 3))
    params = MODEL.init_params(jax.random.key(1), (4, 4, 3), x.dtype)
    _, stats = MODEL.train_fn(params, MODEL.init_stats(x.dtype), x)
    return params, stats, x


OPTIONS = {
    "model": MODEL, "key": jax.random.key(4), "image_shape": (4, 4, 3),
    "num_classes": 3, "mean": MEAN, "deviation": DEVIATION, "images_per_class": 2,
    "num_steps": 6, "chunk": 2, "bn_weight": 0.1, "jitter": 1,
}  # fmt: skip


def test_bn_loss_weighs_the_stem_tenfold_and_sums_norms():
    def moments(*rows):
        return tuple(Moments(*map(jnp.asarray, row)) for row in rows)

    found = moments(([3.0, 4.0], [1.0, 1.0]), ([0.0], [7.0]))
    stats = moments(([0.0, 0.0], [1.0, 1.0]), ([2.0], [1.0]))
    want = 10 * (5.0 + 0.0) + (2.0 + 6.0)
    chex.assert_trees_all_close(sre2l.bn_loss(found, stats), jnp.asarray(want))
    # Statistics that match have a gradient of zero, not NaN.
    grads = jax.grad(sre2l.bn_loss)(stats, stats)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(grads))


def test_the_loss_reads_each_layer_before_it_is_normalised(network):
    params, stats, x = network
    labels = jnp.arange(9, dtype=jnp.int32) % 3
    options = {"model": MODEL, "params": params, "stats": stats}
    bare = sre2l.loss(x, labels, bn_weight=0.0, **options)
    full = sre2l.loss(x, labels, bn_weight=0.5, **options)
    logits, found = MODEL.moments_fn(params, stats, x)
    entropy = -jax.nn.log_softmax(logits)[jnp.arange(9), labels].mean()
    chex.assert_trees_all_close(bare, entropy, rtol=1e-10)
    gaps = [
        (10 if i == 0 else 1) * (np.linalg.norm(a - b) + np.linalg.norm(c - d))
        for i, ((a, c), (b, d)) in enumerate(zip(found, stats, strict=True))
    ]
    assert float(full - bare) == pytest.approx(0.5 * sum(gaps), rel=1e-9)


def test_steps_by_hand_bounds_and_going_on(network):
    params, stats, _ = network
    states = []
    options = {**OPTIONS, "jitter": 0, "learning_rate": 0.3}
    found = sre2l.recover(
        params, stats, callback=lambda *a: states.append(a[1]), **options
    )
    np.testing.assert_array_equal(found.labels, [0, 0, 1, 1, 2, 2])
    pixels = np.asarray(found.images) * DEVIATION + MEAN
    assert pixels.min() >= -1e-12
    assert pixels.max() <= 1 + 1e-12
    again = sre2l.recover(params, stats, state=states[1], **options)
    chex.assert_trees_all_equal(again.state, found.state)
    np.testing.assert_array_equal(again.losses, found.losses[4:])
    # By hand: each round of one image per class has its own batch moments.
    start = sre2l.init(
        key=OPTIONS["key"], image_shape=(4, 4, 3), num_classes=3, images_per_class=2,
        num_steps=6, learning_rate=0.3, dtype=jnp.float64,
    )  # fmt: skip
    one = jax.jit(
        jax.value_and_grad(
            lambda batch: sre2l.loss(
                batch, jnp.arange(3, dtype=jnp.int32), model=MODEL, params=params,
                stats=stats, bn_weight=0.1,
            )
        )
    )  # fmt: skip
    x, m, v = np.array(start.images), 0.0, 0.0
    low, high = -np.asarray(MEAN) / DEVIATION, (1 - np.asarray(MEAN)) / DEVIATION
    for t in range(6):
        grads, losses = np.zeros_like(x), []
        for k in range(2):
            value, grads[k::2] = one(jnp.asarray(x[k::2]))
            losses.append(value)
        assert float(found.losses[t]) == pytest.approx(np.mean(losses), rel=1e-6)
        m, v = 0.5 * m + 0.5 * grads, 0.9 * v + 0.1 * grads**2
        hat = (m / (1 - 0.5 ** (t + 1))) / (np.sqrt(v / (1 - 0.9 ** (t + 1))) + 1e-8)
        x = np.clip(x - 0.3 * (1 + np.cos(np.pi * t / 6)) / 2 * hat, low, high)
    np.testing.assert_allclose(found.images, x, rtol=1e-5, atol=1e-6)


def test_views_are_of_the_batch_as_one(network):
    step = sre2l._Step(MODEL, 3, 10, 0.1, 0.1, 2, True, sre2l.constant_crop(0.3), False)
    image = jax.random.normal(jax.random.key(9), (8, 8, 3))
    batch = jnp.stack([image] * 4)
    at = jnp.asarray(0, jnp.int32)
    views = [np.asarray(step.viewed(jax.random.key(i), batch, at)) for i in range(3)]
    for view in views:
        np.testing.assert_array_equal(view[1:], view[:-1])
    assert not np.allclose(views[0], views[1])
    rolled = sre2l._Step(MODEL, 3, 10, 0.1, 0.1, 2, False, None, False)
    view = np.asarray(rolled.viewed(jax.random.key(0), batch, at))
    shifts = [
        (a, b)
        for a in range(3)
        for b in range(3)
        if np.array_equal(view, np.roll(np.asarray(batch), (a, b), (1, 2)))
    ]
    assert len(shifts) == 1


def test_digits_are_not_mirrored():
    # Of whole images: what a view changes is the mirroring.
    ramp = jnp.broadcast_to(jnp.arange(8.0)[None, None, :, None], (2, 8, 8, 1))
    at, keys = jnp.asarray(0, jnp.int32), jax.random.split(jax.random.key(0), 12)
    for flip, seen in ((True, {0.0, 7.0}), (False, {0.0})):
        whole = sre2l.constant_crop(1.0)
        step = sre2l._Step(MODEL, 3, 10, 0.1, 0.1, 0, False, whole, False, flip)
        views = jax.vmap(lambda key, step=step: step.viewed(key, ramp, at))(keys)
        assert set(np.asarray(views)[:, 0, 0, 0, 0].round(9)) == seen


def test_the_curriculum():
    t = jnp.linspace(0.0, 1.0, 5)
    cosine = cda.curriculum()(t)
    want = 0.08 + 0.92 * (1 + np.cos(np.pi * np.linspace(0, 1, 5))) / 2
    np.testing.assert_allclose(cosine, want, atol=1e-7)
    linear = cda.curriculum("linear", milestone=0.5, low=0.4)(t)
    np.testing.assert_allclose(linear, [1.0, 0.7, 0.4, 0.4, 0.4], atol=1e-7)
    steps = cda.curriculum("step", milestone=0.5)(t)
    np.testing.assert_allclose(steps, [1, 1, 0.08, 0.08, 0.08], atol=1e-7)
    np.testing.assert_allclose(sre2l.constant_crop(0.2)(t), 0.2)
    with pytest.raises(ValueError, match="milestone=0 must be above 0"):
        cda.curriculum(milestone=0)
    with pytest.raises(ValueError, match="kind='sine' is unknown"):
        cda.curriculum("sine")


def test_cda_recovers(network):
    params, stats, _ = network
    out = sre2l.recover(params, stats, **{**OPTIONS, "min_share": cda.curriculum()})
    assert not bool(out.nonfinite)
    assert out.losses.shape == (6,)


def test_refusals(network):
    params, stats, _ = network
    recover = functools.partial(sre2l.recover, params, stats)
    with pytest.raises(ValueError, match="ConvNet has no batch normalisation with"):
        recover(**{**OPTIONS, "model": ConvNet(3, 4, 1)})
    with pytest.raises(ValueError, match="mean has 1 and deviation 3 entries"):
        recover(**{**OPTIONS, "mean": (0.5,)})
    with pytest.raises(ValueError, match="bn_weight=-1 must be at least 0"):
        recover(**{**OPTIONS, "bn_weight": -1})
