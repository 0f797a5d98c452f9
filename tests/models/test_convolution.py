"""Every way to convolve is the plain one, and so are its derivatives of any order."""

import functools
import inspect
import os
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ntk_privacy import _versions
from ntk_privacy.kernels import equations
from ntk_privacy.models import conv_primitive, conv_products, convolution

# (images, height, width, channels), and channels behind: odd sides, more channels than
# behind, enough for tiles, fewer.
SHAPES = [
    ((2, 4, 6, 3), 5),
    ((2, 5, 3, 40), 2),
    ((3, 4, 4, 33), 36),
    ((2, 2, 2, 2), 40),
]


differentiated = pytest.mark.skipif(
    not _versions.OWN_PRIMITIVES,
    reason="this JAX does not differentiate such primitives, and they are not used",
)


def _drawn(seed, *shapes):
    random = np.random.default_rng(seed)
    return [jnp.asarray(random.normal(size=shape)) for shape in shapes]


def _plain(x, kernel):
    return conv_products.plain(x, kernel, 1, None)


@pytest.fixture
def small_cache(monkeypatch):
    """One image at a time, or of two groups two."""
    jax.clear_caches()
    monkeypatch.setattr(conv_products, "_CACHED", 2500)
    yield
    jax.clear_caches()


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("shape", "depth"), SHAPES)
def test_every_way_to_convolve_is_the_plain_one(shape, depth, groups):
    x, kernel, slopes = _drawn(
        0,
        (groups, *shape),
        (groups, 3, 3, shape[-1], depth),
        (groups, *shape[:3], depth),
    )

    def slope(x, kernel, slopes):
        return jax.vjp(functools.partial(_plain, x), kernel)[1](slopes)[0]

    ways = [conv_products.by_product, conv_products.fastest]
    kernel_ways = [conv_products.kernel_by_product, conv_products.kernel_fastest]
    if shape[1] % 2 == 0:
        ways.append(conv_products.by_tiles)
        kernel_ways.append(conv_products.kernel_by_tiles)
    found = jax.jit(lambda: [way(x, kernel, None) for way in ways])()
    for y in found:
        chex.assert_trees_all_close(y, jax.vmap(_plain)(x, kernel), rtol=1e-9)
    found = jax.jit(lambda: [way(x, slopes, None) for way in kernel_ways])()
    for y in found:
        expected = jax.vmap(slope)(x, kernel, slopes)
        chex.assert_trees_all_close(y, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("num_images", [4, 5])
def test_images_that_do_not_fit_go_in_blocks(num_images, small_cache):
    x, kernel, slopes = _drawn(
        1, (2, num_images, 4, 4, 33), (2, 3, 3, 33, 32), (2, num_images, 4, 4, 32)
    )
    for way, other in (
        (conv_products.fastest, kernel),
        (conv_products.kernel_fastest, slopes),
    ):
        text = str(jax.make_jaxpr(way, static_argnums=2)(x, other, None))
        assert f"length={-(-num_images // 2)}" in text
    chex.assert_trees_all_close(
        conv_products.fastest(x, kernel, None),
        conv_products.by_tiles(x, kernel, None),
        rtol=1e-12,
        atol=1e-12,
    )
    chex.assert_trees_all_close(
        conv_products.kernel_fastest(x, slopes, None),
        conv_products.kernel_by_tiles(x, slopes, None),
        rtol=1e-12,
        atol=1e-12,
    )


@differentiated
@pytest.mark.parametrize(("shape", "depth"), SHAPES)
def test_derivatives_of_every_order_are_those_of_the_plain_one(
    shape, depth, small_cache
):
    x, kernel, move, turn = _drawn(2, *[shape, (3, 3, shape[-1], depth)] * 2)
    both = (x, kernel)

    def told(way):
        def value(x, kernel):
            return jnp.sum(jnp.sin(way(x, kernel)))

        slope = jax.grad(value, (0, 1))

        def along(x, kernel):
            return optax.tree_utils.tree_vdot(slope(x, kernel), (move, turn))

        return (
            way(*both),
            slope(*both),
            jax.jvp(slope, both, (move, turn)),
            jax.grad(along, (0, 1))(*both),
            jax.linearize(slope, *both)[1](move, turn),
            jax.grad(jax.checkpoint(along))(*both),
        )

    found = jax.jit(told, static_argnums=0)(
        lambda x, kernel: conv_primitive.convolve(x, kernel, None)
    )
    expected = jax.jit(told, static_argnums=0)(_plain)
    chex.assert_trees_all_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("shape", "depth"), SHAPES[:3])
def test_mapped_over_images_kernels_or_both(shape, depth):
    x, kernel = _drawn(3, (2, *shape), (2, 3, 3, shape[-1], depth))

    def told(way):
        def value(x, kernel):
            return jnp.sum(jnp.sin(way(x, kernel)))

        slope = jax.grad(value, (0, 1))
        maps = [
            (functools.partial(jax.vmap, in_axes=axes), a, b)
            for axes, a, b in (
                ((0, None), x, kernel[0]),
                ((None, 0), x[0], kernel),
                ((0, 0), x, kernel),
            )
        ]
        before = [mapped(slope)(a, b) for mapped, a, b in maps]
        after = [
            jax.grad(lambda *both, m=mapped: jnp.sum(m(value)(*both) ** 2), (0, 1))(
                a, b
            )
            for mapped, a, b in maps
        ]
        twice = [
            jax.vmap(jax.vmap(slope, inner), outer)(x, kernel)
            for inner, outer in (((0, None), (None, 0)), ((None, 0), (0, None)))
        ]
        uneven = jax.vmap(way, (3, 4), 2)(
            jnp.moveaxis(x, 0, 3), jnp.moveaxis(kernel, 0, 4)
        )
        return before, after, twice, uneven

    found = jax.jit(told, static_argnums=0)(
        lambda x, kernel: conv_primitive.convolve(x, kernel, None)
    )
    expected = jax.jit(told, static_argnums=0)(_plain)
    chex.assert_trees_all_close(found, expected, rtol=1e-9, atol=1e-9)


def test_what_does_not_move_costs_nothing():
    x, kernel = _drawn(4, (2, 4, 4, 3), (3, 3, 3, 6))

    def value(x, kernel):
        return jnp.sum(jnp.sin(conv_primitive.convolve(x, kernel, None)))

    for argnums, count in ((0, 2), (1, 2), ((0, 1), 3)):
        text = str(jax.make_jaxpr(jax.value_and_grad(value, argnums))(x, kernel))
        assert text.count("convolve_3x3") == count


@differentiated
def test_types_meet_as_in_a_product():
    x, kernel = _drawn(5, (1, 2, 2, 1), (3, 3, 1, 2))
    x = x.astype(jnp.float32)

    def value(x):
        return jnp.sum(conv_primitive.convolve(x, kernel, None))

    with pytest.raises(jax.dtypes.TypePromotionError):
        value(x)
    with jax.numpy_dtype_promotion("standard"):
        found, slope = jax.value_and_grad(value)(x)
    assert (found.dtype, slope.dtype) == (jnp.float64, jnp.float32)


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_padding_is_that_of_the_plain_one(padding):
    for side in (4, 5):
        x, kernel = _drawn(6, (2, side, 4, 3), (3, 3, 3, 4))
        found = convolution.convolve(x, kernel, padding, None)
        expected = conv_products.plain(x, kernel, padding, None)
        chex.assert_trees_all_close(found, expected, rtol=1e-9, atol=1e-12)


def test_pooling_by_slices_is_a_mean_with_its_gradients():
    x = jax.random.normal(jax.random.key(0), (2, 6, 4, 3), jnp.float64)

    def plainly(x):
        return x.reshape(2, 3, 2, 2, 2, 3).mean((2, 4))

    def told(pool):
        return jax.value_and_grad(lambda x: jnp.sum(jnp.sin(pool(x))))(x)

    chex.assert_trees_all_close(convolution.average(x), plainly(x), rtol=1e-12)
    chex.assert_trees_all_close(
        told(convolution.average), told(plainly), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (1, 2, 0), (7, 2, 3)]
)
def test_convolving_with_strides_is_convolving(size, stride, padding):
    random = np.random.default_rng(2)
    x = jnp.asarray(random.normal(size=(2, 9, 8, 3)))
    kernel = jnp.asarray(random.normal(size=(size, size, 3, 4)))
    found = convolution.convolve_strided(
        x, kernel, stride=stride, padding=padding, precision=None
    )
    expected = conv_products.plain(x, kernel, padding, None, stride=stride)
    chex.assert_trees_all_close(found, expected, rtol=1e-9, atol=1e-12)


def test_no_images_and_wrong_kernels():
    x, kernel = _drawn(7, (0, 4, 4, 33), (3, 3, 33, 36))
    way = functools.partial(conv_primitive.convolve, precision=None)
    both = jax.vjp(way, x, kernel)
    chex.assert_trees_all_equal(both[0], jnp.zeros((0, 4, 4, 36)))
    chex.assert_trees_all_equal(both[1](both[0])[1], jnp.zeros(kernel.shape))
    chex.assert_shape(jax.vmap(way, (0, None))(x[:, None], kernel), (0, 1, 4, 4, 36))
    unchecked = inspect.unwrap(conv_primitive.convolve)
    for shape in ((5, 5, 33, 2), (3, 3, 32, 2)):
        with pytest.raises(ValueError, match=r"must be \(3, 3, 33, k\)"):
            unchecked(x, jnp.zeros(shape), None)
    with pytest.raises(TypeError, match="of type int"):
        unchecked(x.astype(int), kernel.astype(int), None)


def test_what_is_not_mapped_is_not_repeated():
    x, kernel, slopes = _drawn(8, (2, 5, 4, 4, 3), (3, 3, 3, 2), (2, 5, 4, 4, 2))

    def outer(way, axes):
        return jax.vmap(jax.vmap(way), axes)

    def value(x, kernel):
        return conv_primitive._VALUE.bind(x, kernel, precision=None)

    def slope(x, slopes):
        return conv_primitive._KERNEL.bind(x, slopes, precision=None)

    kernels = jnp.broadcast_to(kernel[None, None], (5, 1, *kernel.shape))
    for way, both in (
        (value, (x[:, :, None, None], kernels)),
        (slope, (x[:, :, None, None], slopes[0][:, None, None])),
    ):
        text = str(jax.make_jaxpr(outer(way, (0, None)))(*both))
        # Groups are those of the inner map, not ten.
        assert "f64[10," not in text


@differentiated
@pytest.mark.parametrize("shape", [(2, 4, 4, 3), (8, 4, 4, 33)])
def test_within_shard_map_the_gradient_is_summed_over_devices(shape, small_cache):
    x, kernel = _drawn(9, shape, (3, 3, shape[-1], 36))
    automatic = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((1,), ("images",), axis_types=automatic)
    rows, whole = jax.sharding.PartitionSpec("images"), jax.sharding.PartitionSpec()

    def slopes(x, kernel):
        def value(x, kernel):
            y = conv_primitive.convolve(x, kernel, None)
            return jax.lax.psum(jnp.sum(jnp.sin(y)), "images")

        return jax.grad(value, (0, 1))(x, kernel)

    shared = jax.shard_map(
        slopes, mesh=mesh, in_specs=(rows, whole), out_specs=(rows, whole)
    )
    expected = jax.grad(lambda *both: jnp.sum(jnp.sin(_plain(*both))), (0, 1))
    chex.assert_trees_all_close(
        jax.jit(shared)(x, kernel), expected(x, kernel), rtol=1e-9, atol=1e-11
    )


TWO = """
import jax, jax.numpy as jnp
from jax.sharding import PartitionSpec
from ntk_privacy.models import conv_primitive, conv_products

conv_products._CACHED = 900
mesh = jax.make_mesh((2,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
x = jax.random.normal(jax.random.key(0), (8, 4, 4, 33))
kernel = jax.random.normal(jax.random.key(1), (3, 3, 33, 36))
rows, whole = PartitionSpec("i"), PartitionSpec()

def value(x, kernel):
    return jnp.sum(jnp.sin(conv_primitive.convolve(x, kernel, None)))

def summed(x, kernel):
    return jax.grad(lambda *both: jax.lax.psum(value(*both), "i"), (0, 1))(x, kernel)

specs = {"mesh": mesh, "in_specs": (rows, whole), "out_specs": (rows, whole)}
found = jax.jit(jax.shard_map(summed, **specs))(x, kernel)
for a, b in zip(found, jax.grad(value, (0, 1))(x, kernel)):
    assert jnp.allclose(a, b, rtol=1e-4, atol=1e-3)
place = jax.NamedSharding(mesh, rows)
forward = jax.jit(lambda x: conv_primitive.convolve(x, kernel, None))
assert forward(jax.device_put(x, place)).sharding.is_equivalent_to(place, 4)
print("equal")
"""


@differentiated
def test_two_devices_share_the_images():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run(
        [sys.executable, "-c", TWO],
        capture_output=True,
        text=True,
        env=os.environ | flags | {"JAX_PLATFORMS": "cpu"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "equal"


def test_its_products_are_counted_as_those_of_a_plain_sum():
    x, kernel, slopes = _drawn(10, (1, 2, 4, 6, 3), (1, 3, 3, 3, 5), (1, 2, 4, 6, 5))
    expected = 2 * (2 * 4 * 6) * 9 * 3 * 5
    for made, both in (
        (conv_primitive._VALUE, (x, kernel)),
        (conv_primitive._KERNEL, (x, slopes)),
    ):
        bound = functools.partial(made.bind, precision=None)
        assert equations.flops(jax.make_jaxpr(bound)(*both).jaxpr) == expected
