r"""Infinite-width NNGP and NTK of fully connected networks.

A network is a tuple of layers; each layer is a pure function of the pair of kernels.
With $A, B$ of `dual_activation`, a Dense layer on top of an activation gives, in the
NTK parametrisation (Jacot et al., NeurIPS 2018; Lee et al., NeurIPS 2019),
$$K' = s^2 A(K) + b^2, \quad T' = K' + s^2 B(K) T,$$
and in the standard parametrisation with fan-in n and trainable biases (Flax's default
for s = 1, b = 0; Park et al., ICML 2019, section 2)
$$K' = s^2 A(K) + b^2, \quad T' = n A(K) + 1 + s^2 B(K) T.$$

Examples: Loo et al., ICLR 2024, distil with `mlp(depth=2)`; KIP, arXiv:2011.00050,
with `mlp(depth=1, weight_std=2**0.5, bias_std=0.1)`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float

from ntk_privacy import _checks, _linalg
from ntk_privacy._types import KernelFn
from ntk_privacy.kernels import coincidence
from ntk_privacy.kernels.dual_activation import Gaps, gaps_of, inverse_root, root
from ntk_privacy.kernels.layers import (
    Activation,
    Dense,
    Layer,
    Pair,
    Parametrization,
    Sum,
    abrelu,
    check_width,
    erf,
    gelu,
    is_homogeneous,
    relu,
    residual,
    resolve,
    run,
)

__all__ = [
    "Activation",
    "Dense",
    "Kernels",
    "Layer",
    "Sum",
    "abrelu",
    "erf",
    "gelu",
    "kernel",
    "mlp",
    "mlp_layers",
    "nngp_and_ntk",
    "relu",
    "residual",
]


class Kernels(NamedTuple):
    """The covariance of outputs at initialisation, and the neural tangent kernel."""

    nngp: Float[Array, "n1 n2"]
    ntk: Float[Array, "n1 n2"]


def nngp_and_ntk(
    layers: tuple[Layer, ...],
) -> Callable[..., Kernels]:
    """Returns `(x1, x2=None) -> Kernels(nngp, ntk)` of a fully connected network.

    Args:
      layers: of this module; images are flattened before the first.

    The result takes images (n, ...) in any floating point type, which it keeps. With
    None for x2, or x1 itself, the diagonal is exact. Gradients are finite everywhere.

    Raises:
      ValueError: the result does, for images of two sizes, of integers, with NaN.
    """
    layers = tuple(layers)

    def both(
        x1: Float[Array, "n1 ..."], x2: Float[Array, "n2 ..."] | None = None
    ) -> Kernels:
        check_images(x1, x2)
        return _dense_kernels(layers, x1, None if x2 is x1 else x2)

    return both


def kernel(
    layers: tuple[Layer, ...], *, get: Literal["ntk", "nngp"] = "ntk"
) -> KernelFn:
    """Returns `(x1, x2=None) -> (n1, n2)`, one of the two of `nngp_and_ntk`.

    Args:
      layers: of the network, see `nngp_and_ntk`.
      get: "ntk" or "nngp".

    Raises:
      ValueError: another `get`.
    """
    _checks.one_of(("ntk", "nngp"), get=get)
    both = nngp_and_ntk(layers)

    def kernel_fn(
        x1: Float[Array, "n1 ..."], x2: Float[Array, "n2 ..."] | None = None
    ) -> Float[Array, "n1 n2"]:
        return getattr(both(x1, x2), get)

    return kernel_fn


def mlp(
    depth: int,
    *,
    weight_std: float = 1.0,
    bias_std: float = 0.0,
    activation: Literal["relu", "erf", "gelu"] | Activation = "relu",
    parametrization: Parametrization = "ntk",
    width: int | None = None,
    use_bias: bool = True,
) -> KernelFn:
    """Returns the NTK `(x1, x2=None) -> (n1, n2)` of a fully connected network.

    Args:
      depth: hidden layers, each a Dense and an activation; one Dense follows.
      weight_std: s of `Dense`, one for all layers.
      bias_std: b of `Dense`.
      activation: "relu", "erf", "gelu", or one of `abrelu`.
      parametrization: "ntk", or "standard" (Flax's default for s = 1 and b = 0).
      width: units of each hidden layer; "standard" needs it, as its kernel grows
        with it, and "ntk" ignores it.
      use_bias: in "standard", whether layers have a trainable bias.

    Raises:
      ValueError: a number out of range, an unknown name, or no width in "standard".

    Example:
      >>> import jax
      >>> from ntk_privacy.kernels import infinite
      >>> x = jax.random.uniform(jax.random.key(0), (3, 4, 4, 1))
      >>> kernel_fn = infinite.mlp(depth=2)
      >>> kernel_fn(x, x[:2]).shape
      (3, 2)
    """
    return kernel(
        mlp_layers(
            depth,
            weight_std=weight_std,
            bias_std=bias_std,
            activation=activation,
            parametrization=parametrization,
            width=width,
            use_bias=use_bias,
        )
    )


def mlp_layers(
    depth: int,
    *,
    weight_std: float = 1.0,
    bias_std: float = 0.0,
    activation: Literal["relu", "erf", "gelu"] | Activation = "relu",
    parametrization: Parametrization = "ntk",
    width: int | None = None,
    use_bias: bool = True,
) -> tuple[Layer, ...]:
    """Returns the layers of `mlp`, for `nngp_and_ntk` or to build on.

    Args: those of `mlp`.

    Raises:
      ValueError: depth is negative, an unknown activation, or see `check_width`.
    """
    _checks.at_least(0, depth=depth)
    check_width(parametrization, width if depth else 1)
    act = resolve(activation)
    dense = Dense(weight_std, bias_std, parametrization, width, use_bias)
    return (dense, act) * depth + (dataclasses.replace(dense, width=1),)


def check_images(x1: Array, x2: Array | None) -> None:
    """Raises ValueError for no images, integers, NaN (if concrete), or two shapes."""
    for name, x in (("x1", x1), ("x2", x2)):
        if x is None:
            continue
        if x.size == 0:
            raise ValueError(f"{name} has shape {x.shape}: give at least one image.")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"{name} has dtype {x.dtype}: give floating point images, such as "
                "intensities in [0, 1]."
            )
        if _checks.concrete(x) and not bool(jnp.isfinite(x).all()):
            raise ValueError(
                f"{name} holds NaN or infinite values: remove or replace those images."
            )
    if x2 is not None and x1.shape[1:] != x2.shape[1:]:
        raise ValueError(
            f"x1 has images of shape {x1.shape[1:]} but x2 of {x2.shape[1:]}: resize "
            "or convert one of them."
        )
    if x2 is not None and x1.dtype != x2.dtype:
        raise ValueError(
            f"x1 has dtype {x1.dtype} but x2 {x2.dtype}: cast one of them."
        )


class _Inputs(NamedTuple):
    """k, q1, q2: covariances and variances of the input. x1, x2: it, if they cancel."""

    k: Float[Array, "n1 n2"]
    q1: Float[Array, "n1 1"]
    q2: Float[Array, "1 n2"]
    x1: Float[Array, "n1 d"]
    x2: Float[Array, "n2 d"]
    close: Bool[Array, ""]


def _plain(layers: tuple[Layer, ...], width: int, k, q1, q2, gaps=None) -> Kernels:
    """Each entry of the kernels is a function of one covariance and two variances."""
    pair = run(layers, Pair(k, None, q1, q2, width, gaps=gaps))
    if pair.ntk is None:
        raise ValueError("layers has no Dense layer: without weights there is no NTK.")
    return Kernels(pair.nngp, pair.ntk)


def _choose(near: Callable, plain: Callable, inputs: _Inputs):
    """Returns what `plain` does of k, q1 and q2, or `near` where images are close.

    `near` has their gaps beside these. Whichever it is, a computation of its own.
    """

    def by_distances(inputs: _Inputs):
        k, q1, q2, x1, x2, _ = inputs
        # Brought to one length: multiples of an image are as near as its copies.
        unit1, unit2 = (
            x * inverse_root(q).reshape(-1, 1) for x, q in ((x1, q1), (x2, q2))
        )
        lengths = root(q1) * root(q2)
        gaps = []
        for sign, rough in zip((1, -1), gaps_of(k, q1, q2), strict=True):
            wanted = coincidence.close(sign * k, q1, q2)
            exact = coincidence.squared_distances(unit1, sign * unit2, wanted)
            gaps.append(jnp.where(wanted, lengths * exact, rough))
        return near(k, q1, q2, Gaps(*gaps))

    return jax.lax.cond(inputs.close, by_distances, lambda i: plain(*i[:3]), inputs)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _entries(layers: tuple[Layer, ...], width: int, *inputs) -> Kernels:
    evaluate = functools.partial(_plain, layers, width)
    return _choose(evaluate, evaluate, _Inputs(*inputs))


@functools.partial(_entries.defjvp, symbolic_zeros=True)
def _entries_jvp(layers, width, primals, tangents):
    # By the partial derivatives of an entry, in forward mode and kept apart: each is
    # one pass over the kernel, where reverse mode through the layers makes twenty.
    inputs = _Inputs(*primals)

    def evaluate(*values):
        return _plain(layers, width, *values)

    out = _choose(evaluate, evaluate, inputs)

    def partial(i):
        def plain(*values):
            def entry(value):
                return evaluate(*values[:i], value, *values[i + 1 :])

            return jax.jvp(entry, (values[i],), (jnp.ones_like(values[i]),))[1]

        def near(k, q1, q2, gaps):
            def entry(value, below, above):
                values = [k, q1, q2]
                values[i] = value
                return evaluate(*values, Gaps(below, above))

            # Gaps are 2 (sqrt(q1 q2) -+ k), and change as these do.
            at = (k, q1, q2)[i]
            if i == 0:
                rates = [jnp.full_like(k, r) for r in (-2.0, 2.0)]
            else:
                other = root(q2 if i == 1 else q1)
                rates = [jnp.broadcast_to(inverse_root(at) * other, k.shape)] * 2
            return jax.jvp(entry, (at, *gaps), (jnp.ones_like(at), *rates))[1]

        return _choose(near, plain, inputs)

    # The images themselves count through k, q1 and q2.
    tangents = tangents[:3]
    active = [i for i, t in enumerate(tangents) if type(t) is not SymbolicZero]
    slopes = {}
    if active != [0] and is_homogeneous(layers):
        # Euler: k dK/dk + 2 q dK/dq = K for either variance. No pass for those.
        k, slopes[0] = inputs.k, partial(0)
        for i in (1, 2):
            half = 0.5 * _reciprocal(inputs[i])
            slopes[i] = jax.tree.map(
                lambda e, s, h=half: (e - k * s) * h, out, slopes[0]
            )
    total = jax.tree.map(jnp.zeros_like, out)
    for i in active:
        slope = slopes[i] if i in slopes else partial(i)
        total = jax.tree.map(lambda a, b, t=tangents[i]: a + b * t, total, slope)
    return out, total


def _reciprocal(q: Array) -> Array:
    """1 / q, and 0 where q is 0."""
    inside = q > 0
    return jnp.where(inside, 1 / jnp.where(inside, q, 1.0), 0.0)


@functools.partial(jax.jit, static_argnames="layers")
def _dense_kernels(layers: tuple[Layer, ...], x1: Array, x2: Array | None) -> Kernels:
    x1 = x1.reshape(x1.shape[0], -1)
    symmetric = x2 is None
    x2 = x1 if x2 is None else x2.reshape(x2.shape[0], -1)
    d = x1.shape[-1]
    q1 = jnp.sum(x1 * x1, axis=1) / d
    q2 = q1 if symmetric else jnp.sum(x2 * x2, axis=1) / d
    gram = _linalg.matmul(x1, x2.T) / d
    eye = jnp.eye(x1.shape[0], dtype=bool) if symmetric else None
    close = coincidence.any_close(gram, q1[:, None], q2[None, :], except_for=eye)
    out = _entries(layers, d, gram, q1[:, None], q2[None, :], x1, x2, close)
    if eye is not None:
        # By the recursion of variances: free of the rounding of arccos near 1.
        own = run(layers, Pair(q1, None, q1, q1, d, equal=True))
        assert own.ntk is not None  # _plain has looked
        exact = Kernels(own.nngp, own.ntk)
        out = jax.tree.map(lambda k, q: jnp.where(eye, q[:, None], k), out, exact)
    return out
