"""MIM and the short form of CW against plain loops; gradients of random models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy.evasion import ThreatModel, cw, losses, mim, task

ROWS = slice(1, 7)


@pytest.fixture(scope="module")
def double(toy):
    """Six images that are read correctly, in float64, and the network."""
    params = jax.tree.map(lambda p: p.astype(jnp.float64), toy.params)
    logits_fn = jax.tree_util.Partial(toy.logits_fn.func, params)
    return logits_fn, toy.x[ROWS].astype(jnp.float64), toy.y[ROWS]


@pytest.mark.parametrize("over", ["sample", "batch"])
def test_momentum_follows_the_sum_of_normalised_gradients(double, over):
    logits_fn, x, y = double
    slope = jax.jit(
        jax.grad(lambda u: jnp.sum(losses.cross_entropy(logits_fn(u), y, y)))
    )
    eps, step = 0.04, 0.01
    point, momentum = np.asarray(x), np.zeros(x.shape)
    for _ in range(6):
        g = np.asarray(slope(jnp.asarray(point)))
        axes = (1, 2, 3) if over == "sample" else None
        g = g / np.sum(np.abs(g), axis=axes, keepdims=True)
        momentum = 0.9 * momentum + g
        point = np.clip(point + step * np.sign(momentum), x - eps, x + eps)
        point = np.clip(point, 0, 1)
    out = mim.attack(
        logits_fn,
        x,
        y,
        key=jax.random.key(0),
        threat_model=ThreatModel("linf", eps),
        num_steps=6,
        step=step,
        decay=0.9,
        over=over,
    )
    np.testing.assert_allclose(out.images, point, atol=1e-12)


@pytest.mark.parametrize("form", ["short", "torchattacks"])
@pytest.mark.parametrize(("constant", "rate"), [(1.0, 0.02), (10.0, 0.05)])
def test_the_short_form_is_adam_that_stops_with_its_batch(double, constant, rate, form):
    logits_fn, x, y = double

    @jax.jit
    def cost(w):
        def value(w):
            images = (jnp.tanh(w) + 1) / 2
            z = logits_fn(images)
            own = jax.nn.one_hot(y, z.shape[1], dtype=z.dtype)
            # torchattacks has a 0 in place of the class itself.
            others = z - 1e9 * own if form == "short" else (1 - own) * z
            ahead = jnp.sum(own * z, 1) - jnp.max(others, 1)
            squares = jnp.sum((images - x) ** 2, axis=(1, 2, 3))
            return jnp.sum(squares + constant * jnp.maximum(ahead, 0)), (images, z)

        return jax.value_and_grad(value, has_aux=True)(w)

    w = np.arctanh(np.clip(2 * np.asarray(x) - 1, -1 + 1e-6, 1 - 1e-6))
    m, v, last, steps = 0.0, 0.0, np.inf, 0
    best, nearest = np.asarray(x).copy(), np.full(6, np.inf)
    for i in range(50):
        (total, (images, z)), g = cost(jnp.asarray(w))
        images, g, steps = np.asarray(images), np.asarray(g), i + 1
        for j in range(6):
            far = np.linalg.norm(images[j] - np.asarray(x[j]))
            if int(np.argmax(np.asarray(z[j]))) != int(y[j]) and far < nearest[j]:
                best[j], nearest[j] = images[j], far
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        root = np.sqrt(v / (1 - 0.999 ** (i + 1))) + 1e-8
        w = w - rate * (m / (1 - 0.9 ** (i + 1))) / root
        if i % 5 == 0:
            if float(total) > last:
                break
            last = float(total)
    out = cw.attack(
        logits_fn, x, y, key=jax.random.key(0), form=form, constant=constant, rate=rate
    )
    assert np.any(np.asarray(out.success))
    np.testing.assert_array_equal(out.success, np.isfinite(nearest))
    np.testing.assert_allclose(out.images, best, atol=1e-8)
    np.testing.assert_array_equal(out.queries, steps)


def test_a_constant_that_pushes_nothing_is_told(double):
    logits_fn, x, y = double

    def call(form, constant, **options):
        return cw.attack(
            logits_fn,
            x,
            y,
            key=jax.random.key(0),
            form=form,
            constant=constant,
            rate=1e-4,
            **options,
        )

    for form in ("short", "torchattacks"):
        with pytest.warns(UserWarning, match=r"nothing at constant=1e-09, at no dist"):
            out = call(form, 1e-9)
        assert not np.any(out.success)


def test_settings_of_cw_and_mim_are_checked(toy):
    key = jax.random.key(0)
    for options, text in (
        ({"threat_model": ThreatModel("linf")}, "norm='linf' is not minimised"),
        ({"form": "long"}, "form='long' is unknown: use one of short, original, torch"),
        ({"constant": 0.0}, "constant=0.0 must be above 0"),
    ):
        with pytest.raises(ValueError, match=text):
            cw.attack(toy.logits_fn, toy.x, toy.y, key=key, **options)
    with pytest.raises(ValueError, match="over='image' is unknown"):
        mim.attack(
            toy.logits_fn,
            toy.x,
            toy.y,
            key=key,
            threat_model=ThreatModel(),
            over="image",
        )


def test_the_gradient_of_a_random_model_is_the_mean_of_its_draws(double):
    logits_fn, x, y = double

    def noisy(images, key):
        scale = 1 + jax.random.uniform(key, (), images.dtype)
        return scale * logits_fn(images)

    key = jax.random.key(9)

    @jax.jit
    def both(key):
        draws = [
            task.evaluate(noisy, losses.cross_entropy, x, y, y, k)
            for k in jax.random.split(key, 3)
        ]
        mean = task.evaluate(noisy, losses.cross_entropy, x, y, y, key, eot=3)
        return draws, mean

    draws, (values, logits, gradient) = both(key)
    np.testing.assert_allclose(gradient, sum(d[2] for d in draws) / 3, rtol=1e-10)
    np.testing.assert_allclose(values, draws[-1][0], rtol=1e-12)
    np.testing.assert_allclose(logits, draws[-1][1], rtol=1e-12)
    assert not np.allclose(draws[0][2], draws[1][2])
