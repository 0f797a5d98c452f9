r"""Labels of images that were read from one gradient.

The change of the last layer is $\sum_i a_i d_i^T$ of the activations $a_i$ that feed
it, which images tell by a forward pass, so the duals $d_i$ solve a linear system. An
image's dual is minus the slope of its loss in its logits, which points where its label
says: of cross-entropy to $e_y - p$, of squares to $y - f$.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ntk_privacy._types import Params
from ntk_privacy.models.mlp import MLP
from ntk_privacy.reconstruction.evidence import Evidence, far
from ntk_privacy.training import recipe

__all__ = ["Labels", "read"]

_AGREES = 0.999  # cosine of a dual with the slope of its label
_CLEAR = 0.99  # at most, of the next label
_NEAR, _APART = 0.02, 0.1  # of a dual: its own slope and the next, at one factor
_EXPLAINED = 1e-3  # of the last layer's squared change that may be left


class Labels(NamedTuple):
    """Which label each image had.

    Attributes:
      codes: (k, c), the values that labels take.
      chosen: of each image, its row of `codes`.
      clear: the dual points where this label says, and no other does; the loss is as
        it was told then, and the image is right.
      duals: of each image and output, in the units of the step.
    """

    codes: Float[np.ndarray, "k c"]
    chosen: Int[np.ndarray, " m"]
    clear: Bool[np.ndarray, " m"]
    duals: Float[np.ndarray, "m c"]


def _slopes(
    known: Evidence, out: Float[np.ndarray, "m c"], codes: Float[np.ndarray, "k c"]
) -> Float[np.ndarray, "m k c"]:
    """Minus the slope of the loss in the logits, were each label an image's own."""
    m, k = len(out), len(codes)

    def total(logits):
        return jnp.sum(
            recipe.losses(known.objective, logits, jnp.asarray(np.tile(codes, (m, 1))))
        )

    # What rounds is small beside the slope; training may be in any precision.
    logits = jnp.asarray(np.repeat(out, k, axis=0), jnp.float32)
    codes = codes.astype(np.float32)
    return -np.asarray(jax.grad(total)(logits), np.float64).reshape(m, k, -1)


def _matched(
    slopes: Float[np.ndarray, "m k c"], duals: Float[np.ndarray, "m c"]
) -> tuple[Int[np.ndarray, " m"], Bool[np.ndarray, " m"]]:
    """The label whose slope each dual is a multiple of, and whether no other's is."""
    rows, size = np.arange(len(duals)), np.linalg.norm(duals, axis=1)
    lengths = np.maximum(np.linalg.norm(slopes, axis=2), 1e-300)
    products = np.einsum("mkc,mc->mk", slopes, duals)
    cosines = products / (lengths * np.maximum(size, 1e-300)[:, None])
    index = np.argmax(cosines, axis=1)
    rivals = cosines.copy()
    rivals[rows, index] = -1.0
    clear = (cosines[rows, index] > _AGREES) & (rivals.max(1) < _CLEAR)
    if clear.any():
        # An output beyond its labels tells them by its size: one factor is all images'.
        factor = np.median(size[clear] / lengths[rows, index][clear])
        far = np.linalg.norm(duals[:, None] - factor * slopes, axis=2)
        nearest = np.argmin(far, axis=1)
        best = far[rows, nearest] < _NEAR * size
        far[rows, nearest] = np.inf
        alone = far.min(1) > _APART * size
        told = ~clear & best & alone
        index, clear = np.where(told, nearest, index), clear | told
    return index, clear


def _forward(
    net: MLP, params: Params, images: Float[Array | np.ndarray, "m h w d"]
) -> tuple[Float[np.ndarray, "m units"], Float[np.ndarray, "m c"]]:
    """Returns what feeds the last layer, and the outputs."""
    flags = net.use_bias
    below = MLP(
        tuple(net.widths[:-1]),
        net.widths[-1],
        flags if isinstance(flags, bool) else tuple(flags[:-1]),
        net.parametrization,
    )
    x = jnp.asarray(images, jax.tree.leaves(params)[0].dtype)
    hidden = np.asarray(below.apply_fn(params, x), np.float64)
    return np.maximum(hidden, 0.0), np.asarray(net.apply_fn(params, x), np.float64)


def read(
    known: Evidence, images: Float[Array | np.ndarray, "m h w d"]
) -> Labels | None:
    """Returns the labels of images that one gradient is the mean or sum over.

    Args:
      known: of one gradient of an MLP.
      images: all of them, in the units that the network takes; one that is missing or
        wrong spoils its neighbours' duals, and nothing is clear then.

    Returns:
      None where the evidence is another, or there are more images than units that
      feed the last layer, or no hidden ones.

    Example:
      >>> import jax
      >>> from ntk_privacy.models import MLP
      >>> from ntk_privacy.reconstruction import evidence, shared_labels
      >>> from ntk_privacy.training import recipe
      >>> net, keys = MLP((32,), 3), jax.random.split(jax.random.key(0))
      >>> x = jax.random.normal(keys[0], (4, 5, 5, 1))
      >>> y = jax.nn.one_hot(jax.numpy.asarray([2, 0, 1, 2]), 3)
      >>> params = net.init_params(keys[1], (5, 5, 1))
      >>> gradient = jax.grad(
      ...     lambda p: recipe.mean_loss(net, p, x, y, loss="cross_entropy")
      ... )(params)
      >>> known = evidence.of_gradient(
      ...     net, params, gradient, image_shape=(5, 5, 1), objective="cross_entropy"
      ... )
      >>> shared_labels.read(known, x).chosen.tolist()
      [2, 0, 1, 2]
    """
    net, before = known.network, known.params_0
    if not (known.is_gradient and isinstance(net, MLP)) or before is None:
        return None
    if not net.widths:
        return None
    last = f"Dense_{len(net.widths)}"
    if not len(images) or len(images) > net.widths[-1]:
        return None
    activations, out = _forward(net, before, np.asarray(images))
    change = far(known)[last]["kernel"] - before[last]["kernel"]
    change = np.asarray(change, np.float64)
    duals = np.linalg.lstsq(activations.T, change, rcond=1e-9)[0]
    left = change - activations.T @ duals
    fits = float(np.sum(left**2)) <= _EXPLAINED * float(np.sum(change**2))
    codes = known.codes()
    slopes = _slopes(known, out, codes)
    index, clear = _matched(slopes, duals)
    return Labels(codes, index, clear & fits, duals)
