"""Kernels, solves and second derivatives where products are coarse by default.

Accelerators multiply float32 in bfloat16 (TPU) or TF32 (GPU) unless told otherwise.
Here the lowering of products and convolutions for the processor is replaced by one that
rounds its operands like that wherever a program leaves the precision open.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.interpreters import mlir

from ntk_privacy import _linalg, _platform, curvature, kip, rkip
from ntk_privacy.distillation import gradient_matching, tesla, trajectory_matching
from ntk_privacy.kernels import empirical, infinite, infinite_conv, products, structured
from ntk_privacy.models import MLP, ConvNet
from ntk_privacy.poisoning import gradient_matching as poisoning
from ntk_privacy.reconstruction import adapter_replay, explanation, kkt
from ntk_privacy.training import linearized

_internal = pytest.importorskip("jax._src.interpreters.mlir")
MANTISSA = {"bfloat16": 7, "tf32": 10}
PRODUCTS = (jax.lax.dot_general_p, jax.lax.conv_general_dilated_p)
_OPEN = {None, jax.lax.Precision.DEFAULT}
KEY = jax.random.key(0)


def _rule(primitive, usual, bits, dtype):
    def rule(context, *operands, **params):
        told = params.get("precision")
        told = told if isinstance(told, tuple) else (told, told)
        narrow = all(aval.dtype == dtype for aval in context.avals_in)
        if not narrow or not set(told) <= _OPEN:
            return usual(context, *operands, **params)

        def rounded(*arrays):
            coarse = [jax.lax.reduce_precision(a, 8, bits) for a in arrays]
            high = jax.lax.Precision.HIGHEST
            return primitive.bind(*coarse, **params | {"precision": (high, high)})

        lowered = mlir.lower_fun(rounded, multiple_results=False)
        return lowered(context, *operands)

    return rule


@contextlib.contextmanager
def _coarse(kind, dtype=jnp.float32):
    """Products as on an accelerator, whose branches are taken too."""
    rules, everywhere = (
        _internal._platform_specific_lowerings["cpu"],
        _internal._lowerings,
    )
    jax.clear_caches()
    with pytest.MonkeyPatch.context() as patch:
        for primitive in PRODUCTS:
            entry = rules.get(primitive, everywhere.get(primitive))
            usual = getattr(entry, "rule", entry)
            made = _rule(primitive, usual, MANTISSA[kind], dtype)
            replaced = made if usual is entry else type(entry)(made, entry.inline)
            patch.setitem(rules, primitive, replaced)
        patch.setattr(_platform, "name", lambda: "gpu")
        yield
    jax.clear_caches()


def _normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32)


class Theirs(nn.Module):
    """A network of a user, who thinks of no precision."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(x)).reshape(x.shape[0], -1)
        return nn.Dense(3)(nn.tanh(nn.Dense(16)(x)))


def _theirs():
    model, x = Theirs(), _normal(1, 4, 6, 6, 2)
    params = model.init(KEY, x)["params"]
    return lambda p, x: model.apply({"params": p}, x), params, x


def _ours():
    model, x = ConvNet(3, 4, 2), _normal(2, 4, 8, 8, 2)
    return model.apply_fn, model.init_params(KEY, (8, 8, 2), jnp.float32), x


def _losses(apply_fn, params, x, y):
    logits = apply_fn(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y)


def _curvature(network):
    apply_fn, params, x = network()
    y = jnp.arange(len(x)) % 3
    added = curvature.penalty(functools.partial(_losses, apply_fn), step=0.5)
    slope = jax.grad(lambda p: added(p, x, y).sum())(params)
    return added(params, x, y), jax.tree.leaves(slope)


def _trained():
    model, x = MLP((32, 32)), _normal(3, 6, 5, 5, 1)
    params_0 = model.init_params(KEY, (5, 5, 1), jnp.float32)
    y = jnp.asarray([[1.0], [-1.0]] * 3, jnp.float32)
    kernel = structured.ntk(model, params_0, x, trace_outputs=False)
    spectrum = linearized.decompose(kernel, model.apply_fn(params_0, x), y)
    duals = linearized.duals(spectrum, linearized.gradient_flow(5.0))
    return model, params_0, linearized.params_at(model.apply_fn, params_0, x, duals)


def _search(settings):
    model, params_0, params_t = _trained()
    attack = kkt.prepare(
        model,
        params_0,
        params_t,
        key=KEY,
        image_shape=(5, 5, 1),
        num_images=8,
        bounds=(-3.0, 3.0),
        points="init",
        settings=settings,
    )
    loss = attack.step.loss
    at = (attack.state.latents, attack.state.duals)
    step = jnp.asarray(0, jnp.int32)
    value, slopes = jax.value_and_grad(loss, has_aux=True)(at, step, attack.problem)
    return value[0], slopes[0]


def _kernel_loss(module):
    x, s = _normal(4, 20, 30), _normal(5, 6, 30)
    y, labels = _normal(6, 20, 2), _normal(7, 6, 2)

    def loss(s):
        return module.loss(s, labels, x, y, kernel_fn=infinite.mlp(2), diag_reg=1e-2)

    return jax.value_and_grad(loss)(s)


def _product():
    apply_fn, params, x = _theirs()
    v = _normal(8, len(x), 3)
    return products.ntk_vector_product(apply_fn, params, x, None, v)


def _at_duals():
    apply_fn, params, x = _theirs()
    return linearized.params_at(apply_fn, params, x, _normal(8, len(x), 3))


def _taylor():
    apply_fn, params, x = _theirs()
    moved = jax.tree.map(lambda leaf: 1.1 * leaf + 0.01, params)
    return linearized.apply_linearized(apply_fn, params, moved, x)


def _explained():
    apply_fn, params, x = _theirs()
    change = jax.tree.map(lambda leaf: 0.1 * leaf + 0.01, params)
    found = explanation.parts(apply_fn, [params], change, x, num_outputs=3)
    # On the host in float64, computed in float32.
    return jax.tree.map(np.float32, found)


CASES = {
    "infinite FC": lambda: infinite.mlp(2)(_normal(1, 9, 40), _normal(2, 7, 40)),
    "infinite Conv": lambda: infinite_conv.convnet(2)(_normal(1, 3, 5, 5, 2)),
    "infinite Conv, pooled": lambda: infinite_conv.convnet(1, head="global_pool")(
        _normal(1, 3, 5, 5, 2)
    ),
    "empirical, ConvNet": lambda: empirical.ntk(*_ours()),
    "empirical, any network": lambda: empirical.ntk(*_theirs()),
    "its Jacobians": lambda: empirical.ntk(*_theirs(), method="jacobian"),
    "its products of vectors": lambda: empirical.ntk(*_theirs(), method="ntk_vector"),
    "its diagonal": lambda: empirical.diagonal(*_theirs()),
    "its product": _product,
    "linearized training": lambda: jax.tree.leaves(_trained()[2]),
    "its parameters, any network": _at_duals,
    "its outputs, any network": _taylor,
    "what images explain, any network": _explained,
    "solve": lambda: _linalg.solve_ridge(
        2 * jnp.eye(9, dtype="f") + 0.1, _normal(2, 9, 2)
    ),
    "KIP": lambda: _kernel_loss(kip),
    "RKIP": lambda: _kernel_loss(rkip),
    "curvature, ConvNet": lambda: _curvature(_ours),
    "curvature, any network": lambda: _curvature(_theirs),
    "a step of the search": lambda: _search(kkt.FAST),
    "of the published search": lambda: _search(kkt.PAPER),
}


def _agree(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max(), rtol=0)


def _numbers(case):
    return jax.tree.map(np.asarray, case())


@pytest.fixture(scope="module")
def exact():
    """In full, of each case once."""
    return functools.cache(lambda name: _numbers(CASES[name]))


# Of the two bfloat16 is the harder one.
@pytest.mark.parametrize("kind", MANTISSA)
@pytest.mark.parametrize("name", CASES)
def test_they_agree_with_full_float32(name, kind, exact):
    want = exact(name)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(want))
    with _coarse(kind):
        got = _numbers(CASES[name])
    _agree(got, want)


def _adapter():
    random = np.random.default_rng(0)
    shapes = ((2, 9), (9, 6), (9, 4), (9, 3), (2, 3))
    targets, kernel, a_0, basis, at = (random.normal(size=s) for s in shapes)
    plan = adapter_replay.Schedule(num_steps=3, learning_rate=0.01)
    loss = functools.partial(_squares, targets @ kernel)
    made = adapter_replay.trained(at @ basis.T, a_0, loss, plan, kernel=kernel)
    found = adapter_replay.within(made, loss, basis, at + 0.01, plan, kernel=kernel)
    assert np.abs(found.coordinates - at).max() < 1e-8
    return made.a_t, made.b_t, found.coordinates


def _squares(wanted, outputs):
    return ((outputs - wanted) ** 2).sum() / 2


@pytest.mark.parametrize("kind", MANTISSA)
def test_in_float64_too_an_adapter_is_replayed_in_full(kind):
    want = _numbers(_adapter)
    with _coarse(kind, jnp.float64):
        got = _numbers(_adapter)
    _agree(got, want)


def _searched(name):
    """The gradient in the images, of a search that leaves the precision open."""
    model, shape = ConvNet(3, 4, 1), (6, 6, 2)
    one, two = (
        model.init_params(jax.random.key(i), shape, jnp.float32) for i in (1, 2)
    )
    images = 0.5 + 0.1 * _normal(3, 6, *shape)
    rows = jnp.eye(3, dtype=jnp.float32)[jnp.arange(6) % 3]
    if name == "DC":
        loss = functools.partial(gradient_matching.loss, model=model, params=one)
        keys, real = jax.random.split(KEY, 3), _normal(4, 3, 8, *shape)
        each = images.reshape(3, 2, *shape)
        return jax.jit(jax.grad(lambda s: loss(real, s, keys=keys)))(each)
    if name == "poison":
        stacked = jax.tree.map(lambda leaf: leaf[None], one)
        wanted = jax.tree.map(lambda leaf: leaf[None], two)
        label, zero = jnp.asarray(1, jnp.int32), jnp.zeros(2, jnp.float32)
        data = poisoning.Ensemble(stacked, wanted, label, zero, zero + 1)
        aligned = poisoning.Alignment(model, ())
        return jax.jit(jax.grad(lambda x: aligned(x, KEY, data)))(images)
    slope = {"MTT": trajectory_matching._slope, "TESLA": tesla.slope}[name]
    options = {"model": model, "key": KEY, "student_steps": 3, "operations": ()}
    rate = jnp.asarray(0.02, jnp.float32)
    return jax.jit(lambda x: slope(x, rows, rate, one, two, **options)[1][0])(images)


@pytest.mark.parametrize("name", ["DC", "MTT", "TESLA", "poison"])
def test_searches_are_coarse_unless_asked_to_be_exact(name):
    want = np.asarray(_searched(name))
    with _coarse("bfloat16"):
        left_open = np.asarray(_searched(name))
        with jax.default_matmul_precision("highest"):
            asked = np.asarray(_searched(name))
    size = np.linalg.norm(want)
    assert np.linalg.norm(asked - want) < 1e-5 * size
    assert 1e-3 * size < np.linalg.norm(left_open - want) < 0.2 * size


@pytest.mark.parametrize(("kind", "low"), [("bfloat16", 1e-3), ("tf32", 1e-4)])
def test_products_that_say_nothing_are_coarse(kind, low):
    a, b = _normal(1, 20, 30), _normal(2, 30, 10)
    want = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
    apply_fn, params, x = _theirs()
    exact = np.asarray(apply_fn(params, x))
    with _coarse(kind):
        product, outputs = np.asarray(a @ b), np.asarray(apply_fn(params, x))
    error = np.abs(product - want).max() / np.abs(want).max()
    assert low / 2 < error < 10 * low
    # As a user's network is, outside of a kernel.
    assert np.abs(outputs - exact).max() > low / 10
