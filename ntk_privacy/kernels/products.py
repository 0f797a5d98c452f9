r"""Products with the empirical NTK that never form it.

$\Theta(x_1, x_2) v = J(x_1) (J(x_2)^\top v)$: one vjp, one jvp, and between them one
array of the size of the parameters.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from ntk_privacy import _checks, _linalg, _programs, _tree
from ntk_privacy._types import ApplyFn, Params
from ntk_privacy.kernels import arguments, contraction, model_checks, planning

__all__ = ["ntk_vector_product"]


def ntk_vector_product(
    apply_fn: ApplyFn,
    params: Params,
    x1: Float[Array, "n1 ..."],
    x2: Float[Array, "n2 ..."] | None,
    v: Num[Array, "..."],
    *,
    memory_budget: int | None = None,
) -> Float[Array, "n1 c"]:
    r"""Returns $\sum_{m d} \Theta^{cd}(x_1, x_{2,m}) v_{m d}$.

    Args:
      apply_fn: `(params, images) -> (n, c)`, as for `empirical.ntk`.
      params: any pytree, as for `empirical.ntk`.
      x1: images of the result.
      x2: images of v; x1 when None.
      v: a weight for every output of every image of x2.
      memory_budget: bytes of working memory; 1 GiB when None. Images are taken in
        blocks that fit.

    Raises:
      ValueError: as `empirical.ntk`; v does not match x2 or the outputs.
    """
    x1 = arguments.images("x1", x1)
    x2 = x1 if x2 is None else arguments.images("x2", x2)
    v = arguments.images("v", v)
    params = arguments.parameters(params, x1.dtype)
    out = model_checks.network(apply_fn, params, x1, x2)
    model_checks.rows_apart(apply_fn, params, x1)
    if v.ndim != 2 or not jnp.issubdtype(v.dtype, jnp.floating):
        raise ValueError(
            f"v has shape {v.shape} and dtype {v.dtype}: give one float "
            f"weight per image and output, ({len(x2)}, {out.shape[1]})."
        )
    _checks.same_length(x2=x2, v=v)
    if v.shape[1] != out.shape[1]:
        raise ValueError(
            f"v has {v.shape[1]} columns but the network has {out.shape[1]} outputs: "
            "give one weight per image and output."
        )
    block = _block_size(apply_fn, params, x1, memory_budget)
    product = _product(apply_fn, block, params, x1, x2, v)
    model_checks.kernel(product, x1=x1, x2=x2, v=v, params=params)
    return product


def _block_size(apply_fn, params, x, memory_budget) -> int:
    budget = planning.DEFAULT_BUDGET if memory_budget is None else memory_budget
    _checks.at_least(1, memory_budget=budget)
    image = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
    network = planning.network_shapes(apply_fn, params, image)
    itemsize = jnp.dtype(x.dtype).itemsize
    # The sum of gradients and that of the block at hand; activations and tangents.
    fixed = 2 * sum(network.leaf_sizes) * itemsize
    each = (2 * network.activations + 3 * network.largest) * itemsize
    if fixed + each > budget:
        raise ValueError(
            f"memory_budget={budget} bytes is smaller than one image needs, "
            f"{fixed + each} bytes: give at least that, or a smaller network."
        )
    return int((budget - fixed) // each)


@_programs.jit(num_static=2)
@_linalg.full_precision
def _product(apply_fn, block, params, x1, x2, v):
    network, own = contraction.trainable(apply_fn, params)
    dtype = arguments.result_dtype(jax.eval_shape(apply_fn, params, x1[:1]), params)

    def pulled(x, v):
        out, pull = jax.vjp(lambda own: network(own, x), own)
        return pull(v.astype(out.dtype))[0]

    def add(total, part):
        return _tree.add(total, pulled(*part)), None

    def push(x):
        return jax.jvp(lambda own: network(own, x), (own,), (total,))[1]

    # Whole blocks in a loop, one program for all of them; the rest by itself.
    whole = len(x2) // block * block
    total = jax.tree.map(jnp.zeros_like, own)
    if whole:
        split = [a[:whole].reshape(-1, block, *a.shape[1:]) for a in (x2, v)]
        total, _ = jax.lax.scan(add, total, tuple(split))
    if whole < len(x2):
        total = _tree.add(total, pulled(x2[whole:], v[whole:]))
    whole = len(x1) // block * block
    parts = []
    if whole:
        blocks = x1[:whole].reshape(-1, block, *x1.shape[1:])
        done = jax.lax.map(push, blocks)
        parts.append(done.reshape(whole, -1))
    if whole < len(x1):
        parts.append(push(x1[whole:]))
    return jnp.concatenate(parts).astype(dtype)
