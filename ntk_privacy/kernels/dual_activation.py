r"""Dual activations: what a nonlinearity does to Gaussian covariances, in closed form.

For (u, v) centred Gaussian with variances q1, q2 and covariance k, `dual` returns
$A = E[f(u) f(v)]$ and $B = E[f'(u) f'(v)] = \partial A / \partial k$.

Sources: ReLU: Cho and Saul, NeurIPS 2009. Erf: Williams, NeurIPS 1996. GELU: by
Stein's lemma and Gaussian integrals, as Tsuchida et al., AAAI 2021.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ntk_privacy.kernels.arccosine import complements, kappa0, kappa1

__all__ = [
    "Dual",
    "Gaps",
    "Nonlinearity",
    "dual",
    "dual_of_gaps",
    "gaps_of",
    "inverse_root",
    "root",
    "spread",
]

Nonlinearity = Literal["homogeneous", "erf", "gelu"]


class Dual(NamedTuple):
    """product: E[f(u) f(v)]. slope: E[f'(u) f'(v)]."""

    product: Float[Array, "..."]
    slope: Float[Array, "..."]


class Gaps(NamedTuple):
    """How far units are from parallel: lengths do not count.

    below: 2 (sqrt(q1 q2) - k), with all its digits where it is small beside that.
    above: 2 (sqrt(q1 q2) + k), likewise.
    """

    below: Float[Array, "..."]
    above: Float[Array, "..."]


def dual(
    nonlinearity: Nonlinearity,
    k: Float[Array, "..."],
    q1: Float[Array, "..."],
    q2: Float[Array, "..."],
    *,
    negative_slope: float = 0.0,
    positive_slope: float = 1.0,
    equal: bool | Bool[Array, "..."] = False,
) -> Dual:
    """Returns E[f(u) f(v)] and E[f'(u) f'(v)], finite with finite gradients anywhere.

    Args:
      nonlinearity: "erf", "gelu" (x times the normal CDF), or "homogeneous":
        negative_slope min(x, 0) + positive_slope max(x, 0).
      k: covariances.
      q1: variances of u, broadcasting to k.
      q2: variances of v, broadcasting to k.
      negative_slope: of "homogeneous" only.
      positive_slope: of "homogeneous" only.
      equal: where u and v are one variable, so k = q1 = q2 up to rounding: near the
        singular point of ReLU the rounding would show. True is everywhere.

    At zero variance a homogeneous f has no derivative. Its slope there counts as the
    mean of both, so that B = (negative_slope + positive_slope)^2 / 4, with `equal` or
    without, as in neural-tangents. (Flax takes the slope of ReLU at 0 to be 0.)
    """
    if nonlinearity == "erf":
        return _erf(k, q1, q2)
    if nonlinearity == "gelu":
        return _gelu(k, q1, q2)
    return _homogeneous(k, q1, q2, negative_slope, positive_slope, equal)


def _homogeneous(k, q1, q2, a: float, b: float, equal) -> Dual:
    scale = 0.5 * (a**2 + b**2)
    at_zero = jnp.full_like(q1, 0.25 * (a + b) ** 2)
    exact = Dual(scale * q1, jnp.where(q1 > 0, jnp.full_like(q1, scale), at_zero))
    if equal is True:
        return exact
    inverse1, inverse2 = inverse_root(q1), inverse_root(q2)
    rho = k * inverse1 * inverse2
    curved, straight = 0.5 * (a - b) ** 2, a * b
    product = curved * kappa1(rho)
    slope = curved * kappa0(rho)
    if straight != 0:
        product = product + straight * rho
        slope = slope + straight
    # sqrt(q) as q / sqrt(q): its derivative at q = 0 is 0, not infinite.
    out = Dual(product * (q1 * inverse1) * (q2 * inverse2), slope)
    if equal is False:
        return out
    return Dual(*(jnp.where(equal, e, o) for e, o in zip(exact, out, strict=True)))


def inverse_root(q: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns 1 / sqrt(q), and 0 with derivative 0 where q is 0.

    Args:
      q: variances, at least 0.
    """
    inside = q > 0
    return jnp.where(inside, jax.lax.rsqrt(jnp.where(inside, q, 1.0)), 0.0)


def dual_of_gaps(
    nonlinearity: Nonlinearity,
    gaps: Gaps,
    q1: Float[Array, "..."],
    q2: Float[Array, "..."],
    *,
    negative_slope: float = 0.0,
    positive_slope: float = 1.0,
) -> tuple[Dual, Gaps]:
    """Returns what `dual` does, and the gaps of f(u) and f(v), where u and v are close.

    Args:
      nonlinearity: as in `dual`.
      gaps: of u and v.
      q1: variances of u, broadcasting to the gaps.
      q2: variances of v, broadcasting to the gaps.
      negative_slope: of "homogeneous" only.
      positive_slope: of "homogeneous" only.

    The new `below` keeps its digits for "homogeneous", whose slope needs them; the
    others are smooth, and theirs is as good as a difference of variances is.
    """
    if nonlinearity != "homogeneous":
        below, above = (jnp.where(q1 * q2 > 0, gap, 0.0) for gap in gaps)
        k = 0.25 * (above - below)
        fn = _erf if nonlinearity == "erf" else _gelu
        out = fn(k, q1, q2, 0.25 * above * below)
        own = [fn(q, q, q, jnp.zeros_like(q)).product for q in (q1, q2)]
        return out, gaps_of(out.product, *own)
    inverse1, inverse2 = inverse_root(q1), inverse_root(q2)
    a, b = negative_slope, positive_slope
    curved, straight, scale = 0.5 * (a - b) ** 2, a * b, 0.5 * (a**2 + b**2)
    half = 0.5 * inverse1 * inverse2
    # A unit without variance counts as independent.
    below, above = (jnp.where(half > 0, half * gap, 1.0) for gap in gaps)
    kappa, lost = complements(below, above)
    slope = curved * kappa + straight
    lost = curved * lost + straight * below
    lengths = (q1 * inverse1) * (q2 * inverse2)
    gap = 2 * lengths * lost
    product = lengths * (scale - lost)
    return Dual(product, slope), Gaps(gap, 4 * scale * lengths - gap)


def gaps_of(
    k: Float[Array, "..."], q1: Float[Array, "..."], q2: Float[Array, "..."]
) -> Gaps:
    """Returns the gaps of a covariance, as well as rounding lets them be known.

    Args:
      k: covariance.
      q1: variance of one side.
      q2: variance of the other.
    """
    lengths = root(q1) * root(q2)
    return Gaps(
        2 * jnp.maximum(lengths - k, 0),
        2 * jnp.maximum(lengths + k, 0),
    )


def spread(
    roots1: Sequence[Float[Array, "..."] | float],
    roots2: Sequence[Float[Array, "..."] | float],
) -> Float[Array, "..."]:
    r"""Returns what the lengths of parts add to the gaps of a whole.

    $2 (\|r\| \|r'\| - r \cdot r')$ for the roots r and r' of the variances of parts: 0
    where these are multiples of each other, and without cancellation near it.

    Args:
      roots1: of the parts of u, which are independent of each other.
      roots2: of those of v, broadcasting to these.
    """
    units, lengths = [], []
    for roots in (roots1, roots2):
        q = jnp.asarray(sum(r * r for r in roots))
        inverse = inverse_root(q)
        units.append([r * inverse for r in roots])
        lengths.append(q * inverse)
    total = sum((u - v) ** 2 for u, v in zip(*units, strict=True))
    return lengths[0] * lengths[1] * total


def root(q: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns sqrt(q), with derivative 0 where q is 0.

    Args:
      q: variances, at least 0.
    """
    return q * inverse_root(q)


def _erf(k, q1, q2, determinant=None) -> Dual:
    r"""$A = \frac2\pi \arcsin\frac{2k}{\sqrt{(1 + 2 q_1)(1 + 2 q_2)}}$."""
    # (1 + 2 q1)(1 + 2 q2) - 4 k^2, arranged so that large variances do not cancel.
    if determinant is None:
        determinant = jnp.maximum(q1 * q2 - k * k, 0.0)
    remainder = 1 + 2 * (q1 + q2) + 4 * determinant
    root = jnp.sqrt(remainder)
    return Dual((2 / jnp.pi) * jnp.arctan2(2 * k, root), (4 / jnp.pi) / root)


def _gelu(k, q1, q2, determinant=None) -> Dual:
    r"""With $\delta^2 = (1 + q_1)(1 + q_2) - k^2$, $\theta = \arctan(k / \delta)$.

    $$A = k \Bigl(\tfrac14 + \tfrac{\theta}{2\pi}\Bigr) + \frac{1}{2 \pi \delta}
      \Bigl(q_1 q_2 - k^2 + \frac{k^2}{1 + q_1} + \frac{k^2}{1 + q_2}\Bigr)$$
    """
    if determinant is None:
        determinant = jnp.maximum(q1 * q2 - k * k, 0.0)
    squared = 1 + q1 + q2 + determinant
    inverse = jax.lax.rsqrt(squared)
    both = 1 / (1 + q1) + 1 / (1 + q2)
    angle = 0.25 + jnp.arctan(k * inverse) / (2 * jnp.pi)
    scaled = inverse / (2 * jnp.pi)
    return Dual(
        k * angle + (determinant + k * k * both) * scaled,
        angle + k * (both + 1 / squared) * scaled,
    )
