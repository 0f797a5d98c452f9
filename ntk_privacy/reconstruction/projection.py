r"""The space in which the training images lie, read from the first layer's change.

Each gradient of the first kernel is a sum of outer products of training images with
back-propagated signals, so under full-batch training without weight decay the columns
of its change span the images. A search there has n coordinates per image, not all
pixels, and the first layer shrinks to n inputs.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _linalg
from ntk_privacy._types import Params

__all__ = ["coordinates", "project"]


def coordinates(params: Params, basis: Float[Array | np.ndarray, "d r"]) -> Params:
    """Returns an MLP that takes images as coordinates in an orthonormal basis.

    Args:
      params: of an MLP.
      basis: orthonormal columns, of pixels.
    """
    kernel = params["Dense_0"]["kernel"]
    small = np.asarray(basis, np.float64).T @ np.asarray(kernel, np.float64)
    layer = {**params["Dense_0"], "kernel": jnp.asarray(small, kernel.dtype)}
    return {**params, "Dense_0": layer}


def project(
    params_0: Params, params_t: Params
) -> tuple[tuple[Params, Params], Float[Array, "d r"]]:
    """Returns both networks on coordinates in that space, and its basis.

    Args:
      params_0: of an MLP before training.
      params_t: after training.

    Raises:
      ValueError: the first layer has not changed.
    """
    first = params_0["Dense_0"]["kernel"]
    change = np.asarray(params_t["Dense_0"]["kernel"], np.float64) - np.asarray(
        first, np.float64
    )
    tolerance = _rounding(first, change)
    found = _linalg.range_basis(
        change,
        tolerance=tolerance,
        max_rank=min(9 * min(change.shape) // 10, 1000),
    )
    if found is None or np.any(
        found.singular_values < 3 * tolerance * found.singular_values[:1]
    ):
        # No clean cut: thousands of steps have each left their rounding error.
        tolerance = 300 * float(jnp.finfo(first.dtype).eps) * max(first.shape) ** 0.5
        found = _linalg.range_basis(change, tolerance=min(tolerance, 1e-2))
        assert found is not None  # no limit was set
    basis = found.basis
    if not basis.shape[1]:
        raise ValueError(
            "params_0 and params_t have the same first layer: its change spans the "
            "images, so use settings with project=False."
        )

    small = coordinates(params_0, basis), coordinates(params_t, basis)
    return small, jnp.asarray(basis, first.dtype)


def _rounding(kernel, change) -> float:
    """Relative size from which singular values of a change stand above its rounding.

    An image with a small dual is a small singular value: MNIST digits come down to 3e-5
    of the largest. Rounding of the stored weights leaves noise of 0.3 eps times their
    size in every entry, whose norm is that times sqrt(d) + sqrt(k); six times that is
    beyond doubt.
    """
    eps = float(jnp.finfo(kernel.dtype).eps)
    sizes = float(np.sqrt(np.mean(np.square(kernel, dtype=np.float64))))
    noise = 0.3 * eps * sizes * (change.shape[0] ** 0.5 + change.shape[1] ** 0.5)
    # The Frobenius norm is the largest singular value, within sqrt(rank).
    return min(6 * noise / max(float(np.linalg.norm(change)), 1e-300), 1e-2)
