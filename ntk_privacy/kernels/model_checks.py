"""Networks that have no empirical NTK as they stand: named, with the remedy."""

from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ntk_privacy import _checks, _programs
from ntk_privacy._types import ApplyFn, Params
from ntk_privacy.kernels import arguments

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
    apply_fn: ApplyFn, params: Params, x1: Any, x2: Any, *, name: str = "x1"
) -> jax.ShapeDtypeStruct:
    """Returns the shape of one image's outputs, (1, c).

    Args:
      apply_fn: `(params, images) -> (n, c)`.
      params: of the network.
      x1: images, or their shape and dtype.
      x2: likewise, or None.
      name: of x1, in messages.

    Raises:
      ValueError: images of unequal or wrong shape, no image, integers; a network that
        needs random numbers, updates statistics, or mixes the images of a batch.
    """
    for told, x in ((name, x1), ("x2", x2)):
        if x is None:
            continue
        if x.ndim < 2 or len(x) == 0:
            raise ValueError(
                f"{told} has shape {x.shape}: give at least one image, (n, ...)."
            )
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"{told} has dtype {x.dtype}: convert the images to a float type."
            )
    if x2 is not None and (x1.shape[1:], x1.dtype) != (x2.shape[1:], x2.dtype):
        raise ValueError(
            f"{name} holds {x1.dtype} images of shape {x1.shape[1:]} but x2 {x2.dtype} "
            f"ones of {x2.shape[1:]}: give images of one size and type to both."
        )
    leaves = jax.tree.leaves(arguments.real(params))
    if not leaves:
        raise ValueError("params has no leaves: give the trainable parameters.")
    if not any(arguments.is_floating(leaf) for leaf in leaves):
        raise ValueError(
            "params has no floating-point leaf, so that nothing is trainable: convert "
            "the weights to a float type."
        )
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
    except Exception as error:
        told = str(error).strip().splitlines() or [""]
        if not isinstance(error, TypeError | ValueError | flax.errors.FlaxError):
            told[0] = f"{type(error).__name__} {told[0]}."
        raise ValueError(
            f"apply_fn refuses a batch of shape {image.shape}: {told[0]} Give images "
            "of the size that the parameters were made for."
        ) from error
    if isinstance(out, tuple | list | dict):
        raise ValueError(  # noqa: TRY004  every fault of a network is one
            f"apply_fn returns a {type(out).__name__}, such as outputs with mutated "
            f"batch statistics: return the outputs alone, and {_STATISTICS}."
        )
    if getattr(out, "ndim", 0) != 2 or out.shape[0] != 1 or not out.shape[1]:
        raise ValueError(
            f"apply_fn returns shape {getattr(out, 'shape', None)} for one image: "
            "return one row of outputs per image, (n, c), c at least 1."
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(
            f"apply_fn returns {out.dtype} outputs: return floating-point ones; of "
            "complex ones the real and the imaginary parts side by side."
        )
    return out


def rows_apart(apply_fn: ApplyFn, params: Params, x: Array) -> None:
    """Raises ValueError if an image's outputs depend on the rest of its batch.

    Looked at once per network, and only where there are numbers: outside of jit. Two
    signs: another image beside it changes its outputs, which rounding cannot do; or it
    has other outputs in a batch than alone. The latter rounding can do, and greatly
    where outputs are small beside what they are made of, as f(a) - f(b) is: there they
    must differ by far more than when all numbers move in their last place.

    Args:
      apply_fn: `(params, images) -> outputs`.
      params: of the network.
      x: images.

    Raises:
      ValueError: they do, as under batch statistics or dropout.
    """
    if not _checks.concrete(*jax.tree.leaves((params, x))):
        return
    key = (apply_fn, x.shape[1:], x.dtype)
    seen = _SEEN.get(key, list) if _programs.hashable(key) else []
    if seen:
        return
    # The second image differs from the first, whatever the images are.
    second = 2 * x[-1] + jnp.ones_like(x[-1])
    pair = jnp.stack([x[0], second])
    outputs = jax.jit(apply_fn)
    together = _wide(outputs(params, pair))
    beside = _wide(outputs(params, jnp.stack([x[0], -second])))
    alone = np.concatenate([_wide(outputs(params, pair[i : i + 1])) for i in range(2)])
    with np.errstate(invalid="ignore"):
        gap, size = np.abs(together - alone).max(), np.abs(alone).max()
        moved = np.abs(together[0] - beside[0]).max()
    if not np.isfinite(gap):
        return  # told of later; nothing was learned of the network
    mixes = not moved <= _FAINT * np.abs(together).max()
    if mixes or (
        gap > _LARGE * size
        and gap > _ROUNDINGS * _rounding(outputs, params, pair, together)
    ):
        raise ValueError(
            "apply_fn gives an image other outputs in a batch than alone, as live "
            f"batch statistics or dropout do: {_STATISTICS}; for dropout, {_DROPOUT}."
        )
    seen.append(True)


_SEEN = _programs.Memo()
_FAINT = 1e-3  # share of the outputs that another image may change: in truth, none
_LARGE = 1e-2  # share of the outputs: no rounding of ordinary ones
_ROUNDINGS = 64  # changes of the outputs by the last places of all numbers


def _wide(outputs: Any) -> np.ndarray:
    wide = np.asarray(outputs)
    return wide if wide.dtype == np.float64 else wide.astype(np.float32)


def _rounding(
    outputs: ApplyFn, params: Params, pair: Array, together: np.ndarray
) -> float:
    """Returns how far outputs move when every number moves in its last place."""
    random = np.random.default_rng(0)

    def nudged(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        signs = random.choice([-1.0, 1.0], size=leaf.shape)
        eps = float(jnp.finfo(leaf.dtype).eps)
        return leaf * jnp.asarray(1 + eps * signs, leaf.dtype)

    moved = []
    for _ in range(3):
        near = _wide(outputs(jax.tree.map(nudged, params), nudged(pair)))
        moved.append(float(np.abs(near - together).max()))
    return max(moved)


def kernel(out: Array, **given: Any) -> None:
    """Raises ValueError if a kernel is not finite, and says where that comes from.

    Args:
      out: the kernel.
      **given: trees of arrays that it was computed from.

    Raises:
      ValueError: it has a NaN or an infinity.
    """
    if not _checks.concrete(out) or np.isfinite(np.asarray(out)).all():
        return
    for name, tree in given.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(arguments.real(tree)):
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
