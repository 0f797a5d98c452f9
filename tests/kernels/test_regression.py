"""Regression, KIP and RKIP in float32 on near duplicates, against float64."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from ntk_privacy import _checks, kip, rkip
from ntk_privacy.kernels import host, infinite, infinite_conv, regression

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


def test_targets_and_duals_that_are_none_are_told(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    x, y = near_duplicates(0.5)
    duals = functools.partial(regression.duals, square, x)
    with pytest.raises(ValueError, match="y has dtype int32: convert it"):
        duals(y.astype(jnp.int32))
    with pytest.raises(ValueError, match="y has NaN or infinite values in 1 rows"):
        duals(y.at[1].set(jnp.nan))
    with pytest.raises(ValueError, match="cannot be traced"):
        jax.jit(duals)(y)
    with pytest.raises(ValueError, match="leave float32: scale the images up"):
        regression.duals(lambda a, b: 1e-38 * square(a, b), x, 1e5 * y, diag_reg=1e-3)
    with pytest.raises(ValueError, match="duals has shape"):
        regression.predict(square, x, y[:, 0], x)


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


def by_arccos(x1, x2=None):
    """A user's kernel of depth one, blunt near coincidence and in float32 only."""
    same = x2 is None
    x1, x2 = (v.reshape(len(v), -1).astype("f4") for v in (x1, x1 if same else x2))
    n1, n2 = jnp.linalg.norm(x1, axis=1), jnp.linalg.norm(x2, axis=1)
    rho = jnp.clip(x1 @ x2.T / (n1[:, None] * n2[None]), -1, 1 - 6e-8)
    angle = jnp.arccos(rho)
    k = n1[:, None] * n2[None] / x1.shape[1] * rho * (1 - angle / jnp.pi)
    own = jnp.sum(x1 * x1, axis=1) / x1.shape[1]
    return jnp.where(jnp.eye(len(x1), dtype=bool), own[:, None], k) if same else k


def test_a_kernel_that_is_blunt_near_copies_needs_a_ridge_beyond_its_error():
    kernel_fn = by_arccos
    (x, y), far = near_duplicates(0.0), near_duplicates(1.0)[0]
    error = regression.error_at_copies(kernel_fn, x, host.kernel(kernel_fn, x))
    assert 5e-5 < error < 1e-3
    careful = regression.error_at_copies(
        KERNELS["relu"], x, host.kernel(KERNELS["relu"], x)
    )
    assert careful < 1e-14
    with pytest.raises(ValueError, match=r"images \d+ and \d+ coincide") as told:
        regression.duals(kernel_fn, x, y, diag_reg=1e-5)
    # The ridge that it names is enough, and images that are apart need none of it.
    remedy = float(str(told.value).split("such as ")[1].split(",")[0])
    assert remedy > 8 * error
    assert np.isfinite(regression.duals(kernel_fn, x, y, diag_reg=remedy)).all()
    assert np.isfinite(regression.duals(kernel_fn, far, y, diag_reg=1e-5)).all()


def test_what_a_kernel_fails_with_is_told_and_not_tried_again():
    x, _ = near_duplicates(0.1)
    asked = []

    def fails(x1, x2):
        asked.append(x1.dtype)
        if _checks.concrete(x1):
            raise ValueError("of its own")
        return x1.reshape(len(x1), -1) @ x2.reshape(len(x2), -1).T

    with pytest.raises(ValueError, match="of its own"):
        host.kernel(fails, x)
    assert set(asked) == {jnp.dtype(jnp.float64)}


def test_rkip_asks_the_same_ridge_for_its_targets():
    x, y = near_duplicates(0.0)
    options = {"key": jax.random.key(0), "images_per_class": 1, "num_steps": 1}
    with pytest.raises(ValueError, match=r"x_target is singular .* coincide"):
        rkip.distill(x, y, kernel_fn=by_arccos, diag_reg=1e-5, **options)
    out = rkip.distill(x, y, kernel_fn=KERNELS["relu"], diag_reg=1e-5, **options)
    assert jnp.isfinite(out.losses).all()


def test_a_kernel_by_numpy_is_asked_in_float64():
    x, _ = near_duplicates(0.1)

    def by_numpy(x1, x2):
        a, b = (np.asarray(v).reshape(len(v), -1) for v in (x1, x2))
        assert a.dtype == np.float64
        return jnp.asarray(a @ b.T)

    assert host.kernel(by_numpy, x).shape == (16, 16)


def test_float64_is_for_processors():
    x, _ = near_duplicates(0.1)
    places = []

    def kernel_fn(x1, x2):
        if not isinstance(x1, jax.core.Tracer):
            places.append((x1.dtype, *(d.platform for d in x1.devices())))
            places.append(jax.config.jax_default_device)
        return x1.reshape(len(x1), -1) @ x2.reshape(len(x2), -1).T

    host.kernel(kernel_fn, x)
    assert places[0] == (jnp.float64, "cpu")
    # As it must be said where a machine has others.
    assert places[1].platform == "cpu"


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
        if distance == 0:
            # Copies with opposite labels: both regressors are 0.
            assert loss < 1e-4


def square(x1, x2):
    x1, x2 = (x.reshape(len(x), -1) for x in (x1, x2))
    return (1 + x1 @ x2.T / x1.shape[1]) ** 2


def test_terms_can_be_traced():
    s, y_s = near_duplicates(0.5, 2)
    t, y_t = near_duplicates(0.5, 3, seed=1)
    sets = wide(s, y_s, t, y_t)
    # One that is quick to compile.
    fn = functools.partial(rkip.terms, kernel_fn=square, diag_reg=1e-3)
    np.testing.assert_allclose(jax.jit(fn)(*sets), fn(*sets), rtol=1e-6)


@pytest.mark.parametrize(("fn", "within"), [(rkip.loss, 0.03), (kip.loss, 0.03)])
def test_traced_losses_and_gradients_in_float32_are_near_those_of_float64(fn, within):
    sets = (*near_duplicates(1e-4, 3), *near_duplicates(1e-4, seed=1))
    value = jax.value_and_grad(functools.partial(fn, kernel_fn=KERNELS["relu"]))
    found = jax.tree.leaves((value(*sets), value(*wide(*sets))))
    loss, ours, want, exact = (np.asarray(v, np.float64) for v in found)
    np.testing.assert_allclose(loss, want, rtol=within)
    assert np.linalg.norm(ours - exact) < within * np.linalg.norm(exact)
