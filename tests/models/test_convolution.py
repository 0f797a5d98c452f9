"""Every way to convolve is the plain one, and so are its gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy.models import convolution


@pytest.mark.parametrize("padding", [1, 3])
@pytest.mark.parametrize("channels", [1, 3, 12, 64])
def test_every_way_to_convolve_has_the_gradients_of_the_plain_one(channels, padding):
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(2, 6, 4, channels)))
    kernel = jnp.asarray(random.normal(size=(3, 3, channels, 6)))

    def slopes(convolve, argnums):
        def value(x, kernel):
            y = convolve(x, kernel, padding, None)
            return jnp.sum(jnp.sin(y)), y

        return jax.value_and_grad(value, argnums, has_aux=True)

    tiles = channels == 64 and padding == 1
    # What does not move costs nothing: one product for the value and each derivative,
    # or 16 in tiles.
    for argnums, products in ((0, 32 if tiles else 2), (1, 2), ((0, 1), 3)):
        plain = slopes(convolution.plain, argnums)(x, kernel)
        for other in (convolution.by_product, convolution.on_cpu):
            found = slopes(other, argnums)(x, kernel)
            chex.assert_trees_all_close(found, plain, rtol=1e-9, atol=1e-11)
        text = str(jax.make_jaxpr(slopes(other, argnums))(x, kernel))
        assert text.count("dot_general") == products


@pytest.mark.parametrize("shape", [(2, 6, 4, 5), (1, 2, 2, 3)])
def test_convolving_in_tiles_is_convolving(shape):
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=shape))
    kernel = jnp.asarray(random.normal(size=(3, 3, shape[-1], 4)))
    found = jax.jit(lambda x, k: convolution.by_tiles(x, k, None))(x, kernel)
    chex.assert_trees_all_close(found, convolution.plain(x, kernel, 1, None), rtol=1e-9)


@pytest.mark.parametrize("channels", [1, 3, 12, 64])
def test_convolving_by_the_fastest_way_is_convolving(channels):
    random = np.random.default_rng(1)
    kernel = jnp.asarray(random.normal(size=(3, 3, channels, 3)))
    for side, padding in ((4, 1), (5, 1), (4, 3)):
        x = jnp.asarray(random.normal(size=(2, side, 4, channels)))
        found = convolution.on_cpu(x, kernel, padding, None)
        expected = convolution.plain(x, kernel, padding, None)
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
    expected = convolution.plain(x, kernel, padding, None, stride=stride)
    chex.assert_trees_all_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("channels", [12, 64])
def test_derivatives_of_derivatives_are_those_of_the_plain_one(channels):
    random = np.random.default_rng(3)
    x = jnp.asarray(random.normal(size=(1, 4, 4, channels)))
    kernel = jnp.asarray(random.normal(size=(3, 3, channels, 2)))
    move, turn = (jnp.asarray(random.normal(size=a.shape)) for a in (x, kernel))

    def told(convolve):
        def value(x, kernel):
            return jnp.sum(jnp.sin(convolve(x, kernel, 1, None)))

        slope = jax.grad(value)
        return (
            jax.jvp(lambda x: value(x, kernel), (x,), (move,)),
            jax.jvp(lambda x: slope(x, kernel), (x,), (move,)),
            jax.grad(lambda k: jnp.sum(slope(x, k) * move))(kernel),
            jax.vmap(slope, (None, 0))(x, jnp.stack([kernel, turn])),
        )

    found = jax.jit(lambda: told(convolution.on_cpu))()
    chex.assert_trees_all_close(found, told(convolution.plain), rtol=1e-9, atol=1e-11)
