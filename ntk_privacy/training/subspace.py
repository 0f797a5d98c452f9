r"""Full-batch training of an MLP in the coordinates of its images.

Gradients of the first layer are sums of outer products with the training images, so
its kernel moves in their span alone: with $X = C Q^\top$, $Q$ orthonormal,
$X W = C (Q^\top W)$, and $W - Q Q^\top W$ stays as initialised. Training $Q^\top W$ on
$C$ takes the same steps with as many rows as $X$ has rank, in place of one per pixel.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _checks
from ntk_privacy._linalg import matmul
from ntk_privacy._types import Params
from ntk_privacy.models.mlp import Parametrization

__all__ = ["Coordinates", "to_coordinates"]


class Coordinates(NamedTuple):
    """params, images: of the same function on the training images, first layer small.
    restore: maps such parameters, trained, to those of the network.
    """  # noqa: D205

    params: Params
    images: Float[Array, "n r"]
    restore: Callable[[Params], Params]


def to_coordinates(
    params: Params,
    images: Float[Array, "n ..."],
    *,
    parametrization: Parametrization = "standard",
) -> Coordinates:
    """Returns an MLP and its training images in an orthonormal basis of their span.

    Outputs and gradients on these images are the same, and so is every step of gradient
    descent on them, with momentum or without: `restore` of the trained parameters are
    those of plain training, up to rounding. It does not hold for optimizers that treat
    entries one by one, such as Adam, nor for weight decay.

    Args:
      params: of `models.MLP`, at initialisation.
      images: all that training sees, at every step.
      parametrization: of the network.

    Raises:
      ValueError: the first layer is for images of another size.
    """
    _checks.one_of(("standard", "ntk"), parametrization=parametrization)
    flat = np.asarray(images, np.float64).reshape(len(images), -1)
    kernel = params["Dense_0"]["kernel"]
    if kernel.shape[0] != flat.shape[1]:
        raise ValueError(
            f"images have {flat.shape[1]} pixels and channels, the first layer takes "
            f"{kernel.shape[0]}: give the parameters of a network for these images."
        )
    left, values, right = np.linalg.svd(flat, full_matrices=False)
    # Rounding alone gives directions to images that repeat or combine others; the
    # first is kept even of black images, for a layer needs an input.
    rank = max(1, int(np.sum(values > len(values) * 2e-16 * values[0])))
    scale = (rank / flat.shape[1]) ** 0.5 if parametrization == "ntk" else 1.0
    basis = jnp.asarray(right[:rank].T, kernel.dtype)
    small = matmul(basis.T, kernel)

    def with_kernel(params: Params, kernel: Any) -> Params:
        return {**params, "Dense_0": {**params["Dense_0"], "kernel": kernel}}

    def restore(trained: Params) -> Params:
        change = trained["Dense_0"]["kernel"] - small
        return with_kernel(trained, kernel + matmul(basis, change))

    return Coordinates(
        params=with_kernel(params, small),
        # The layer divides by the root of its inputs, of which there are fewer now.
        images=jnp.asarray(left[:, :rank] * values[:rank] * scale, kernel.dtype),
        restore=restore,
    )
