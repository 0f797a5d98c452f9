r"""What was done to a gradient or a change of weights before it came here.

$\sum_i x_i d_i^\top$ of float32 has almost no two equal entries and no edge near zero.
Compression and noise leave other traces, each of which is looked for by itself: a grid
of values, a gap around zero, numbers of 16 bits, the spectrum of independent noise.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ntk_privacy.reconstruction import result

__all__ = ["Form", "noise_level", "noted", "seen"]

_GRID = 2**15  # steps from 0 to the largest value, of at most 16 bits
_OFF = 0.02  # of a step
_EMPTY = 0.01  # of the entries of rows and columns that are not all 0
_EDGE = 0.02  # of the median size, below which none of the others is
_HALVES = ((jnp.bfloat16, "bfloat16"), (jnp.float16, "float16"))
_FIRST = 100  # entries that tell as a rule
_LOWEST = 2.0**-24  # of float16
_PART = (1024, 256)  # entries whose spectrum is looked at
_QUANTILES = (0.4, 0.65, 0.9)  # of what is no image, from above
_ALIKE, _FEWER = 0.03, 2.0  # of the level; and so much over the number of values
_EDGES = 1.05  # of the largest value of noise: images are above
_MOST = 0.6  # of the values, that may be images
_ROUNDS = 6


class Form(NamedTuple):
    """What a change looks like.

    Attributes:
      change: of a kernel.
      what: part of a sentence on what was done to it, with figures; "" if nothing.
      remedy: against that.
      roundoff: of entries that were stored more coarsely than their dtype says, or 0.
    """

    change: Float[np.ndarray, "d units"]
    what: str = ""
    remedy: str = ""
    roundoff: float = 0.0


def _grid(change: np.ndarray, sizes: np.ndarray) -> Form | None:
    """Whether all are whole multiples of the least, and few."""
    step, most = float(sizes.min()), float(sizes.max())
    if most > _GRID * step:
        return None
    whole = sizes / step
    if np.max(np.abs(whole - np.round(whole))) > _OFF:
        return None
    bits = int(np.ceil(np.log2(np.round(most / step) + 1))) + 1
    told = f"every entry is a multiple of {step:.3g} ({bits} bits with the sign)"
    if step == _LOWEST:
        return Form(
            change,
            f"{told}: float16 has none in between",
            "scale the gradient up before it is stored, as by a larger loss",
        )
    return Form(
        change,
        f"{told}: it was quantised",
        "ask for more bits, or for a gradient before quantisation",
    )


def _half(change: np.ndarray, sizes: np.ndarray) -> Form | None:
    for dtype, name in _HALVES:
        with np.errstate(over="ignore"):
            same = all(
                np.array_equal(part.astype(dtype).astype(np.float64), part)
                for part in (sizes[:_FIRST], sizes)
            )
        if same:
            return Form(
                change,
                f"every entry is a number of {name}",
                "ask for float32, or for fewer images a batch",
                float(jnp.finfo(dtype).eps) / 2,
            )
    return None


def _cut(change: np.ndarray, sizes: np.ndarray) -> Form | None:
    """Whether entries are 0 that were small, where their row and column are not."""
    moved = change != 0
    within = int(np.sum(moved.any(1))) * int(np.sum(moved.any(0)))
    empty = 1 - len(sizes) / within
    if empty < _EMPTY:
        return None
    edge = float(sizes.min() / np.median(sizes))
    if edge < _EDGE:
        return None
    return Form(
        change,
        f"{100 * empty:.2g}% of the entries are exactly 0 in rows and columns that are "
        f"not, and no other is below {edge:.2g} of the median: only the largest were "
        "sent (top-k), or the weights were too coarse for their steps; these zeros are "
        "not those of closed units",
        "ask for a gradient without sparsification, or for what was held back "
        "(error feedback sends it later)",
    )


def seen(change: Float[np.ndarray, "d units"]) -> Form:
    """Returns the trace of rounding or compression, if there is one.

    Args:
      change: of the kernel, or its gradient; not all zero.
    """
    sizes = np.abs(change[change != 0])
    for look in (_grid, _half, _cut):
        trace = look(change, sizes)
        if trace is not None:
            return trace
    return Form(change)


def _noise_values(rows: int, columns: int) -> np.ndarray:
    """Singular values of independent noise of deviation 1, at `_QUANTILES`.

    By the law of Marchenko and Pastur (1967).
    """
    low, high = (np.sqrt(rows) + sign * np.sqrt(columns) for sign in (-1, 1))
    values = np.linspace(low, high, 4001)[1:-1]
    density = np.sqrt((high**2 - values**2) * (values**2 - low**2)) / values
    share = np.cumsum(density) / np.sum(density)
    return np.interp(1 - np.asarray(_QUANTILES), share, values)


def noise_level(change: Float[np.ndarray, "d units"]) -> float | None:
    """Returns the deviation of independent noise, if that is what the spectrum shows.

    Looks at a part of the entries, whose spectrum has the same shape.

    Args:
      change: see `seen`.
    """
    rng = np.random.default_rng(0)
    size = [min(part) for part in zip(change.shape, _PART, strict=True)]
    size[1] = min(size[1], size[0] // 2)
    if size[1] < 2:
        return None
    rows, columns = (
        rng.permutation(whole)[:part]
        for whole, part in zip(change.shape, size, strict=True)
    )
    values = np.linalg.svd(change[np.ix_(rows, columns)], compute_uv=False)
    unit = _noise_values(*size)
    edge = _EDGES * (np.sqrt(size[0]) + np.sqrt(size[1]))
    images, ratios = 0, _over_noise(values, unit)
    for _ in range(_ROUNDS):
        above = int(np.sum(values > edge * np.median(ratios)))
        if above > _MOST * len(values):
            return None
        if above == images:
            break
        images, ratios = above, _over_noise(values[above:], unit)
    level = float(np.median(ratios))
    if np.max(np.abs(ratios - level)) < (_ALIKE + _FEWER / size[1]) * level:
        return level
    return None


def _over_noise(values: np.ndarray, unit: np.ndarray) -> np.ndarray:
    return np.quantile(values, 1 - np.asarray(_QUANTILES)) / unit


def _noised(change: np.ndarray) -> Form:
    level = noise_level(change)
    if level is None:
        return Form(change)
    share = level / float(np.sqrt(np.mean(change**2)))
    return Form(
        change,
        "what is no image has the spectrum of independent noise of standard deviation "
        f"{level:.2g} in every entry, {share:.2g} of the change's root mean square, as "
        "of differential privacy or of coarse steps",
        "average several of the same images, or take one without noise",
    )


def noted(found: result.Reconstruction, form: Form) -> result.Reconstruction:
    """Returns a result whose verdict says what was done to the change.

    Of noise it speaks where nothing is certified: there is always some, of rounding.

    Args:
      found: by closed units.
      form: of what they read, by `seen`.
    """
    certified = found.verdict.num_certified
    if not certified and not form.what:
        form = _noised(form.change)
    if not form.what:
        return found
    told = f"; {form.what}"
    if not certified or certified < len(found.images):
        told += f"; {form.remedy}"
    parts = (found.verdict.reason, found.message)
    reason, message = (f"{part.removesuffix('.')}{told}." for part in parts)
    return found._replace(
        verdict=found.verdict._replace(reason=reason), message=message
    )
