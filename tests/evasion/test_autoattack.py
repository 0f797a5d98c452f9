"""The ensemble: order, survivors, few classes, and its warnings."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy.evasion import ThreatModel, autoattack
from ntk_privacy.evasion import task as tasks

KEY = jax.random.key(11)
quick = functools.partial(
    autoattack.attack,
    key=KEY,
    threat_model=ThreatModel("linf", 8 / 255),
    num_steps=10,
    num_queries=60,
)


def test_orders_and_settings():
    def names(version, classes=10):
        return list(autoattack.stages(version, classes))

    standard = ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert names("standard") == names("torchattacks10") == standard
    assert names("plus") == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    assert names("rand") == ["apgd-ce", "apgd-dlr"]
    assert names("standard", 3) == ["apgd-ce", "fab-t", "square"]
    # The released code leaves out FAB as well, which needs only two.
    assert names("standard", 2) == ["apgd-ce", "fab-t", "square"]
    assert names("plus", 2) == ["apgd-ce", "fab", "square", "fab-t"]
    assert autoattack.left_out("standard", 2) == ["apgd-t"]
    assert autoattack.left_out("plus", 3) == ["apgd-t"]
    assert autoattack.left_out("plus", 2) == ["apgd-dlr", "apgd-t"]
    assert names("rand", 2) == ["apgd-ce"]

    def options(version, name, classes=10):
        return autoattack.stages(version, classes)[name].keywords

    for name in ("apgd-ce", "apgd-t", "fab-t"):
        assert options("standard", name)["num_steps"] == 100
        assert options("torchattacks10", name)["num_steps"] == 10
    assert options("standard", "apgd-t")["num_targets"] == 9
    assert options("standard", "fab-t", 4)["num_targets"] == 3
    assert options("standard", "square")["num_queries"] == 5000
    assert not options("standard", "square")["rescale"]
    for name in ("apgd-ce", "apgd-dlr", "fab"):
        assert options("plus", name)["num_restarts"] == 5
    for name in ("apgd-t", "fab-t"):
        assert "num_restarts" not in options("plus", name)
    assert options("torchattacks10", "square")["rescale"]
    assert options("plus", "fab")["num_targets"] is None
    assert options("rand", "apgd-dlr")["eot"] == 20


@pytest.fixture(scope="module")
def broken(toy):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return quick(toy.logits_fn, toy.x, toy.y)


def test_the_ensemble_breaks_and_keeps_the_rules(toy, broken):
    read = np.argmax(np.asarray(toy.logits_fn(broken.images)), 1)
    np.testing.assert_array_equal(broken.success, read != np.asarray(toy.y))
    assert 4 < int(jnp.sum(broken.success)) < 12
    move = np.asarray(broken.images, np.longdouble) - np.asarray(toy.x)
    assert np.abs(move).max() <= 8 / 255
    assert np.all(move[~np.asarray(broken.success)] == 0)
    for i in (0, 7):
        np.testing.assert_array_equal(broken.images[i], toy.x[i])
        assert int(broken.queries[i]) == 0
    # 11 evaluations of APGD, 11 for each of 4 targets, 2 x 10 for each in FAB, 61.
    lasting = ~np.asarray(broken.success)
    assert np.all(np.asarray(broken.queries)[lasting] == 11 + 4 * 11 + 4 * 20 + 61)


@pytest.fixture(scope="module")
def two(toy):
    """Two classes, which leave out the ratios: quicker to compile."""
    return jax.tree_util.Partial(lambda f, x: f(x)[:, :2], toy.logits_fn)


def _said(logits_fn, toy, two, *, right=False, **options):
    """Returns the warnings; unless labels are right there is nothing to attack."""
    y = jnp.argmax(two(toy.x), axis=1).astype(jnp.int32)
    y = y if right else 1 - y
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quick(logits_fn, toy.x, y, **options)
    return " ".join(str(w.message) for w in caught)


def test_few_classes_are_said(toy, two):
    said = _said(two, toy, two)
    assert "The model has 2 classes, fewer than 10: 1 of 9 targets are used" in said
    assert "without apgd-t, which need more" in said
    assert "num_steps=10 instead of 100 and num_queries=60 instead of 5000" in said
    for absent in ("random", "probabilities", "vanishes"):
        assert absent not in said


def test_models_that_only_seem_robust_are_told(toy, two):
    plain = _said(two, toy, two, version="rand")
    assert "The model is not random" in plain

    soft = _said(lambda x: jax.nn.softmax(two(x)), toy, two, version="rand")
    assert "look like probabilities" in soft


def test_a_random_model_is_told_and_attacked_by_its_mean_gradient(toy, two):
    def noisy(x, key):
        logits = two(x)
        return logits + 0.01 * jax.random.normal(key, logits.shape, logits.dtype)

    assert "use version='rand'" in _said(noisy, toy, two)
    said = _said(noisy, toy, two, version="rand", right=True)
    assert "random" not in said
    assert "vanishes" not in said


def test_a_key_that_need_not_be_given_makes_no_model_random(toy, two):
    def maybe(x, key=None):
        assert key is None
        return two(x)

    assert "random" not in _said(maybe, toy, two)
    bound = functools.partial(lambda x, *, key: two(x), key=KEY)
    assert "random" not in _said(bound, toy, two)


def test_square_that_lowers_the_result_is_told(toy, two):
    # Stairs: right where the model is, and flat, so that gradients lead nowhere.
    def masked(x):
        return jnp.round(two(x) * 64) / 64

    said = _said(
        masked,
        toy,
        two,
        right=True,
        threat_model=ThreatModel("linf", 16 / 255),
        num_queries=200,
    )
    assert "The gradient (ce) vanishes for 12 of 12 images" in said
    assert "Square broke" in said


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_two_classes_are_broken_at_any_scale_of_the_logits(line, norm):
    """Against the exact distance, which the scale does not change."""
    w = np.asarray(line.w)[:, :2]
    x = np.asarray(line.x)
    x = np.concatenate([x, 1 - x, np.roll(x, 3, axis=1)])
    z = x.reshape(len(x), -1) @ (w[:, 1] - w[:, 0])
    z, bias = z - np.median(z), np.median(z)
    size = np.abs(w[:, 1] - w[:, 0]).sum() if norm == "linf" else None
    size = size or np.linalg.norm(w[:, 1] - w[:, 0])
    distance = np.abs(z) / size
    order = np.sort(distance)
    eps = (order[17] + order[18]) / 2
    assert order[18] - order[17] > 1e-3 * eps
    assert np.all(np.abs(x - 0.5) + eps < 0.5), "the box would count"

    def linear(scale, images):
        flat = images.reshape(len(images), -1)
        d = flat @ jnp.asarray(w[:, 1] - w[:, 0], images.dtype)
        d = scale * (d - jnp.asarray(bias, images.dtype))
        return jnp.stack([-d / 2, d / 2], axis=1)

    for scale in (1e-6, 1.0, 1e2, 1e5):
        model = jax.tree_util.Partial(linear, jnp.asarray(scale, jnp.float32))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            out = quick(
                model,
                jnp.asarray(x, jnp.float32),
                jnp.asarray(z > 0, jnp.int32),
                threat_model=ThreatModel(norm, float(eps)),
                num_steps=20,
            )
        np.testing.assert_array_equal(out.success, distance < eps)
        assert "vanishes" not in " ".join(str(w.message) for w in caught)


def test_gradients_that_nearly_vanish_are_told(toy, two):
    def saturated(sharp, slope, images):
        ahead = two(images)[:, 1] - two(images)[:, 0]
        ahead = jnp.tanh(sharp * ahead) + slope * ahead
        return jnp.stack([-ahead, ahead], axis=1)

    def said(sharp, slope):
        model = jax.tree_util.Partial(saturated, jnp.float32(sharp), jnp.float32(slope))
        y = jnp.argmax(two(toy.x), axis=1).astype(jnp.int32)
        task = tasks.prepare(model, toy.x, y, key=KEY, threat_model=ThreatModel())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            autoattack.warn_of_the_model(model, task, KEY, "standard")
        return " ".join(str(w.message) for w in caught)

    assert "nearly vanishes for 12 of 12 images" in said(1e4, 1e-6)
    assert "vanishes" not in said(1e-2, 0.0)
    # Great logits are no flat ones.
    assert "vanishes" not in said(0.0, 1e5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize(
    "kind", ["softmax", "percent", "sigmoids", "experts", "logits", "shifted"]
)
def test_probabilities_are_told_in_every_precision(toy, dtype, kind):
    def model(images):
        z = toy.logits_fn(images.astype(jnp.float32)).astype(dtype)
        return {
            "softmax": jax.nn.softmax(z),
            "percent": 100 * jax.nn.softmax(z),
            "sigmoids": jax.nn.sigmoid(z),
            "experts": jax.nn.softmax(z) + jax.nn.softmax(z[:, ::-1]),
            "logits": jax.nn.relu(z),
            "shifted": z - z.mean(1, keepdims=True) + 100,
        }[kind]

    for images in (toy.x, toy.x.astype(jnp.bfloat16)):
        y = jnp.argmax(model(images), axis=1).astype(jnp.int32)
        task = tasks.prepare(model, images, y, key=KEY, threat_model=ThreatModel())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            autoattack.warn_of_the_model(model, task, KEY, "standard")
        said = " ".join(str(w.message) for w in caught)
        assert ("look like probabilities" in said) == (
            kind not in ("logits", "shifted")
        )


def test_bad_settings_are_refused(toy):
    for options, text in (
        ({"version": "best"}, "version='best' is unknown: use one of standard, plus"),
        ({"num_queries": 0}, "num_queries=0 must be at least 1"),
        ({"num_steps": 0}, "num_steps=0 must be at least 1"),
        ({"threat_model": ThreatModel("l2", float("inf"))}, "eps=inf bounds nothing"),
    ):
        with pytest.raises(ValueError, match=text):
            quick(toy.logits_fn, toy.x, toy.y, **options)
