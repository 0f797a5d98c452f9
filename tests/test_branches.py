"""What is computed in one way here and in another there is the same, wherever it is.

Every place that asks `_platform.name` is told each of the three names, on images that
are more than fit one block, tile or batch, so that the ways differ.
"""

import ast
import functools
import pathlib
import sys
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_privacy
from ntk_privacy import _platform, _versions
from ntk_privacy.distillation import gradient_matching, sre2l
from ntk_privacy.evasion import ThreatModel, apgd, pgd, pool, reading, task
from ntk_privacy.kernels import empirical, infinite_conv
from ntk_privacy.models import ConvNet, ResNet18, convnet, convolution
from ntk_privacy.training import classification

KEY = jax.random.key(0)
NAMES = ("cpu", "gpu", "tpu")


def _normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def _slope(fun, x):
    """What a function returns, and a gradient of it."""
    out = fun(x)
    weights = jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)
    return out, jax.jit(jax.grad(lambda x: jnp.sum(weights * fun(x))))(x)


def _convolve():
    kernel = _normal(1, 3, 3, 3, 4)
    x = _normal(0, 2, 6, 6, 3)
    return _slope(lambda x: convolution.convolve(x, kernel, 1, None), x)


def _convolve_strided():
    kernel = _normal(1, 3, 3, 3, 4)
    given = {"stride": 2, "padding": 1, "precision": None}
    strided = functools.partial(convolution.convolve_strided, kernel=kernel, **given)
    return _slope(lambda x: strided(x), _normal(0, 2, 7, 6, 3))


def _embed():
    model = ConvNet(2, 3, 1)
    params = model.init_params(KEY, (4, 4, 1), jnp.float64)
    embed = functools.partial(convnet.embed_in_blocks, model, params)
    return _slope(embed, _normal(0, 12, 4, 4, 1))


def _conv_kernel(head):
    return _slope(infinite_conv.convnet(1, head=head), _normal(0, 5, 3, 3, 2))


def _planned():
    model = ConvNet(2, 3, 1)
    params = model.init_params(KEY, (4, 4, 1), jnp.float64)
    return empirical.ntk(model.apply_fn, params, _normal(0, 5, 4, 4, 1))


def _matched():
    x, classes = _normal(0, 32, 4, 4, 1), jnp.arange(32, dtype=jnp.int32) % 2
    return gradient_matching.distill(
        x,
        classes,
        model=ConvNet(2, 3, 1),
        key=KEY,
        images_per_class=2,
        num_steps=2,
        chunk=2,
        batch_size=16,
        outer_steps=2,
        inner_epochs=1,
    )[:2]


def _classified():
    x, classes = _normal(0, 12, 4, 4, 1), jnp.arange(12, dtype=jnp.int32) % 2
    keys = jax.random.split(KEY, 2)
    given = {"model": ConvNet(2, 3, 1), "keys": keys, "batch_size": 4}
    state = classification.train(x, classes, num_epochs=1, learning_rate=0.1, **given)
    return state.params


def _recovered():
    model = ResNet18(2, 2, blocks=(1, 1))
    params = model.init_params(KEY, (4, 4, 3), jnp.float64)
    stats = model.init_stats(jnp.float64)
    return sre2l.recover(
        params,
        stats,
        model=model,
        key=KEY,
        image_shape=(4, 4, 3),
        num_classes=2,
        mean=(0.5, 0.5, 0.5),
        deviation=(0.25, 0.25, 0.25),
        images_per_class=2,
        num_steps=2,
        chunk=2,
        jitter=1,
    )[:2]


def _read(x):
    return jnp.tanh(x.reshape(len(x), -1) @ _normal(7, 9, 6)) @ _normal(8, 6, 3)


def _attacked(attack, **options):
    x = jax.random.uniform(jax.random.key(1), (40, 3, 3, 1))
    y = jnp.argmax(_read(x), 1)
    bound = ThreatModel("linf", 0.08)
    return attack(_read, x, y, key=KEY, threat_model=bound, num_steps=6, **options)


class Case(NamedTuple):
    """compute: with a branch in it. asks: functions that have one, by module."""

    compute: object
    asks: tuple[str, ...]


CASES = {
    "convolution": Case(_convolve, ("models.convolution.convolve",)),
    "with a stride": Case(_convolve_strided, ("models.convolution.convolve_strided",)),
    "features in blocks": Case(_embed, ("models.convnet.embed_in_blocks",)),
    "convolutional kernel": Case(
        lambda: _conv_kernel("flatten"),
        ("kernels.infinite_conv._conv_kernels", "kernels.layers.apart"),
    ),
    "pooled": Case(
        lambda: _conv_kernel("global_pool"),
        ("kernels.infinite_conv._conv_kernels", "kernels.layers.apart"),
    ),
    "empirical kernel": Case(_planned, ("kernels.planning.network_shapes",)),
    "DC": Case(
        _matched,
        (
            "distillation.gradient_matching._constant_gradient",
            "distillation.gradient_matching.distill",
        ),
    ),
    "training": Case(_classified, ("training.classification.train",)),
    "SRe2L": Case(_recovered, ("distillation.sre2l.recover",)),
    "PGD": Case(lambda: _attacked(pgd.attack), ("evasion.task.batch_size",)),
    "APGD": Case(
        lambda: _attacked(apgd.attack),
        ("evasion.task.batch_size", "evasion.pool._fewer_places"),
    ),
}
# What it decides is how much rounding is forgiven, not a way to compute.
FORGIVES = {"evasion.reading._unit"}


@pytest.fixture
def told(monkeypatch):
    """A function that computes on a platform; returns that and who asked for it."""
    # Little is more than fits.
    monkeypatch.setattr(infinite_conv, "_TILE", 2**7)
    monkeypatch.setattr(convnet, "_CACHED", 4 * 4 * 3 * 4)
    monkeypatch.setattr(task, "_BATCH", {"cpu": 16})

    def compute(case, platform):
        asked = set()

        def name():
            frame = sys._getframe(1)
            module = frame.f_globals["__name__"].removeprefix("ntk_privacy.")
            asked.add(f"{module}.{frame.f_code.co_name}")
            return platform

        monkeypatch.setattr(_platform, "name", name)
        jax.clear_caches()
        return jax.tree.map(np.asarray, case.compute()), asked

    yield compute
    jax.clear_caches()


@pytest.mark.parametrize("name", CASES)
def test_every_branch_computes_the_same(name, told):
    found = [told(CASES[name], platform) for platform in NAMES]
    for _, asked in found:
        # A JAX that has no primitives of ours convolves in one way alone.
        if name != "convolution" or _versions.OWN_PRIMITIVES:
            assert asked >= set(CASES[name].asks)
    (want, _), *others = found
    for got, _ in others:
        chex.assert_trees_all_close(got, want, rtol=1e-8, atol=1e-10)


def _asking():
    """The functions of the package that ask."""
    package = pathlib.Path(ntk_privacy.__file__).parent
    for path in package.rglob("*.py"):
        module = ".".join(path.relative_to(package).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and "_platform.name()" in ast.unparse(
                node
            ):
                yield f"{module}.{node.name}"


def test_no_branch_is_left_out():
    covered = {place for case in CASES.values() for place in case.asks}
    assert set(_asking()) == covered | FORGIVES


def test_more_rounding_is_forgiven_where_products_are_coarse(told):
    x = _normal(0, 4, 3, 3, 1)

    def unit():
        return reading._unit(lambda x, key: _read(x), x, KEY)

    units = [told(Case(unit, ()), name)[0] for name in NAMES]
    np.testing.assert_array_equal(units, [2.0**-52, 2.0**-10, 2.0**-7])


def test_a_processor_gives_up_places_and_an_accelerator_does_not(told):
    def fewer():
        return pool._fewer_places(40, 0.5)

    assert [int(told(Case(fewer, ()), name)[0]) for name in NAMES] == [20, 0, 0]
