"""Infinite convolutional kernels: slow twins, symmetry, gradients, faults."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from ntk_privacy.kernels import infinite, infinite_conv
from ntk_privacy.kernels.dual_activation import dual
from ntk_privacy.kernels.infinite_conv import AvgPool, Conv, Flatten, GlobalAvgPool

S, B = 2**0.5, 0.1


def images(n, *, seed=0, shape=(4, 4, 2), dtype=jnp.float64):
    return jax.random.normal(jax.random.key(seed), (n, *shape), dtype)


def relu(k, q1, q2, *, same):
    """A and B; of one image with itself, a pixel with itself has correlation 1."""
    q1, q2 = (np.broadcast_to(q, k.shape) for q in (q1, q2))
    out = dual("homogeneous", *(jnp.asarray(v) for v in (k, q1, q2)))
    n = len(k)
    own = np.eye(n * n, dtype=bool).reshape(k.shape) & same
    return np.where(own, q1 / 2, out.product), np.where(own, 0.5, out.slope)


def pixel_by_pixel(x1, x2, depth, head, pooling):
    """One pair of images, every pixel with every other, by loops over positions."""
    same = x1 is x2

    def convolve(k):
        padded = np.pad(k, 1)
        out = np.zeros_like(k)
        n = k.shape[0]
        for y, x, v, u in np.ndindex(n, n, n, n):
            out[y, x, v, u] = sum(
                padded[y + i, x + j, v + i, u + j] for i in range(3) for j in range(3)
            )
        return out / 9

    def pool(k):
        n = k.shape[0] // 2
        return k.reshape(n, 2, n, 2, n, 2, n, 2).mean(axis=(1, 3, 5, 7))

    def covariance(a, b):
        return np.einsum("ijc,klc->ijkl", a, b) / a.shape[-1]

    pairs = {"12": (x1, x2), "11": (x1, x1), "22": (x2, x2)}
    k = {name: covariance(*pair) for name, pair in pairs.items()}
    t = np.zeros_like(k["12"])
    for _ in range(depth):
        k = {name: S**2 * convolve(v) + B**2 for name, v in k.items()}
        t = S**2 * convolve(t) + k["12"]
        q = {name: np.einsum("ijij->ij", k[name + name]) for name in "12"}
        left, right = q["1"][:, :, None, None], q["2"]
        t = t * relu(k["12"], left, right, same=same)[1]
        for name, v in k.items():
            alike = same or name[0] == name[1]
            left, right = q[name[0]][:, :, None, None], q[name[1]]
            k[name] = relu(v, left, right, same=alike)[0]
        if pooling == "avg":
            k, t = {name: pool(v) for name, v in k.items()}, pool(t)
    flatten = head == "flatten"
    nngp, ntk = (
        np.einsum("ijij->ij", v).mean() if flatten else v.mean() for v in (k["12"], t)
    )
    return S**2 * (nngp + ntk) + B**2


@pytest.mark.parametrize("head", ["flatten", "global_pool"])
@pytest.mark.parametrize("pooling", ["none", "avg"])
def test_equals_loops_over_pixels(head, pooling):
    x1, x2 = images(2), images(1, seed=1)
    kernel_fn = infinite_conv.convnet(
        2, weight_std=S, bias_std=B, head=head, pooling=pooling
    )
    expected = [
        pixel_by_pixel(np.asarray(a), np.asarray(x2[0]), 2, head, pooling) for a in x1
    ]
    np.testing.assert_allclose(kernel_fn(x1, x2)[:, 0], expected, rtol=1e-12)


@pytest.mark.parametrize("head", ["flatten", "global_pool"])
@pytest.mark.parametrize("pooling", ["none", "avg"])
def test_an_image_with_itself_is_exact(head, pooling):
    x = images(2)
    kernel_fn = infinite_conv.convnet(
        2, weight_std=S, bias_std=B, head=head, pooling=pooling
    )
    expected = [pixel_by_pixel(a, a, 2, head, pooling) for a in np.asarray(x)]
    low = x.astype(jnp.float32)
    for k, tolerance in ((kernel_fn(x), 1e-12), (kernel_fn(low), 1e-6)):
        np.testing.assert_allclose(jnp.diagonal(k), expected, rtol=tolerance)
    chex.assert_trees_all_equal(kernel_fn(x, x), kernel_fn(x))


def test_a_zero_image_has_one_value():
    x = images(2).at[0].set(0.0)
    kernel_fn = infinite_conv.convnet(
        1, head="global_pool", parametrization="standard", width=4
    )
    chex.assert_trees_all_close(kernel_fn(x)[0], kernel_fn(x, x.copy())[0], rtol=1e-12)


def test_filter_as_large_as_the_image_is_fully_connected():
    x1, x2 = images(3), images(2, seed=1)
    layers = (
        Conv((4, 4), padding="VALID", weight_std=S, bias_std=B),
        infinite.relu,
        Flatten(),
        infinite.Dense(S, B),
    )
    expected = infinite.mlp(1, weight_std=S, bias_std=B)(x1, x2)
    ours = infinite_conv.kernel(layers)(x1, x2)
    chex.assert_trees_all_close(ours, expected, rtol=1e-12)


@pytest.mark.parametrize("head", [Flatten(), GlobalAvgPool()])
def test_circular_kernels_do_not_see_shifts_of_both(head):
    x = images(2)
    moved = jnp.roll(x, (1, 2), axis=(1, 2))
    layers = (Conv(padding="CIRCULAR"), infinite.relu, Conv(padding="CIRCULAR"))
    kernel_fn = infinite_conv.kernel((*layers, infinite.relu, head, infinite.Dense()))
    chex.assert_trees_all_close(
        kernel_fn(moved, moved[:1]), kernel_fn(x, x[:1]), rtol=1e-12
    )
    if isinstance(head, GlobalAvgPool):
        same = kernel_fn(moved, x[:1])
        chex.assert_trees_all_close(same, kernel_fn(x, x[:1]), rtol=1e-7)


@pytest.mark.parametrize("head", ["flatten", "global_pool"])
@pytest.mark.parametrize("count", [5, 70])
def test_one_argument_equals_two_and_is_positive(head, count):
    x = images(count)
    kernel_fn = infinite_conv.convnet(1, head=head, pooling="none", bias_std=B)
    k = kernel_fn(x)
    chex.assert_shape(k, (count, count))
    chex.assert_trees_all_close(k, k.T, rtol=1e-12)
    # The kink of arccos turns rounding of size eps into sqrt(eps).
    chex.assert_trees_all_close(k, kernel_fn(x, x.copy()), rtol=3e-8)
    assert np.linalg.eigvalsh(k).min() > -1e-9 * np.trace(k)


def test_tiles_do_not_show(monkeypatch):
    x1, x2 = images(5), images(4, seed=1)
    make = {"head": "global_pool", "pooling": "avg", "activation": "gelu"}
    whole = infinite_conv.convnet(1, extra_layer=True, **make)
    expected = whole(x1, x2), whole(x1)
    monkeypatch.setattr(infinite_conv, "_TILE", 4 * 256)
    infinite_conv._conv_kernels.clear_cache()
    ours = whole(x1, x2), whole(x1)
    infinite_conv._conv_kernels.clear_cache()
    chex.assert_trees_all_close(ours, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("head", "pooling"), [("flatten", "none"), ("global_pool", "avg")]
)
def test_gradients_finite_at_equal_and_zero_images(head, pooling):
    x = images(3).at[1].set(0.0).at[2].set(images(1)[0]).astype(jnp.float32)
    kernel_fn = infinite_conv.convnet(1, head=head, pooling=pooling)
    both = jax.jit(jax.grad(lambda a, b: kernel_fn(a, b).sum(), (0, 1)))(x, x)
    one = jax.jit(jax.grad(lambda a: kernel_fn(a).sum()))(x)
    chex.assert_tree_all_finite((both, one))


@pytest.mark.parametrize("pooling", ["none", "avg"])
def test_gradients_equal_finite_differences(pooling):
    kernel_fn = infinite_conv.convnet(
        1, extra_layer=True, pooling=pooling, activation="gelu", bias_std=B
    )
    jitted = jax.jit(kernel_fn)
    check_grads(
        jitted, (images(2), images(1, seed=1)), order=1, modes=["rev"], rtol=1e-5
    )


def test_strides_and_residual():
    x = images(3)
    conv, half = Conv(weight_std=S), Conv((1, 1), (2, 2), weight_std=S)
    down = (infinite.relu, Conv((3, 3), (2, 2), weight_std=S))
    layers = (conv, infinite.Sum(((half,), down)), GlobalAvgPool(), infinite.Dense())
    total = infinite_conv.kernel(layers, get="nngp")(x, x)
    branches = [
        infinite_conv.kernel(
            (conv, *branch, GlobalAvgPool(), infinite.Dense()), get="nngp"
        )(x, x)
        for branch in ((half,), down)
    ]
    chex.assert_trees_all_close(total, branches[0] + branches[1], rtol=1e-12)


def test_kip_networks():
    x = images(2, shape=(8, 8, 3))
    ours = infinite_conv.convnet(
        1, weight_std=S, bias_std=B, pooling="avg", extra_layer=True
    )
    conv = Conv(weight_std=S, bias_std=B)
    block = (conv, infinite.relu)
    layers = (*block, *block, AvgPool(), Flatten(), infinite.Dense(S, B))
    chex.assert_trees_all_close(ours(x), infinite_conv.kernel(layers)(x), rtol=1e-12)
    with pytest.raises(ValueError, match="A window of 8 pixels does not fit into 2"):
        infinite_conv.myrtle(5)(x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "stages"), [(5, "CCPCPC"), (7, "CCPCCPCC"), (10, "CCCPCCCPCCC")]
)
def test_myrtle_networks(depth, stages):
    x1, x2 = images(1, shape=(32, 32, 3)), images(1, seed=1, shape=(32, 32, 3))
    block = (Conv(weight_std=S, bias_std=B), infinite.relu)
    layers = [layer for s in stages for layer in (block if s == "C" else (AvgPool(),))]
    layers += [AvgPool((8, 8)), Flatten(), infinite.Dense(S, B)]
    assert stages.count("C") == depth - 1
    ours = infinite_conv.myrtle(depth)(*(x.astype(jnp.float32) for x in (x1, x2)))
    expected = infinite_conv.kernel(layers)(x1, x2)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_bad_settings_and_images_are_named():
    with pytest.raises(ValueError, match="padding='REFLECT' is unknown: use one of"):
        infinite_conv.convnet(2, padding="REFLECT")
    with pytest.raises(ValueError, match=r"bias_std=-1\.0 must be at least 0"):
        infinite_conv.convnet(2, bias_std=-1.0)
    with pytest.raises(ValueError, match="give the number of hidden"):
        infinite_conv.convnet(2, parametrization="standard")
    with pytest.raises(ValueError, match=r"add Flatten\(\) or GlobalAvgPool"):
        infinite_conv.kernel((Conv(),))
    kernel_fn = infinite_conv.convnet(1)
    with pytest.raises(ValueError, match="resize or convert one of them"):
        kernel_fn(images(2), images(2, shape=(4, 4, 3)))
    with pytest.raises(ValueError, match="x2 holds NaN"):
        kernel_fn(images(2), images(2) * jnp.nan)
    with pytest.raises(ValueError, match="end in Flatten"):
        infinite_conv.kernel((Flatten(),))(images(2))
