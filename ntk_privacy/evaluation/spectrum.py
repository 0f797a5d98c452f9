"""The spectrum of a kernel and what it says: conditioning, rank, alignment."""

import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _checks

__all__ = ["eigenvalues", "figures"]


def eigenvalues(kernel: Float[Array | np.ndarray, "n n"]) -> Float[np.ndarray, " n"]:
    """Returns all eigenvalues in float64, the largest first.

    Args:
      kernel: symmetric.
    """
    return np.linalg.eigvalsh(np.asarray(kernel, np.float64))[::-1]


def figures(
    kernel: Float[Array | np.ndarray, "n n"], targets: Float[np.ndarray, "n c"]
) -> dict[str, float]:
    r"""Returns figures of a kernel on images with targets.

    Args:
      kernel: symmetric.
      targets: of its images.

    Returns:
      trace, largest_eigenvalue, smallest_eigenvalue, condition_number (inf unless all
      are positive); effective_rank, as many equal eigenvalues as would have this trace
      and this norm; target_alignment, 1 for the kernel y y^T (Cristianini et al.,
      NeurIPS 2001).

    Raises:
      ValueError: the kernel is not finite, or zero.

    Example:
      >>> import numpy as np
      >>> from ntk_privacy.evaluation import spectrum
      >>> found = spectrum.figures(np.eye(4), np.ones((4, 1)))
      >>> found["effective_rank"], found["target_alignment"], found["condition_number"]
      (4.0, 0.5, 1.0)
    """
    kernel, y = np.asarray(kernel, np.float64), np.asarray(targets)
    _checks.finite_data(kernel=kernel)
    if not kernel.any():
        raise ValueError("kernel is zero everywhere: it has no spectrum to speak of.")
    values = eigenvalues(kernel)
    trace, size = float(np.trace(kernel)), float(np.linalg.norm(kernel))
    largest, smallest = float(values[0]), float(values[-1])
    aligned = np.einsum("nc,nm,mc->", y, kernel, y)
    return {
        "trace": trace,
        "largest_eigenvalue": largest,
        "smallest_eigenvalue": smallest,
        "condition_number": largest / smallest if smallest > 0 else float("inf"),
        "effective_rank": (trace / size) ** 2,
        "target_alignment": float(aligned / (size * np.linalg.norm(y @ y.T))),
    }
