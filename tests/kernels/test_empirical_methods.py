"""Every way to the empirical NTK against the Jacobians, on networks of many kinds."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from zoo import NETWORKS, WIDE, mlp, of_nnx

from ntk_privacy.kernels import empirical, layer_trace, products
from ntk_privacy.kernels.planning import METHODS
from ntk_privacy.models import MLP


@pytest.fixture(autouse=True)
def lenient():
    # Flax itself promotes ranks and dtypes.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def images(shape, n, seed=1):
    return jax.random.normal(jax.random.key(seed), (n, *shape), jnp.float64)


def trace_of(full):
    return np.einsum("nmcc->nm", full) / full.shape[-1]


# Long to compile: with the slow tests.
LONG = ("mlp_ntk", "mlp_some_biases", "attention", "grouped", "resnet")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in NETWORKS],
)
def test_all_methods_are_the_product_of_jacobians(name):
    apply_fn, params, shape = NETWORKS[name]()
    x1, x2 = images(shape, 4), images(shape, 3, 2)
    j = empirical.jacobian(apply_fn, params, jnp.concatenate([x1, x2]))
    full = np.einsum("ncp,mdp->nmcd", j, j)
    own, cross, scale = full[:4, :4], full[:4, 4:], np.abs(full).max()

    def check(got, want):
        assert np.abs(got - want).max() < 1e-10 * scale

    for method in METHODS:
        kwargs = {"method": method, "trace_outputs": False}
        check(empirical.ntk(apply_fn, params, x1, x2, **kwargs), cross)
    check(empirical.ntk(apply_fn, params, x1, method="structured"), trace_of(own))
    want = np.diagonal(trace_of(own))
    check(empirical.diagonal(apply_fn, params, x1, method="structured"), want)
    v = jax.random.normal(jax.random.key(3), (3, own.shape[-1]))
    got = products.ntk_vector_product(apply_fn, params, x1, x2, v)
    check(got, np.einsum("nmcd,md->nc", cross, v))


@pytest.mark.parametrize("method", METHODS)
def test_float32_is_as_exact_as_it_can_be(method):
    apply_fn, params, shape = mlp(3)
    x = images(shape, 4)
    exact = empirical.ntk(apply_fn, params, x, method="jacobian")
    low = jax.tree.map(lambda a: a.astype(jnp.float32), (params, x))
    got = empirical.ntk(apply_fn, *low, method=method)
    chex.assert_type(got, jnp.float32)
    assert np.abs(got - exact).max() < 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("method", "traced"),
    [
        ("structured", True),
        pytest.param("structured", False, marks=pytest.mark.slow),
        pytest.param("jacobian", True, marks=pytest.mark.slow),
        pytest.param("ntk_vector", True, marks=pytest.mark.slow),
    ],
)
def test_blocks_of_any_size_give_the_same(method, traced):
    apply_fn, params, shape = mlp(2)
    x1, x2 = images(shape, 7), images(shape, 5, 2)
    options = {"trace_outputs": traced, "method": method}
    both = [
        empirical.ntk(apply_fn, params, x1, x2, **options),
        empirical.ntk(apply_fn, params, x1, **options),
        empirical.diagonal(apply_fn, params, x1, **options),
    ]
    sizes = set()
    least = _least_budget(apply_fn, params, x1, x2, options)
    for budget in (least, 3 * least):
        options["memory_budget"] = budget
        plan = empirical.plan(apply_fn, params, x1, x2, **options)
        assert plan.bytes <= budget
        sizes.add(plan.block_size)
        got = [
            empirical.ntk(apply_fn, params, x1, x2, **options),
            empirical.ntk(apply_fn, params, x1, **options),
            empirical.diagonal(apply_fn, params, x1, **options),
        ]
        chex.assert_trees_all_close(got, both, rtol=1e-10, atol=1e-12)
    assert 1 in sizes
    assert len(sizes) > 1


def _least_budget(apply_fn, params, x1, x2, options):
    with pytest.raises(ValueError, match="smaller than one block") as caught:
        empirical.ntk(apply_fn, params, x1, x2, memory_budget=1, **options)
    return int(re.search(r"(\d+) bytes with", str(caught.value)).group(1))


@pytest.mark.parametrize("method", METHODS)
def test_a_symmetric_kernel_in_tiles(method):
    apply_fn, params, shape = mlp(1)
    n = 270 if method != "ntk_vector" else 11
    x = images(shape, n)
    plan = empirical.plan(apply_fn, params, x, method=method)
    assert plan.tiles == 2
    got = empirical.ntk(apply_fn, params, x, method=method)
    chex.assert_trees_all_equal(got[:4, -4:], got[-4:, :4].T)
    want = empirical.ntk(apply_fn, params, x, x, method="structured")
    chex.assert_trees_all_close(got, want, rtol=1e-10, atol=1e-12)


def test_layers_are_found_with_their_biases():
    found = {}
    for name in NETWORKS:
        apply_fn, params, shape = NETWORKS[name]()
        image = jax.ShapeDtypeStruct(shape, jnp.float64)
        network = layer_trace.trace(apply_fn, params, image)
        names = network.leaf_names
        found[name] = (
            sorted((names[g.leaf], g.bias is not None) for g in network.groups),
            sorted(names[i] for i in network.others),
        )
    dense = [(f"['Dense_{i}']['kernel']", True) for i in range(3)]
    assert found["mlp"] == (dense, [])
    # Between product and bias stands the parametrisation's factor.
    assert [has for _, has in found["mlp_ntk"][0]] == [False] * 3
    assert len(found["mlp_some_biases"][0]) == 3
    assert found["convnet"][1] == []
    assert len(found["convnet"][0]) == 4
    layers, rest = found["resnet"]
    assert len(layers) == 6
    assert all("BatchNorm" in name for name in rest)
    layers, rest = found["attention"]
    assert ("['Dense_0']['kernel']", False) in layers  # used twice
    assert "['table']" in rest
    layers, rest = found["grouped"]
    assert "['Conv_0']['kernel']" in rest
    assert "['v']" in rest
    assert ("['ConvTranspose_0']['kernel']", True) in layers
    assert len(found["nnx"][0]) == 2


def test_auto_takes_the_cheapest_and_says_so():
    x = {n: jax.ShapeDtypeStruct((n, 784), jnp.float32) for n in (1, 200)}
    model = MLP((1024, 1024), 1)
    params = jax.eval_shape(
        lambda: model.init_params(jax.random.key(0), (784,), jnp.float32)
    )
    plan = empirical.plan(model.apply_fn, params, x[200], x[200])
    assert plan.method == "structured"
    assert all(plan.by_gram)
    assert plan.flops < min(plan.others.values())
    # 200 x 200: forward and backward of 400 images, and five Gram matrices.
    weights = 784 * 1024 + 1024**2 + 1024
    assert 4 * 400 * weights < plan.flops < 1.2 * (4 * 400 * weights + 5 * 2e8 / 2.4)
    told = str(plan)
    assert told.startswith("structured: ")
    assert "['Dense_1']['kernel']: Gram matrices" in told
    assert "not jacobian" in told
    # A Jacobian of 200 images would hold 1.4 GB.
    tight = empirical.plan(
        model.apply_fn, params, x[200], method="jacobian", memory_budget=10**8
    )
    assert tight.block_size < 200
    small = empirical.plan(model.apply_fn, params, x[200], memory_budget=100_000)
    assert small.others["jacobian"] == np.inf
    assert "exceeds the budget" in str(small)


def _mlp32():
    model = MLP((32,), 10)
    return model.apply_fn, model.init_params(jax.random.key(0), (4, 4, 1)), (4, 4, 1)


@pytest.mark.parametrize(
    ("method", "traced", "sizes", "share"),
    [
        ("jacobian", False, (40, 30), 1.0),
        ("jacobian", False, (40, None), 1.0),
        ("jacobian", True, (7, 60), 1.0),
        ("jacobian", True, (270, None), 1.0),
        ("jacobian", True, (40, None), 0.2),
        ("jacobian", False, (40, 30), 0.3),
        ("structured", True, (40, 30), 0.3),
        ("ntk_vector", True, (40, 30), 0.3),
    ],
)
@pytest.mark.parametrize("make", [_mlp32, NETWORKS["convnet"]])
def test_planned_memory_bounds_the_compiled_program(make, method, traced, sizes, share):
    apply_fn, params, shape = make()
    dtype = jax.tree.leaves(params)[0].dtype
    x = [n and jax.ShapeDtypeStruct((n, *shape), dtype) for n in sizes]
    kwargs = {"method": method, "trace_outputs": traced}
    whole = empirical.plan(apply_fn, params, *x, **kwargs).bytes
    kwargs["memory_budget"] = int(whole * share)
    plan = empirical.plan(apply_fn, params, *x, **kwargs)
    assert (plan.block_size < max(n or 0 for n in sizes)) == (share < 1)

    def fn(*x):
        return empirical.ntk(apply_fn, params, *x, **kwargs)

    memory = jax.jit(fn).lower(*[a for a in x if a]).compile().memory_analysis()
    # The kernel twice: in blocks and whole.
    used = memory.temp_size_in_bytes - 2 * memory.output_size_in_bytes
    assert used <= plan.bytes <= kwargs["memory_budget"]


def test_under_jit_and_grad():
    apply_fn, params, shape = mlp(2)
    x = images(shape, 3)

    def total(params, x):
        return empirical.ntk(apply_fn, params, x).sum()

    plain = jax.grad(
        lambda p, x: jnp.sum(empirical.jacobian(apply_fn, p, x).sum(0) ** 2) / 2
    )
    got = jax.jit(jax.grad(total))(params, x)
    chex.assert_trees_all_close(got, plain(params, x), rtol=1e-8, atol=1e-12)


def test_other_dtypes_among_the_parameters_are_held_fixed():
    def apply_fn(params, x):
        return x.reshape(len(x), -1) @ params["w"] * params["count"]

    params = {"w": jnp.ones((4, 2)), "count": jnp.asarray(3)}
    x = images((2, 2), 3)
    flat = x.reshape(3, 4)
    for method in METHODS:
        got = empirical.ntk(apply_fn, params, x, method=method)
        chex.assert_trees_all_close(got, 9 * flat @ flat.T, rtol=1e-12)
    got = products.ntk_vector_product(apply_fn, params, x, None, jnp.ones((3, 2)))
    want = 9 * flat @ flat.T @ jnp.ones((3, 2))
    chex.assert_trees_all_close(got, want, rtol=1e-12)


class Dropped(nn.Module):
    rate: float = 0.5
    deterministic: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Dropout(self.rate, deterministic=self.deterministic)(x)
        return nn.Dense(2, **WIDE)(x.reshape(x.shape[0], -1))


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = nn.BatchNorm(use_running_average=not train, **WIDE)(x)
        return nn.Dense(2, **WIDE)(x.reshape(x.shape[0], -1))


def _live(**kwargs):
    model = Normed()
    variables = model.init(jax.random.key(0), images((2, 2, 1), 1))

    def apply_fn(params, x):
        return model.apply({**variables, "params": params}, x, **kwargs)

    return apply_fn, variables["params"]


def test_networks_without_a_kernel_are_named_with_the_remedy():
    x = images((2, 2, 1), 3)
    model = Dropped()
    params = Dropped(deterministic=True).init(jax.random.key(0), x)["params"]
    with pytest.raises(ValueError, match=r"dropout does: pass deterministic=True"):
        empirical.ntk(lambda p, x: model.apply({"params": p}, x), params, x)
    rngs = {"dropout": jax.random.key(0)}
    with pytest.raises(ValueError, match="other outputs in a batch than alone"):
        empirical.ntk(lambda p, x: model.apply({"params": p}, x, rngs=rngs), params, x)
    apply_fn, params = _live()
    with pytest.raises(
        ValueError, match=r"live batch statistics do: use running averages"
    ):
        empirical.ntk(apply_fn, params, x)
    apply_fn, params = _live(mutable=["batch_stats"])
    with pytest.raises(ValueError, match=r"returns a tuple.*running averages"):
        empirical.ntk(apply_fn, params, x)
    for function in (empirical.ntk, empirical.diagonal):
        with pytest.raises(ValueError, match="other outputs in a batch than alone"):
            function(lambda p, x: apply_fn(p, x)[0], params, x)
    # Nor by images that are all alike, nor after a call that could tell nothing.
    coupled = _live(mutable=["batch_stats"])[0]

    def alike(p, x):
        return coupled(p, x)[0]

    with pytest.raises(ValueError, match="NaN"):
        empirical.ntk(alike, params, x.at[0].set(jnp.nan))
    with pytest.raises(ValueError, match="other outputs in a batch than alone"):
        empirical.ntk(alike, params, jnp.broadcast_to(x[:1], x.shape))
    apply_fn, params = _live(train=False)
    empirical.ntk(apply_fn, params, x)
    apply_fn, params, shape = of_nnx(training=True)
    with pytest.raises(ValueError, match=r"nnx: model.eval\(\)"):
        empirical.ntk(apply_fn, params, images(shape, 3).astype(jnp.float32))


def test_bad_input_is_named_with_the_remedy():
    apply_fn, params, shape = NETWORKS["convnet"]()
    x = images(shape, 2)
    for wrong in (x[:, :3], x[..., :1], jnp.concatenate([x, x], 2)):
        with pytest.raises(ValueError, match=r"refuses a batch of shape .* the size"):
            empirical.ntk(apply_fn, params, wrong)
        with pytest.raises(ValueError, match="give images of one size and type"):
            empirical.ntk(apply_fn, params, x, wrong)
    with pytest.raises(ValueError, match=r"x1\[?.* has 1 values that are NaN"):
        empirical.ntk(apply_fn, params, x.at[0, 0, 0, 0].set(jnp.nan))
    spoilt = jax.tree.map(lambda a: a, params)
    spoilt["Dense_0"]["bias"] = spoilt["Dense_0"]["bias"] * 1.0
    spoilt["Conv_0"]["kernel"] = spoilt["Conv_0"]["kernel"].at[0].set(jnp.nan)
    with pytest.raises(ValueError, match=r"params\['Conv_0'\]\['kernel'\] has"):
        empirical.ntk(apply_fn, spoilt, x)
    with pytest.raises(ValueError, match="the network overflows"):
        empirical.ntk(lambda p, x: jnp.exp(1e4 * p * x), jnp.ones(1), jnp.ones((1, 1)))
    with pytest.raises(ValueError, match="method='fast' is unknown: use one of auto"):
        empirical.ntk(apply_fn, params, x, method="fast")
    with pytest.raises(ValueError, match="give at least one image"):
        empirical.ntk(apply_fn, params, x[:0])
    with pytest.raises(ValueError, match="one row of outputs per image"):
        empirical.ntk(lambda p, x: apply_fn(p, x)[:, 0], params, x)
    with pytest.raises(ValueError, match="params has no leaves"):
        empirical.ntk(apply_fn, {}, x)
    with pytest.raises(ValueError, match="memory_budget=0"):
        empirical.ntk(apply_fn, params, x, memory_budget=0)


def test_other_errors_keep_their_cause():
    def broken(params, x):
        raise TypeError("no such thing")

    with pytest.raises(ValueError, match="no such thing") as caught:
        empirical.ntk(broken, jnp.ones(1), images((2, 2), 2))
    assert isinstance(caught.value.__cause__, TypeError)
