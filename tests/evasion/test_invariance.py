"""What a model reads alike is attacked alike: logits shifted, classes reordered."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy.evasion import ThreatModel, apgd, cw, fab, losses, mim, pgd, square
from ntk_privacy.evasion import task as tasks

KEY = jax.random.key(7)
ATTACKS = {
    "pgd": functools.partial(pgd.attack, num_steps=5),
    "mim": functools.partial(mim.attack, num_steps=3),
    "mim-batch": functools.partial(mim.attack, num_steps=3, over="batch"),
    "apgd": functools.partial(apgd.attack, num_steps=6),
    "apgd-dlr": functools.partial(apgd.attack, num_steps=6, loss="dlr"),
    "apgd-t": functools.partial(
        apgd.attack, num_steps=6, loss="targeted-dlr", num_targets=2
    ),
    "fab": functools.partial(fab.attack, num_steps=6, num_targets=2),
    "fab-any": functools.partial(fab.attack, num_steps=6, num_targets=None),
    "square": functools.partial(square.attack, num_queries=30),
    "cw": functools.partial(cw.attack, constant=1.0, rate=0.02),
    "cw-original": functools.partial(
        cw.attack, form="original", rate=0.05, num_steps=20, num_constants=3
    ),
}


@pytest.fixture(scope="module")
def of(toy):
    """The toy in float64, its logits shifted for each image and its classes moved."""
    params = jax.tree.map(lambda p: p.astype(jnp.float64), toy.params)
    x = toy.x.astype(jnp.float64)

    def logits_of(params, shift, steep, order, images):
        z = toy.logits_fn.func(params, images)
        own = shift + steep * jnp.mean(images, axis=(1, 2, 3))
        return z[:, order] + own[:, None]

    # One function and one program: what changes is an argument.
    def call(name, shift=0.0, steep=0.0, order=(0, 1, 2, 3, 4)):
        order = np.asarray(order)
        logits_fn = jax.tree_util.Partial(
            logits_of, params, jnp.asarray(shift), jnp.asarray(steep), order
        )
        norm = "l2" if name.startswith("cw") else "linf"
        return ATTACKS[name](
            logits_fn,
            x,
            jnp.asarray(np.argsort(order)[np.asarray(toy.y)], jnp.int32),
            key=KEY,
            threat_model=ThreatModel(norm, 2.0 if norm == "l2" else 8 / 255),
        )

    return call


@pytest.mark.parametrize("name", ATTACKS)
def test_shifts_and_the_order_of_classes_change_nothing(of, name):
    plain = of(name)
    assert 2 < int(jnp.sum(plain.success)) < 12, "the case tells nothing"
    for change in (
        {"shift": 100.0},
        {"shift": -100.0},
        {"steep": 30.0},
        {"order": (3, 0, 4, 1, 2)},
    ):
        found = of(name, **change)
        np.testing.assert_array_equal(found.success, plain.success)
        np.testing.assert_allclose(found.distance, plain.distance, atol=1e-4)


def test_the_form_of_torchattacks_is_another(of, monkeypatch):
    form = functools.partial(cw.attack, form="torchattacks", constant=1.0, rate=0.02)
    monkeypatch.setitem(ATTACKS, "cw-theirs", form)
    plain = of("cw-theirs")
    assert int(jnp.sum(plain.success)) > 2
    with pytest.warns(UserWarning, match="CW misread nothing"):
        found = of("cw-theirs", shift=-100.0)
    np.testing.assert_array_equal(np.flatnonzero(found.success), [0, 7])


LOGITS = jnp.asarray([[4.0, 1.0, 3.0], [0.0, 2.0, 8.0], [-5.0, 2.0, 1.0]])
Y = jnp.asarray([0, 1, 2])


def _weights(logits):
    return np.exp(np.asarray(losses.LOG_WEIGHTS["ce"](logits, Y)))[:, None]


def test_the_ascent_of_cross_entropy_is_its_value_and_direction():
    def both(loss):
        return jax.value_and_grad(lambda z: jnp.sum(loss(z, Y, Y)))(LOGITS)

    (value, slope), (true, exact) = map(
        both, (losses.ascent_of_cross_entropy, losses.cross_entropy)
    )
    np.testing.assert_allclose(value, true, rtol=1e-12)
    np.testing.assert_allclose(slope * _weights(LOGITS), exact, rtol=1e-9)


def test_a_sure_model_still_ascends():
    z = jnp.asarray([[1.0, 2.0, 9.0]], jnp.float32) * jnp.asarray(
        [[1.0], [10.0], [1e3], [1e6]], jnp.float32
    )
    y = jnp.full(4, 2)
    value, slope = jax.value_and_grad(
        lambda z: jnp.sum(losses.ascent_of_cross_entropy(z, y, y))
    )(z)
    each = losses.ascent_of_cross_entropy(z, y, y)
    assert float(value) > 0
    assert np.all(np.diff(each) < 0), "surer is less loss, and never none"
    assert np.all(np.asarray(each) > 0)
    np.testing.assert_allclose(slope[1:], [[0, 1, -1]] * 3, atol=1e-4)
    # Where the cross-entropy itself is 0.
    assert float(losses.cross_entropy(z, y, y)[2]) == 0


def test_draws_are_weighed_as_their_cross_entropies_are():
    def model(images, key):
        scale = 1 + 3 * jax.random.uniform(key, (), images.dtype)
        return scale * images[:, :, 0, 0]

    def mean(images, loss, log_weight=None):
        key = jax.random.key(1)
        args = (model, loss, images, Y, Y, key)
        return np.asarray(tasks.evaluate(*args, eot=5, log_weight=log_weight)[2])

    weight = losses.LOG_WEIGHTS["ce"]
    images = LOGITS[:, :, None, None]
    found = mean(images, losses.ascent_of_cross_entropy, weight)
    true = mean(images, losses.cross_entropy)
    np.testing.assert_allclose(_unit(found), _unit(true), rtol=1e-9, atol=1e-12)
    # A thousand times as sure the true one underflows, in 64 bits too.
    found = mean(1e3 * images[:1].repeat(3, 0), losses.ascent_of_cross_entropy, weight)
    assert np.abs(found[0]).max() > 0.1


def _unit(gradient):
    return gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
