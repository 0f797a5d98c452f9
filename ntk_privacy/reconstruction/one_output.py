"""Decoding a network with one output: binary gate rows, then images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ntk_privacy.reconstruction import gates as gates_lib
from ntk_privacy.reconstruction import layer_inversion, low_rank, mlp_layers

__all__ = ["decode"]


def _usable(out: Float[np.ndarray, " units"], num_images: int | None) -> np.ndarray:
    """Returns the units whose output weight is large enough to divide by.

    A few more are left out so that networks alike share one compiled program.
    """
    count = int(np.sum(np.abs(out) > 0.2 * np.sqrt(np.mean(out**2))))
    block = max(8, len(out) // 64)
    count = count // block * block or count
    columns = np.sort(np.argsort(-np.abs(out), kind="stable")[:count])
    if num_images is not None and len(columns) <= num_images:
        raise ValueError(
            f"num_images={num_images} but only {len(columns)} units of the last hidden "
            f"layer are usable: gates need more units than images; {mlp_layers.OTHER}."
        )
    return columns


# Squared distance of a row to the row space, times the units, where two images are
# merged: a quarter for each unit between them, over half of the units.
_LOOSE = 4.0


def _divided(layers: layer_inversion.Layers, columns: np.ndarray) -> Array:
    """The change of the last hidden layer over the output weights: U S."""
    out = layers.kernels[-1][columns, 0].astype(np.float64)
    change = [layers.kernel_changes[-2], layers.bias_changes[-2][None]]
    divided = np.concatenate(change)[:, columns] / out
    return jnp.asarray(divided, layers.kernels[0].dtype)


def _corrected(
    rows: gates_lib.GateRows,
    predicted: Bool[np.ndarray, "m columns"],
    right: Float[np.ndarray, "r columns"],
) -> gates_lib.GateRows:
    """Replaces rows by the gates of their own activations, if those fit as well.

    The rows a and b of two images that are nearly alike, and any row c, may leave
    c + a - b binary too. Decoded in place of a it still gives the activations of a, up
    to their sign, and those tell the gates of a.
    """
    taken, distances = rows.rows.copy(), rows.residuals.copy()
    changed = False
    for i, row in enumerate(predicted):
        open_ = row.sum()
        if open_ == 0 or np.array_equal(row, taken[i]) or (taken == row).all(1).any():
            continue
        far = max(1.0 - np.sum((right @ row.astype(np.float64)) ** 2) / open_, 0.0)
        if far <= 4.0 * distances[i] + 1e-6:
            taken[i], distances[i], changed = row, far, True
    return rows._replace(rows=taken, residuals=distances) if changed else rows


def _peeled(
    layers: layer_inversion.Layers,
    factors: low_rank.Factors,
    rows: gates_lib.GateRows,
    columns: Int[np.ndarray, " columns"],
    span: Float[np.ndarray, "d r"] | None,
    tolerance: float,
) -> tuple[gates_lib.GateRows, layer_inversion.Decoded]:
    """Decodes images from gate rows; returns the rows too, mended.

    Rows of two images that show as one are not binary: their projections count.
    """
    right = np.asarray(factors.right, np.float64)
    out = layers.kernels[-1][columns, 0].astype(np.float64)
    dtype = layers.kernels[0].dtype

    def peel(rows):
        soft = rows.rows.astype(np.float64)
        merged = rows.residuals > tolerance
        soft = np.where(merged[:, None], (soft @ right.T) @ right, soft)
        return layer_inversion.peel(layers, soft * out, columns, span=span, dtype=dtype)

    decoded = peel(rows)
    for _ in range(2):
        better = _corrected(rows, decoded.gates[:, columns], right)
        if better is rows:
            break
        rows, decoded = better, peel(better)
    return rows, decoded


def decode(
    layers: layer_inversion.Layers,
    key: Array,
    *,
    num_images: int | None,
    auxiliary: Float[Array, "k d"] | None,
    num_starts: int | None,
    max_rounds: int,
) -> layer_inversion.Decoding:
    """Decodes a network with one output; see `algebraic.reconstruct`.

    Args:
      layers: of the network, and what training changed.
      key: typed key.
      num_images: N, if it is known.
      auxiliary: images of the same domain, flattened, if there are any.
      num_starts: of the search for rows; None is by its size.
      max_rounds: of the search, at most.

    Raises:
      RankHiddenError: the rank cannot be told from noise.
      ValueError: fewer usable units than images.
    """
    key_rank, key_starts, key_span = jax.random.split(key, 3)
    dtype = layers.kernels[0].dtype
    last = len(layers.kernels) - 2
    columns = _usable(layers.kernels[-1][:, 0], num_images)
    given = {"key": key_rank, "num_images": num_images}
    factors = low_rank.factorize(_divided(layers, columns), **given)
    out = layers.kernels[-1][:, 0].astype(np.float64)
    first_change = jnp.asarray(layers.kernel_changes[0], dtype)
    if num_images is None and factors.gap <= low_rank.CLEAR_GAP:
        # Moving features blur the rank of the gates, not that of the first layer.
        num_images = low_rank.count_inputs(
            first_change, key=jax.random.fold_in(key_rank, 1)
        )
        if num_images is not None:
            _usable(out, num_images)
            factors = low_rank.factorize(
                _divided(layers, columns), key=key_rank, num_images=num_images
            )
    rank = factors.right.shape[0]
    if num_images is None and factors.gap < 2.0:
        raise low_rank.RankHiddenError(factors.gap, rank, len(columns))
    # Squared relative error of the weakest direction of the row space.
    noise = 1.0 / factors.gap**2
    gate_tolerance = float(np.clip(16.0 * noise, 1e-4, 0.25))
    tolerance = float(np.clip(factors.gap**-1 * 2.0, 1e-2, 0.2))

    kernels = [jnp.asarray(k, dtype) for k in layers.kernels[:last]]
    biases = [jnp.asarray(b, dtype) for b in layers.biases[:last]]
    top = jnp.asarray(layers.kernels[last][:, columns], dtype)
    top_bias = jnp.asarray(layers.biases[last][columns], dtype)

    search = functools.partial(
        gates_lib.find_gate_rows,
        factors,
        functools.partial(layer_inversion.activations_of, kernels, biases),
        functools.partial(layer_inversion.gates_of, top, top_bias),
        first_change,
        num_starts=num_starts or int(np.clip(2 * rank, 128, 1024)),
        auxiliary=auxiliary,
    )
    rows = search(
        max_rounds=max_rounds,
        key=key_starts,
        tolerance=gate_tolerance,
        same=0.999 if gate_tolerance < 1e-3 else 0.85,
    )
    # Two images that are nearly alike show as one, whose gates are binary but for the
    # few units between them.
    loose = _LOOSE / len(columns)
    rounds = rows.rounds
    if len(rows.rows) < rank and loose > gate_tolerance and rounds < max_rounds:
        rows = search(
            key=jax.random.fold_in(key_starts, 1),
            max_rounds=max_rounds - rounds,
            tolerance=loose,
            same=0.97,
            known=rows,
        )
        rows = rows._replace(rounds=rows.rounds + rounds)
    span = None
    if 2 * rank < len(first_change):
        left = low_rank.factorize(first_change, key=key_span, num_images=rank).left
        span = np.asarray(left, np.float64)
    rows, decoded = _peeled(layers, factors, rows, columns, span, gate_tolerance)
    contradicted = 2.0 * np.mean(decoded.gates[:, columns] != rows.rows, axis=1)
    residuals = np.max(
        [
            np.sqrt(rows.residuals),
            contradicted,
            decoded.forward_residuals,
            decoded.span_residuals,
        ],
        axis=0,
        initial=0.0,
    )
    residuals = np.where(np.isfinite(residuals), residuals, np.inf)
    return layer_inversion.Decoding(
        layers, decoded, residuals, tolerance, rank, factors.gap, rows.rounds
    )
