"""Classifier training and the evaluation protocol: the published loop by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ntk_privacy.data import augmentation
from ntk_privacy.evaluation import protocol
from ntk_privacy.models import ConvNet
from ntk_privacy.training import classification

KEY = jax.random.key(0)
MODEL = ConvNet(2, 4, 1)
SHAPE = (4, 4, 3)
N = 7


def _data(n=N):
    random = np.random.default_rng(0)
    labels = np.arange(n, dtype=np.int32) % 2
    x = random.normal(size=(n, *SHAPE))
    x[labels == 1, :2] += 3  # a place that average pooling keeps
    return jnp.asarray(x), jnp.asarray(labels)


def _by_hand(x, labels, key, num_epochs, drop_after):
    """Torch's SGD over batches of 3, 3 and 1, made anew after the middle epoch."""
    key_init, rest = jax.random.split(key)
    key_order, key_augment = jax.random.split(rest)
    params = MODEL.init_params(key_init, SHAPE, jnp.float64)
    velocity, rate, step = jax.tree.map(jnp.zeros_like, params), 0.01, 0

    @jax.jit
    def slope(params, images, labels):
        def loss(p):
            logits = MODEL.apply_fn(p, images)
            each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return each.mean()

        return jax.grad(loss)(params)

    for epoch in range(num_epochs):
        order = np.asarray(
            jax.random.permutation(jax.random.fold_in(key_order, epoch), N)
        )
        padded = np.concatenate([order, [0, 0]])
        for first in (0, 3, 6):
            images = augmentation.augment(
                jax.random.fold_in(key_augment, step),
                x[padded[first : first + 3]],
                operations=("flip",),
            )
            count = min(3, N - first)
            some = labels[order[first : first + count]]
            grads = slope(params, images[:count], some)
            velocity = jax.tree.map(
                lambda v, g, p: 0.9 * v + (g + 5e-4 * p), velocity, grads, params
            )
            params = jax.tree.map(lambda p, v, r=rate: p - r * v, params, velocity)
            step += 1
        if epoch == drop_after:
            rate, velocity = rate * 0.1, jax.tree.map(jnp.zeros_like, velocity)
    return params


@pytest.mark.parametrize("parallel", [False, True])
def test_networks_train_by_the_published_loop(parallel):
    x, labels = _data()
    keys = jax.random.split(KEY, 2)
    options = {"model": MODEL, "batch_size": 3, "operations": ("flip",)}
    state = classification.train(
        x,
        labels,
        keys=keys,
        num_epochs=4,
        drop_after=1,
        parallel=parallel,
        chunk=5,
        **options,
    )
    for i, key in enumerate(keys):
        want = _by_hand(x, labels, key, 4, 1)
        mine = jax.tree.map(lambda a, i=i: a[i], state.params)
        chex.assert_trees_all_close(mine, want, rtol=1e-9, atol=1e-12)
    assert int(state.steps) == 12


def test_it_resumes_to_the_bit():
    x, labels = _data()
    options = {"model": MODEL, "batch_size": 3, "keys": KEY[None], "chunk": 3}
    options["operations"] = ()
    whole = classification.train(x, labels, num_epochs=3, **options)
    half = classification.train(x, labels, num_epochs=1, **options)
    rest = classification.train(x, labels, num_epochs=3, state=half, **options)
    chex.assert_trees_all_equal(rest, whole)


def test_staggered_networks_are_trained_for_0_1_and_2_epochs():
    x, labels = _data()
    options = {"model": MODEL, "batch_size": 3, "operations": ()}
    networks = classification.staggered(x, labels, key=KEY, num_networks=3, **options)
    for i, (key, params) in enumerate(
        zip(jax.random.split(KEY, 3), networks, strict=True)
    ):
        state = classification.train(
            x, labels, keys=key[None], num_epochs=i, chunk=3, **options
        )
        alone = jax.tree.map(lambda a: a[0], state.params)
        chex.assert_trees_all_equal(params, alone)
        start = MODEL.init_params(jax.random.split(key)[0], SHAPE, jnp.float64)
        moved = np.abs(params["Linear"]["kernel"] - start["Linear"]["kernel"]).max()
        assert (moved > 0) == (i > 0)


def test_the_protocol_learns_tests_and_asks_about_targets():
    x, labels = _data(12)
    out = protocol.evaluate(
        x,
        labels,
        x,
        labels,
        model=MODEL,
        key=KEY,
        num_networks=2,
        num_epochs=40,
        operations=("flip",),
        targets=x[:3],
        learning_rate=0.05,
        chunk=41,
    )
    assert out.accuracy.shape == (2,)
    assert out.accuracy.min() > 0.9
    assert int(out.state.steps) == 41  # the published loop is inclusive
    predicted = classification.predict(out.state.params, x, model=MODEL, batch_size=5)
    np.testing.assert_array_equal(predicted[:, :3], out.target_classes)
    np.testing.assert_allclose((predicted == labels[None]).mean(1), out.accuracy)


def test_the_protocol_trains_as_published(monkeypatch):
    x, labels = _data()
    told = {}
    train = classification.train

    def watched(images, labels, **options):
        told.update(options)
        return train(images, labels, **options)

    monkeypatch.setattr(classification, "train", watched)
    options = {"model": MODEL, "key": KEY, "num_networks": 1, "num_epochs": 6}
    found = protocol.evaluate(x, labels, x, labels, operations=("flip",), **options)
    # Epochs 0 to 6; after that of index 6 // 2 + 1 the step is a tenth.
    assert (told["num_epochs"], told["drop_after"]) == (7, 4)
    state = train(
        x,
        labels,
        model=MODEL,
        keys=jax.random.split(KEY, 1),
        num_epochs=7,
        learning_rate=0.01,
        momentum=0.9,
        weight_decay=5e-4,
        batch_size=256,
        drop_after=4,
        operations=("flip",),
    )
    chex.assert_trees_all_equal(found.state, state)


def test_success_is_the_share_of_the_decisions():
    runs = np.array([3] * 15 + [1] * 10)
    rate = protocol.attack_success(runs, 3)
    assert rate.mean == pytest.approx(0.6)
    # Of a sample: sqrt(0.6 * 0.4 * 25 / 24).
    assert rate.deviation == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be above 0"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"momentum": 1.5}, r"momentum=1.5 must lie in \[0, 1\]"),
    ],
)
def test_bad_numbers_are_refused(options, message):
    x, labels = _data()
    with pytest.raises(ValueError, match=message):
        classification.train(
            x, labels, model=MODEL, keys=KEY[None], num_epochs=1, **options
        )
