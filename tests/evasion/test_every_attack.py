"""What holds for every attack: bounds, keys, traces, and clear refusals."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy.evasion import ThreatModel, apgd, cw, fab, mim, pgd, square

ATTACKS = {
    "pgd": (functools.partial(pgd.attack, num_steps=10), ("linf", "l2")),
    "mim": (functools.partial(mim.attack, num_steps=5), ("linf",)),
    "cw": (functools.partial(cw.attack, constant=1.0, rate=0.02), ("l2",)),
    "cw-original": (
        functools.partial(
            cw.attack, form="original", rate=0.05, num_steps=30, num_constants=4
        ),
        ("l2",),
    ),
    "apgd": (functools.partial(apgd.attack, num_steps=10), ("linf", "l2")),
    "apgd-dlr": (
        functools.partial(apgd.attack, num_steps=10, loss="dlr", num_restarts=2),
        ("linf",),
    ),
    "apgd-t": (
        functools.partial(
            apgd.attack, num_steps=10, loss="targeted-dlr", num_targets=3
        ),
        ("linf",),
    ),
    "square": (functools.partial(square.attack, num_queries=60), ("linf", "l2")),
    "fab": (
        functools.partial(fab.attack, num_steps=10, num_targets=4, stop_early=True),
        ("linf", "l2"),
    ),
    "fab-any": (
        functools.partial(fab.attack, num_steps=10, num_targets=None, num_restarts=2),
        ("linf",),
    ),
}
CASES = [(name, norm) for name, (_, norms) in ATTACKS.items() for norm in norms]
every = pytest.mark.parametrize(("name", "norm"), CASES)
KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def results(toy, model):
    def call(name, norm, params, threat_model=None):
        return ATTACKS[name][0](
            jax.tree_util.Partial(toy.logits_fn.func, params),
            toy.x,
            toy.y,
            key=KEY,
            threat_model=threat_model or model[norm],
        )

    of = functools.cache(lambda name, norm: call(name, norm, toy.params))
    return SimpleNamespace(of=of, call=call)


@every
def test_images_stay_in_the_ball_and_in_the_box(results, toy, model, name, norm):
    images = np.asarray(results.of(name, norm).images)
    move = images.astype(np.longdouble) - np.asarray(toy.x)
    if norm == "linf":
        assert np.abs(images - np.asarray(toy.x)).max() <= np.float32(model[norm].eps)
        assert np.abs(move).max() <= model[norm].eps
        size = np.abs(move).max((1, 2, 3))
    else:
        size = np.sqrt((move**2).sum((1, 2, 3)))
        assert size.max() <= model[norm].eps + 1e-6
    np.testing.assert_allclose(results.of(name, norm).distance, size, rtol=1e-5)
    assert images.dtype == np.float32
    assert images.min() >= 0
    assert images.max() <= 1


@every
def test_success_is_what_the_model_misreads(results, toy, name, norm):
    out = results.of(name, norm)
    read = np.argmax(np.asarray(toy.logits_fn(out.images)), 1)
    np.testing.assert_array_equal(out.success, read != np.asarray(toy.y))
    assert 3 <= np.sum(np.asarray(out.success)) < 12, "the case tells nothing"


@every
def test_what_was_misread_is_not_touched(results, toy, name, norm):
    out = results.of(name, norm)
    for i in (0, 7):
        np.testing.assert_array_equal(out.images[i], toy.x[i])
        assert bool(out.success[i])
        assert (int(out.queries[i]), float(out.distance[i])) == (0, 0.0)
    assert np.all(np.delete(np.asarray(out.queries), [0, 7]) > 0)


@every
def test_the_key_fixes_all_and_parameters_do_not_trace_again(results, toy, name, norm):
    out = results.of(name, norm)
    count = len(toy.traces)
    assert count > 0
    jax.tree.map(
        np.testing.assert_array_equal, results.call(name, norm, toy.params), out
    )
    other = jax.tree.map(lambda p: p + 0.1, toy.params)
    assert not np.array_equal(results.call(name, norm, other).images, out.images)
    assert len(toy.traces) == count


@every
def test_radius_zero_returns_the_input(results, toy, name, norm):
    out = results.call(name, norm, toy.params, ThreatModel(norm, 0))
    np.testing.assert_array_equal(out.images, toy.x)
    np.testing.assert_array_equal(np.flatnonzero(out.success), [0, 7])


@pytest.mark.parametrize("name", ["pgd", "apgd"])
def test_another_key_is_another_start(results, toy, model, name):
    out = ATTACKS[name][0](
        toy.logits_fn,
        toy.x,
        toy.y,
        key=jax.random.key(1),
        threat_model=model["linf"],
    )
    assert not np.array_equal(out.images, results.of(name, "linf").images)


FAULTS = {
    "outside the box": (
        lambda x, y, f: (f, 255 * x, y),
        r"outside the box \[0.0, 1.0\]",
    ),
    "nan image": (lambda x, y, f: (f, x.at[0, 0].set(jnp.nan), y), "outside the box"),
    "labels": (lambda x, y, f: (f, x, y + 5), r"labels must lie in \[0, 4\]"),
    "negative": (lambda x, y, f: (f, x, y - 6), r"labels must lie in \[0, 4\]"),
    "lengths": (lambda x, y, f: (f, x, y[:3]), "Lengths differ"),
    "empty": (lambda x, y, f: (f, x[:0], y[:0]), "at least one image"),
    "shape": (
        lambda x, y, f: (lambda u: f(u)[:, 0], x, y),
        r"logits_fn returned \(12,\): return an array \(12, classes\)",
    ),
    "tuple": (lambda x, y, f: (lambda u: (f(u), 0), x, y), "returned tuple"),
    "classes": (
        lambda x, y, f: (
            lambda u: jnp.argmax(f(u), 1)[:, None] + jnp.arange(2)[None],
            x,
            y,
        ),
        "floating-point logits",
    ),
    "nan": (
        lambda x, y, f: (lambda u: f(u) * jnp.nan, x, y),
        "NaN for 12 of 12 images",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["pgd", "cw", "apgd"])
def test_bad_input_is_refused_in_a_sentence(toy, name, fault):
    bad, text = FAULTS[fault]
    logits_fn, x, y = bad(toy.x, toy.y, toy.logits_fn)
    attack, norms = ATTACKS[name]
    with pytest.raises(ValueError, match=text):
        attack(logits_fn, x, y, key=KEY, threat_model=ThreatModel(norms[0]))


@pytest.mark.parametrize("name", ["pgd", "mim", "apgd", "square"])
def test_an_unbounded_ball_is_refused(toy, name):
    free = ThreatModel("linf", float("inf"))
    with pytest.raises(ValueError, match="eps=inf bounds nothing"):
        ATTACKS[name][0](toy.logits_fn, toy.x, toy.y, key=KEY, threat_model=free)
