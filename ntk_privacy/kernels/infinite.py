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
from typing import Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntk_privacy import _checks, _linalg
from ntk_privacy._types import KernelFn
from ntk_privacy.kernels.dual_activation import Nonlinearity, dual

__all__ = [
    "Activation",
    "Dense",
    "Kernels",
    "Layer",
    "Pair",
    "Sum",
    "abrelu",
    "erf",
    "gelu",
    "kernel",
    "mlp",
    "nngp_and_ntk",
    "relu",
    "residual",
    "run",
]

Parametrization = Literal["ntk", "standard"]


class Kernels(NamedTuple):
    """The covariance of outputs at initialisation, and the neural tangent kernel."""

    nngp: Float[Array, "n1 n2"]
    ntk: Float[Array, "n1 n2"]


class Pair(NamedTuple):
    """Both kernels between two sets of images, at one depth of the network.

    nngp: covariance of one unit, axes (n1, n2) and whatever positions the layer has.
    ntk: of the same shape; None before the first layer with weights.
    variance1, variance2: of the unit on each side, broadcasting to nngp.
    width: units (channels) that one weight of the next layer sees.
    equal: both sides are one variable: nngp, variance1 and variance2 are one array.
    """

    nngp: Float[Array, "..."]
    ntk: Float[Array, "..."] | None
    variance1: Float[Array, "..."]
    variance2: Float[Array, "..."]
    width: int
    equal: bool = False


class Layer(Protocol):
    """A hashable function from the kernels of its inputs to those of its outputs."""

    def __call__(self, pair: Pair) -> Pair:
        """Returns the kernels after this layer."""
        ...


@dataclasses.dataclass(frozen=True)
class Dense:
    """Weights and a bias.

    Attributes:
      weight_std: s; a weight has standard deviation s / sqrt(fan_in) in effect.
      bias_std: b, the standard deviation of the bias at initialisation.
      parametrization: "ntk": the factors s / sqrt(fan_in) and b are part of the
        forward pass; "standard": of the initialisation.
      width: units of this layer; the next layer needs it in "standard".
      use_bias: in "standard", whether there is a trainable bias, even at b = 0. In
        "ntk" a bias with b = 0 does nothing.

    Raises:
      ValueError: a negative standard deviation, or an unknown parametrization.
    """

    weight_std: float = 1.0
    bias_std: float = 0.0
    parametrization: Parametrization = "ntk"
    width: int | None = None
    use_bias: bool = True

    def __post_init__(self):
        check_weights(self)

    def __call__(self, pair: Pair) -> Pair:
        """Returns the kernels after this layer."""
        return weigh(self, pair, lambda k: k, pair.width)


def check_weights(layer) -> None:
    """Raises ValueError for a bad deviation, width or parametrization of `layer`."""
    _checks.at_least(0, weight_std=layer.weight_std, bias_std=layer.bias_std)
    _checks.one_of(("ntk", "standard"), parametrization=layer.parametrization)
    if layer.width is not None:
        _checks.at_least(1, width=layer.width)
    if layer.bias_std > 0 and not layer.use_bias:
        raise ValueError(
            f"bias_std={layer.bias_std} with use_bias=False: set bias_std=0 for a "
            "layer without bias."
        )


def weigh(layer, pair: Pair, mean: Callable[[Array], Array], fan_in: int) -> Pair:
    """Applies weights and bias after `mean` over what one weight is shared by.

    Args:
      layer: has weight_std, bias_std, parametrization, width and use_bias.
      pair: the kernels of the layer's inputs.
      mean: average of a kernel over the layer's window.
      fan_in: weights per unit.
    """
    s2, b2 = layer.weight_std**2, layer.bias_std**2
    inner = mean(pair.nngp)
    nngp = s2 * inner + b2
    if layer.parametrization == "ntk":
        own = nngp
    else:
        own = fan_in * inner + (1.0 if layer.use_bias else 0.0)
    ntk = own if pair.ntk is None else own + s2 * mean(pair.ntk)
    return pair._replace(
        nngp=nngp,
        ntk=ntk,
        variance1=s2 * mean(pair.variance1) + b2,
        variance2=s2 * mean(pair.variance2) + b2,
        width=layer.width or 0,
    )


@dataclasses.dataclass(frozen=True)
class Activation:
    """An elementwise nonlinearity; see `dual_activation.dual`."""

    nonlinearity: Nonlinearity
    negative_slope: float = 0.0
    positive_slope: float = 1.0

    def __call__(self, pair: Pair) -> Pair:
        """Returns the kernels after this layer."""
        apply = functools.partial(
            dual,
            self.nonlinearity,
            negative_slope=self.negative_slope,
            positive_slope=self.positive_slope,
        )
        q1, q2 = pair.variance1, pair.variance2
        product, slope = apply(pair.nngp, q1, q2, equal=pair.equal)
        return pair._replace(
            nngp=product,
            ntk=None if pair.ntk is None else slope * pair.ntk,
            variance1=apply(q1, q1, q1, equal=True).product,
            variance2=apply(q2, q2, q2, equal=True).product,
        )


relu = Activation("homogeneous")
erf = Activation("erf")
gelu = Activation("gelu")
_ACTIVATIONS = {"relu": relu, "erf": erf, "gelu": gelu}


def abrelu(negative_slope: float, positive_slope: float) -> Activation:
    """Returns negative_slope min(x, 0) + positive_slope max(x, 0).

    Every positively homogeneous function of degree one is of this form: leaky ReLU is
    (0.01, 1), the absolute value (-1, 1), the identity (1, 1).
    """
    return Activation("homogeneous", negative_slope, positive_slope)


@dataclasses.dataclass(frozen=True)
class Sum:
    """Adds the outputs of branches that share one input, each a tuple of layers.

    Every branch but one must end in a layer with weights, which makes the outputs
    independent; an empty branch is the identity.
    """

    branches: tuple[tuple[Layer, ...], ...]

    def __call__(self, pair: Pair) -> Pair:
        """Returns the kernels after this layer."""
        first, *rest = [run(branch, pair) for branch in self.branches]
        for other in rest:
            if other.nngp.shape != first.nngp.shape:
                raise ValueError(
                    f"Branches of a Sum end in kernels of shapes {first.nngp.shape} "
                    f"and {other.nngp.shape}: give them equal strides and padding."
                )
            parts = [t for t in (first.ntk, other.ntk) if t is not None]
            first = first._replace(
                nngp=first.nngp + other.nngp,
                ntk=sum(parts[1:], parts[0]) if parts else None,
                variance1=first.variance1 + other.variance1,
                variance2=first.variance2 + other.variance2,
                width=first.width or other.width,
            )
        return first


def residual(*layers: Layer) -> Sum:
    """Returns x + layers(x); the last of `layers` must have weights."""
    return Sum(((), layers))


def run(layers: tuple[Layer, ...], pair: Pair) -> Pair:
    """Applies `layers` in turn."""
    for layer in layers:
        pair = layer(pair)
    return pair


def nngp_and_ntk(
    layers: tuple[Layer, ...],
) -> Callable[..., Kernels]:
    """Returns `(x1, x2=None) -> Kernels(nngp, ntk)` of a fully connected network.

    Args:
      layers: of this module; images are flattened before the first.

    The result takes images (n, ...) in any floating point type, which it keeps, and
    None for x2 = x1; then the diagonal is exact. Gradients are finite everywhere.

    Raises:
      ValueError: the result does, for images of two sizes, of integers, with NaN.
    """
    layers = tuple(layers)

    def both(
        x1: Float[Array, "n1 ..."], x2: Float[Array, "n2 ..."] | None = None
    ) -> Kernels:
        check_images(x1, x2)
        return _dense_kernels(layers, x1, x2)

    return both


def kernel(
    layers: tuple[Layer, ...], *, get: Literal["ntk", "nngp"] = "ntk"
) -> KernelFn:
    """Returns `(x1, x2=None) -> (n1, n2)`, one of the two of `nngp_and_ntk`."""
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
      >>> kernel_fn = kernels.infinite.mlp(depth=2)
      >>> k = kernel_fn(x_train, x_test)
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
    """Returns the layers of `mlp`, for `nngp_and_ntk` or to build on."""
    _checks.at_least(0, depth=depth)
    check_width(parametrization, width if depth else 1)
    act = resolve(activation)
    dense = Dense(weight_std, bias_std, parametrization, width, use_bias)
    return (dense, act) * depth + (dataclasses.replace(dense, width=1),)


def resolve(activation: str | Activation) -> Activation:
    """Returns the activation of that name, or the one given."""
    if isinstance(activation, Activation):
        return activation
    _checks.one_of(_ACTIVATIONS, activation=activation)
    return _ACTIVATIONS[activation]


def check_width(parametrization: str, width: int | None) -> None:
    """Raises ValueError if the parametrization needs a width and there is none."""
    if parametrization == "standard" and width is None:
        raise ValueError(
            "width=None with parametrization='standard': its kernel grows with the "
            "width, so give the number of hidden units, such as width=1024."
        )


def check_images(x1: Array, x2: Array | None) -> None:
    """Raises ValueError for integers, NaN (if concrete), or images of two shapes."""
    for name, x in (("x1", x1), ("x2", x2)):
        if x is None:
            continue
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"{name} has dtype {x.dtype}: give floating point images, such as "
                "intensities in [0, 1]."
            )
        if not isinstance(x, jax.core.Tracer) and not bool(jnp.isfinite(x).all()):
            raise ValueError(
                f"{name} holds NaN or infinite values: remove or replace those images."
            )
    if x2 is not None and x1.shape[1:] != x2.shape[1:]:
        raise ValueError(
            f"x1 has images of shape {x1.shape[1:]} but x2 of {x2.shape[1:]}: resize "
            "or convert one of them."
        )


@functools.partial(jax.jit, static_argnames="layers")
def _dense_kernels(layers: tuple[Layer, ...], x1: Array, x2: Array | None) -> Kernels:
    x1 = x1.reshape(x1.shape[0], -1)
    symmetric = x2 is None
    x2 = x1 if x2 is None else x2.reshape(x2.shape[0], -1)
    d = x1.shape[-1]
    q1 = jnp.sum(x1 * x1, axis=1) / d
    q2 = q1 if symmetric else jnp.sum(x2 * x2, axis=1) / d
    gram = _linalg.matmul(x1, x2.T) / d
    pair = run(layers, Pair(gram, None, q1[:, None], q2[None, :], d))
    if pair.ntk is None:
        raise ValueError("layers has no Dense layer: without weights there is no NTK.")
    out = Kernels(pair.nngp, pair.ntk)
    if symmetric:
        # By the recursion of variances: free of the rounding of arccos near 1.
        exact = run(layers, Pair(q1, None, q1, q1, d, equal=True))
        eye = jnp.eye(x1.shape[0], dtype=bool)
        exact = Kernels(exact.nngp, exact.ntk)
        out = jax.tree.map(lambda k, q: jnp.where(eye, q[:, None], k), out, exact)
    return out
