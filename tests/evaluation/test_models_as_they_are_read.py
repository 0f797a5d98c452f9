"""Robust accuracy of models that are random, in training mode, or of wrong input."""

import warnings

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from ntk_privacy.evaluation import robust_accuracy
from ntk_privacy.evaluation.attacked_batches import most_frequent
from ntk_privacy.evasion import ThreatModel

KEY = jax.random.key(5)
_DRAW = np.random.default_rng(0)
W = _DRAW.normal(size=(16, 3))
X = _DRAW.uniform(0.3, 0.7, size=(24, 4, 4, 1))


def linear(x):
    flat = x.reshape(len(x), -1) - 0.5
    return flat @ jnp.asarray(W, x.dtype)


Y = np.asarray(linear(jnp.asarray(X))).argmax(1).astype(np.int32)


def evaluate(logits_fn, x=X, y=Y, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", robust_accuracy.RobustnessWarning)
        return robust_accuracy.robust_accuracy(
            logits_fn,
            x,
            y,
            key=KEY,
            threat_model=ThreatModel("linf", 0.02),
            **{"attacks": ("pgd",), "batch_size": 16, "num_steps": 5, **options},
        )


@pytest.mark.parametrize("size", [24, 8, 1])
def test_batch_statistics_are_refused_at_every_batch_size(size):
    def training(x):
        z = linear(x)
        return (z - z.mean(0, keepdims=True)) / (z.std(0, keepdims=True) + 1e-5)

    with pytest.raises(ValueError, match="into evaluation mode"):
        evaluate(training, batch_size=size)


def test_a_random_model_is_judged_by_its_draws():
    def noisy(x, key):
        z = linear(x)
        bad = jax.random.bernoulli(key, 0.2, (len(x), 1))
        return jnp.where(bad, jnp.roll(z, 1, axis=1), z)

    plain = evaluate(linear)
    found = evaluate(noisy, attacks=("apgd_ce",))
    # One draw in five is misread: twelve evaluations of each would break nearly all.
    assert found.clean == 1
    assert abs(found.accuracy["apgd_ce"] - plain.accuracy["pgd"]) <= 2 / 24
    assert 0.2 < found.accuracy["apgd_ce"] < 0.95
    draws = jax.random.split(jax.random.key(1), 40)
    read = np.stack(
        [np.asarray(noisy(jnp.asarray(found.images), key=k)).argmax(1) for k in draws]
    )
    mostly = np.mean(read == Y, axis=0) > 0.5
    np.testing.assert_array_equal(mostly, found.survived["apgd_ce"])
    assert found.reread is not None
    assert abs(np.mean(read == Y) - found.reread) < 0.05
    assert "rightly in 0." in found.warnings[-1]
    assert plain.reread is None


def test_the_most_frequent_class_by_hand():
    drawn = np.asarray([[0, 2, 1, 0], [0, 2, 2, 1], [1, 1, 1, 2], [1, 2, 0, 2]])
    labels = np.asarray([1, 1, 0, 0])
    # A tie is the label's, if it is in it.
    np.testing.assert_array_equal(most_frequent(drawn, labels), [1, 2, 1, 2])


def _untraced(x):
    raise AssertionError("the model was called")


FAULTS = {
    "float labels": ({"y": Y.astype(np.float32)}, r"y is float32 of shape \(24,\)"),
    "one-hot": ({"y": np.eye(3, dtype=int)[Y]}, r"such as y\.argmax\(1\)"),
    "one column": ({"y": Y[:, None]}, r"of shape \(24, 1\): give one class"),
    "no labels": ({"y": np.int32(0)}, r"of shape \(\): give one class per image"),
    "truth": ({"y": Y > 0}, "y is bool"),
    "bytes": ({"x": (255 * X).astype(np.uint8)}, "x has dtype uint8: convert it"),
    "255": ({"x": 255 * X}, r"outside the box \[0\.0, 1\.0\]"),
    "NaN": ({"x": np.where(X > 0.69, np.nan, X)}, "x has NaN or infinite values"),
    "infinite": ({"x": np.where(X > 0.69, np.inf, X)}, "NaN or infinite values"),
    "no images": ({"x": X[:0], "y": Y[:0]}, "give at least one image"),
    "no channels": ({"x": X[..., 0]}, r"\(n, height, width, channels\)"),
    "flat": ({"x": X.reshape(24, -1)}, r"\(n, height, width, channels\)"),
    "fewer": ({"y": Y[:5]}, "Lengths differ: x has 24 rows, y has 5 rows"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_input_is_a_sentence_before_the_model_is_called(monkeypatch, fault):
    # As users have it: annotations are not checked.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    change, text = FAULTS[fault]
    with pytest.raises(ValueError, match=text) as caught:
        evaluate(_untraced, **change)
    assert str(caught.value).count(". ") == 0, "one sentence"


def test_labels_without_an_output_are_refused():
    for y in (np.where(Y == 0, 3, Y), np.where(Y == 0, -1, Y)):
        with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\]"):
            evaluate(linear, y=y)


def test_half_precision_is_read_as_the_model_reads():
    """Logits that half precision would tie are another class in the model's own."""

    def close(x):
        z = linear(x.astype(jnp.float32))
        own = jax.nn.one_hot(jnp.argmax(z, axis=1), 3, dtype=z.dtype)
        return 100 + 1e-3 * own

    x = jnp.asarray(X, jnp.bfloat16)
    y = np.asarray(close(x)).argmax(1).astype(np.int32)
    assert np.sum(y != 0) > 5
    found = evaluate(close, x=x, y=y, attacks=("square",), num_queries=3)
    assert found.clean == 1
    wrong = np.asarray(close(jnp.asarray(found.images))).argmax(1) != y
    np.testing.assert_array_equal(wrong, ~found.survived["square"])
