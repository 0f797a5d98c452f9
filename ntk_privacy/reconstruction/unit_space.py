r"""Closed units in the coordinates of the row space: images need not be formed.

With $\Delta W = L V$, V orthonormal rows, image i is $x_i = L u_i$ and its signals are
$d_i = c_i V$, where $C U = I$ and $h \cdot u_i = 1$ for $h = V \Delta b$. Its
preactivations, $x_i W + b$, are $u_i A$ with $A = L^\top W + h b^\top$, whatever the
scale of u, so the search for pairs (c, u) knows of N numbers an image, and no pixel.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ntk_privacy.reconstruction.change_factors import Factors

__all__ = ["Space", "inverse_gates", "make"]

_DEAD = 1e-3  # of the median signal
_NOISES = 10.0  # or so many standard deviations of the noise
_FAINT = 0.1  # of the median: a unit of less counts less


class Space(NamedTuple):
    """What the search works on; m units move, the others are left out.

    Attributes:
      left: (d, n) L, the images' side.
      values: (n,) singular values of the change.
      signals: (n, m) V at the units that move.
      rows: (n, m) V, mixed to orthonormal rows after each unit is made of norm 1, faint
        ones of less.
      mix: (n, n) takes c of `rows` to c of `signals`.
      gates_0: (n, m) A before training.
      gates_t: (n, m) A after it.
      scale: (n,) h; None without a bias, or where the bias does not fit.
      noise: root mean square of an entry of the change that is no image's.
      misfit: the same of the bias's change, which is rounded more coarsely where biases
        are larger than kernels:
      coarse: so many times.
      alive: (units,) which units move.
    """

    left: Float[np.ndarray, "d n"]
    values: Float[np.ndarray, " n"]
    signals: Float[np.ndarray, "n m"]
    rows: Float[np.ndarray, "n m"]
    mix: Float[np.ndarray, "n n"]
    gates_0: Float[np.ndarray, "n m"]
    gates_t: Float[np.ndarray, "n m"]
    scale: Float[np.ndarray, " n"] | None
    noise: float
    misfit: float
    coarse: float
    alive: Bool[np.ndarray, " units"]

    @property
    def gates(self) -> Float[np.ndarray, "n m"]:
        """A half way."""
        return (self.gates_0 + self.gates_t) / 2


def make(
    factors: Factors,
    kernels: tuple[np.ndarray, np.ndarray],
    biases: tuple[np.ndarray, np.ndarray] | None,
    bias_change: Float[np.ndarray, " units"] | None,
    *,
    coarse: float = 1.0,
) -> Space:
    """Returns the coordinates.

    Args:
      factors: of the kernel's change.
      kernels: before and after training, (d, units) each.
      biases: before and after; None without.
      bias_change: that belongs to the kernel's change; None leaves the scale open.
      coarse: see `Space`.
    """
    left = factors.left * factors.values
    norms = np.linalg.norm(factors.right, axis=0)
    # Most units may move for no image.
    middle = float(np.median(norms[norms > _DEAD * norms.max()]))
    dead = factors.noise * float(np.linalg.norm(1 / factors.values))
    alive = norms > max(_DEAD * middle, min(_NOISES * dead, _FAINT * middle))
    signals = factors.right[:, alive]
    scale, misfit = None, 0.0
    if bias_change is not None:
        scale = factors.right @ bias_change
        misfit = float(np.sqrt(np.mean((bias_change - scale @ factors.right) ** 2)))
    gates = []
    for i in range(2):
        gate = left.T @ kernels[i][:, alive]
        if scale is not None and biases is not None:
            gate = gate + scale[:, None] * biases[i][alive]
        gates.append(gate)
    unit = signals / np.maximum(norms[alive], _FAINT * middle)
    squares, vectors = np.linalg.eigh(unit @ unit.T)
    roots = np.sqrt(np.maximum(squares, squares[-1] * 1e-14))
    mix = (vectors / roots) @ vectors.T
    return Space(
        left=left,
        values=factors.values,
        signals=signals,
        rows=mix @ unit,
        mix=mix,
        gates_0=gates[0],
        gates_t=gates[1],
        scale=scale,
        noise=factors.noise,
        misfit=misfit,
        coarse=coarse,
        alive=alive,
    )


def inverse_gates(
    space: Space, found: Float[np.ndarray, "k n"]
) -> Float[np.ndarray, "n n"]:
    """Returns P (P A A^T P)^+ P, for regressions on A of a u orthogonal to all found.

    Args:
      space: the coordinates.
      found: c of the images found so far.
    """
    n, k = len(space.values), len(found)
    basis = np.eye(n)
    if k:
        basis = np.linalg.qr(found.T, mode="complete")[0][:, k:]
    inner = basis.T @ space.gates
    gram = inner @ inner.T
    gram += 1e-10 * np.trace(gram) / max(len(gram), 1) * np.eye(len(gram))
    return basis @ np.linalg.solve(gram, basis.T)
