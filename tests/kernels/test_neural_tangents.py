"""The compatibility layer, and neural-tangents as the oracle of our kernels."""

import importlib.metadata
import re
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy.kernels import empirical, infinite, infinite_conv, neural_tangents
from ntk_privacy.kernels.infinite_conv import Conv, Flatten, GlobalAvgPool

S, B = 2**0.5, 0.1
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}


def images(n, *, seed=0, shape=(6, 6, 3), dtype="float64"):
    return jax.random.normal(jax.random.key(seed), (n, *shape), dtype)


def theirs(stax, names):
    """A network of neural-tangents from the short names of this file."""
    std = {"W_std": S, "b_std": B}
    layer = {
        "dense": lambda: stax.Dense(1, **std),
        "relu": stax.Relu,
        "leaky": lambda: stax.ABRelu(-0.2, 1.5),
        "erf": stax.Erf,
        "gelu": stax.Gelu,
        "flatten": stax.Flatten,
        "global": stax.GlobalAvgPool,
        "pool": lambda: stax.AvgPool((2, 2), strides=(2, 2)),
        "same": lambda: stax.Conv(1, (3, 3), padding="SAME", **std),
        "valid": lambda: stax.Conv(1, (2, 3), padding="VALID", **std),
        "circular": lambda: stax.Conv(1, (3, 3), padding="CIRCULAR", **std),
        "strided": lambda: stax.Conv(1, (3, 3), (2, 1), "SAME", **std),
    }
    return stax.serial(*[layer[name]() for name in names.split()])[2]


OURS = {
    "dense": infinite.Dense(S, B),
    "relu": infinite.relu,
    "leaky": infinite.abrelu(-0.2, 1.5),
    "erf": infinite.erf,
    "gelu": infinite.gelu,
    "flatten": Flatten(),
    "global": GlobalAvgPool(),
    "pool": infinite_conv.AvgPool(),
    "same": Conv(weight_std=S, bias_std=B),
    "valid": Conv((2, 3), padding="VALID", weight_std=S, bias_std=B),
    "circular": Conv(padding="CIRCULAR", weight_std=S, bias_std=B),
    "strided": Conv((3, 3), (2, 1), weight_std=S, bias_std=B),
}


@pytest.mark.parametrize(
    "names",
    [
        "flatten dense relu dense relu dense",
        "flatten dense erf dense gelu dense leaky dense",
        "same relu same relu same relu flatten dense",
        "same relu circular gelu global dense erf dense",
        "strided leaky valid relu flatten dense",
        pytest.param("strided relu valid erf global dense", marks=pytest.mark.slow),
        "same relu same relu pool same relu pool flatten dense",
    ],
)
def test_oracle(nt, names):
    x1, x2 = images(3), images(2, seed=1)
    layers = tuple(OURS[name] for name in names.split())
    kernel_fn = theirs(nt.stax, names)
    both = infinite_conv.nngp_and_ntk(layers)
    with neural_tangents.lenient():
        expected = jax.jit(lambda a, b: kernel_fn(a, b, ("ntk", "nngp")))(x1, x2)
    for dtype, tolerance in TOLERANCE.items():
        # Theirs in float64 both times: the harder comparison.
        ours = both(x1.astype(dtype), x2.astype(dtype))
        for get in ("ntk", "nngp"):
            k = np.asarray(getattr(ours, get))
            assert k.dtype == dtype
            error = np.abs(k - np.asarray(getattr(expected, get))).max()
            assert error < tolerance * np.abs(k).max(), (dtype, get, error)


@pytest.mark.parametrize("head", ["flatten", "global"])
def test_oracle_of_one_argument(nt, head):
    names = f"same relu {head} dense"
    x = images(3)
    ours = infinite_conv.kernel([OURS[name] for name in names.split()])(x)
    expected = neural_tangents.as_kernel_fn(theirs(nt.stax, names))(x)
    # neural-tangents rounds its diagonal as arccos does near 1.
    chex.assert_trees_all_close(ours, expected, rtol=3e-8)


@pytest.mark.parametrize("use_bias", [True, False])
def test_oracle_of_the_standard_parametrization(nt, use_bias):
    x1, x2 = images(3), images(2, seed=1)
    kwargs = {"parameterization": "standard", "W_std": S}
    kwargs["b_std"] = B if use_bias else None
    stax = nt.stax
    kernel_fn = stax.serial(
        stax.Conv(32, (3, 3), padding="SAME", **kwargs),
        stax.Relu(),
        stax.Conv(16, (3, 3), padding="SAME", **kwargs),
        stax.Relu(),
        stax.Flatten(),
        stax.Dense(1, **kwargs),
    )[2]
    std = {
        "weight_std": S,
        "bias_std": B if use_bias else 0.0,
        "parametrization": "standard",
        "use_bias": use_bias,
    }
    layers = (
        Conv(width=32, **std),
        infinite.relu,
        Conv(width=16, **std),
        infinite.relu,
        Flatten(),
        infinite.Dense(width=1, **std),
    )
    expected = neural_tangents.as_kernel_fn(kernel_fn)(x1, x2)
    ours = infinite_conv.kernel(layers)(x1, x2)
    chex.assert_trees_all_close(ours, expected, rtol=1e-10)


@pytest.mark.parametrize("given", ["one", "two"])
def test_oracle_of_zero_images(nt, given):
    x = images(3, shape=(4,)).at[1].set(0.0)
    std = {"parameterization": "standard", "b_std": 0.0}
    hidden, last = (nt.stax.Dense(n, **std) for n in (4, 1))
    layers = nt.stax.serial(hidden, nt.stax.Relu(), hidden, nt.stax.Relu(), last)
    arguments = (x,) if given == "one" else (x, x.copy())
    expected = neural_tangents.as_kernel_fn(layers[2])(*arguments)
    ours = infinite.mlp(2, parametrization="standard", width=4)(*arguments)
    chex.assert_trees_all_close(ours[1], expected[1], rtol=1e-12)


@pytest.mark.filterwarnings("ignore:.FanIn. layers assume")
def test_oracle_of_residual_sums(nt):
    stax, std = nt.stax, {"W_std": S, "b_std": B}
    same = stax.Conv(1, (3, 3), padding="SAME", **std)

    def their_block(stride):
        conv = stax.Conv(1, (3, 3), (stride, stride), "SAME", **std)
        skip = stax.Identity() if stride == 1 else stax.Conv(1, (1, 1), (2, 2), **std)
        main = stax.serial(stax.Relu(), conv, stax.Relu(), same)
        return stax.serial(stax.FanOut(2), stax.parallel(main, skip), stax.FanInSum())

    def our_block(stride):
        conv = Conv((3, 3), (stride, stride), "SAME", S, B)
        skip = () if stride == 1 else (Conv((1, 1), (2, 2), "VALID", S, B),)
        return infinite.Sum(((infinite.relu, conv, infinite.relu, OURS["same"]), skip))

    top = stax.GlobalAvgPool(), stax.Dense(1, **std)
    blocks = their_block(1), their_block(2)
    expected = stax.serial(same, *blocks, *top)[2]
    layers = (OURS["same"], our_block(1), our_block(2), GlobalAvgPool(), OURS["dense"])
    x1, x2 = images(2, shape=(4, 4, 3)), images(1, seed=1, shape=(4, 4, 3))
    want = jax.jit(neural_tangents.as_kernel_fn(expected))(x1, x2)
    chex.assert_trees_all_close(infinite_conv.kernel(layers)(x1, x2), want, rtol=1e-10)


def test_oracle_of_gradients(nt):
    x1, x2 = images(3).reshape(3, -1), images(2, seed=1).reshape(2, -1)
    other = neural_tangents.as_kernel_fn(theirs(nt.stax, "dense relu dense relu dense"))
    ours = infinite.mlp(2, weight_std=S, bias_std=B)
    for argnum in (0, 1):
        pair = [
            jax.jit(jax.grad(lambda a, b, f=f: (f(a, b) ** 2).sum(), argnum))(x1, x2)
            for f in (ours, other)
        ]
        chex.assert_trees_all_close(*pair, rtol=1e-10, atol=1e-10)


def test_oracle_of_empirical_kernels(nt):
    stax = nt.stax
    init, apply_fn, _ = stax.serial(
        stax.Conv(4, (3, 3)), stax.Relu(), stax.Flatten(), stax.Dense(2)
    )
    x = images(3)
    with neural_tangents.lenient():
        params = init(jax.random.key(0), x.shape)[1]
        for axes in ((), (-1,)):
            theirs = nt.empirical_ntk_fn(apply_fn, trace_axes=axes, vmap_axes=0)
            want = jax.jit(theirs)(x, None, params)
            got = empirical.ntk(apply_fn, params, x, trace_outputs=bool(axes))
            chex.assert_trees_all_close(got, want, rtol=1e-10, atol=1e-12)


def test_implementations_of_theirs_agree(nt):
    init, apply_fn, _ = nt.stax.serial(
        nt.stax.Dense(4), nt.stax.Relu(), nt.stax.Dense(2)
    )
    x = images(3).reshape(3, -1)
    with neural_tangents.lenient():
        params = init(jax.random.key(0), x.shape)[1]
        kernels = [
            jax.jit(
                nt.empirical_ntk_fn(
                    apply_fn, trace_axes=(), implementation=i, vmap_axes=0
                )
            )(x, None, params)
            for i in (1, 2, 3)
        ]
    chex.assert_trees_all_close(*kernels, rtol=1e-10)


def test_our_kernels_work_there(nt):
    x, x_test = images(4), images(2, seed=1)
    ntk, nngp = infinite.mlp(1), infinite.kernel(infinite.mlp_layers(1), get="nngp")
    kernel_fn = neural_tangents.as_neural_tangents(ntk=ntk, nngp=nngp)
    y = jnp.array([[1.0], [-1.0], [1.0], [-1.0]])
    with neural_tangents.lenient():
        predict = nt.predict.gradient_descent_mse_ensemble(kernel_fn, x, y)
        predicted = predict(x_test=x_test, get="ntk")
        batched = nt.batch(kernel_fn, batch_size=2)(x, None, ("ntk", "nngp"))
    expected = ntk(x_test, x) @ jnp.linalg.solve(ntk(x), y)
    chex.assert_trees_all_close(predicted, expected, rtol=1e-6)
    chex.assert_trees_all_close(batched.ntk, ntk(x, x), rtol=1e-7)
    chex.assert_trees_all_close(batched.nngp, nngp(x, x), rtol=1e-7)
    assert kernel_fn(x)._fields == ("nngp", "ntk")
    # Of one argument: with our exact diagonal, not arccos near 1.
    chex.assert_trees_all_equal(kernel_fn(x, None, "ntk"), ntk(x))
    with pytest.raises(ValueError, match="get='cov' is unknown"):
        kernel_fn(x, None, "cov")
    with pytest.raises(ValueError, match="give at least one kernel"):
        neural_tangents.as_neural_tangents()


def test_predict_works_under_jit(nt):
    k = infinite.mlp(1)(images(4))
    y = jnp.ones((4, 1))

    def predict(k):
        fn = nt.predict.gradient_descent_mse(k, y)
        return fn(jnp.inf, jnp.zeros((4, 1)), jnp.zeros((4, 1)), k)[1]

    with neural_tangents.lenient():
        chex.assert_trees_all_close(jax.jit(predict)(k), predict(k), rtol=1e-8)
        assert float(nt.predict.max_learning_rate(k)) > 0


def test_nothing_is_left_on_jax(nt):
    assert neural_tangents.load() is nt
    assert "jax.util" not in sys.modules or jax.__version_info__ < (0, 8)  # its own
    for name in ("Jaxpr", "JaxprEqn", "Literal", "Primitive", "Var"):
        assert name not in vars(jax.core)
    assert "zeros_like_p" not in vars(jax.interpreters.ad)
    assert "tensorflow" not in sys.modules


def test_an_oracle_that_is_required_must_be_there(load_oracle, monkeypatch):
    def absent():
        raise ImportError("neural-tangents is not installed")

    monkeypatch.setattr(neural_tangents, "load", absent)
    monkeypatch.delenv("NTK_PRIVACY_REQUIRE_ORACLE", raising=False)
    with pytest.raises(pytest.skip.Exception, match="not installed"):
        load_oracle()
    monkeypatch.setenv("NTK_PRIVACY_REQUIRE_ORACLE", "1")
    with pytest.raises(pytest.fail.Exception, match="not installed"):
        load_oracle()


def test_the_versions_of_jax_it_warns_of_are_those_the_package_refuses():
    requirements = importlib.metadata.requires("ntk_privacy")
    (asked,) = [r for r in requirements if re.match(r"jax(?![-\w])", r)]
    ends = re.findall(r"([<>]=?)(\d+)\.(\d+)", asked)
    (low_major, low_minor), (major, minor) = neural_tangents._TESTED_JAX
    assert (">=", str(low_major), str(low_minor)) in ends
    assert ("<", str(major), str(minor + 1)) in ends


def test_absence_names_the_install_line(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    monkeypatch.delitem(sys.modules, "neural_tangents", raising=False)
    with pytest.raises(ImportError, match="pip install --no-deps neural-tangents=="):
        neural_tangents.load.__wrapped__()
