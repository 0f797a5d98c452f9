"""Networks that mix a batch are told from networks that merely round."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from ntk_privacy.kernels import empirical, model_checks

MIXES = "other outputs in a batch than alone"


@pytest.fixture(autouse=True)
def lenient():
    # Flax itself promotes ranks and dtypes.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


class Net(nn.Module):
    width: int = 256
    depth: int = 3
    dtype: object = jnp.float32
    norm: bool = False

    @nn.compact
    def __call__(self, x):
        x = x.reshape(x.shape[0], -1)
        for _ in range(self.depth):
            he = nn.initializers.he_normal()
            x = nn.Dense(self.width, dtype=self.dtype, kernel_init=he)(x)
            x = (x - x.mean(0)) / (x.std(0) + 1e-3) if self.norm else x
            x = nn.relu(x)
        return nn.Dense(10, dtype=self.dtype)(x)


X = jax.random.normal(jax.random.key(0), (6, 14, 14, 1), jnp.float32)


def centred(change, *, norm=False, closed=False):
    """f(a) - f(b), as the antisymmetric start has it; b trained too, or not."""
    model = Net(norm=norm)
    start = model.init(jax.random.key(1), X)["params"]

    def moved(leaf):
        noise = jax.random.normal(jax.random.key(leaf.size), leaf.shape, leaf.dtype)
        return leaf + change * (float(leaf.std()) + 1e-3) * noise

    if closed:
        fixed = start
        return (
            lambda p, x: (
                model.apply({"params": p}, x) - model.apply({"params": fixed}, x)
            )
        ), jax.tree.map(moved, start)
    return (
        lambda p, x: (
            (model.apply({"params": p["a"]}, x) - model.apply({"params": p["b"]}, x))
            / 2**0.5
        )
    ), {"a": jax.tree.map(moved, start), "b": start}


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("change", [0.0, 1e-6, 1e-5, 1e-4, 1e-2])
def test_centred_networks_are_accepted(change, closed):
    apply_fn, params = centred(change, closed=closed)
    model_checks.rows_apart(apply_fn, params, X)


@pytest.mark.parametrize("change", [1e-6, 1e-5, 1e-4, 1e-2])
def test_centred_networks_that_mix_are_not(change):
    apply_fn, params = centred(change, norm=True)
    with pytest.raises(ValueError, match=MIXES):
        model_checks.rows_apart(apply_fn, params, X)


@pytest.mark.parametrize("depth", [3, 20])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision(depth, dtype):
    model = Net(width=64, depth=depth, dtype=dtype)
    params = model.init(jax.random.key(1), X)["params"]

    def apply_fn(p, x):
        return model.apply({"params": p}, x)

    model_checks.rows_apart(apply_fn, params, X)
    mixing = Net(width=64, depth=depth, dtype=dtype, norm=True)
    with pytest.raises(ValueError, match=MIXES):
        model_checks.rows_apart(lambda p, x: mixing.apply({"params": p}, x), params, X)


@pytest.mark.parametrize("share", [1.0, 0.1, 5e-3])
def test_a_faint_mixture_is_one(share):
    w = jax.random.normal(jax.random.key(2), (196, 3), jnp.float32)

    def apply_fn(p, x):
        out = jnp.tanh(x.reshape(len(x), -1) @ p / 14)
        return out + share * out.mean(0, keepdims=True)

    with pytest.raises(ValueError, match=MIXES):
        model_checks.rows_apart(apply_fn, w, X)


def test_mixtures_without_a_derivative():
    """Dropout of a fixed key, and thresholds at a mean: no slope shows them."""
    w = jax.random.normal(jax.random.key(2), (196, 3), jnp.float32)
    flat = lambda x: x.reshape(len(x), -1)  # noqa: E731

    def dropped(p, x):
        return (
            flat(x) * jax.random.bernoulli(jax.random.key(1), 0.5, (len(x), 196))
        ) @ p

    def compared(p, x):
        return jnp.where(flat(x) > flat(x).mean(0, keepdims=True), 1.0, 0.0) @ p

    for apply_fn in (dropped, compared):
        with pytest.raises(ValueError, match=MIXES):
            empirical.ntk(apply_fn, w, X)


def test_it_is_looked_at_once_per_network():
    calls = []

    def apply_fn(p, x):
        calls.append(None)
        return x.reshape(len(x), -1) @ p

    w = jnp.ones((196, 2), jnp.float32)
    model_checks.rows_apart(apply_fn, w, X)
    first = len(calls)
    model_checks.rows_apart(apply_fn, 2 * w, X + 1)
    assert len(calls) == first > 0


def test_images_that_are_no_number_beside_it_do_not_matter():
    w = jnp.ones((196, 2), jnp.float32)
    model_checks.rows_apart(
        lambda p, x: jnp.log(x.reshape(len(x), -1)) @ p, w, jnp.abs(X)
    )
