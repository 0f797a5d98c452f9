"""Decoding a network with several outputs: gated rows in place of gates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy.reconstruction import (
    class_rows,
    gated_rows,
    layer_inversion,
    low_rank,
)

__all__ = ["MANY", "decode"]

MANY = 48  # images, from which on the rows of a class are searched for together
_DEEP = 3  # hidden layers, from which on they are too, however few the images


def decode(
    layers: layer_inversion.Layers,
    key: Array,
    *,
    num_images: int | None,
    auxiliary: Float[Array, "k d"] | None,
    num_starts: int | None,
    max_rounds: int,
) -> layer_inversion.Decoding:
    r"""Decodes images from $\Delta W_2 = \sum_i a_{1,i} (s_i \circ W_3 \alpha_i)^\top$.

    The row of an image is found up to its scale, which the change of the bias gives:
    $\Delta b_2 = \sum_i s_i \circ W_3 \alpha_i$. Its duals are a regression of the row
    on the output weights of its open units.

    Args:
      layers: of the network, at the initial features.
      key: typed key.
      num_images: N; None reads it from the rank.
      auxiliary: images of the same domain, flat, or None.
      num_starts: per round, by default 2 N within 64 and 256; of a search by classes
        per class, by default 256.
      max_rounds: at most.

    Raises:
      RankHiddenError: the rank cannot be told from noise.
      ValueError: too few units for it.
    """
    key_rank, key_rows, key_span = jax.random.split(key, 3)
    dtype = layers.kernels[0].dtype
    last = len(layers.kernels) - 2
    change = np.concatenate(
        [layers.kernel_changes[last], layers.bias_changes[last][None]]
    )
    factors = low_rank.factorize(
        jnp.asarray(change, dtype), key=key_rank, num_images=num_images
    )
    first_change = jnp.asarray(layers.kernel_changes[0], dtype)
    if num_images is None and factors.gap <= low_rank.CLEAR_GAP:
        num_images = low_rank.count_inputs(
            first_change, key=jax.random.fold_in(key_rank, 1)
        )
        if num_images is not None:
            factors = low_rank.factorize(
                jnp.asarray(change, dtype), key=key_rank, num_images=num_images
            )
    rank = factors.right.shape[0]
    if num_images is None and factors.gap < 2.0:
        raise low_rank.RankHiddenError(factors.gap, rank, change.shape[1])
    kernels = [jnp.asarray(k, dtype) for k in layers.kernels[: last + 1]]
    biases = [jnp.asarray(b, dtype) for b in layers.biases[: last + 1]]

    forward = functools.partial(
        layer_inversion.activations_of, kernels[:-1], biases[:-1]
    )
    found = None
    if rank >= MANY or last + 1 >= _DEEP:
        found = class_rows.find(
            class_rows.make(factors, layers.kernels[-1], layers.bias_changes[-1]),
            forward,
            (kernels[-1], biases[-1]),
            first_change,
            key=jax.random.fold_in(key_rows, 1),
            num_starts=num_starts,
            max_rounds=max_rounds,
        )
    if found is None or len(found.rows) < rank:
        found = gated_rows.find_gated_rows(
            factors,
            forward,
            functools.partial(layer_inversion.gates_of, kernels[-1], biases[-1]),
            first_change,
            key=key_rows,
            tolerance=float(np.clip(4.0 / factors.gap, 1e-4, 0.1)),
            num_starts=num_starts or int(np.clip(2 * rank, 64, 256)),
            max_rounds=max_rounds,
            auxiliary=auxiliary,
            known=found,
        )
    span = None
    if 2 * rank < len(first_change):
        left = low_rank.factorize(first_change, key=key_span, num_images=rank).left
        span = np.asarray(left, np.float64)
    decoded = layer_inversion.peel(
        layers, found.rows, np.arange(change.shape[1]), span=span, dtype=dtype
    )
    # Rows have norm 1 and any sign; the bias row of the change gave their scale.
    scaled = found.rows * decoded.duals
    out = layers.kernels[-1].astype(np.float64)
    duals = np.zeros((len(scaled), out.shape[1]))
    for i, (row, open_) in enumerate(zip(scaled, decoded.gates, strict=True)):
        duals[i] = np.linalg.lstsq(out[open_], row[open_], rcond=None)[0]
    # Closed gates must stand where the row vanishes: what they hide of it is an error.
    hidden = np.where(decoded.gates, 0.0, scaled)
    size = np.maximum(np.linalg.norm(scaled, axis=1), 1e-300)
    residuals = np.max(
        [
            found.residuals,
            np.linalg.norm(hidden, axis=1) / size,
            np.linalg.norm(decoded.gates * (duals @ out.T) - scaled, axis=1) / size,
            decoded.forward_residuals,
            decoded.span_residuals,
        ],
        axis=0,
        initial=0.0,
    )
    return layer_inversion.Decoding(
        layers,
        decoded._replace(duals=duals),
        np.where(np.isfinite(residuals), residuals, np.inf),
        float(np.clip(2.0 / factors.gap, 1e-2, 0.35)),
        rank,
        factors.gap,
        found.rounds,
    )
