"""What an attacker may do: a ball around each image within the box of valid images."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ntk_privacy import _checks

__all__ = [
    "Adversarial",
    "Region",
    "ThreatModel",
    "distance",
    "of_text",
    "per_sample",
    "project",
    "region",
    "wide",
]

NORMS = ("linf", "l2")
_MAX_ROUNDS = 50


@dataclasses.dataclass(frozen=True)
class ThreatModel:
    """The images that an attacker may show in place of x.

    Attributes:
      norm: of the perturbation: "linf" or "l2".
      eps: its bound, in units of the pixels; infinite for attacks that look for the
        nearest adversarial image.
      low: least value of a pixel.
      high: greatest value of a pixel.

    Raises:
      ValueError: an unknown norm, an eps that is negative or wider than the box, or an
        empty box.

    Example:
      >>> from ntk_privacy import evasion
      >>> evasion.ThreatModel("l2", eps=0.5)
      ThreatModel(norm='l2', eps=0.5, low=0.0, high=1.0)
    """

    norm: str = "linf"
    eps: _checks.Number = 8 / 255
    low: _checks.Number = 0.0
    high: _checks.Number = 1.0

    def __post_init__(self):
        _checks.one_of(NORMS, norm=self.norm)
        _checks.number(eps=self.eps, low=self.low, high=self.high)
        if not self.eps >= 0:
            raise ValueError(f"eps={self.eps} must be at least 0.")
        if not -np.inf < self.low < self.high < np.inf:
            raise ValueError(
                f"The box [{self.low}, {self.high}] is empty or unbounded: give "
                "low < high, such as 0 and 1."
            )
        if self.norm == "linf" and self.high - self.low < self.eps < np.inf:
            raise ValueError(
                f"eps={self.eps} is more than the box from {self.low} to {self.high} "
                "is wide: give it in units of the pixels, such as 8/255."
            )

    def limits(self, dtype: np.dtype | type) -> "Limits":
        """Returns the numbers in a dtype; eps is rounded down, to stay inside."""
        eps = np.asarray(self.eps, dtype)
        if float(eps) > self.eps:
            eps = np.nextafter(eps, np.zeros_like(eps))
        low, high = (np.asarray(v, dtype) for v in (self.low, self.high))
        return Limits(*(jnp.asarray(v) for v in (eps, low, high)))


class Adversarial(NamedTuple):
    """What an attack returns.

    Attributes:
      images: of the attack, within the threat model; x where it was already misread.
      success: whether `images` are misread. True also for what was misread before, so
        that robust accuracy is `1 - mean(success)`.
      queries: evaluations of the model that were spent on each image, with or without
        gradient; 0 if it was misread before.
      distance: from x, in the norm of the threat model.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from ntk_privacy import evasion
      >>> def logits_fn(x):
      ...     light = x.mean(axis=(1, 2, 3))
      ...     return jnp.stack([0.5 - light, light - 0.5], axis=1)
      >>> x, y = jnp.full((1, 2, 2, 1), 0.45), jnp.zeros(1, int)
      >>> bound = evasion.ThreatModel(eps=0.1)
      >>> made = evasion.pgd.attack(
      ...     logits_fn, x, y, key=jax.random.key(0), threat_model=bound, num_steps=5
      ... )
      >>> made.images.shape, made.success.tolist(), bool(made.distance[0] <= 0.1)
      ((1, 2, 2, 1), [True], True)
    """

    images: Float[Array, "n h w c"]
    success: Bool[Array, " n"]
    queries: Int[Array, " n"]
    distance: Float[Array, " n"]


class Limits(NamedTuple):
    """The numbers of a threat model, as arrays without axes."""

    eps: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]


def of_text(eps: str | float, norm: str = "linf") -> ThreatModel:
    """Returns what an attacker may do within a bound that is written out.

    Args:
      eps: a number or a fraction.
      norm: see `ThreatModel`.

    Raises:
      ValueError: eps is no number, negative, or not finite.

    Example:
      >>> from ntk_privacy.evasion import threat_model
      >>> threat_model.of_text("8/255").eps == 8 / 255
      True
    """
    return ThreatModel(norm, bound(eps))


def bound(eps: str | float) -> float:
    """Returns a bound that is written out, or a number.

    Args:
      eps: a number or a fraction.

    Raises:
      ValueError: it is no number, negative, or not finite.
    """
    top, slash, bottom = str(eps).partition("/")
    try:
        found = float(top) / float(bottom) if slash else float(top)
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"eps={eps!r} is no number: write 0.03 or 8/255.") from error
    if not 0 <= found < float("inf"):
        raise ValueError(f"eps={eps} must be finite and at least 0.")
    return found


class Region(NamedTuple):
    """Bounds per pixel, and the ball of radius eps around the centre if it is round.

    Attributes:
      centre: the images x.
      lower, upper: of the box; for l_inf, of its intersection with the ball.
      eps: radius.
    """

    centre: Float[Array, "n h w c"]
    lower: Float[Array, "n h w c"]
    upper: Float[Array, "n h w c"]
    eps: Float[Array, ""]


def wide(*dtypes: np.dtype | type) -> type:
    """Returns a type of floating point that holds all of them, float32 at least.

    Args:
      *dtypes: floating point.
    """
    double = any(jnp.dtype(dtype) == jnp.float64 for dtype in dtypes)
    return jnp.float64 if double else jnp.float32


def per_sample(
    values: Float[Array, " n"] | Bool[Array, " n"],
) -> Float[Array, "n 1 1 1"] | Bool[Array, "n 1 1 1"]:
    """Returns one value per image with the axes of images.

    Args:
      values: one per image.
    """
    return values[:, None, None, None]


def distance(move: Float[Array, "n h w c"], *, norm: str) -> Float[Array, " n"]:
    """Returns the norm of each move, in float32 at least.

    Args:
      move: of each image, in units of the pixels.
      norm: "linf" or "l2".
    """
    move = move.astype(wide(move.dtype))
    if norm == "linf":
        return jnp.max(jnp.abs(move), axis=(1, 2, 3))
    return jnp.sqrt(jnp.sum(move**2, axis=(1, 2, 3)))


def _sum_inside(x: Array, step: Array) -> Array:
    """Returns x + step, rounded towards x, so that it is never further than step."""
    total = x + step
    virtual = total - x
    # The rounding error of the sum, itself exact (Knuth's two-sum).
    error = (x - (total - virtual)) + (step - virtual)
    past = jnp.sign(error) * jnp.sign(step) < 0
    return jnp.where(past, jnp.nextafter(total, x), total)


def region(x: Float[Array, "n h w c"], limits: Limits, *, norm: str) -> Region:
    """Returns the images allowed in place of x.

    Args:
      x: images in the box.
      limits: of `ThreatModel.limits`.
      norm: "linf" or "l2".
    """
    lower = jnp.broadcast_to(limits.low, x.shape)
    upper = jnp.broadcast_to(limits.high, x.shape)
    if norm == "linf":
        lower = jnp.maximum(lower, _sum_inside(x, -limits.eps))
        upper = jnp.minimum(upper, _sum_inside(x, limits.eps))
    return Region(x, lower, upper, limits.eps)


def project(
    images: Float[Array, "n h w c"], allowed: Region, *, norm: str
) -> Float[Array, "n h w c"]:
    """Returns the nearest allowed images, in Euclidean distance.

    For l_2 that is the box's part of a point between x and the image: clip(x + t move)
    with the greatest t <= 1 inside the ball. Each round of Newton's method finds t for
    the pixels known to leave the box, from below, and ends when they are all known.

    Args:
      images: any.
      allowed: of `region`.
      norm: that of the region.
    """
    if norm == "linf":
        return jnp.clip(images, allowed.lower, allowed.upper)
    centre = allowed.centre
    move = images - centre
    room = jnp.where(move > 0, allowed.upper - centre, centre - allowed.lower)
    size = jnp.abs(move)
    eps = allowed.eps * (1 - 4 * jnp.finfo(move.dtype).eps)
    length = distance(move, norm="l2").astype(move.dtype)
    start = jnp.minimum(eps / jnp.maximum(length, jnp.finfo(move.dtype).tiny), 1)

    def newton(state):
        t, _, count = state
        full = per_sample(t) * size >= room
        fixed = jnp.sum(jnp.where(full, room, 0) ** 2, axis=(1, 2, 3))
        free = jnp.sum(jnp.where(full, 0, size) ** 2, axis=(1, 2, 3))
        left = jnp.maximum(eps**2 - fixed, 0)
        root = jnp.sqrt(left / jnp.where(free > 0, free, 1))
        new = jnp.where(free > 0, jnp.minimum(root, 1), 1)
        new = jnp.maximum(new, t)
        grown = jnp.any(new > t * (1 + 8 * jnp.finfo(t.dtype).eps))
        return new, grown, count + 1

    t, _, _ = jax.lax.while_loop(
        lambda state: state[1] & (state[2] < _MAX_ROUNDS),
        newton,
        (start, jnp.asarray(True), jnp.asarray(0, jnp.int32)),
    )
    moved = jnp.clip(centre + per_sample(t) * move, allowed.lower, allowed.upper)
    # t = 1 is the image itself, and exactly so.
    inside = jnp.clip(images, allowed.lower, allowed.upper)
    return jnp.where(per_sample(t) >= 1, inside, moved)
