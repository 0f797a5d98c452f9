r"""What the factors of an adapter tell by themselves: how many images, and their span.

A dense layer with the frozen kernel W learns $W + s A B$, A of shape (d, r) and random
at the start, B of shape (r, m) and zero. With images $x_i$ and their signals $d_{i,t}$
at step t, gradient descent of any kind moves the factors by

$$\Delta A = s \sum_{i,t} x_i (B_t d_{i,t})^\top, \quad
  \Delta B = s \sum_{i,t} (A_t^\top x_i) d_{i,t}^\top. $$

The columns of $\Delta A$ are sums of images. By induction over the steps neither B nor
the rows of $\Delta A$ leave the span S of the $A_0^\top x_i$, of dimension N: B has the
rank min(N, r), and q in the complement of S has $q^\top A_T^\top x_i = 0$. Decay of the
weights changes these two nothing, for A is then a multiple of A_0 and the same sums.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _checks
from ntk_privacy.models.adapter import Adapter

__all__ = [
    "Size",
    "change",
    "equations",
    "full",
    "num_images",
    "residuals",
    "span",
    "span_gap",
]

_GAP = 5.0  # between the last direction of the images and the first of noise
_ROUNDED = 64.0  # roundoffs of a factor, below which a direction may be noise


class Size(NamedTuple):
    """How many images the factors show.

    Attributes:
      rank: directions that stand above rounding.
      hidden: they are as many as the factors have room for: N is that or more.
      gap: last kept over first dropped singular value; 1 where none is dropped.
    """

    rank: int
    hidden: bool
    gap: float


def _rank_above(
    matrix: Float[np.ndarray, "a b"], floor: float
) -> tuple[int, float, Float[np.ndarray, "a k"]]:
    """Returns the rank at the widest gap above rounding, the gap, and left vectors.

    Args:
      matrix: any.
      floor: below which a singular value may be rounding.
    """
    # Dead units: zeros of theirs are exact, and no sign of where the images end.
    alive = matrix[:, np.any(matrix != 0, axis=0)]
    left, values, _ = np.linalg.svd(alive, full_matrices=False)
    values = np.maximum(values, np.finfo(np.float64).eps * max(values[0], 1e-300))
    gaps = np.where(
        (values[1:] < floor) & (values[:-1] >= floor), values[:-1] / values[1:], 1.0
    )
    if not len(gaps) or gaps.max() < _GAP:
        return len(values), 1.0, left
    best = int(np.argmax(gaps)) + 1
    return best, float(gaps[best - 1]), left


def _floor(adapter: Adapter, leaf: Float[Array | np.ndarray, "a b"]) -> float:
    """Returns the size below which a direction of a factor may be rounding."""
    size = np.linalg.norm(np.asarray(leaf, np.float64))
    return _ROUNDED * adapter.roundoff * float(size)


def num_images(adapter: Adapter) -> Size:
    """Returns N, the rank that training gave the factors, where it is below theirs.

    It is exact under gradient descent of any kind (minibatches, momentum, schedules,
    weight decay) of images that do not depend on each other, fewer than r and the
    units. With b_0 of zero B alone tells it; with another, A's change does, without
    decay.

    Args:
      adapter: the factors.

    Raises:
      ValueError: the factors did not move, or A's start is needed and not known.

    Example:
      >>> import numpy as np
      >>> from ntk_privacy.models.adapter import Adapter
      >>> from ntk_privacy.reconstruction import adapter_factors
      >>> rng = np.random.default_rng(0)
      >>> a, x, d = (rng.normal(size=s) for s in ((64, 8), (64, 3), (3, 32)))
      >>> adapter_factors.num_images(Adapter(a_t=a, b_t=a.T @ x @ d)).rank
      3
    """
    if not np.any(adapter.moved_b):
        raise ValueError(
            "The factor b_t did not move from its start: the adapter was not trained, "
            "and holds nothing of the images."
        )
    if adapter.b_0 is None:
        matrix, leaf = adapter.moved_b, adapter.b_t
    else:
        matrix, leaf = _moved_a(adapter), adapter.a_t
    rank, gap, _ = _rank_above(matrix, _floor(adapter, leaf))
    room = min(len(matrix), int(np.any(matrix != 0, axis=0).sum()))
    return Size(rank, rank >= room, gap)


def _moved_a(adapter: Adapter) -> Float[np.ndarray, "d r"]:
    moved = adapter.moved_a
    if moved is None:
        raise ValueError(
            "a_0 is not known: give A before training, or draw it from its seed, for "
            "the span; without it use adapter_factors.equations or "
            "adapter_replay.within."
        )
    if not np.any(moved):
        raise ValueError(
            "The factor a_t did not move from its start: it was frozen, or saw one "
            "step from a B of zero, and does not span the images; take a later release."
        )
    return moved


def span(adapter: Adapter, *, rank: int | None = None) -> Float[np.ndarray, "d n"]:
    """Returns an orthonormal basis of what A's change spans.

    It is the span of the images where they are no more than r, else a part of it.

    Args:
      adapter: the factors, with A's start.
      rank: N; None is that of `num_images`.

    Raises:
      ValueError: see `num_images`, or a rank that A's change does not have.
    """
    moved = _moved_a(adapter)
    rank = num_images(adapter).rank if rank is None else rank
    _checks.in_range(1, min(moved.shape), rank=rank)
    left, values, _ = np.linalg.svd(moved, full_matrices=False)
    noise = _floor(adapter, adapter.a_t) / _ROUNDED
    if values[rank - 1] <= noise:
        raise ValueError(
            f"A's change spans fewer than {rank} directions above rounding "
            f"({values[rank - 1]:.2g} to {noise:.2g}): take a release that was trained "
            "longer, or stored in float64."
        )
    return left[:, :rank]


def span_gap(adapter: Adapter, *, rank: int) -> float:
    """Returns how far a rank stands out in A's change; inf where it is all there is.

    A gap of 1 or so is no sum of so many images: A's start is another one, or Adam,
    weight decay or another input at every step moved it.

    Args:
      adapter: the factors, with A's start.
      rank: N.

    Raises:
      ValueError: A's start is not known, or A did not move.
    """
    moved = _moved_a(adapter)
    _checks.in_range(1, min(moved.shape), rank=rank)
    values = np.linalg.svd(moved, compute_uv=False)
    behind = values[rank] if rank < len(values) else 0.0
    return float(values[rank - 1] / behind) if behind else float("inf")


def equations(adapter: Adapter) -> Float[np.ndarray, "k d"]:
    """Returns r - N orthonormal rows C with C x = 0 for every training image x.

    They need the trained factors alone, where B began at zero.

    Args:
      adapter: the factors; the start of A is not looked at.

    Raises:
      ValueError: B did not begin at zero, or N hides behind the rank.
    """
    if adapter.b_0 is not None and np.any(adapter.b_0):
        raise ValueError(
            "b_0 is not zero, and leaves no direction of B without images: use span."
        )
    rank, _, left = _rank_above(adapter.moved_b, _floor(adapter, adapter.b_t))
    if rank >= min(adapter.moved_b.shape):
        raise ValueError(full(adapter))
    # A wide B has all r left vectors; a narrow one lacks the rest of the complement.
    whole = np.linalg.qr(left[:, :rank], mode="complete")[0]
    return np.linalg.qr(adapter.a_at(1.0) @ whole[:, rank:])[0].T


def residuals(
    adapter: Adapter, images: Float[Array | np.ndarray, "n h w c"]
) -> Float[np.ndarray, " n"]:
    """Returns how far images are from `equations`: rounding, if they were trained on.

    Of any other direction it is about sqrt((r - N) / d): a test of membership.

    Args:
      adapter: the factors.
      images: preprocessed like the training images.

    Raises:
      ValueError: see `equations`, or images of another size.
    """
    rows = equations(adapter)
    flat = np.asarray(images, np.float64).reshape(len(images), -1)
    if flat.shape[1] != rows.shape[1]:
        raise ValueError(
            f"images have {flat.shape[1]} values, the adapter {rows.shape[1]} inputs: "
            "give them as they enter the layer."
        )
    norms = np.maximum(np.linalg.norm(flat, axis=1), 1e-300)
    return np.linalg.norm(flat @ rows.T, axis=1) / norms


def full(adapter: Adapter) -> str:
    """Returns what is said of factors whose rank hides N.

    Args:
      adapter: the factors.
    """
    return (
        f"The factors have full rank {min(adapter.rank, adapter.shape[1])}: they were "
        "trained on as many images or more, and span a part of what these span; images "
        "of a known family may be found by adapter_replay.within."
    )


def change(
    adapter: Adapter, basis: Float[np.ndarray, "d n"], *, point: float
) -> Float[np.ndarray, "d m"]:
    r"""Returns what the whole kernel's change would be: X D, of images times signals.

    $\Delta B = s \sum_t A_t^\top X D_t$; with one A for all steps and X in the span of
    n <= r directions, X D is the one matrix of that span whose sketch B is.

    Args:
      adapter: the factors, with A's start.
      basis: of the span of the images.
      point: share of A's way, at which it stands for all steps.
    """
    sketch = adapter.a_at(point).T @ basis
    return basis @ (np.linalg.pinv(sketch) @ adapter.moved_b) / adapter.scale
