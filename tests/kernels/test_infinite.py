"""Infinite fully connected kernels: closed forms, identities, faults."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpy.polynomial.hermite_e import hermegauss

from ntk_privacy.kernels import infinite
from ntk_privacy.kernels.dual_activation import dual
from ntk_privacy.kernels.layers import is_homogeneous
from ntk_privacy.models import MLP

S = 2**0.5
NAMES = ("relu", "erf", "gelu")


def images(n, *, seed=0, shape=(3, 2, 2), dtype=jnp.float64):
    return jax.random.normal(jax.random.key(seed), (n, *shape), dtype)


def arc_cosines(k, q1, q2):
    """A and B of the ReLU as the textbook writes them."""
    scale = np.sqrt(np.outer(q1, q2))
    rho = np.clip(k / scale, -1, 1)
    angle = np.pi - np.arccos(rho)
    return scale / (2 * np.pi) * (np.sqrt(1 - rho**2) + rho * angle), angle / (
        2 * np.pi
    )


def by_hand(x1, x2, depth, s, b):
    """The recursion of the NTK parametrisation in numpy."""
    x1, x2 = (np.asarray(x).reshape(len(x), -1) for x in (x1, x2))
    d = x1.shape[1]
    k = s**2 * x1 @ x2.T / d + b**2
    q1, q2 = (s**2 * (x**2).sum(1) / d + b**2 for x in (x1, x2))
    t = k
    for _ in range(depth):
        product, slope = arc_cosines(k, q1, q2)
        k = s**2 * product + b**2
        t = k + s**2 * slope * t
        q1, q2 = (s**2 * q / 2 + b**2 for q in (q1, q2))
    return k, t


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-13)]
)
@pytest.mark.parametrize(("depth", "s", "b"), [(2, 1.0, 0.0), (1, 2**0.5, 0.1)])
def test_relu_recursion(depth, s, b, dtype, tolerance):
    x1, x2 = images(5, dtype=dtype), images(4, seed=1, dtype=dtype)
    layers = infinite.mlp_layers(depth, weight_std=s, bias_std=b)
    out = infinite.nngp_and_ntk(layers)(x1, x2)
    expected = by_hand(*(x.astype("float64") for x in (x1, x2)), depth, s, b)
    for ours, theirs in zip(out, expected, strict=True):
        assert ours.dtype == dtype
        np.testing.assert_allclose(ours, theirs, rtol=tolerance * 10, atol=tolerance)
    ntk = infinite.mlp(depth, weight_std=s, bias_std=b)(x1, x2)
    chex.assert_trees_all_close(ntk, out.ntk, rtol=tolerance)


def test_standard_parametrization_with_zero_biases():
    x1, x2, width = images(4), images(3, seed=1), 512
    a, b = (np.asarray(x).reshape(len(x), -1) for x in (x1, x2))
    gram, d = a @ b.T, a.shape[1]
    q1, q2 = (a**2).sum(1) / d, (b**2).sum(1) / d
    a1, b1 = arc_cosines(gram / d, q1, q2)
    a2, b2 = arc_cosines(a1, q1 / 2, q2 / 2)
    expected = width * a2 + 1 + (width * a1 + 1) * b2 + (gram + 1) * b1 * b2
    kernel_fn = infinite.mlp(2, parametrization="standard", width=width)
    chex.assert_trees_all_close(kernel_fn(x1, x2), expected, rtol=1e-12)


def test_mean_over_finite_networks_nears_the_limit():
    x = images(4)
    model = MLP((256, 256))
    kernel_fn = infinite.mlp(2, parametrization="standard", width=256)

    def empirical(key):
        params = model.init(key, x)["params"]
        jacobian = jax.jacrev(lambda p: model.apply_fn(p, x)[:, 0])(params)
        flat = [j.reshape(4, -1) for j in jax.tree.leaves(jacobian)]
        return sum(j @ j.T for j in flat)

    kernels = jax.lax.map(empirical, jax.random.split(jax.random.key(3), 96))
    deviation = np.linalg.norm(kernels.mean(0) - kernel_fn(x))
    # The spread of the mean of 96 networks, and a bias of order 1 / width.
    spread = np.sqrt((kernels.var(0) / 96).sum())
    assert deviation < 3 * spread + np.linalg.norm(kernel_fn(x)) / 256
    assert deviation < 0.02 * np.linalg.norm(kernel_fn(x))


@pytest.mark.parametrize("name", ["erf", "gelu", "relu", "leaky"])
def test_dual_activations_are_gaussian_expectations(name):
    nodes, weights = hermegauss(90)
    weights = weights / weights.sum()
    fn = {
        "erf": jax.scipy.special.erf,
        "gelu": functools.partial(jax.nn.gelu, approximate=False),
        "relu": jax.nn.relu,
        "leaky": lambda x: jnp.where(x > 0, 1.5 * x, -0.2 * x),
    }[name]
    q1, q2, k = 1.3, 0.6, 0.4
    factor = np.linalg.cholesky(np.array([[q1, k], [k, q2]]))
    u = factor[0, 0] * nodes[:, None] + 0 * nodes
    v = factor[1, 0] * nodes[:, None] + factor[1, 1] * nodes
    slope = jax.vmap(jax.vmap(jax.grad(fn)))
    expected = [
        float(np.einsum("i,j,ij->", weights, weights, f(u) * f(v))) for f in (fn, slope)
    ]
    kind = name if name in ("erf", "gelu") else "homogeneous"
    slopes = {"negative_slope": -0.2, "positive_slope": 1.5} if name == "leaky" else {}
    ours = dual(kind, *(jnp.array([v]) for v in (k, q1, q2)), **slopes)
    # Quadrature of a kink converges slowly.
    smooth = name in ("erf", "gelu")
    tolerance = 1e-9 if smooth else 3e-2
    np.testing.assert_allclose([o[0] for o in ours], expected, rtol=tolerance)
    product = jax.grad(lambda k: dual(kind, k, jnp.array(q1), jnp.array(q2)).product)
    derivative = product(jnp.array(k))
    same = dual(kind, jnp.array(k), jnp.array(q1), jnp.array(q2)).slope
    chex.assert_trees_all_close(derivative, same, rtol=1e-12)


def test_homogeneous_family_has_its_members():
    x = images(5)
    linear = infinite.mlp(2, activation=infinite.abrelu(1.0, 1.0))
    chex.assert_trees_all_close(linear(x), 3 * infinite.mlp(0)(x), rtol=1e-13)
    mirrored = infinite.mlp(2, activation=infinite.abrelu(-1.0, 0.0))
    chex.assert_trees_all_close(mirrored(x, x), infinite.mlp(2)(x, x), rtol=1e-13)


@pytest.mark.parametrize("activation", NAMES)
def test_symmetric_positive_and_one_argument_equals_two(activation):
    x = jnp.concatenate([images(6), images(6)[:2] * 2.0])
    kernel_fn = infinite.mlp(2, activation=activation, bias_std=0.1)
    k = kernel_fn(x)
    chex.assert_trees_all_close(k, k.T, rtol=1e-12)
    # The kink of arccos turns rounding of size eps into sqrt(eps).
    chex.assert_trees_all_close(k, kernel_fn(x, x.copy()), rtol=3e-8)
    assert np.linalg.eigvalsh(k).min() > -1e-12 * np.trace(k)
    chex.assert_trees_all_close(kernel_fn(x, x[:3]), kernel_fn(x[:3], x).T, rtol=1e-12)


def test_diagonal_is_exact_in_float32():
    x = images(6, dtype=jnp.float32)
    exact = infinite.mlp(2)(x.astype(jnp.float64))
    ours = jnp.diagonal(infinite.mlp(2)(x)).astype(jnp.float64)
    chex.assert_trees_all_close(ours, jnp.diagonal(exact), rtol=1e-6)
    # Also of one array that is given twice.
    chex.assert_trees_all_equal(infinite.mlp(2)(x, x), infinite.mlp(2)(x))


@pytest.mark.parametrize("parametrization", ["ntk", "standard"])
@pytest.mark.parametrize("activation", [*NAMES, infinite.abrelu(-0.2, 1.5)])
def test_a_zero_image_has_one_value(activation, parametrization):
    x = images(3).at[1].set(0.0)
    kernel_fn = infinite.mlp(
        2, activation=activation, parametrization=parametrization, width=4
    )
    one, two = kernel_fn(x), kernel_fn(x, x.copy())
    chex.assert_trees_all_close(one[1], two[1], rtol=1e-12)
    chex.assert_trees_all_close(one[:, 1], two[:, 1], rtol=1e-12)


def test_slopes_at_zero_variance():
    zero = jnp.zeros(1)
    for equal in (False, True, jnp.array([True])):
        slopes = {"negative_slope": -0.2, "positive_slope": 1.4}
        out = dual("homogeneous", zero, zero, zero, equal=equal, **slopes)
        chex.assert_trees_all_close(tuple(out), (zero, zero + 0.36), rtol=1e-14)
    for equal in (True, jnp.array([True])):
        out = dual("homogeneous", zero + 2, zero + 2, zero + 2, equal=equal)
        chex.assert_trees_all_close(tuple(out), (zero + 1, zero + 0.5), rtol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("activation", "parametrization"),
    [("relu", "ntk"), ("relu", "standard"), ("erf", "standard"), ("gelu", "ntk")],
)
def test_gradients_are_finite_at_equal_and_zero_images(
    activation, parametrization, dtype
):
    x = images(4).at[1].set(0.0).at[2].set(images(4)[0]).astype(dtype)
    kernel_fn = infinite.mlp(
        2, activation=activation, parametrization=parametrization, width=64
    )
    first = jax.grad(lambda a, b: kernel_fn(a, b).sum(), (0, 1))
    chex.assert_tree_all_finite(jax.jit(first)(x, x))
    chex.assert_tree_all_finite(jax.jit(jax.grad(lambda a: kernel_fn(a).sum()))(x))


def test_second_derivatives_are_finite_at_equal_and_zero_images():
    x = images(4).at[1].set(0.0).at[2].set(images(4)[0])
    first = jax.grad(lambda a, b: infinite.mlp(1)(a, b).sum())
    chex.assert_tree_all_finite(jax.jit(lambda x: jax.jvp(first, (x, x), (x, x)))(x))


@pytest.mark.parametrize(
    ("activation", "bias_std"),
    [("relu", 0.3), ("relu", 0.0), ("erf", 0.3), ("gelu", 0.3)],
)
def test_gradients_equal_finite_differences(activation, bias_std):
    kernel_fn = infinite.mlp(1, activation=activation, bias_std=bias_std)

    @jax.jit
    def both(a, b):
        return kernel_fn(a, b), kernel_fn(a)

    check_grads(both, (images(3), images(2, seed=1)), order=1, rtol=1e-5)


def test_gradients_by_homogeneity_are_those_of_the_recursion(monkeypatch):
    inner = (infinite.abrelu(-0.5, 1.5), infinite.Dense(width=8))
    layers = (infinite.Dense(S), infinite.residual(*inner), infinite.relu)
    layers = (*layers, infinite.Dense(0.7, parametrization="standard", use_bias=False))
    x1, x2 = images(4).at[3].set(0.0), images(3, seed=1)

    def gradients():
        both = infinite.nngp_and_ntk(layers)
        infinite._dense_kernels.clear_cache()

        def total(a, b):
            return sum(jnp.sum(jnp.sin(k)) for k in both(a, b))

        first = jax.grad(total, (0, 1))
        return jax.jit(lambda *x: jax.jvp(first, x, (x1[::-1], x2)))(x1, x2)

    assert is_homogeneous(layers)
    fast = gradients()
    monkeypatch.setattr(infinite, "is_homogeneous", lambda layers: False)
    chex.assert_trees_all_close(fast, gradients(), rtol=1e-9, atol=1e-12)


def test_only_networks_without_biases_are_homogeneous():
    assert is_homogeneous(infinite.mlp_layers(2))
    standard = {"parametrization": "standard", "width": 8}
    assert is_homogeneous(infinite.mlp_layers(1, use_bias=False, **standard))
    assert not is_homogeneous(infinite.mlp_layers(1, **standard))
    assert not is_homogeneous(infinite.mlp_layers(1, bias_std=0.1))
    assert not is_homogeneous(infinite.mlp_layers(1, activation="erf"))
    assert not is_homogeneous((infinite.residual(infinite.gelu, infinite.Dense()),))
    assert not is_homogeneous((lambda pair: pair,))


def test_works_under_jit_vmap_and_traces_once():
    kernel_fn = infinite.mlp(1)
    x = images(3)
    expected = kernel_fn(x, x[:2])
    jitted = jax.jit(chex.assert_max_traces(kernel_fn, n=1))
    for _ in range(2):
        chex.assert_trees_all_close(jitted(x, x[:2]), expected, rtol=1e-12)
    stacked = jax.vmap(kernel_fn, in_axes=(0, None))(jnp.stack([x, 2 * x]), x[:2])
    chex.assert_trees_all_close(stacked[0], expected, rtol=1e-12)
    gradient = jax.grad(lambda a: kernel_fn(a, x[:2]).sum())
    rows = jax.vmap(lambda a: gradient(a[None])[0])(x)
    chex.assert_trees_all_close(rows, gradient(x), rtol=1e-10)


def test_residual_of_a_linear_branch():
    x = images(4)
    dense = infinite.Dense()
    layers = (dense, infinite.residual(infinite.relu, dense), dense)
    nngp, _ = infinite.nngp_and_ntk(layers)(x, x)
    inner = infinite.kernel((dense,), get="nngp")(x, x)
    branch = infinite.kernel((dense, infinite.relu, dense), get="nngp")(x, x)
    chex.assert_trees_all_close(nngp, inner + branch, rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": -1}, "depth=-1 must be at least 0"),
        ({"depth": 1, "weight_std": -1.0}, "weight_std=-1.0 must be at least 0"),
        ({"depth": 1, "bias_std": -0.1}, "bias_std=-0.1 must be at least 0"),
        ({"depth": 1, "parametrization": "standard"}, "give the number of hidden"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        infinite.mlp(**arguments)


def test_bad_images_are_named():
    kernel_fn = infinite.mlp(1)
    x = images(2)
    with pytest.raises(ValueError, match="resize or convert one of them"):
        kernel_fn(x, images(2, shape=(3, 2, 1)))
    with pytest.raises(ValueError, match="x1 holds NaN or infinite"):
        kernel_fn(x.at[0].set(jnp.nan))
    with pytest.raises(ValueError, match="give at least one image"):
        kernel_fn(x[:0], x)
    with pytest.raises(ValueError, match="cast one of them"):
        kernel_fn(x, x.astype(jnp.float32))
    with pytest.raises(ValueError, match="without weights there is no NTK"):
        infinite.kernel((infinite.relu,))(x)
    with pytest.raises(ValueError, match="set bias_std=0"):
        infinite.Dense(bias_std=0.1, use_bias=False)


def test_layers_whose_numbers_would_be_wrong_are_refused():
    free = infinite.Dense(parametrization="standard", width=None)
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="give every layer its width"):
        infinite.kernel((free, infinite.relu, free))(x)
    with pytest.raises(ValueError, match="2 branches of a Sum end without weights"):
        infinite.Sum(((), ()))
    with pytest.raises(ValueError, match="2 branches of a Sum end without weights"):
        infinite.Sum(((infinite.Dense(), infinite.relu), ()))
    infinite.Sum(((infinite.relu, infinite.Dense()), ()))
