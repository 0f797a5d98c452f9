"""DC and DSA: the distance written out, the loops by hand, resuming, faults."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ntk_privacy.data import augmentation
from ntk_privacy.distillation import gradient_matching as gm
from ntk_privacy.distillation.gradient_distance import distance
from ntk_privacy.models import ConvNet

KEY = jax.random.key(0)
MODEL = ConvNet(3, 4, 1)
SHAPE = (4, 4, 1)
SIZES = (9, 12, 7)


def _data(dtype=jnp.float64):
    random = np.random.default_rng(0)
    classes = random.permutation(np.repeat(np.arange(3), SIZES)).astype(np.int32)
    x = random.normal(size=(len(classes), *SHAPE)) + classes[:, None, None, None]
    return jnp.asarray(x, dtype), jnp.asarray(classes)


def _params(model=MODEL, key=KEY):
    return model.init_params(key, SHAPE, jnp.float64)


def _distill(x, classes, **kwargs):
    defaults = {
        "model": MODEL,
        "key": KEY,
        "images_per_class": 2,
        "num_steps": 2,
        "batch_size": 5,
        "outer_steps": 2,
        "inner_epochs": 2,
        "chunk": 1,
    }
    return gm.distill(x, classes, **(defaults | kwargs))


def _slow_distance(real, synthetic, metric):
    """One output unit at a time, in plain NumPy."""
    if metric == "layerwise":
        total = 0.0
        for name, layer in real.items():
            if name.startswith("Norm") and layer["scale"].shape[0] == 1:
                continue
            leaves = [n for n in layer if np.ndim(layer[n]) > 1]
            for leaf in leaves:
                a, b = np.asarray(layer[leaf]), np.asarray(synthetic[name][leaf])
                for unit in range(a.shape[-1]):
                    u, v = a[..., unit].ravel(), b[..., unit].ravel()
                    norms = np.sqrt(u @ u) * np.sqrt(v @ v)
                    total += 1 - (u @ v) / (norms + 1e-6)
        return total
    u, v = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(side)])
        for side in (real, synthetic)
    )
    if metric == "mse":
        return np.sum((u - v) ** 2)
    return 1 - (u @ v) / (np.sqrt(u @ u) * np.sqrt(v @ v) + 1e-6)


@pytest.mark.parametrize(
    ("metric", "norm"),
    [
        *(("layerwise", norm) for norm in ("instance", "layer", "none")),
        *(("mse", "instance"), ("cos", "instance")),
    ],
)
def test_the_distance_is_that_of_the_paper_unit_by_unit(metric, norm):
    model, random = ConvNet(3, 4, 2, norm=norm), np.random.default_rng(0)
    a, b = (
        jax.tree.map(lambda leaf: random.normal(size=leaf.shape), _params(model))
        for _ in range(2)
    )
    measure = jax.jit(lambda a, b: distance(a, b, metric=metric))
    found = measure(a, b)
    np.testing.assert_allclose(found, _slow_distance(a, b, metric), rtol=1e-12)
    assert measure(a, a) < 1e-5


def test_vectors_count_nothing_and_dead_units_have_no_slope():
    params = _params()
    other = jax.tree.map(lambda leaf: leaf + 1, params)
    same_kernels = jax.tree.map(
        lambda a, b: b if gm.distance({"a": a}, {"a": a + 1}) == 0 else a, params, other
    )
    assert (same_kernels["Conv_0"]["bias"] != params["Conv_0"]["bias"]).all()
    assert (same_kernels["Norm_0"]["scale"] != params["Norm_0"]["scale"]).all()
    assert distance(params, same_kernels) < 1e-4
    dead = jax.tree.map(jnp.zeros_like, params)
    chex.assert_tree_all_finite(jax.grad(lambda p: distance(params, p))(dead))
    rows = sum(params[n]["kernel"].shape[-1] for n in ("Conv_0", "Linear"))
    assert distance(params, dead) == rows


@pytest.mark.parametrize("operations", [(), ("rotate", "crop")])
def test_the_gradient_is_that_of_finite_differences(operations):
    # Swish: no kinks for a difference to fall over.
    model = ConvNet(3, 4, 1, activation="swish")
    x, _ = _data()
    real, synthetic = x[:12].reshape(3, 4, *SHAPE), x[12:18].reshape(3, 2, *SHAPE)
    direction = jax.random.normal(KEY, synthetic.shape)

    @jax.jit
    def value(synthetic):
        return gm.loss(
            real,
            synthetic,
            model=model,
            params=_params(model),
            keys=jax.random.split(KEY, 3),
            operations=operations,
        )

    slope = jnp.vdot(jax.grad(value)(synthetic), direction)
    step = 1e-5
    moved = [value(synthetic + sign * step * direction) for sign in (1, -1)]
    np.testing.assert_allclose(slope, (moved[0] - moved[1]) / (2 * step), rtol=1e-6)


@pytest.mark.slow
def test_all_classes_at_once_are_one_after_the_other():
    x, classes = _data()
    options = {"operations": ("flip", "color"), "initial": "real", "num_steps": 1}
    ways = [_distill(x, classes, parallel=way, **options) for way in (True, False)]
    chex.assert_trees_all_close(ways[0].images, ways[1].images, rtol=1e-9, atol=1e-12)
    chex.assert_trees_all_close(ways[0].losses, ways[1].losses, rtol=1e-9)


def _by_hand(x, classes, images, num_steps, outer, inner):
    """The published loop: class by class, SGD by hand, the last training left out."""
    order = np.argsort(np.asarray(classes), kind="stable")
    first = np.cumsum(SIZES) - np.asarray(SIZES)
    velocity, losses, labels = 0, [], jnp.repeat(jnp.arange(3), 2)

    def entropy(params, images, labels):
        logs = jax.nn.log_softmax(MODEL.apply_fn(params, images))
        return -jnp.mean(logs[jnp.arange(len(labels)), labels])

    @jax.jit
    def slope(images, params, batches):
        def value(images):
            total = 0.0
            for c in range(3):
                sides = [
                    jax.grad(entropy)(params, part, jnp.full(len(part), c))
                    for part in (batches[c], images[2 * c : 2 * c + 2])
                ]
                total += distance(*sides)
            return total

        return jax.value_and_grad(value)(images)

    train = jax.jit(jax.grad(entropy))
    for step in range(num_steps):
        key_net, key_loop = jax.random.split(jax.random.fold_in(KEY, step))
        params, parts = MODEL.init_params(key_net, SHAPE, jnp.float64), []
        for number in range(outer):
            key_match, _ = jax.random.split(jax.random.fold_in(key_loop, number))
            key_batch, _ = jax.random.split(key_match)
            draw = jax.random.uniform(key_batch, (3, 12), jnp.float32)
            batches = []
            for c in range(3):
                best = np.argsort(-np.asarray(draw[c, : SIZES[c]]), kind="stable")[:5]
                batches.append(x[order[first[c] + best]])
            value, grads = slope(images, params, batches)
            velocity = 0.5 * velocity + grads
            images = images - 0.1 * velocity
            parts.append(value)
            if number < outer - 1:
                for _ in range(inner):
                    grads = train(params, images, labels)
                    params = jax.tree.map(lambda p, g: p - 0.01 * g, params, grads)
        losses.append(sum(parts) / outer)
    return images, jnp.stack(losses)


def test_the_scans_are_the_published_loops():
    x, classes = _data()
    start = gm.init(x, classes, key=KEY, images_per_class=2)
    out = _distill(x, classes)
    images, losses = _by_hand(x, classes, start.images, 2, 2, 2)
    chex.assert_trees_all_close(out.images, images, rtol=1e-9, atol=1e-12)
    chex.assert_trees_all_close(out.losses, losses, rtol=1e-9)
    chex.assert_trees_all_equal(out.labels, jnp.array([0, 0, 1, 1, 2, 2], jnp.int32))


def test_one_image_per_class_never_trains_a_network(monkeypatch):
    x, classes = _data()

    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(gm._Step, "train", refuse)
    options = {"outer_steps": None, "inner_epochs": None, "num_steps": 1}
    assert jnp.isfinite(_distill(x, classes, images_per_class=1, **options).losses)
    with pytest.raises(AssertionError):
        _distill(x, classes, chunk=2)


class _Marking:
    """Its slope tells which images it saw, and in batches of what size."""

    def init_params(self, key, image_shape, dtype=None):
        return {"w": jnp.zeros(image_shape[0])}

    def apply_fn(self, params, x):
        logit = jnp.matmul(x[:, :, 0, 0], params["w"])
        return jnp.stack([logit, jnp.zeros_like(logit)], 1)


def test_inner_training_sees_each_image_once_per_epoch():
    images = jnp.eye(5)[:, :, None, None]
    model, rate = _Marking(), 1e-6
    seen = {}
    for epochs in (1, 2):
        sizes = (1, 1, 1, epochs, rate, 2)
        step = gm._Step(model, None, "mse", (), optax.sgd(1.0), *sizes, False)
        start = model.init_params(KEY, (5, 1, 1))
        out = step.train(start, images, jnp.zeros(5, jnp.int32), KEY)
        # The slope of the cross-entropy is -1/2 here, over the size of the batch.
        seen[epochs] = np.asarray(out["w"]) * 2 / rate
    first, second = seen[1], seen[2] - seen[1]
    for epoch in (first, second):
        np.testing.assert_allclose(np.sort(epoch), [0.5] * 4 + [1], rtol=1e-3)
    assert first.argmax() != second.argmax()


def test_real_and_synthetic_images_share_their_augmentation(monkeypatch):
    """Equal images on both sides stay equal, class by class, under one key each."""
    x, _ = _data()
    same = x[:6].reshape(3, 2, *SHAPE)
    keys = jax.random.split(KEY, 3)
    told = []
    augment = augmentation.augment

    def note(key, images, **options):
        told.append(options["siamese"])
        return augment(key, images, **options)

    monkeypatch.setattr(augmentation, "augment", note)
    options = {"model": MODEL, "params": _params(), "keys": keys}
    options["metric"] = "mse"
    found = gm.loss(same, same, operations=("crop", "rotate"), **options)
    assert found < 1e-20
    assert told == [True, True]
    assert gm.loss(same, same * 0.5, **options) > 1e-9


@pytest.mark.parametrize("width", [4, pytest.param(64, marks=pytest.mark.slow)])
def test_blocks_of_real_images_have_the_gradient_of_all(width):
    model = ConvNet(3, width, 2)
    params, x = _params(model), jax.random.normal(KEY, (48, *SHAPE), jnp.float64)
    labels = jnp.arange(48, dtype=jnp.int32) % 3
    found = gm._constant_gradient(model, params, x, labels)
    plain = jax.grad(gm._cross_entropy(model))(params, x, labels)
    chex.assert_trees_all_close(found, plain, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_a_loss_of_the_real_side_is_matched_and_has_no_gradient():
    x, _ = _data()
    real, synthetic = x[:12].reshape(3, 4, *SHAPE), x[12:18].reshape(3, 2, *SHAPE)
    options = {"model": MODEL, "params": _params(), "keys": jax.random.split(KEY, 3)}
    plain = gm._cross_entropy(MODEL)

    def regularised(params, images, labels):
        slopes = jax.grad(plain, argnums=1)(params, images, labels)
        return plain(params, images, labels) + 9.0 * jnp.sum(slopes**2)

    def value(real, synthetic, loss_fn):
        return gm.loss(real, synthetic, real_loss=loss_fn, **options)

    assert value(real, synthetic, plain) == value(real, synthetic, None)
    assert value(real, synthetic, regularised) != value(real, synthetic, None)
    slopes = jax.grad(value, argnums=(0, 1))(real, synthetic, regularised)
    assert not slopes[0].any()
    assert slopes[1].any()


def test_it_resumes_to_the_bit_and_descends():
    x, classes = _data()
    options = {"outer_steps": 1, "inner_epochs": 1, "chunk": 10, "batch_size": 7}
    whole = _distill(x, classes, num_steps=60, **options)
    assert whole.losses[-10:].mean() < 0.8 * whole.losses[:10].mean()
    half = _distill(x, classes, num_steps=30, **options)
    rest = _distill(x, classes, num_steps=60, state=half.state, **options)
    chex.assert_trees_all_equal(rest.state, whole.state)


def test_images_without_loops_take_the_nearest_and_say_so():
    assert gm.loops(50) == (50, 10)
    with pytest.warns(UserWarning, match="images_per_class=7 has no published loops"):
        assert gm.loops(7) == (10, 50)
    with pytest.warns(UserWarning, match="of 1;"):
        assert gm.loops(5) == (1, 1)
    with pytest.warns(UserWarning, match="of 50;"):
        assert gm.loops(200) == (50, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 5}, "Class 3 of 5 has no images: leave"),
        ({"batch_size": 8}, "batch_size=8 is more than the 7 images of class 2"),
        ({"outer_steps": 0}, "outer_steps=0 must be at least 1"),
        ({"inner_learning_rate": 0.0}, "inner_learning_rate=0.0 must be above 0"),
        ({"metric": "l1"}, "metric='l1' is unknown"),
        ({"operations": ("blur",)}, "operations='blur' is unknown"),
    ],
)
def test_what_cannot_be_matched_is_named_with_its_remedy(options, message):
    x, classes = _data()
    with pytest.raises(ValueError, match=message):
        _distill(x, classes, **options)


def test_gradients_of_two_networks_are_refused():
    with pytest.raises(ValueError, match=r"real\['Linear'\].*differ|has shape"):
        distance(_params(), _params(ConvNet(2, 4, 1)))
