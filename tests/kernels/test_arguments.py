"""Images and parameters of every type that people pass."""

import chex
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from zoo import mlp

from ntk_privacy.kernels import arguments, empirical, products, stationarity
from ntk_privacy.kernels.planning import METHODS

X = jax.random.normal(jax.random.key(0), (4, 6), jnp.float64)
WEIGHTS = jax.random.normal(jax.random.key(1), (6, 2), jnp.float64)


@pytest.fixture
def unchecked(monkeypatch):
    """As outside of tests: the library sees what jaxtyping would refuse."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def network(params, x):
    return jnp.tanh(x @ params["w"])


def spectral(params, x):
    """A layer in Fourier space, of complex weights, as Fourier operators have."""
    h = jnp.fft.irfft(jnp.fft.rfft(x, axis=-1) * params["spectral"][None], n=6, axis=-1)
    return jnp.tanh(h) @ params["out"]


def _complex():
    re, im = jax.random.normal(jax.random.key(2), (2, 4), jnp.float64)
    whole = {"spectral": jax.lax.complex(re, im), "out": WEIGHTS}
    apart = {"re": re, "im": im, "out": WEIGHTS}

    def apart_fn(p, x):
        return spectral(
            {"spectral": jax.lax.complex(p["re"], p["im"]), "out": p["out"]}, x
        )

    return whole, apart, apart_fn


@pytest.mark.parametrize("method", [*METHODS, "auto"])
@pytest.mark.parametrize("trace_outputs", [True, False])
def test_a_complex_leaf_is_its_real_and_imaginary_parts(method, trace_outputs):
    whole, apart, apart_fn = _complex()
    j = empirical.jacobian(apart_fn, apart, X)
    want = np.einsum("ncp,mdp->nmcd", j, j)
    if trace_outputs:
        want = np.einsum("nmcc->nm", want) / 2
    got = empirical.ntk(spectral, whole, X, method=method, trace_outputs=trace_outputs)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


def test_complex_leaves_in_products_diagonals_and_plans():
    whole, apart, apart_fn = _complex()
    v = jnp.ones((4, 2))
    got = products.ntk_vector_product(spectral, whole, X, None, v)
    want = products.ntk_vector_product(apart_fn, apart, X, None, v)
    chex.assert_trees_all_close(got, want, rtol=1e-10)
    chex.assert_trees_all_close(
        empirical.diagonal(spectral, whole, X),
        jnp.diagonal(empirical.ntk(apart_fn, apart, X)),
        rtol=1e-10,
    )
    plans = [empirical.plan(f, p, X) for f, p in ((spectral, whole), (apart_fn, apart))]
    assert plans[0].method == plans[1].method
    assert empirical.jacobian(spectral, whole, X).shape == (4, 2, 2 * 4 + 12)


def test_the_stationarity_of_complex_parameters():
    whole, apart, apart_fn = _complex()
    duals = jax.random.normal(jax.random.key(3), (1, 4, 2), jnp.float64)
    whole["step"] = jnp.asarray(3)
    whole["key"] = jax.random.key(0)
    got = stationarity.parameter_form(spectral, [whole], whole, X, duals)
    want = stationarity.parameter_form(apart_fn, [apart], apart, X, duals)
    assert float(got) == pytest.approx(float(want), rel=1e-10)
    del whole["key"]
    middle = stationarity.features(whole, jax.tree.map(lambda a: a + a, whole), [0.5])
    chex.assert_trees_all_close(middle[0]["spectral"], 1.5 * whole["spectral"])
    assert middle[0]["step"].dtype == whole["step"].dtype


FIXED = {
    "integer": jnp.asarray(3),
    "python_integer": 3,
    "boolean": jnp.asarray(True),
    "key": jax.random.key(0),
    "old_key": jax.random.PRNGKey(0),
    "none": None,
    "unused": jnp.ones(5),
    "empty": jnp.ones((0, 3)),
}


@pytest.mark.parametrize("name", FIXED)
def test_what_is_not_trained_changes_nothing(name):
    want = empirical.ntk(network, {"w": WEIGHTS}, X)
    params = {"w": WEIGHTS, "other": FIXED[name]}
    for method in METHODS:
        got = empirical.ntk(network, params, X, method=method)
        chex.assert_trees_all_close(got, want, rtol=1e-10)
    chex.assert_trees_all_close(
        empirical.diagonal(network, params, X), jnp.diagonal(want), rtol=1e-10
    )
    v = jnp.ones((4, 2))
    chex.assert_trees_all_close(
        products.ntk_vector_product(network, params, X, None, v),
        products.ntk_vector_product(network, {"w": WEIGHTS}, X, None, v),
        rtol=1e-10,
    )
    j = empirical.jacobian(network, params, X)
    traced = jnp.einsum("ncp,mcp->nm", j, j) / 2
    chex.assert_trees_all_close(traced, want, rtol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_a_python_float_is_a_parameter(method):
    def scaled(p, x):
        return p["s"] * network(p, x)

    got, want = (
        empirical.ntk(scaled, {"w": WEIGHTS, "s": s}, X, method=method)
        for s in (2.0, jnp.asarray(2.0))
    )
    chex.assert_trees_all_close(got, want, rtol=1e-12)


@pytest.mark.parametrize(
    ("of_params", "of_x", "wanted"),
    [
        ("float32", "float32", "float32"),
        ("float64", "float32", "float64"),
        ("float32", "float64", "float64"),
        ("bfloat16", "float32", "float32"),
        ("bfloat16", "bfloat16", "bfloat16"),
    ],
)
def test_the_type_of_the_result_is_the_same_by_every_method(of_params, of_x, wanted):
    def mixed(p, x):
        wide = jnp.promote_types(x.dtype, p["w"].dtype)
        return jnp.tanh(x.astype(wide) @ p["w"].astype(wide)) * p["scale"].astype(wide)

    params = {"w": WEIGHTS.astype(of_params), "scale": jnp.ones((1, 1), of_params)}
    x, v = X.astype(of_x), jnp.ones((4, 2), of_x)
    with jax.numpy_dtype_promotion("standard"):
        kernels = [empirical.ntk(mixed, params, x, method=m) for m in METHODS]
        others = [
            empirical.diagonal(mixed, params, x),
            products.ntk_vector_product(mixed, params, x, None, v),
            empirical.jacobian(mixed, params, x),
        ]
    assert [a.dtype.name for a in (*kernels, *others)] == [wanted] * 6
    rough = [np.asarray(k, np.float64) for k in kernels]
    allowed = 30 * float(jnp.finfo(wanted).eps) + 30 * float(jnp.finfo(of_params).eps)
    for other in rough[1:]:
        assert np.abs(other - rough[0]).max() <= allowed * np.abs(rough[0]).max()


def test_leaves_of_several_types_add_up():
    def two(p, x):
        return network(p, x) * p["scale"].astype(x.dtype)

    params = {"w": WEIGHTS, "scale": jnp.full((1, 1), 1.5, jnp.float32)}
    want = empirical.ntk(two, {**params, "scale": jnp.full((1, 1), 1.5)}, X)
    for method in METHODS:
        got = empirical.ntk(two, params, X, method=method)
        chex.assert_type(got, jnp.float64)
        np.testing.assert_allclose(got, want, rtol=1e-6)


BAD_IMAGES = {
    "dictionary": ({"image": X}, "x1 is a dict that is no array of numbers"),
    "text": ("cat.png", "x1 is a str that is no array"),
    "ragged": ([[1.0, 2.0], [3.0]], "x1 is a list that is no array"),
    "none": (None, "x1 "),
    "vector": (X[:, 0], "give at least one image"),
    "nothing": (X[:0], "give at least one image"),
    "bytes": ((255 * X).astype(jnp.uint8), "x1 has dtype uint8: convert the images"),
    "complex": (jax.lax.complex(X, X), "x1 has dtype complex128: convert the images"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
@pytest.mark.usefixtures("unchecked")
def test_what_is_no_batch_of_images_is_told(name):
    x, told = BAD_IMAGES[name]
    params = {"w": WEIGHTS}
    with pytest.raises(ValueError, match=told):
        empirical.ntk(network, params, x)
    with pytest.raises(ValueError, match=told.replace("x1 ", "x ")):
        empirical.jacobian(network, params, x)
    with pytest.raises(ValueError, match=told):
        products.ntk_vector_product(network, params, x, None, jnp.ones((4, 2)))


@pytest.mark.usefixtures("unchecked")
def test_lists_and_numpy_do():
    params = {"w": WEIGHTS}
    want = empirical.ntk(network, params, X)
    for x in (np.asarray(X), np.asarray(X).tolist()):
        chex.assert_trees_all_close(empirical.ntk(network, params, x), want)
    numpy = jax.tree.map(np.asarray, params)
    chex.assert_trees_all_close(empirical.ntk(network, numpy, X), want)


def test_what_is_no_parameter_is_told():
    for leaf, told in (("relu", "a str"), (np.asarray(["a"]), "an array of <U1")):
        with pytest.raises(ValueError, match=rf"params\['name'\] is {told}: keep"):
            empirical.ntk(network, {"w": WEIGHTS, "name": leaf}, X)
    with pytest.raises(ValueError, match="params has no floating-point leaf"):
        empirical.ntk(lambda p, x: x, {"step": 3}, X)


def test_outputs_that_have_no_kernel_are_told():
    params = {"w": WEIGHTS}
    for wrong, told in (
        (
            lambda p, x: jax.lax.complex(*[network(p, x)] * 2),
            "returns complex128 outputs",
        ),
        (lambda p, x: jnp.argmax(x @ p["w"], 1)[:, None], "returns int64 outputs"),
        (lambda p, x: network(p, x)[:, 0], "one row of outputs per image"),
        (lambda p, x: p["missing"], "KeyError 'missing'"),
        (lambda p, x: x.missing, "AttributeError"),
    ):
        with pytest.raises(ValueError, match=told):
            empirical.ntk(wrong, params, X)
        with pytest.raises(ValueError, match=told):
            products.ntk_vector_product(wrong, params, X, None, jnp.ones((4, 2)))


def test_weights_of_a_product_have_two_axes():
    call = products.ntk_vector_product
    for v in (
        jnp.ones(4),
        jnp.ones((4, 2), jnp.int32),
        jnp.ones((4, 2), jnp.complex64),
    ):
        with pytest.raises(ValueError, match=r"give one float weight per .*\(4, 2\)"):
            call(network, {"w": WEIGHTS}, X, None, v)


def test_real_networks_are_left_as_they_are():
    apply_fn, params, _ = mlp(1)
    assert arguments.real_apply_fn(apply_fn, params) is apply_fn
    chex.assert_trees_all_equal(arguments.real(params), params)


@pytest.mark.usefixtures("unchecked")
def test_text_is_no_answer_to_whether_outputs_are_traced():
    params = {"w": WEIGHTS}
    for fn in (empirical.ntk, empirical.plan, empirical.diagonal):
        with pytest.raises(ValueError, match="trace_outputs='no' is unknown"):
            fn(network, params, X, trace_outputs="no")
