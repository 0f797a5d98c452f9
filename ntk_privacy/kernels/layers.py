"""Layers of infinite networks: pure functions from a pair of kernels to the next.

With A, B of `dual_activation`, a layer of weights on top of an activation gives, in the
NTK parametrisation (Jacot et al., NeurIPS 2018; Lee et al., NeurIPS 2019),
K' = s^2 A(K) + b^2 and T' = K' + s^2 B(K) T, and in the standard parametrisation with
fan-in n and trainable biases (Flax's default for s = 1, b = 0) the same K' and
T' = n A(K) + 1 + s^2 B(K) T.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ntk_privacy import _checks, _platform
from ntk_privacy.kernels import repeated
from ntk_privacy.kernels.dual_activation import (
    Gaps,
    Nonlinearity,
    dual,
    dual_of_gaps,
    root,
    spread,
)

__all__ = [
    "Activation",
    "Dense",
    "Layer",
    "Pair",
    "Sum",
    "abrelu",
    "erf",
    "gelu",
    "relu",
    "residual",
    "run",
]

Parametrization = Literal["ntk", "standard"]


class Pair(NamedTuple):
    """Both kernels between two sets of images, at one depth of the network.

    nngp: covariance of one unit, axes (n1, n2) and whatever positions the layer has.
    ntk: of the same shape; None before the first layer with weights.
    variance1, variance2: of the unit on each side, broadcasting to nngp.
    width: units (channels) that one weight of the next layer sees.
    equal: both sides are one variable: nngp, variance1 and variance2 are one array.
    same: whether both sides are the same images, (n, n); None is no. Then an image
      and position with itself is one variable.
    pooled: variances after each pooling still to come, which need covariances within
      an image; None where this pair itself holds them, (n, n) of one image each.
    recorded: the variances after each pooling so far, where pooled is None.
    anchor: keeps each layer `apart` in the compiled program; None lets them fuse.
    gaps: of the units of both sides, where these are close; None goes by nngp alone.
    """

    nngp: Float[Array, "..."]
    ntk: Float[Array, "..."] | None
    variance1: Float[Array, "..."]
    variance2: Float[Array, "..."]
    width: int
    equal: bool = False
    same: Bool[Array, ""] | None = None
    pooled: tuple[tuple[Array, Array], ...] | None = ()
    recorded: tuple[Array, ...] = ()
    anchor: Float[Array, ""] | None = None
    gaps: Gaps | None = None


Layer = Callable[[Pair], Pair]
"""Hashable: from the kernels of its inputs to those of its outputs."""


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
        return weigh(self, pair, lambda k: k, lambda k: [k], pair.width)


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


def weigh(
    layer,
    pair: Pair,
    mean: Callable[[Array], Array],
    parts: Callable[[Array], list[Array]],
    fan_in: int,
) -> Pair:
    """Applies weights and bias after `mean` over what one weight is shared by.

    Args:
      layer: has weight_std, bias_std, parametrization, width and use_bias.
      pair: the kernels of the layer's inputs.
      mean: average of a kernel over the layer's window.
      parts: what `mean` is the average of.
      fan_in: weights per unit.
    """
    s2, b2 = layer.weight_std**2, layer.bias_std**2
    inner = mean(pair.nngp)
    nngp = s2 * inner + b2
    if layer.parametrization == "ntk":
        own = nngp
    else:
        if not fan_in:
            raise ValueError(
                "A layer in the standard parametrization follows one without width: "
                "give every layer its width."
            )
        own = fan_in * inner + (1.0 if layer.use_bias else 0.0)
    ntk = own if pair.ntk is None else own + s2 * mean(pair.ntk)
    gaps = pair.gaps
    if gaps is not None:
        more = _lengths_apart(layer, pair, parts)
        # A bias is one variable on both sides.
        below, above = (s2 * mean(gap) + more for gap in gaps)
        gaps = Gaps(below, above + 4 * b2)
    return pair._replace(
        gaps=gaps,
        nngp=nngp,
        ntk=ntk,
        variance1=s2 * mean(pair.variance1) + b2,
        variance2=s2 * mean(pair.variance2) + b2,
        width=layer.width or 0,
    )


def _lengths_apart(layer, pair: Pair, parts) -> Array | float:
    """What the gaps after weights and bias have beyond the mean of those before."""
    sides = [parts(root(q)) for q in (pair.variance1, pair.variance2)]
    bias = [layer.bias_std] if layer.bias_std else []
    if len(sides[0]) + len(bias) == 1:
        return 0.0
    scale = layer.weight_std / len(sides[0]) ** 0.5
    return spread(*([scale * r for r in side] + bias for side in sides))


@dataclasses.dataclass(frozen=True)
class Activation:
    """An elementwise nonlinearity; see `dual_activation.dual`."""

    nonlinearity: Nonlinearity
    negative_slope: float = 0.0
    positive_slope: float = 1.0

    def __call__(self, pair: Pair) -> Pair:
        """Returns the kernels after this layer."""
        slopes = {
            "negative_slope": self.negative_slope,
            "positive_slope": self.positive_slope,
        }
        apply = functools.partial(dual, self.nonlinearity, **slopes)
        q1, q2 = pair.variance1, pair.variance2
        if pair.gaps is not None:
            out, gaps = dual_of_gaps(self.nonlinearity, pair.gaps, q1, q2, **slopes)
        else:
            equal = pair.equal
            if pair.same is not None:
                equal = pair.same & own_positions(pair.nngp.shape)
            out, gaps = apply(pair.nngp, q1, q2, equal=equal), None
        return pair._replace(
            nngp=out.product,
            ntk=None if pair.ntk is None else out.slope * pair.ntk,
            variance1=apply(q1, q1, q1, equal=True).product,
            variance2=apply(q2, q2, q2, equal=True).product,
            gaps=gaps,
        )


def own_positions(shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """Where both images, and both positions if there are two, are one."""
    axes = [(0, 1)] if len(shape) < 6 else [(0, 1), (2, 3), (4, 5)]
    own = jnp.ones((1,) * len(shape), bool)
    for pair in axes:
        sizes = [n if i in pair else 1 for i, n in enumerate(shape)]
        own = own & jnp.eye(shape[pair[0]], dtype=bool).reshape(sizes)
    return jnp.broadcast_to(own, shape)


relu = Activation("homogeneous")
erf = Activation("erf")
gelu = Activation("gelu")
_ACTIVATIONS = {"relu": relu, "erf": erf, "gelu": gelu}


def abrelu(negative_slope: float, positive_slope: float) -> Activation:
    """Returns negative_slope min(x, 0) + positive_slope max(x, 0).

    Every positively homogeneous function of degree one is of this form: leaky ReLU is
    (0.01, 1), the absolute value (-1, 1), the identity (1, 1).

    Args:
      negative_slope: where x is below 0.
      positive_slope: where it is above 0.
    """
    return Activation("homogeneous", negative_slope, positive_slope)


def _ends_in_weights(branch: Sequence[Any]) -> bool:
    """Whether a linear layer with weights comes after the last activation."""
    for layer in reversed(branch):
        if hasattr(layer, "weight_std"):
            return True
        if isinstance(layer, Sum):
            return all(_ends_in_weights(inner) for inner in layer.branches)
        if isinstance(layer, Activation):
            return False
    return False


@dataclasses.dataclass(frozen=True)
class Sum:
    """Adds the outputs of branches that share one input, each a tuple of layers.

    Every branch but one must end in a layer with weights, which makes the outputs
    independent; an empty branch is the identity.
    """

    branches: tuple[tuple[Layer, ...], ...]

    def __post_init__(self):
        dependent = sum(not _ends_in_weights(branch) for branch in self.branches)
        if dependent > 1:
            raise ValueError(
                f"{dependent} branches of a Sum end without weights of their own, so "
                "their outputs depend on each other: end all but one in Dense or Conv."
            )

    def __call__(self, pair: Pair) -> Pair:
        """Returns the kernels after this layer."""
        first = run(self.branches[0], pair)
        for branch in self.branches[1:]:
            start = pair._replace(pooled=first.pooled, recorded=first.recorded)
            other = run(branch, start)
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
                pooled=other.pooled,
                recorded=other.recorded,
                gaps=_added(first, other),
            )
        return first


def _added(one: Pair, other: Pair) -> Gaps | None:
    """Of a sum of two that are independent of each other."""
    if one.gaps is None or other.gaps is None:
        return None
    more = spread(
        [root(one.variance1), root(other.variance1)],
        [root(one.variance2), root(other.variance2)],
    )
    below, above = (a + b + more for a, b in zip(one.gaps, other.gaps, strict=True))
    return Gaps(below, above)


def is_homogeneous(layers: tuple[Layer, ...]) -> bool:
    """Whether the network is homogeneous of degree one in its input: no biases.

    Its kernels then scale with each image. False for layers of other modules.
    """
    for layer in layers:
        if isinstance(layer, Sum):
            known = all(is_homogeneous(branch) for branch in layer.branches)
        elif isinstance(layer, Activation):
            known = layer.nonlinearity == "homogeneous"
        elif isinstance(layer, Dense):
            trains_bias = layer.parametrization == "standard" and layer.use_bias
            known = layer.bias_std == 0 and not trains_bias
        else:
            known = False
        if not known:
            return False
    return True


def residual(*layers: Layer) -> Sum:
    """Returns x + layers(x); the last of `layers` must have weights.

    Args:
      *layers: of the branch, in order.
    """
    return Sum(((), layers))


_MANY = 16  # equal blocks: gradients of fewer are a sixth faster one by one


def run(layers: tuple[Layer, ...], pair: Pair) -> Pair:
    """Applies `layers` in turn; many equal blocks of them are one compiled loop.

    Args:
      layers: in order.
      pair: covariances of the images that go in.
    """
    start, period, times = repeated.blocks(layers)
    if times < _MANY:
        return _unrolled(layers, pair)
    # The first block may change what a pair has, such as a kernel where there was none.
    first, end = start + period, start + period * times
    pair = _unrolled(layers[:first], pair)
    block = functools.partial(_unrolled, layers[first : first + period])
    pair = repeated.loop(block, times - 1, pair)
    return run(layers[end:], pair)


def _unrolled(layers: tuple[Layer, ...], pair: Pair) -> Pair:
    for layer in layers:
        if pair.anchor is None or isinstance(layer, Sum):
            pair = layer(pair)
        else:
            pair = apart(layer, pair.anchor, pair)
    return pair


def apart(fn: Callable, anchor: Float[Array, ""], argument):
    """Returns fn(argument), compiled as a computation of its own on a CPU.

    Args:
      fn: from one pytree to another; leaves that are not arrays stay static.
      anchor: any number that is only known at run time; NaN gives NaN.
      argument: of fn.

    XLA for CPU fuses elementwise chains across layers until it evaluates a kernel many
    times over (measured: 20 times slower for three layers), and removes optimisation
    barriers first. It does not fuse into the branches of a condition.
    """
    if _platform.name() != "cpu":
        return fn(argument)
    leaves, tree = jax.tree.flatten(argument)
    arrays = [x for x in leaves if isinstance(x, jax.Array)]
    rebuilt = {}

    def branch(arrays):
        rest = iter(arrays)
        mixed = [next(rest) if isinstance(x, jax.Array) else x for x in leaves]
        out, out_tree = jax.tree.flatten(fn(jax.tree.unflatten(tree, mixed)))
        rebuilt["leaves"], rebuilt["tree"] = out, out_tree
        return [x for x in out if isinstance(x, jax.Array)]

    shapes = jax.eval_shape(branch, arrays)
    outs = jax.lax.cond(
        anchor == anchor,
        branch,
        lambda _: [jnp.full(s.shape, jnp.nan, s.dtype) for s in shapes],
        arrays,
    )
    rest = iter(outs)
    leaves = [next(rest) if isinstance(x, jax.Array) else x for x in rebuilt["leaves"]]
    return jax.tree.unflatten(rebuilt["tree"], leaves)


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
