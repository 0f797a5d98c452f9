"""Regression, KIP and RKIP in float32 on near duplicates, against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy import kip, rkip
from ntk_privacy.kernels import host, infinite, infinite_conv, regression

pytestmark = pytest.mark.optimized

KERNELS = {
    "relu": infinite.mlp(2),
    "deep erf": infinite.mlp(8, activation="erf", bias_std=0.1),
    "pooled": infinite_conv.convnet(1, head="global_pool"),
}


def near_duplicates(distance, n=8, seed=0):
    """Images, each twice or nearly so, and labels that contradict each other."""
    rng = np.random.default_rng(seed)
    base = rng.random((n, 5, 5, 1)).astype(np.float32)
    again = base + distance * rng.normal(size=base.shape).astype(np.float32)
    x = np.concatenate([base, again.astype(np.float32)])
    y = np.sign(rng.normal(size=(n, 1))).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(np.concatenate([y, -y]))


def wide(*arrays):
    return [jnp.asarray(a, jnp.float64) for a in arrays]


@pytest.mark.parametrize("name", KERNELS)
def test_predictions_in_float32_are_those_of_float64_or_refused(name):
    kernel_fn = KERNELS[name]
    refused, ridges = [], []
    for distance in (0.0, 1e-4, 1e-2):
        x, y = near_duplicates(distance)
        for diag_reg in (0.0, 1e-7, 1e-5, 1e-3):
            try:
                duals = regression.duals(kernel_fn, x, y, diag_reg=diag_reg)
            except ValueError as error:
                refused.append(str(error))
                ridges.append(diag_reg)
                continue
            ours = regression.predict(kernel_fn, x, duals, x)
            assert duals.dtype == ours.dtype == jnp.float32
            exact = regression.duals(kernel_fn, *wide(x, y), diag_reg=diag_reg)
            np.testing.assert_allclose(duals, exact, rtol=0, atol=2e-7 * exact.max())
            # The slow twin, with nothing of ours but the kernel.
            k = np.asarray(kernel_fn(wide(x)[0]))
            ridged = k + diag_reg * np.trace(k) / len(k) * np.eye(len(k))
            want = k @ np.linalg.solve(ridged, np.asarray(y, np.float64))
            np.testing.assert_allclose(ours, want, atol=0.1)
            if diag_reg == 1e-3:
                np.testing.assert_allclose(ours, want, atol=1e-3)
    assert refused
    assert max(ridges) < 1e-5
    assert all("raise diag_reg, such as 1e-5" in told for told in refused)


def test_duals_too_large_for_their_dtype_are_refused_with_a_remedy():
    x, y = near_duplicates(0.0)
    with pytest.raises(ValueError, match=r"such as 1e-5.* float64|singular"):
        regression.duals(KERNELS["relu"], x, y, diag_reg=1e-6)
    regression.duals(KERNELS["relu"], *wide(x, y), diag_reg=1e-6)
    # On the host: not every processor's compiler knows half precision.
    half, y = (jnp.asarray(np.asarray(a).astype(np.float16)) for a in (x, y))
    with pytest.raises(ValueError, match="singular with diag_reg=1e-05"):
        regression.duals(KERNELS["relu"], half, y, diag_reg=1e-5)
    found = regression.duals(KERNELS["relu"], half, y, diag_reg=0.1)
    assert found.dtype == jnp.float16
    assert np.isfinite(np.asarray(found)).all()


def test_one_image_and_copies_that_agree():
    x, _ = near_duplicates(0.0)
    y = jnp.ones((1, 1), jnp.float32)
    one = regression.duals(KERNELS["relu"], x[:1], y, diag_reg=0.0)
    predicted = regression.predict(KERNELS["relu"], x[:1], one, x[:1])
    np.testing.assert_allclose(predicted, 1.0, rtol=1e-6)
    twice = x[jnp.asarray([0, 0, 1])]
    y = jnp.asarray([[1.0], [1.0], [-1.0]], jnp.float32)
    duals = regression.duals(KERNELS["relu"], twice, y)
    predicted = regression.predict(KERNELS["relu"], twice, duals, twice)
    np.testing.assert_allclose(predicted, y, atol=1e-3)
    np.testing.assert_allclose(duals[0], duals[1], rtol=1e-5)


def test_a_kernel_for_float32_alone_is_asked_in_float32():
    def narrow(x1, x2):
        if x1.dtype != jnp.float32:
            raise TypeError("float32 only")
        return KERNELS["relu"](x1, x2)

    x, y = near_duplicates(0.1)
    assert host.kernel(narrow, x).dtype == np.float64
    np.testing.assert_allclose(
        regression.duals(narrow, x, y),
        regression.duals(KERNELS["relu"], x, y),
        rtol=0.05,
    )


@pytest.mark.parametrize("name", ["relu", "pooled"])
@pytest.mark.parametrize("distance", [0.0, 1e-4])
def test_losses_and_terms_in_float32_are_those_of_float64(name, distance):
    options = {"kernel_fn": KERNELS[name]}
    (s, y_s), (t, y_t) = near_duplicates(distance, 3), near_duplicates(distance, seed=1)
    sets = (s, y_s, t, y_t)
    for diag_reg in (1e-5, 1e-3):
        loss, kip_loss = (
            fn(*sets, diag_reg=diag_reg, **options) for fn in (rkip.loss, kip.loss)
        )
        want = rkip.loss(*wide(*sets), diag_reg=diag_reg, **options)
        assert loss.dtype == jnp.float32
        np.testing.assert_allclose(loss, want, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(
            kip_loss, kip.loss(*wide(*sets), diag_reg=diag_reg, **options), rtol=1e-5
        )
        parts = rkip.terms(*sets, diag_reg=diag_reg, **options)
        # A norm is no less than 0.
        assert min(parts) >= 0
        np.testing.assert_allclose(sum(parts), loss, rtol=1e-5, atol=1e-4)
        if distance == 0 and name == "relu":
            # Copies with opposite labels: both regressors are 0.
            assert loss < 1e-4


@pytest.mark.parametrize(("fn", "within"), [(rkip.loss, 0.03), (kip.loss, 0.03)])
def test_traced_losses_and_gradients_in_float32_are_near_those_of_float64(fn, within):
    sets = (*near_duplicates(1e-4, 3), *near_duplicates(1e-4, seed=1))
    value = jax.value_and_grad(functools.partial(fn, kernel_fn=KERNELS["relu"]))
    found = jax.tree.leaves((value(*sets), value(*wide(*sets))))
    loss, ours, want, exact = (np.asarray(v, np.float64) for v in found)
    np.testing.assert_allclose(loss, want, rtol=within)
    assert np.linalg.norm(ours - exact) < within * np.linalg.norm(exact)
