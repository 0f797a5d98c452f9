"""What RKIP's loss needs of its targets, without their whole kernel.

Source of the loss: Loo et al., ICLR 2024 (arXiv:2302.01428).
"""

import zlib
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt32

from ntk_privacy import _checks
from ntk_privacy._types import Callback, KernelFn
from ntk_privacy.distillation import coincident_targets
from ntk_privacy.kernels import conjugate_gradients, regression

__all__ = ["NotConvergedError", "TargetDuals", "check_targets", "target_duals"]


class TargetDuals(NamedTuple):
    """duals: a_T. energy: a_T^T K_TT a_T. checksum: of the images, targets and ridge
    that they belong to; None is never compared.
    """  # noqa: D205

    duals: Float[Array, "n c"]
    energy: Float[Array, ""]
    checksum: UInt32[Array, ""] | None = None


class NotConvergedError(ValueError):
    """The duals miss the tolerance.

    residual: what was reached, relative to the targets. steps: products taken.
    """

    def __init__(self, message: str, residual: float, steps: int) -> None:
        super().__init__(message)
        self.residual, self.steps = residual, steps


def target_duals(
    x_target: Float[Array, "n ..."],
    y_target: Float[Array, "n c"],
    *,
    kernel_fn: KernelFn,
    diag_reg: float = 1e-5,
    rank: int = 1000,
    tolerance: float = 1e-5,
    max_steps: int = 500,
    block_size: int = 1000,
    mesh: Mesh | None = None,
    state: conjugate_gradients.CGState | None = None,
    callback: Callback | None = None,
) -> TargetDuals:
    """Returns what `rkip.distill` needs of many targets, without their whole kernel.

    Args:
      x_target: images to distil.
      y_target: their targets.
      kernel_fn: `(x1, x2) -> (n1, n2)`.
      diag_reg: as given to `distill`.
      rank: landmarks of the preconditioner.
      tolerance: of the residual of the duals, relative to the targets; rounding may
        leave up to 4000 eps, 5e-4 in float32.
      max_steps: products with the kernel at most.
      block_size: images on either side of a block.
      mesh: devices that share the rows, of `sharding.row_mesh`; None is one device.
      state: what `callback` had last, to continue after a kill, to the bit.
      callback: `(steps, state, metrics)` after every 10 steps.

    Raises:
      NotConvergedError: the tolerance is not reached.
      ValueError: the arguments do not fit, the kernel is singular, or the ridge is lost
        in the kernel's rounding where two images all but coincide in it.
    """
    x, y = jnp.asarray(x_target), jnp.asarray(y_target)
    _checks.same_length(x_target=x, y_target=y)
    regression.check_data({"x_target": x}, {"y_target": y}, diag_reg=diag_reg)
    _checks.at_least(1, block_size=block_size)
    eps = float(jnp.finfo(y.dtype).eps)
    # Rounding tells duplicates apart, and conjugate gradients would take its word:
    # whether they converge then is chance.
    coincident_targets.refuse(kernel_fn, x, diag_reg=diag_reg, block_size=block_size)
    found = conjugate_gradients.solve(
        kernel_fn,
        x,
        y,
        diag_reg=diag_reg,
        rank=rank,
        tolerance=tolerance,
        max_steps=max_steps,
        block_size=block_size,
        mesh=mesh,
        state=state,
        callback=callback,
    )
    if found.residual > max(tolerance, 4000 * eps):
        if diag_reg <= eps:
            remedy = (
                f"raise diag_reg={diag_reg}, such as {regression.larger_ridge(0.0)}, "
                "or remove duplicate images"
            )
        elif found.steps < max_steps:
            remedy = (
                "rounding lets it fall no further: raise "
                f"diag_reg={diag_reg} or the tolerance, or use float64"
            )
        else:
            remedy = "raise max_steps, rank or tolerance"
        raise NotConvergedError(
            f"The duals have a residual of {found.residual:.1e} after {found.steps} "
            f"steps, above tolerance={tolerance}: {remedy}.",
            found.residual,
            found.steps,
        )
    return TargetDuals(found.duals, found.energy, _checksum(x, y, diag_reg))


def check_targets(
    target: TargetDuals,
    x_target: Float[Array, "n ..."],
    y_target: Float[Array, "n c"],
    *,
    diag_reg: float,
) -> None:
    """Raises ValueError unless `target` belongs to these images, targets and ridge.

    Args:
      target: of `target_duals`.
      x_target: images to distil.
      y_target: their targets.
      diag_reg: ridge relative to the mean diagonal.

    Raises:
      ValueError: duals of another shape, or of other images, targets or ridge.
    """
    if target.duals.shape != y_target.shape:
        raise ValueError(
            f"target has duals of shape {target.duals.shape}, not {y_target.shape}: "
            "compute it from these targets by target_duals."
        )
    if target.checksum is None:
        return
    if int(target.checksum) != int(_checksum(x_target, y_target, diag_reg)):
        raise ValueError(
            "target belongs to other images, targets, dtype or diag_reg: compute it "
            f"from these and diag_reg={diag_reg} by target_duals."
        )


def _checksum(x, y, diag_reg) -> UInt32[Array, ""]:
    code = zlib.crc32(str(float(diag_reg)).encode())
    for array in (x, y):
        # numpy's stub has buffers from Python 3.12 on
        code = zlib.crc32(np.ascontiguousarray(array), code)  # pyright: ignore[reportArgumentType]
    return jnp.asarray(code, jnp.uint32)
