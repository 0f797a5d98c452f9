r"""The loss of the max-margin attack, without a gradient of the parameters' size.

Source: Haim et al., NeurIPS 2022 (arXiv:2206.07758). With $a_l$, $h_l$ and $b_l$ the
input, the output and the returning signal of layer l (weighted by $\lambda_j y_j / m$),
$\langle \theta, \sum_j g_j \rangle = \sum_{l,j} h_l(x_j) \cdot b_l(x_j)$ costs nothing
beyond the forward and the backward pass, and $\|\sum_j g_j\|^2$ is taken from Gram
products or from the summed gradient, per layer, whichever is smaller.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntk_privacy._linalg import matmul
from ntk_privacy._types import Params
from ntk_privacy.kernels import structured
from ntk_privacy.models.mlp import MLP

__all__ = ["objective", "relu_and_slope", "stationarity"]


@jax.custom_jvp
def relu_and_slope(
    x: Float[Array, "..."], sharpness: Float[Array, ""]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Returns ReLU, exact, and what stands in for its derivative: sigmoid(sharpness x).

    Derivatives of both follow from that slope; the sharpness is a constant for them.

    Args:
      x: preactivations.
      sharpness: of the sigmoid.
    """
    return jax.nn.relu(x), jax.nn.sigmoid(sharpness * x)


@relu_and_slope.defjvp
def _relu_and_slope_jvp(primals, tangents):
    x, sharpness = primals
    value, slope = relu_and_slope(x, sharpness)
    dx = tangents[0]
    return (value, slope), (slope * dx, (sharpness * slope * (1 - slope)) * dx)


def stationarity(
    model: MLP,
    params: Params,
    images: Float[Array, "m ..."],
    weights: Float[Array, " m"],
    *,
    squared_norm: Float[Array, ""],
    sharpness: Float[Array, ""],
) -> Float[Array, ""]:
    r"""Returns $\|\theta - \nabla_\theta \sum_j w_j f(x_j)\|^2$.

    Args:
      model: the MLP; one output.
      params: theta.
      images: candidates.
      weights: w, that is lambda_j y_j / m.
      squared_norm: of theta: a constant of the attack.
      sharpness: of the ReLU's derivative.
    """
    stack = structured.layers(model, params)
    inputs, outputs, slopes = [], [], []
    a = images.reshape(images.shape[0], -1)
    for i, layer in enumerate(stack):
        a = layer.scale * a if layer.scale != 1.0 else a
        h = matmul(a, layer.kernel)
        if layer.bias is not None:
            h = h + layer.bias[None, :]
        inputs.append(a)
        outputs.append(h)
        if i < len(stack) - 1:
            a, slope = relu_and_slope(h, sharpness)
            slopes.append(slope)
    signals = structured.backward(model, params, slopes, weights[:, None])
    total = squared_norm
    for layer, a, h, b in zip(stack, inputs, outputs, signals, strict=True):
        (m, d), k = a.shape, b.shape[1]
        if m * (d + k) < d * k:
            gram = matmul(a, a.T) + (0.0 if layer.bias is None else 1.0)
            total += jnp.sum(gram * matmul(b, b.T))
        else:
            total += jnp.sum(matmul(a.T, b) ** 2)
            if layer.bias is not None:
                total += jnp.sum(jnp.sum(b, axis=0) ** 2)
        # theta is its own change: its product with the gradient is that with h.
        total -= 2 * jnp.sum(h * b)
    return total


def objective(
    model: MLP,
    params: Params,
    images: Float[Array, "m h w d"],
    lambdas: Float[Array, " m"],
    labels: Float[Array, " m"],
    *,
    squared_norm: Float[Array, ""],
    sharpness: Float[Array, ""],
    lambda_min: Float[Array, ""],
    lambda_weight: Float[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the loss of the attack, and its stationarity part.

    The other parts penalise pixels outside [-1, 1] and multipliers below lambda_min.

    Args:
      model: the MLP; one output.
      params: of the trained network.
      images: candidates.
      lambdas: their multipliers, times m.
      labels: -1 or +1.
      squared_norm: of the parameters.
      sharpness: of the ReLU's derivative.
      lambda_min: see `Settings`.
      lambda_weight: see `Settings`.
    """
    residual = stationarity(
        model,
        params,
        images,
        lambdas * labels / len(labels),
        squared_norm=squared_norm,
        sharpness=sharpness,
    )
    outside = jax.nn.relu(images - 1) ** 2 + jax.nn.relu(-1 - images) ** 2
    small = jax.nn.relu(lambda_min - lambdas) ** 2
    return residual + jnp.sum(outside) + lambda_weight * jnp.sum(small), residual
