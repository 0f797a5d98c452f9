r"""From exact gates to images: peel a ReLU network's weight change layer by layer.

With $\Delta W_k = \sum_i \alpha_i a_{k,i} b_{k,i}^\top$, `a` the input of layer k and
`b` the signal propagated back to its output, everything that `b` needs lies above
layer k. So one least-squares problem per layer, $A_k = \Delta W_k B_k^+$, walks down to
the images; the forward equations then say how far to trust the result.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

__all__ = [
    "Decoded",
    "Decoding",
    "Layers",
    "activations_of",
    "gates_of",
    "invert",
    "peel",
]

_HIGHEST = jax.lax.Precision.HIGHEST
_BEYOND = 3.0  # times the largest error that is seen
_LEAST_DUAL = 1e-15  # of the largest product with activations; less leaves no trace


class Layers(NamedTuple):
    """Parameters of a ReLU MLP, first layer first, on the host.

    Attributes:
      kernels, biases: where features are evaluated.
      kernel_changes, bias_changes: what training added, in float64.
    """

    kernels: list[np.ndarray]
    biases: list[np.ndarray]
    kernel_changes: list[np.ndarray]
    bias_changes: list[np.ndarray]


class Decoded(NamedTuple):
    """Images and what they were decoded from.

    Attributes:
      inputs: flat images.
      duals: one multiplier per image and output.
      activations: input of the last hidden layer, decoded without the forward pass.
      gates: of the last hidden layer, predicted from `activations`, all units.
      forward_residuals: |relu forward pass of the image - activations| / |activations|.
      span_residuals: share of the image outside the column space of the first layer's
        change, as a relative distance.
    """

    inputs: np.ndarray
    duals: np.ndarray
    activations: np.ndarray
    gates: np.ndarray
    forward_residuals: np.ndarray
    span_residuals: np.ndarray


class Decoding(NamedTuple):
    """What `algebraic.reconstruct` makes its result of.

    Attributes:
      layers: with the features that were used.
      decoded: images and what they were decoded from.
      residuals: one per image.
      tolerance: on the residuals: below it an image is consistent with itself.
      rank, gap: of the decoded layer.
      rounds: of starts.
    """

    layers: Layers
    decoded: Decoded
    residuals: np.ndarray
    tolerance: float
    rank: int
    gap: float
    rounds: int


@jax.jit
def activations_of(
    kernels: list[Array], biases: list[Array], x: Float[Array, "n d"]
) -> Float[Array, "n units"]:
    """Returns what ReLU layers make of inputs.

    Args:
      kernels: of the layers, in order.
      biases: theirs.
      x: inputs of the first layer.
    """
    for kernel, bias in zip(kernels, biases, strict=True):
        x = jnp.maximum(jnp.matmul(x, kernel, precision=_HIGHEST) + bias[None], 0.0)
    return x


@jax.jit
def gates_of(
    kernel: Float[Array, "units columns"],
    bias: Float[Array, " columns"],
    activations: Float[Array, "n units"],
    scales: Float[Array, " n"],
) -> Bool[Array, "n columns"]:
    """Returns the open units of a layer; the bias counts `scales` times.

    Args:
      kernel: of the layer.
      bias: of the layer.
      activations: that go in, one row per image.
      scales: of each row.
    """
    pre = jnp.matmul(activations, kernel, precision=_HIGHEST)
    return pre + scales[:, None] * bias[None] > 0


def _forward(layers: Layers, x: np.ndarray, depth: int) -> list[np.ndarray]:
    """Returns the activations of the first `depth` layers."""
    out = []
    for kernel, bias in zip(layers.kernels[:depth], layers.biases[:depth], strict=True):
        x = np.maximum(x @ kernel.astype(x.dtype) + bias, 0.0)
        out.append(x)
    return out


def _regress(target: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Solves target = c rows for c; also returns the variance factor of each of c."""
    values, vectors = np.linalg.eigh(rows @ rows.T)
    inverse = (vectors / np.maximum(values, values[-1:] * 1e-13 + 1e-300)) @ vectors.T
    return (target @ rows.T) @ inverse, np.diag(inverse)


def _trimmed_regress(
    target: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """`_regress` without the columns that some wrong gate spoils, by their misfit.

    A gate on the wrong side of zero, one in a thousand, would mix images whose duals
    differ by as much; its column misfits far more than the others.

    Returns:
      Coefficients, variance factors, the mean squared misfit of kept columns, and which
      these are.
    """
    keep = np.ones(target.shape[1], bool)
    solved, factors = _regress(target, rows)
    misfit = np.sum((target - solved @ rows) ** 2, axis=0)
    for _ in range(8):
        fits = misfit < 16.0 * np.median(misfit[keep])
        if np.array_equal(fits, keep) or fits.sum() < max(2 * len(rows), len(keep) / 2):
            break
        keep = fits
        solved, factors = _regress(target[:, keep], rows[:, keep])
        misfit = np.sum((target - solved @ rows) ** 2, axis=0)
    return solved, factors, float(np.mean(misfit[keep]) / len(target)), keep


def _settled(
    gates: Bool[np.ndarray, "m units"],
    signals: Float[np.ndarray, "m units"],
    inputs: Float[np.ndarray, "d m"],
    change: Float[np.ndarray, "d units"],
    doubtful: Bool[np.ndarray, " units"],
) -> Bool[np.ndarray, "m units"]:
    """Gates, those of doubtful units as the change itself has them.

    An activation within its noise of zero has a random gate, and the signals pass it on
    to every unit of the layer below. But inputs are known by now from the other units.

    Args:
      gates: as activations have them.
      signals: at the layer's output, of open units.
      inputs: of the layer, times the duals.
      change: of its kernel, `inputs @ (gates * signals)`.
      doubtful: units that this leaves unexplained.
    """
    if not doubtful.any():
        return gates
    gates = gates.copy()
    passed = np.linalg.lstsq(inputs, change[:, doubtful], rcond=None)[0]
    sent = signals[:, doubtful]
    gates[:, doubtful] = passed * sent > 0.5 * sent**2
    return gates


@jax.jit
def invert(
    kernel: Float[Array, "d units"],
    target: Float[Array, "m units"],
    active: Bool[Array, "m units"],
    prior: Float[Array, "m d"],
    weight: Float[Array, " m"],
) -> Float[Array, "m d"]:
    r"""Solves $x W = t$ on active units, near a prior, by conjugate gradients.

    Minimises $\|(x W - t)_{active}\|^2 + \lambda \|x - x_0\|^2$ for all images at once.

    Args:
      kernel: W.
      target: activations less the bias.
      active: where the forward equation is linear.
      prior: x_0, where the iteration starts.
      weight: lambda, the variance of `target` over that of `prior`; above 0.
    """
    mask = active.astype(kernel.dtype)
    weight = weight[:, None]

    def normal(v):
        inner = jnp.matmul(v, kernel, precision=_HIGHEST) * mask
        return jnp.matmul(inner, kernel.T, precision=_HIGHEST) + weight * v

    def dots(a, b):
        return jnp.sum(a * b, axis=1, keepdims=True)

    def step(state):
        i, x, r, p, rr = state
        q = normal(p)
        size = rr / jnp.maximum(dots(p, q), jnp.finfo(p.dtype).tiny)
        x, r = x + size * p, r - size * q
        new = dots(r, r)
        p = r + new / jnp.maximum(rr, jnp.finfo(p.dtype).tiny) * p
        return i + 1, x, r, p, new

    start = (target - jnp.matmul(prior, kernel, precision=_HIGHEST)) * mask
    r = jnp.matmul(start, kernel.T, precision=_HIGHEST)
    rr = dots(r, r)
    small = (10 * jnp.finfo(kernel.dtype).eps) ** 2
    state = (jnp.zeros((), jnp.int32), prior, r, r, rr)
    state = jax.lax.while_loop(
        lambda s: (s[0] < 100) & jnp.any(s[4] > small * jnp.maximum(rr, small)),
        step,
        state,
    )
    return state[1]


def _noise_floor(a: np.ndarray) -> np.ndarray:
    """Error of rectified activations, one per row, read from what lies below zero.

    It differs from unit to unit, so among many the largest lies far out: beyond it
    there is as little noise above zero as below. But not beyond all bounds, where a
    wrong gate has left more than noise.
    """
    noise = np.maximum(-a, 0.0)
    counts = np.sum(noise > 0, axis=1)
    rms = np.sqrt(np.sum(noise**2, axis=1) / np.maximum(counts, 1))
    return np.clip(_BEYOND * np.max(noise, axis=1, initial=0.0), 4.0 * rms, 16.0 * rms)


def _variance(
    noise: Float[np.ndarray, "..."] | float,
    factors: Float[np.ndarray, " m"],
    scale: Float[np.ndarray, " m"],
) -> Float[np.ndarray, " m"]:
    """Of what a row solves; of a row that is nothing, as large as numbers go."""
    with np.errstate(over="ignore"):
        return np.minimum(noise * factors / scale**2, 1e300)


def peel(
    layers: Layers,
    signals: Float[np.ndarray, "m units"],
    columns: np.ndarray,
    *,
    span: Float[np.ndarray, "d r"] | None,
    dtype: np.dtype,
) -> Decoded:
    r"""Decodes images from the gates of the last hidden layer, one output.

    Args:
      layers: L hidden layers and the output.
      signals: gate rows times output weights on `columns`: $b_{L-1}$ without the dual.
      columns: units of the last hidden layer that the gate rows cover.
      span: orthonormal basis of the column space of the first layer's change.
      dtype: of the device's part of the work.
    """
    last = len(layers.kernels) - 2
    change = np.concatenate(
        [layers.kernel_changes[last], layers.bias_changes[last][None]]
    )[:, columns]
    mixed, factors = _regress(change, signals)
    duals = mixed[-1]
    largest = float(np.max(np.abs(mixed), initial=0.0)) or 1.0
    # No trace, no image: any scale will do, and this one overflows nothing.
    scale = np.where(np.abs(duals) < _LEAST_DUAL * largest, largest, duals)
    a = (mixed[:-1] / scale).T
    spread = np.mean((change - mixed @ signals) ** 2)
    variance = _variance(float(spread), factors, scale)
    out = layers.kernels[-1][:, 0].astype(np.float64)
    gates = a @ layers.kernels[last] + layers.biases[last] > 0
    top = gates * out
    top[:, columns] = signals
    known = a > _noise_floor(a)[:, None]
    back, gate, x, target = top, known, a, a
    active, weight = known, np.ones(len(a))
    for k in range(last - 1, -1, -1):
        signal = back @ layers.kernels[k + 1].T
        back, target = gate * signal, x
        change = layers.kernel_changes[k]
        solved, factors, rest, kept = _trimmed_regress(change, back)
        if k:
            back = _settled(gate, signal, solved, change, ~kept) * signal
        x = (solved / scale).T
        before, variance = variance, _variance(rest, factors, scale)
        least_variance = np.maximum(1e-9 * before, 1e-300)
        weight = np.clip(before / np.maximum(variance, least_variance), 1e-7, 1e7)
        active = gate
        gate = x > _noise_floor(x)[:, None]
    # One inactive unit taken for active would spoil an image: both must agree.
    active = active & (_forward(layers, x, 1)[0] > 0)
    arrays = (layers.kernels[0], target - layers.biases[0], x, weight)
    kernel, target, prior, weight = (jnp.asarray(v, dtype) for v in arrays)
    x = invert(kernel, target, jnp.asarray(active), prior, weight)
    x = np.asarray(x, np.float64)
    forward = _forward(layers, x, last)[-1]
    norm = np.maximum(np.linalg.norm(a, axis=1), 1e-300)
    residual = np.linalg.norm(forward - a, axis=1) / norm
    outside = np.zeros(len(a))
    if span is not None:
        size = np.maximum(np.linalg.norm(x, axis=1), 1e-300)
        outside = np.linalg.norm(x - (x @ span) @ span.T, axis=1) / size
    return Decoded(x, duals[:, None], a, gates, residual, outside)
