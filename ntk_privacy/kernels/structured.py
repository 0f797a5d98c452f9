r"""The empirical NTK of an MLP by per-layer Gram products: no Jacobian is formed.

The gradient of an output with respect to the kernel of layer l is an outer product,
$\partial f^c / \partial W_l = a_l \otimes b_l^c$ (the layer's input and the signal that
comes back to its output), so

$$\Theta^{cc'}(x, x') = \sum_l (a_l \cdot a_l' + \beta_l)\, (b_l^c \cdot b_l'^{c'}),$$

with $\beta_l = 1$ where layer l has a bias.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntk_privacy._linalg import matmul
from ntk_privacy._types import Params
from ntk_privacy.models.mlp import MLP, softplus_and_slope

__all__ = ["Layer", "Trace", "backward", "forward", "layers", "ntk"]


class Layer(NamedTuple):
    """scale: factor on the layer's input. kernel: (d, k). bias: (k,) or None."""

    scale: float
    kernel: Float[Array, "d k"]
    bias: Float[Array, " k"] | None


class Trace(NamedTuple):
    """inputs: of each Dense layer, scaled. slopes: activation derivatives, one per
    hidden layer. outputs: of the network.
    """  # noqa: D205

    inputs: tuple[Float[Array, "n _"], ...]
    slopes: tuple[Float[Array, "n _"], ...]
    outputs: Float[Array, "n c"]


def layers(model: MLP, params: Params) -> list[Layer]:
    """Returns the Dense layers in order, with the parametrisation's input scale.

    Args:
      model: the MLP.
      params: of it.
    """
    out = []
    for i in range(len(model.widths) + 1):
        leaf = params[f"Dense_{i}"]
        fan_in = leaf["kernel"].shape[0]
        scale = fan_in**-0.5 if model.parametrization == "ntk" else 1.0
        out.append(Layer(scale, leaf["kernel"], leaf.get("bias")))
    return out


def forward(
    model: MLP,
    params: Params,
    x: Float[Array, "n ..."],
    sharpness: float | Float[Array, ""] | None = None,
) -> Trace:
    """Runs the network and keeps what the gradients are made of.

    Args:
      model: gives depth and parametrisation.
      params: as `model.init_params` returns them.
      x: images.
      sharpness: of the softplus that stands in for ReLU; None is ReLU itself.
    """
    a = x.reshape(x.shape[0], -1)
    inputs, slopes = [], []

    def affine(layer):
        inputs.append(layer.scale * a if layer.scale != 1.0 else a)
        h = matmul(inputs[-1], layer.kernel)
        return h if layer.bias is None else h + layer.bias[None, :]

    *hidden, last = layers(model, params)
    for layer in hidden:
        h = affine(layer)
        if sharpness is None:
            slopes.append((h > 0).astype(h.dtype))
            a = jax.nn.relu(h)
        else:
            a, slope = softplus_and_slope(h, jnp.asarray(sharpness, h.dtype))
            slopes.append(slope)
    outputs = affine(last)
    return Trace(tuple(inputs), tuple(slopes), outputs)


def backward(
    model: MLP,
    params: Params,
    slopes: Sequence[Float[Array, "n _"]],
    cotangents: Float[Array, "n c"],
) -> tuple[Float[Array, "n _"], ...]:
    """Returns the signal at each layer's output, first layer first.

    Args:
      model: gives depth and parametrisation.
      params: as given to `forward`.
      slopes: of `forward` at the same parameters and images.
      cotangents: weight of each output, such as one-hot rows or duals.
    """
    stack = layers(model, params)
    b = cotangents
    signals = [b]
    for layer, slope in zip(stack[:0:-1], slopes[::-1], strict=True):
        b = layer.scale * matmul(b, layer.kernel.T) * slope
        signals.append(b)
    return tuple(signals[::-1])


def ntk(
    model: MLP,
    params: Params,
    x1: Float[Array, "n1 ..."],
    x2: Float[Array, "n2 ..."] | None = None,
    *,
    trace_outputs: bool = True,
) -> Float[Array, "n1 n2"] | Float[Array, "n1 n2 c c"]:
    """Returns the empirical NTK of an MLP; equal to `empirical.ntk`, and faster.

    Args:
      model: the MLP.
      params: its parameters.
      x1: images.
      x2: images; x1 when absent.
      trace_outputs: mean over outputs of the diagonal blocks, (n1, n2), as
        neural-tangents defines it; else all blocks, (n1, n2, c, c).

    Example:
      >>> import jax
      >>> from ntk_privacy import models
      >>> from ntk_privacy.kernels import structured
      >>> x = jax.random.uniform(jax.random.key(0), (3, 4, 4, 1))
      >>> net = models.MLP(widths=(16,))
      >>> params = net.init_params(jax.random.key(1), (4, 4, 1))
      >>> structured.ntk(net, params, x, trace_outputs=False).shape
      (3, 3, 1, 1)
    """

    def features(x):
        trace = forward(model, params, x)
        c = model.num_outputs
        cotangents = jnp.broadcast_to(
            jnp.eye(c, dtype=trace.outputs.dtype)[:, None, :], (c, x.shape[0], c)
        )
        signals = jax.vmap(lambda b: backward(model, params, trace.slopes, b))(
            cotangents
        )
        return trace.inputs, signals

    inputs1, signals1 = features(x1)
    inputs2, signals2 = (inputs1, signals1) if x2 is None else features(x2)
    subscripts = "cnk,cmk->nm" if trace_outputs else "cnk,dmk->nmcd"
    parts = []
    zipped = zip(
        layers(model, params), inputs1, inputs2, signals1, signals2, strict=True
    )
    for layer, a1, a2, b1, b2 in zipped:
        gram = matmul(a1, a2.T) + (0.0 if layer.bias is None else 1.0)
        back = jnp.einsum(subscripts, b1, b2, precision=jax.lax.Precision.HIGHEST)
        parts.append(gram * back if trace_outputs else gram[:, :, None, None] * back)
    total = functools.reduce(jnp.add, parts)
    return total / model.num_outputs if trace_outputs else total
