r"""The empirical NTK of any differentiable `apply_fn`.

$\Theta^{cc'}(x, x') = \langle \nabla_\theta f^c(x), \nabla_\theta f^{c'}(x')\rangle$.
Source: Jacot et al., NeurIPS 2018 (arXiv:1806.07572).

`apply_fn(params, images)` is all that is known of the network: a Flax linen module's
`lambda p, x: model.apply({"params": p, "batch_stats": stats}, x)`, an nnx module's
`lambda p, x: nnx.merge(graphdef, p, rest)(x)`. It must treat the images of a batch one
by one, and be the same function whenever it is the same object: programs are compiled
once for each, and let go of together with it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntk_privacy import _linalg, _programs
from ntk_privacy._types import ApplyFn, Params
from ntk_privacy.kernels import arguments, contraction, model_checks, planning
from ntk_privacy.kernels.planning import Plan

__all__ = ["Plan", "diagonal", "jacobian", "ntk", "plan"]


class _Settings(NamedTuple):
    method: str
    trace_outputs: bool
    block: int
    tiles: int
    by_gram: tuple[bool, ...]


def jacobian(
    apply_fn: ApplyFn, params: Params, x: Float[Array, "n ..."]
) -> Float[Array, "n c p"]:
    """Returns the gradients of every output, flattened over all parameters.

    Needs n * c * p numbers of memory: the slow, obvious path. Of a complex leaf come
    the real parts, then the imaginary ones.

    Args and Raises: see `ntk`.

    Example:
      >>> import jax
      >>> from ntk_privacy import models
      >>> from ntk_privacy.kernels import empirical
      >>> x = jax.random.uniform(jax.random.key(0), (3, 4, 4, 1))
      >>> net = models.MLP(widths=(5,))
      >>> params = net.init_params(jax.random.key(1), (4, 4, 1))
      >>> empirical.jacobian(net.apply_fn, params, x).shape  # 16 * 5 + 5 + 5 + 1
      (3, 1, 91)
    """
    x = arguments.images("x", x)
    params = arguments.parameters(params, x.dtype)
    out = model_checks.network(apply_fn, params, x, None, name="x")
    dtype = arguments.result_dtype(out, params)
    network, own = contraction.trainable(apply_fn, params)

    def row(image):
        leaves = jax.jacrev(lambda own: network(own, image[None])[0])(own)
        flat = [leaf.reshape(out.shape[1], -1).astype(dtype) for leaf in leaves]
        return jnp.concatenate(flat, axis=1)

    return jax.lax.map(row, x)


def ntk(
    apply_fn: ApplyFn,
    params: Params,
    x1: Float[Array, "n1 ..."],
    x2: Float[Array, "n2 ..."] | None = None,
    *,
    trace_outputs: bool = True,
    method: str = "auto",
    memory_budget: int | None = None,
) -> Float[Array, "n1 n2"] | Float[Array, "n1 n2 c c"]:
    """Returns the empirical NTK.

    Args:
      apply_fn: `(params, images) -> (n, c)`.
      params: any pytree; a complex leaf counts as its real and imaginary parts, and
        integers and random keys are held fixed.
      x1: images.
      x2: images; x1 when absent or the same array, for half the work.
      trace_outputs: mean over outputs of the diagonal blocks, (n1, n2), as
        neural-tangents defines it; else all blocks, (n1, n2, c, c).
      method: "jacobian" contracts whole Jacobians; "ntk_vector" takes one vjp and one
        jvp per column; "structured" takes products of what each Dense and Conv layer
        gets and gives back; "auto" is what `plan` finds cheapest.
      memory_budget: bytes of working memory beside the arguments and the kernel; 1 GiB
        when absent. More images than fit are taken in blocks.

    Raises:
      ValueError: an unknown method, a budget below one block, images of another size,
        NaN, dropout or live batch statistics. Under jit, values go unchecked.

    Example:
      >>> import jax
      >>> from ntk_privacy import models
      >>> from ntk_privacy.kernels import empirical
      >>> x = jax.random.uniform(jax.random.key(0), (3, 4, 4, 1))
      >>> net = models.MLP(widths=(16,))
      >>> params = net.init_params(jax.random.key(1), (4, 4, 1))
      >>> empirical.ntk(net.apply_fn, params, x).shape
      (3, 3)
    """
    # One array given twice is one side: half the work.
    x2 = None if x2 is None or x2 is x1 else arguments.images("x2", x2)
    x1 = arguments.images("x1", x1)
    params = arguments.parameters(params, x1.dtype)
    model_checks.network(apply_fn, params, x1, x2)
    model_checks.rows_apart(apply_fn, params, x1)
    chosen = planning.choose(
        apply_fn,
        params,
        x1,
        x2,
        trace_outputs=trace_outputs,
        method=method,
        memory_budget=memory_budget,
    )
    settings = _Settings(
        chosen.method, trace_outputs, chosen.block_size, chosen.tiles, chosen.by_gram
    )
    out = _ntk(apply_fn, settings, params, x1, x2)
    model_checks.kernel(out, x1=x1, x2=x2, params=params)
    return out


def plan(
    apply_fn: ApplyFn,
    params: Params,
    x1: Float[Array, "n1 ..."] | jax.ShapeDtypeStruct,
    x2: Float[Array, "n2 ..."] | jax.ShapeDtypeStruct | None = None,
    *,
    trace_outputs: bool = True,
    method: str = "auto",
    memory_budget: int | None = None,
) -> Plan:
    """Returns what `ntk` would do with the same arguments, and `print` explains it.

    Counted from shapes alone.

    Args:
      apply_fn: `(params, images) -> (n, c)`.
      params: any pytree.
      x1: images, or their shape and dtype.
      x2: likewise; x1 when absent.
      trace_outputs: see `ntk`.
      method: one of `ntk`; "auto" is the cheapest.
      memory_budget: bytes, see `ntk`.

    Raises:
      ValueError: see `ntk`.

    Example:
      >>> import jax
      >>> from ntk_privacy import models
      >>> from ntk_privacy.kernels import empirical
      >>> net = models.MLP(widths=(16,))
      >>> params = net.init_params(jax.random.key(1), (4, 4, 1))
      >>> x = jax.ShapeDtypeStruct((1000, 4, 4, 1), "float32")
      >>> empirical.plan(net.apply_fn, params, x).method
      'structured'
    """
    x1, x2 = _shape("x1", x1), None if x2 is None else _shape("x2", x2)
    params = arguments.parameters(params, x1.dtype)
    model_checks.network(apply_fn, params, x1, x2)
    return planning.choose(
        apply_fn,
        params,
        x1,
        x2,
        trace_outputs=trace_outputs,
        method=method,
        memory_budget=memory_budget,
    )


def diagonal(
    apply_fn: ApplyFn,
    params: Params,
    x: Float[Array, "n ..."],
    *,
    trace_outputs: bool = True,
    method: str = "auto",
    memory_budget: int | None = None,
) -> Float[Array, " n"] | Float[Array, "n c c"]:
    """Returns the kernel of each image with itself.

    Args and Raises: see `ntk`.
    """
    x = arguments.images("x", x)
    params = arguments.parameters(params, x.dtype)
    model_checks.network(apply_fn, params, x, None, name="x")
    model_checks.rows_apart(apply_fn, params, x)
    # One image against one: what each diagonal entry is.
    chosen = planning.choose(
        apply_fn,
        params,
        x[:1],
        x[:1],
        trace_outputs=trace_outputs,
        method=method,
        memory_budget=memory_budget,
    )
    budget = planning.DEFAULT_BUDGET if memory_budget is None else memory_budget
    block = min(max(int(budget // max(chosen.bytes, 1)), 1), len(x))
    settings = _Settings(chosen.method, trace_outputs, block, 1, chosen.by_gram)
    out = _diagonal(apply_fn, settings, params, x)
    model_checks.kernel(out, x=x, params=params)
    return out


def _shape(name, x):
    if isinstance(x, jax.ShapeDtypeStruct):
        return x
    x = arguments.images(name, x)
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _method(apply_fn, settings, params, x) -> contraction.Method:
    found = jax.eval_shape(apply_fn, params, x[:1])
    dtype = arguments.result_dtype(found, params)
    out = contraction.Out(found.shape[1], dtype, settings.trace_outputs)
    if settings.method == "jacobian":
        return contraction.jacobian(apply_fn, params, out)
    if settings.method == "ntk_vector":
        return contraction.ntk_vector(apply_fn, params, out)
    image = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
    return contraction.structured(apply_fn, params, out, image, settings.by_gram)


@_programs.jit(num_static=2)
@_linalg.full_precision
def _ntk(apply_fn, settings, params, x1, x2):
    method = _method(apply_fn, settings, params, x1)
    return contraction.assemble(
        method, x1, x2, block=settings.block, tiles=settings.tiles
    )


@_programs.jit(num_static=2)
@_linalg.full_precision
def _diagonal(apply_fn, settings, params, x):
    method = _method(apply_fn, settings, params, x)
    return jax.lax.map(
        lambda one: method.diagonal(method.features(one[None]))[0],
        x,
        batch_size=settings.block,
    )
