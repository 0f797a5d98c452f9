"""Networks that have no empirical NTK as they stand: named, with the remedy."""

import functools
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ntk_privacy._types import ApplyFn, Params
from ntk_privacy.kernels.planning import hashable

__all__ = ["kernel", "network", "rows_apart"]

_DROPOUT = (
    "pass deterministic=True or train=False to the modules inside apply_fn "
    "(nnx: model.eval())"
)
_STATISTICS = (
    "use running averages (use_running_average=True or train=False; nnx: "
    "model.eval()) inside apply_fn"
)


def network(
    apply_fn: ApplyFn, params: Params, x1: Any, x2: Any
) -> jax.ShapeDtypeStruct:
    """Returns the shape of one image's outputs, (1, c).

    x1 and x2 are arrays or their shapes; x2 may be None.

    Raises:
      ValueError: images of unequal or wrong shape, no image, integers; a network that
        needs random numbers, updates statistics, or mixes the images of a batch.
    """
    for name, x in (("x1", x1), ("x2", x2)):
        if x is None:
            continue
        if x.ndim < 2 or len(x) == 0:
            raise ValueError(
                f"{name} has shape {x.shape}: give at least one image, (n, ...)."
            )
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"{name} has dtype {x.dtype}: convert the images to a float type."
            )
    if x2 is not None and (x1.shape[1:], x1.dtype) != (x2.shape[1:], x2.dtype):
        raise ValueError(
            f"x1 holds {x1.dtype} images of shape {x1.shape[1:]} but x2 {x2.dtype} "
            f"ones of {x2.shape[1:]}: give images of one size and type to both."
        )
    if not jax.tree.leaves(params):
        raise ValueError("params has no leaves: give the trainable parameters.")
    image = jax.ShapeDtypeStruct((1, *x1.shape[1:]), x1.dtype)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params)
    try:
        out = jax.eval_shape(apply_fn, shapes, image)
    except flax.errors.InvalidRngError as error:
        raise ValueError(
            f"apply_fn asks for random numbers, as dropout does: {_DROPOUT}."
        ) from error
    except (
        flax.errors.ModifyScopeVariableError,
        flax.errors.TraceContextError,
    ) as error:
        raise ValueError(
            f"apply_fn updates its state, as live batch statistics do: {_STATISTICS}."
        ) from error
    except (TypeError, ValueError, flax.errors.FlaxError) as error:
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"apply_fn refuses a batch of shape {image.shape}: {told[0]} Give images "
            "of the size that the parameters were made for."
        ) from error
    if isinstance(out, tuple | list | dict):
        raise ValueError(  # noqa: TRY004  every fault of a network is one
            f"apply_fn returns a {type(out).__name__}, such as outputs with mutated "
            f"batch statistics: return the outputs alone, and {_STATISTICS}."
        )
    if getattr(out, "ndim", 0) != 2 or out.shape[0] != 1:
        raise ValueError(
            f"apply_fn returns shape {getattr(out, 'shape', None)} for one image: "
            "return one row of outputs per image, (n, c)."
        )
    return out


def rows_apart(apply_fn: ApplyFn, params: Params, x: Array) -> None:
    """Raises ValueError if an image's outputs depend on the rest of its batch.

    Looked at once per network, and only where there are numbers: outside of jit.
    """
    if any(isinstance(a, jax.core.Tracer) for a in jax.tree.leaves((params, x))):
        return
    key = (apply_fn, x.shape[1:], x.dtype)
    seen = _seen(*key) if hashable(key) else []
    if seen:
        return
    # The second image differs from the first, whatever the images are.
    pair = jnp.stack([x[0], 2 * x[-1] + jnp.ones_like(x[-1])])
    together = np.asarray(jax.jit(apply_fn)(params, pair))
    alone = np.concatenate(
        [np.asarray(jax.jit(apply_fn)(params, pair[i : i + 1])) for i in range(2)]
    )
    with np.errstate(invalid="ignore"):
        gap, size = np.abs(together - alone).max(), np.abs(alone).max()
    if not np.isfinite(gap):
        return  # told of later; nothing was learned of the network
    if gap > 1e-2 * size:
        raise ValueError(
            "apply_fn gives an image other outputs in a batch than alone, as live "
            f"batch statistics or dropout do: {_STATISTICS}; for dropout, {_DROPOUT}."
        )
    seen.append(True)


@functools.lru_cache(maxsize=64)
def _seen(*key: Any) -> list[bool]:
    del key
    return []


def kernel(out: Array, **given: Any) -> None:
    """Raises ValueError if a kernel is not finite, and says where that comes from.

    Args:
      out: the kernel.
      **given: trees of arrays that it was computed from.
    """
    if isinstance(out, jax.core.Tracer) or np.isfinite(np.asarray(out)).all():
        return
    for name, tree in given.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                continue
            bad = int(np.sum(~np.isfinite(np.asarray(leaf))))
            if bad:
                raise ValueError(
                    f"{name}{jax.tree_util.keystr(path)} has {bad} values that are NaN "
                    "or infinite: leave them out, or use an earlier snapshot."
                )
    raise ValueError(
        "The kernel has values that are NaN or infinite although images and parameters "
        "are finite: the network overflows; use float64, or scale the images down."
    )
