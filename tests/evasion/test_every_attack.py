"""What holds for every attack: bounds, keys, traces, and clear refusals."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import linen as nn

from ntk_privacy import _versions
from ntk_privacy.evasion import (
    METHODS,
    ThreatModel,
    apgd,
    cw,
    fab,
    inputs,
    mim,
    pgd,
    square,
)

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


_DROPOUT = nn.Dropout(0.5, deterministic=False)
_NORM = nn.BatchNorm(use_running_average=False)


def _normed(x):
    return _NORM.init(KEY, jnp.zeros(x.shape, x.dtype))


FAULTS = {
    "outside the box": (
        lambda x, y, f: (f, 255 * x, y),
        r"outside the box \[0.0, 1.0\]",
    ),
    "nan image": (lambda x, y, f: (f, x.at[0, 0].set(jnp.nan), y), "outside the box"),
    "labels": (lambda x, y, f: (f, x, y + 5), r"labels must lie in \[0, 4\]"),
    "negative": (lambda x, y, f: (f, x, y - 6), r"labels must lie in \[0, 4\]"),
    "lengths": (lambda x, y, f: (f, x, y[:3]), "Lengths differ"),
    "one-hot": (
        lambda x, y, f: (f, x, jnp.eye(5, dtype=jnp.int32)[y]),
        r"y is int32 of shape \(12, 5\): give one class per image",
    ),
    "labels of floating point": (
        lambda x, y, f: (f, x, y.astype(jnp.float32)),
        r"y is float32 of shape \(12,\)",
    ),
    "whole numbers": (
        lambda x, y, f: (f, jnp.round(x).astype(jnp.int32), y),
        "x has dtype int32: convert it",
    ),
    "no channels": (
        lambda x, y, f: (f, x[..., 0], y),
        r"x has shape \(12, 5, 5\): .*\(n, height, width, channels\)",
    ),
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
    "model of numpy": (
        lambda x, y, f: (lambda u: f(jnp.asarray(np.asarray(u))), x, y),
        "turns its images into NumPy or PyTorch arrays",
    ),
    "model of other images": (
        lambda x, y, f: (lambda u: f(u.reshape(7, 11)), x, y),
        r"does not take images of shape \(12, 5, 5, 2\) \(cannot reshape .*: give the",
    ),
    "dropout": (
        lambda x, y, f: (lambda u: f(_DROPOUT.apply({}, u)), x, y),
        "asks for random numbers, as dropout does: put the model into evaluation mode",
    ),
    "statistics": (
        lambda x, y, f: (lambda u: f(_NORM.apply(_normed(u), u)), x, y),
        "updates its state, as batch norm in training mode does: put the model",
    ),
    "nan": (
        lambda x, y, f: (lambda u: f(u) * jnp.nan, x, y),
        "NaN for 12 of 12 images",
    ),
}


@pytest.fixture
def untyped(monkeypatch):
    """As users have it: annotations are not checked."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["pgd", "cw", "apgd"])
def test_bad_input_is_refused_in_a_sentence(toy, untyped, name, fault):
    bad, text = FAULTS[fault]
    logits_fn, x, y = bad(toy.x, toy.y, toy.logits_fn)
    attack, norms = ATTACKS[name]
    with pytest.raises(ValueError, match=text):
        attack(logits_fn, x, y, key=KEY, threat_model=ThreatModel(norms[0]))


@pytest.mark.parametrize("name", ["pgd", "mim"])
def test_a_step_of_zero_and_what_is_no_threat_model_are_refused(toy, untyped, name):
    attack, _ = ATTACKS[name]
    call = functools.partial(attack, toy.logits_fn, toy.x, toy.y)
    with pytest.raises(ValueError, match=r"step=0.* moves no image within eps=0\.1"):
        call(key=KEY, threat_model=ThreatModel("linf", 0.1), step=0.0)
    with pytest.raises(ValueError, match="threat_model='linf' is none: give Threat"):
        inputs.check(toy.x, toy.y, "linf")
    with pytest.raises(ValueError, match="eps='8/255' must be one number"):
        ThreatModel("linf", "8/255")
    with pytest.raises(ValueError, match="key=0 is no key"):
        call(key=0, threat_model=ThreatModel("linf", 0.1))


@pytest.mark.parametrize("name", ["pgd", "cw", "apgd", "square", "fab"])
def test_nan_under_attack_is_refused(toy, name):
    def broken(x):
        off = jnp.max(jnp.abs(255 * x - jnp.round(255 * x)), axis=(1, 2, 3)) > 0.01
        return jnp.where(off[:, None], jnp.nan, toy.logits_fn(x))

    attack, norms = ATTACKS[name]
    bound = ThreatModel(norms[0], 0.3)
    with pytest.raises(ValueError, match=r"NaN for 10 of 12 images under attack"):
        attack(broken, toy.x, toy.y, key=KEY, threat_model=bound)


@pytest.mark.parametrize("name", ["cw", "apgd", "square", "fab", "fab-any"])
def test_nan_before_the_boundary_is_refused(toy, name):
    def masked(x):
        logits = toy.logits_fn(x)
        top = jax.lax.top_k(logits, 2)[0]
        return jnp.where(top[:, :1] - top[:, 1:] < 0.3, jnp.nan, logits)

    clear = ~jnp.isnan(masked(toy.x)).any(axis=1)
    assert int(clear.sum()) >= 8
    attack, norms = ATTACKS[name]
    bound = ThreatModel(norms[0], 0.3)
    with pytest.raises(ValueError, match=r"NaN for \d+ of \d+ images under attack"):
        attack(masked, toy.x[clear], toy.y[clear], key=KEY, threat_model=bound)


@pytest.mark.parametrize(
    "dtype", [jnp.float16, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ["pgd", "apgd", "fab", "square"])
def test_half_precision_is_attacked(toy, model, name, norm, dtype):
    params = jax.tree.map(lambda p: p.astype(dtype), toy.params)
    x = toy.x.astype(dtype)
    logits_fn = jax.tree_util.Partial(toy.logits_fn.func, params)
    y = jnp.argmax(logits_fn(x), axis=1)
    bound = ThreatModel(norm, 0.5 if norm == "l2" else 0.1)
    out = ATTACKS[name][0](logits_fn, x, y, key=KEY, threat_model=bound)
    assert out.images.dtype == dtype
    assert np.all(np.isfinite(out.images.astype(jnp.float32)))
    assert int(out.success.sum()) >= 3
    exact = ATTACKS[name][0](toy.logits_fn, toy.x, y, key=KEY, threat_model=bound)
    assert abs(int(out.success.sum()) - int(exact.success.sum())) <= 3


@pytest.mark.parametrize(("name", "norm"), [
    ("pgd", "l2"), ("mim", "linf"), ("apgd", "l2"), ("fab", "l2"), ("fab-any", "linf"),
    ("cw", "l2"),
])  # fmt: skip
def test_infinite_gradients_leave_images_in_the_ball(toy, model, name, norm):
    def steep(x):
        return toy.logits_fn(jnp.sqrt(x))

    x = toy.x.at[:, 2, 2].set(0)
    y = jnp.argmax(steep(x), axis=1)
    slope = jax.grad(lambda x: jnp.sum(steep(x)[:, 0]))(x)
    assert bool(jnp.isinf(slope).any())
    out = ATTACKS[name][0](steep, x, y, key=KEY, threat_model=model[norm])
    move, centre = (np.asarray(a, np.float64).reshape(12, -1) for a in (out.images, x))
    move -= centre
    size = np.linalg.norm(move, np.inf if norm == "linf" else 2, axis=1)
    if name != "cw":
        assert size.max() <= model[norm].eps + 1e-6
    if name in ("pgd", "mim"):
        assert size.min() > 0
    assert np.all(np.isfinite(out.images))


@pytest.mark.parametrize("eps", [8 / 255, 0.1])
def test_numpy_images_of_64_bits_stay_in_the_ball_of_32(toy, untyped, eps):
    with _versions.enable_x64(False):
        x = np.asarray(toy.x, np.float64)
        out = ATTACKS["pgd"][0](
            toy.logits_fn,
            x,
            np.asarray(toy.y, np.uint8),
            key=KEY,
            threat_model=ThreatModel("linf", eps),
        )
        assert out.images.dtype == np.float32
        move = np.asarray(out.images, np.float64) - x.astype(np.float32)
        assert np.abs(move).max() <= eps


def test_a_box_is_that_of_the_images_numbers(toy):
    # In float32 both bounds are rounded away from the images' own.
    low, high = -0.456 / 0.224, (1 - 0.456) / 0.224
    x = (jnp.float32(low) + toy.x * jnp.float32(high - low)).clip(low, high)
    assert float(x.min()) < low or float(x.max()) > high
    out = ATTACKS["pgd"][0](
        toy.logits_fn,
        x,
        toy.y,
        key=KEY,
        threat_model=ThreatModel("linf", 0.1, low, high),
    )
    assert float(out.images.min()) >= np.float32(low)


def test_attacks_are_called_outside_of_jit(toy, model):
    def inner(x=toy.x, key=KEY, params=toy.params):
        logits_fn = jax.tree_util.Partial(toy.logits_fn.func, params)
        attack = ATTACKS["pgd"][0]
        return attack(logits_fn, x, toy.y, key=key, threat_model=model["linf"]).success

    for call in (
        lambda: jax.jit(inner)(toy.x),
        lambda: jax.jit(lambda key: inner(key=key))(KEY),
        lambda: jax.jit(lambda params: inner(params=params))(toy.params),
        lambda: jax.vmap(lambda key: inner(key=key))(jax.random.split(KEY, 2)),
    ):
        with pytest.raises(TypeError, match="outside of jit, vmap and grad"):
            call()


@pytest.mark.parametrize("name", ["pgd", "apgd", "fab", "square"])
def test_many_images_take_few_programs_and_no_more_of_the_same(toy, model, name):
    rng = np.random.default_rng(3)
    noise = rng.uniform(0, 1, (48, 5, 5, 2)).astype(np.float32)
    x = jnp.asarray(noise)
    y = jnp.argmax(toy.logits_fn(x), axis=1)
    before = len(toy.traces)

    def call(y):
        attack = ATTACKS[name][0]
        return attack(toy.logits_fn, x, y, key=KEY, threat_model=model["linf"])

    first = call(y)
    # Halves of 48 down to 8, each in at most four places of a program, and 3 to
    # read; some of them once in a batch of few, to compare.
    assert len(toy.traces) - before <= 4 * 5 + 4
    count = len(toy.traces)
    jax.tree.map(np.testing.assert_array_equal, call(y), first)
    assert len(toy.traces) == count


@pytest.mark.parametrize("name", ["pgd", "mim", "apgd", "square"])
def test_an_unbounded_ball_is_refused(toy, name):
    free = ThreatModel("linf", float("inf"))
    with pytest.raises(ValueError, match="eps=inf bounds nothing"):
        ATTACKS[name][0](toy.logits_fn, toy.x, toy.y, key=KEY, threat_model=free)


# The names of attacks above, with numbers that make them these.
RECORDS = {
    "pgd": ("pgd", {"num_steps": 10}),
    "pgd100": ("pgd", {"num_steps": 10}),
    "mim": ("mim", {"num_steps": 5}),
    "apgd_ce": ("apgd", {"num_steps": 10}),
    "apgd_t": ("apgd-t", {"num_steps": 10, "num_targets": 3}),
    "fab_t": ("fab", {"num_steps": 10, "num_targets": 4}),
    "square": ("square", {"num_queries": 60}),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_is_its_attack_with_the_numbers_of_its_config(
    results, toy, model, name
):
    same, numbers = RECORDS[name]
    found = METHODS[name].run(
        toy.logits_fn,
        toy.x,
        toy.y,
        METHODS[name].configured(**numbers),
        key=KEY,
        threat_model=model["linf"],
    )
    jax.tree.map(np.testing.assert_array_equal, found, results.of(same, "linf"))


@pytest.mark.parametrize("name", METHODS)
def test_every_record_says_what_it_is_and_refuses_what_is_no_number(name):
    method = METHODS[name]
    assert method.name == name
    assert method.about
    (preset,) = method.presets
    assert preset == "published"
    own = method.configured()
    for entry in dataclasses.fields(method.config):
        assert getattr(own, entry.name) >= 1
        assert entry.metadata["help"].endswith(".")
        with pytest.raises(ValueError, match=f"{entry.name}=0 must be at least 1"):
            method.configured(**{entry.name: 0})
    with pytest.raises(ValueError, match=f"{name} takes no magic"):
        method.configured(magic=1)
    method.check(10, own)
    fewest = {"apgd_dlr": 3, "apgd_t": 4}.get(name)
    if fewest:
        told = f"{name} needs {fewest} classes but the model has {fewest - 1}: use"
        with pytest.raises(ValueError, match=told):
            method.check(fewest - 1, own)
