"""Products with the NTK in blocks: equal to the kernel times the vector."""

import chex
import jax
import jax.numpy as jnp
import pytest

from ntk_privacy.kernels import empirical, products
from ntk_privacy.models import MLP

MODEL = MLP((6, 5), 2)


def setup():
    params = MODEL.init_params(jax.random.key(0), (2, 2, 1), jnp.float64)
    x1 = jax.random.normal(jax.random.key(1), (7, 2, 2, 1))
    x2 = jax.random.normal(jax.random.key(2), (5, 2, 2, 1))
    v = jax.random.normal(jax.random.key(3), (5, 2))
    return params, x1, x2, v


@pytest.mark.parametrize("budget", [None, 3_000, 6_000])
def test_blocks_give_the_same(budget):
    params, x1, x2, v = setup()
    full = empirical.ntk(MODEL.apply_fn, params, x1, x2, trace_outputs=False)
    want = jnp.einsum("nmcd,md->nc", full, v)
    got = products.ntk_vector_product(
        MODEL.apply_fn, params, x1, x2, v, memory_budget=budget
    )
    chex.assert_trees_all_close(got, want, rtol=1e-10, atol=1e-12)


def test_it_is_linear_and_symmetric():
    params, _, x, v = setup()
    w = jax.random.normal(jax.random.key(4), v.shape)

    def product(v):
        return products.ntk_vector_product(MODEL.apply_fn, params, x, x, v)

    chex.assert_trees_all_close(
        product(2 * v - w), 2 * product(v) - product(w), rtol=1e-10, atol=1e-12
    )
    assert abs(jnp.vdot(w, product(v)) - jnp.vdot(v, product(w))) < 1e-10
    assert jnp.vdot(v, product(v)) > 0


def test_under_jit():
    params, x1, x2, v = setup()
    fn = lambda *a: products.ntk_vector_product(MODEL.apply_fn, *a)  # noqa: E731
    args = (params, x1, x2, v)
    chex.assert_trees_all_close(jax.jit(fn)(*args), fn(*args), rtol=1e-10)


def test_bad_input_is_named_with_the_remedy():
    params, x1, x2, v = setup()
    call = products.ntk_vector_product
    with pytest.raises(ValueError, match="x2 has 5 rows, v has 4 rows"):
        call(MODEL.apply_fn, params, x1, x2, v[:4])
    with pytest.raises(ValueError, match="v has 1 columns but the network has 2"):
        call(MODEL.apply_fn, params, x1, x2, v[:, :1])
    with pytest.raises(ValueError, match="smaller than one image needs"):
        call(MODEL.apply_fn, params, x1, x2, v, memory_budget=100)
    with pytest.raises(ValueError, match="v has 1 values"):
        call(MODEL.apply_fn, params, x1, x2, v.at[0, 0].set(jnp.nan))
