r"""The two arc-cosine functions, in two polynomials and one square root.

$$\kappa_0(\rho) = \frac{\pi - \arccos\rho}{\pi}, \qquad
  \kappa_1(\rho) = \frac{\sqrt{1 - \rho^2} + \rho\,(\pi - \arccos\rho)}{\pi}$$
are what a ReLU layer does to the correlation of two Gaussian pre-activations (Cho and
Saul, NeurIPS 2009): $E[1_{u>0} 1_{v>0}] = \kappa_0 / 2$ and
$E[u_+ v_+] = \sqrt{q q'}\,\kappa_1 / 2$.

With $u = 1 - |\rho|$, $\arccos|\rho| = \pi \sqrt u\,P(u)$ and
$\sqrt{1 - \rho^2} - |\rho| \arccos|\rho| = \pi u^{3/2} R(u)$. P and R are analytic on
[0, 1], with positive Taylor coefficients $\sqrt2\,a_k/\pi$ and
$\sqrt2\,a_k/(\pi(k + 3/2))$, $a_k = \binom{2k}{k}/(8^k (2k + 1))$. The tables below are
these series economised on Chebyshev polynomials (near minimax: relative errors below
2e-8 and 1e-16); `tests/kernels/test_arccosine.py` derives them again. Neither form
cancels: both functions keep their relative accuracy as they vanish at $\rho = -1$.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["complements", "kappa0", "kappa1"]

# Lowest power of u first.
_P32 = (
    0.45015815214069616, 0.03751391487855508, 0.00842566324657081,
    0.002624209115022041, 0.00044531627180914807, 0.0011004808142198227,
    -0.0006614952864095728, 0.0003937508740133915,
)  # fmt: skip
_R32 = (
    0.30010544265863387, 0.01500489871803023, 0.002417275835048308,
    0.0005259375590834237, 0.00024001446069447571, -5.945927557747105e-05,
    7.577115874116391e-05,
)  # fmt: skip
_P64 = (
    0.45015815807855303, 0.03751317983987499, 0.008440465464496139,
    0.002512043268383065, 0.000854793112451636, 0.0003147100148754165,
    0.00012214435468822538, 4.848834119323252e-05, 2.3456354815615308e-05,
    -3.180871400760746e-06, 3.690631706051202e-05, -6.974809734381389e-05,
    0.00011745702827305838, -0.00014429033081295672, 0.00013365732982353483,
    -8.919372233243292e-05, 4.100169552860986e-05, -1.1614729940129895e-05,
    1.5665518130126563e-06,
)  # fmt: skip
_R64 = (
    0.30010543871903533, 0.01500527193595273, 0.002411561561033172,
    0.0005582318471259825, 0.0001554167257295455, 4.8419576780028075e-05,
    1.6262810647330907e-05, 5.846293420481066e-06, 1.8353678271095507e-06,
    1.8065487204314207e-06, -2.0929171988228563e-06, 4.550506653656332e-06,
    -6.010123118237239e-06, 6.161179342832734e-06, -4.460235319601151e-06,
    2.2264453948450226e-06, -6.798874958450229e-07, 9.982925967515801e-08,
)  # fmt: skip


def _horner(coefficients: Sequence[float], u: Array) -> Array:
    last, *rest = reversed(coefficients)
    total: Array | float = last
    for c in rest:
        total = total * u + c
    return jnp.asarray(total)


def _distance(rho: Array) -> Array:
    """1 - |rho|; rounding may bring rho above 1."""
    return jnp.maximum(1.0 - jnp.abs(rho), 0.0)


@jax.custom_jvp
def kappa0(rho: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns (pi - arccos rho) / pi, in [0, 1].

    Args:
      rho: correlations; values beyond -1 and 1 by rounding count as -1 and 1.

    The derivative is 1 / (pi sqrt(1 - rho^2)), and 0 within rounding of |rho| = 1,
    where the exact one is infinite but multiplies a change of rho that is 0.
    """
    u = _distance(rho)
    angle = jnp.sqrt(u) * _horner(_P64 if rho.dtype == jnp.float64 else _P32, u)
    return jnp.where(rho < 0, angle, 1.0 - angle)


@kappa0.defjvp
def _kappa0_jvp(primals, tangents):
    (rho,), (tangent,) = primals, tangents
    u = _distance(rho)
    squared_sine = u * (2.0 - u)
    inside = squared_sine > 8 * jnp.finfo(rho.dtype).eps
    inverse = jax.lax.rsqrt(jnp.where(inside, squared_sine, 1.0))
    slope = jnp.where(inside, inverse * (1 / jnp.pi), 0.0)
    return kappa0(rho), slope * tangent


@jax.custom_jvp
def kappa1(rho: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns (sqrt(1 - rho^2) + rho (pi - arccos rho)) / pi, in [0, 1].

    Args:
      rho: correlations; values beyond -1 and 1 by rounding count as -1 and 1.

    The derivative is `kappa0(rho)`, exactly.
    """
    u = _distance(rho)
    rest = u * jnp.sqrt(u) * _horner(_R64 if rho.dtype == jnp.float64 else _R32, u)
    return jnp.maximum(rho, 0.0) + rest


@kappa1.defjvp
def _kappa1_jvp(primals, tangents):
    (rho,), (tangent,) = primals, tangents
    return kappa1(rho), kappa0(rho) * tangent


@jax.custom_jvp
def complements(
    below: Float[Array, "..."], above: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Returns kappa0 and 1 - kappa1 from 1 - rho and 1 + rho, neither of which cancels.

    Args:
      below: 1 - rho, with all its digits where rho is near 1.
      above: 1 + rho, with all its digits where rho is near -1.

    Derivatives are those of `kappa0` and `kappa1`, but that of kappa0 is 0 only at
    angles below 32 eps, where what it multiplies is rounding.
    """
    near = below < 1
    # Rounding may bring either below 0.
    u = jnp.maximum(jnp.where(near, below, above), 0)
    wide = u.dtype == jnp.float64
    angle = jnp.sqrt(u) * _horner(_P64 if wide else _P32, u)
    rest = u * jnp.sqrt(u) * _horner(_R64 if wide else _R32, u)
    return jnp.where(near, 1 - angle, angle), jnp.where(near, u - rest, 1 - rest)


@complements.defjvp
def _complements_jvp(primals, tangents):
    below, above = primals
    out = complements(below, above)
    change = jnp.where(below < 1, tangents[0], -tangents[1])
    squared_sine = below * above
    inside = squared_sine > (32 * jnp.finfo(below.dtype).eps) ** 2
    inverse = jax.lax.rsqrt(jnp.where(inside, squared_sine, 1.0))
    slope = jnp.where(inside, inverse * (1 / jnp.pi), 0.0)
    return out, (-slope * change, out[0] * change)
