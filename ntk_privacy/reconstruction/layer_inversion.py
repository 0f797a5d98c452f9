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

__all__ = ["Decoded", "Layers", "invert", "peel"]

_HIGHEST = jax.lax.Precision.HIGHEST


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


def _forward(layers: Layers, x: np.ndarray, depth: int) -> list[np.ndarray]:
    """Returns the activations of the first `depth` layers."""
    out = []
    for kernel, bias in zip(layers.kernels[:depth], layers.biases[:depth], strict=True):
        x = np.maximum(x @ kernel.astype(x.dtype) + bias, 0.0)
        out.append(x)
    return out


def _regress(target: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Solves target = c rows for c; also returns the variance factor of each of c."""
    gram = rows @ rows.T
    gram.flat[:: len(gram) + 1] += 1e-13 * np.trace(gram) / len(gram)
    inverse = np.linalg.inv(gram)
    return (target @ rows.T) @ inverse, np.diag(inverse)


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
    """Error of rectified activations, one per row, read from what lies below zero."""
    negative = np.where(a < 0, a, np.nan)
    counts = np.sum(a < 0, axis=1)
    rms = np.sqrt(np.nansum(negative**2, axis=1) / np.maximum(counts, 1))
    return 4.0 * rms


def peel(
    layers: Layers,
    signals: Float[np.ndarray, "m units"],
    columns: np.ndarray,
    *,
    span: Float[np.ndarray, "d r"] | None,
    dtype: np.dtype,
    num_sweeps: int = 2,
) -> Decoded:
    r"""Decodes images from the gates of the last hidden layer, one output.

    Args:
      layers: L hidden layers and the output.
      signals: gate rows times output weights on `columns`: $b_{L-1}$ without the dual.
      columns: units of the last hidden layer that the gate rows cover.
      span: orthonormal basis of the column space of the first layer's change.
      dtype: of the device's part of the work.
      num_sweeps: times that the lower gates are recomputed from the images.
    """
    last = len(layers.kernels) - 2
    change = np.concatenate(
        [layers.kernel_changes[last], layers.bias_changes[last][None]]
    )[:, columns]
    mixed, factors = _regress(change, signals)
    duals = mixed[-1]
    scale = np.where(duals == 0, 1e-300, duals)
    a = (mixed[:-1] / scale).T
    spread = np.mean((change - mixed @ signals.T.T) ** 2)
    variance = spread * factors / scale**2
    out = layers.kernels[-1][:, 0].astype(np.float64)
    gates = a @ layers.kernels[last] + layers.biases[last] > 0
    top = gates * out
    top[:, columns] = signals
    below = [a]
    known = a > _noise_floor(a)[:, None]
    x = prior = np.zeros((len(a), len(layers.kernels[0])))
    for sweep in range(num_sweeps):
        back = top
        estimates = [a]
        lower = _forward(layers, x, last) if sweep else None
        for k in range(last - 1, -1, -1):
            above = known if k == last - 1 else estimates[0] > 0
            gate = above if lower is None else lower[k] > 0
            back = gate * (back @ layers.kernels[k + 1].T)
            solved, factors = _regress(layers.kernel_changes[k], back)
            estimates.insert(0, (solved / scale).T)
            rest = np.mean((layers.kernel_changes[k] - solved @ back) ** 2)
            prior_variance = rest * factors / scale**2
        prior = estimates[0]
        first = a if last == 1 else np.maximum(estimates[1], 0.0)
        active = known if last == 1 else estimates[1] > 0
        weight = variance / np.maximum(prior_variance, 1e-300)
        weight = np.clip(weight, 1e-7, 1e7)
        if last > 1:
            x = prior
            continue
        arrays = (layers.kernels[0], first - layers.biases[0], prior)
        kernel, target, start = (jnp.asarray(v, dtype) for v in arrays)
        x = np.asarray(
            invert(
                kernel, target, jnp.asarray(active), start, jnp.asarray(weight, dtype)
            ),
            np.float64,
        )
    del below
    forward = _forward(layers, x, last)[-1]
    norm = np.maximum(np.linalg.norm(a, axis=1), 1e-300)
    residual = np.linalg.norm(forward - a, axis=1) / norm
    outside = np.zeros(len(a))
    if span is not None:
        size = np.maximum(np.linalg.norm(x, axis=1), 1e-300)
        outside = np.linalg.norm(x - (x @ span) @ span.T, axis=1) / size
    return Decoded(x, duals[:, None], a, gates, residual, outside)
