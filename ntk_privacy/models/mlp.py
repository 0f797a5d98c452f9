"""The fully connected ReLU network of the reconstruction papers.

Source: Loo et al., ICLR 2024 (arXiv:2302.01428): two hidden layers, Flax default
initialisation. Haim et al., NeurIPS 2022 use the same net with fewer biases.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ntk_privacy import _checks
from ntk_privacy._types import Params

__all__ = ["MLP", "softplus"]

Parametrization = Literal["standard", "ntk"]


def softplus(
    x: Float[Array, "..."], sharpness: float | Float[Array, ""]
) -> Float[Array, "..."]:
    """Returns log(1 + exp(sharpness x)) / sharpness; ReLU as sharpness grows.

    Args:
      x: preactivations.
      sharpness: above 0.
    """
    return softplus_and_slope(x, jnp.asarray(sharpness, x.dtype))[0]


@jax.custom_jvp
def softplus_and_slope(
    x: Float[Array, "..."], sharpness: Float[Array, ""]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Returns `softplus` and its derivative, from one exponential.

    The sharpness is a constant for derivatives.
    """
    decay = jnp.exp(-jnp.abs(sharpness * x))
    value = jax.nn.relu(x) + jnp.log1p(decay) / sharpness
    return value, jnp.where(x > 0, 1, decay) / (1 + decay)


@softplus_and_slope.defjvp
def _softplus_and_slope_jvp(primals, tangents):
    x, sharpness = primals
    value, slope = softplus_and_slope(x, sharpness)
    dx = tangents[0]
    return (value, slope), (slope * dx, (sharpness * slope * (1 - slope)) * dx)


class _Dense(nn.Module):
    """y = s x W + b: s = 1 and variance 1/fan_in, or NTK: s = fan_in^-1/2, variance 1.

    Matmuls run at full precision: gates near zero decide what a reconstruction sees.
    """

    features: int
    use_bias: bool
    parametrization: Parametrization
    kernel_init: Callable | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n k"]:
        fan_in = x.shape[-1]
        if self.parametrization == "ntk":
            init = self.kernel_init or nn.initializers.normal(1.0)
        else:
            init = self.kernel_init or nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (fan_in, self.features), x.dtype)
        y = jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)
        if self.parametrization == "ntk":
            y = y / jnp.sqrt(jnp.asarray(fan_in, y.dtype))
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), x.dtype)
            y = y + bias[None, :]
        return y


class MLP(nn.Module):
    """Flatten, then Dense and ReLU per width, then Dense to the outputs.

    Attributes:
      widths: units of each hidden layer, such as (1024, 1024).
      num_outputs: 1 for a binary task, else the number of classes.
      use_bias: trainable biases, zero at initialisation; one flag for all layers, or
        one per layer (hidden layers first, output last).
      parametrization: "standard" (kernel ~ lecun_normal, Flax's default) or "ntk"
        (kernel ~ N(0, 1), scaled by fan_in^-1/2 in the forward pass).
      kernel_inits: one initializer per layer, or None for the parametrization's own.

    Calling it with `sharpness` replaces every ReLU by `softplus(x, sharpness)`.

    Raises:
      ValueError: a width or num_outputs below 1, or flags that do not match layers.

    Example:
      >>> import jax
      >>> from ntk_privacy import models
      >>> net = models.MLP((32, 16), num_outputs=10)
      >>> params = net.init_params(jax.random.key(0), (8, 8, 1))
      >>> net.apply_fn(params, jax.numpy.zeros((3, 8, 8, 1))).shape
      (3, 10)
    """

    widths: Sequence[int] = (1024, 1024)
    num_outputs: int = 1
    use_bias: bool | Sequence[bool] = True
    parametrization: Parametrization = "standard"
    kernel_inits: Sequence[Callable | None] | None = None

    def __post_init__(self):
        super().__post_init__()
        for width in self.widths:
            _checks.at_least(1, width=width)
        _checks.at_least(1, num_outputs=self.num_outputs)
        _checks.one_of(("standard", "ntk"), parametrization=self.parametrization)
        layers = len(self.widths) + 1
        if not isinstance(self.use_bias, bool) and len(self.use_bias) != layers:
            raise ValueError(
                f"use_bias has {len(self.use_bias)} flags for {layers} layers: "
                "give one flag, or one per layer with the output last."
            )
        if self.kernel_inits is not None and len(self.kernel_inits) != layers:
            raise ValueError(
                f"kernel_inits has {len(self.kernel_inits)} entries for {layers} "
                "layers: give one per layer with the output last."
            )

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n ..."],
        sharpness: float | Float[Array, ""] | None = None,
    ) -> Float[Array, "n c"]:
        """Returns one row of outputs per image."""
        sizes = [*self.widths, self.num_outputs]
        flags = (
            [self.use_bias] * len(sizes)
            if isinstance(self.use_bias, bool)
            else list(self.use_bias)
        )
        inits = self.kernel_inits or [None] * len(sizes)
        h = x.reshape(x.shape[0], -1)
        for i, (size, flag, init) in enumerate(zip(sizes, flags, inits, strict=True)):
            h = _Dense(size, flag, self.parametrization, init, name=f"Dense_{i}")(h)
            if i < len(sizes) - 1:
                h = nn.relu(h) if sharpness is None else softplus(h, sharpness)
        return h

    def init_params(self, key: Array, image_shape: Sequence[int], dtype=None) -> Params:
        """Returns `{"Dense_i": {"kernel", "bias"}}` for images of `image_shape`.

        Args:
          key: typed key.
          image_shape: (height, width, depth) in pixels.
          dtype: float32 unless given.
        """
        _checks.typed_key(key=key)
        x = jnp.zeros((1, *image_shape), dtype or jnp.float32)
        return self.init(key, x)["params"]

    def apply_fn(
        self,
        params: Params,
        x: Float[Array, "n ..."],
        sharpness: float | Float[Array, ""] | None = None,
    ) -> Float[Array, "n c"]:
        """The pure function of the network: `(params, images) -> outputs`."""
        out = self.apply({"params": params}, x, sharpness)
        assert not isinstance(out, tuple)  # as where `mutable` is given
        return out
