"""The ConvNet of dataset condensation, with PyTorch's initialisation and epsilons.

Source: Zhao & Bilen (DC, arXiv:2006.05929; DSA, arXiv:2102.08259; DM,
arXiv:2110.04181), released code.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ntk_privacy import _checks, _platform
from ntk_privacy._types import Params
from ntk_privacy.models import convolution

__all__ = ["Classifier", "ConvNet", "Network", "embed_in_blocks", "named"]

_ACTIVATIONS: Mapping[str, Callable[[Any], Any]] = {
    "sigmoid": nn.sigmoid,
    "relu": nn.relu,
    "leaky_relu": lambda x: nn.leaky_relu(x, 0.01),
    "swish": nn.swish,
}
_NORMS = ("none", "batch", "layer", "instance", "group")
_POOLINGS = ("none", "max", "avg")
_EPSILON = 1e-5
_GROUPS = 4
# Values of a layer that a core's cache holds with the next layer's beside them: ten
# images of 32 x 32 x 128.
_CACHED = 10 * 2**17


@runtime_checkable
class Classifier(Protocol):
    """What training and the matching of gradients ask of a model."""

    def init_params(
        self, key: Array, image_shape: Sequence[int], dtype: Any = None
    ) -> Params:
        """Returns random parameters for images of (height, width, depth)."""
        ...

    def apply_fn(self, params: Params, x: Float[Array, "n ..."]) -> Any:
        """Returns one row of logits per image."""
        ...


@runtime_checkable
class Network(Classifier, Protocol):
    """A classifier with features: what the matching of features and poisoning ask."""

    def embed_fn(self, params: Params, x: Float[Array, "n ..."]) -> Any:
        """Returns one row of features per image."""
        ...


def _torch_uniform(fan_in: int) -> Callable:
    """PyTorch's default for weights and biases: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = fan_in**-0.5

    def init(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class _Conv(nn.Module):
    """3x3 convolution of stride 1 with bias."""

    features: int
    padding: int
    precision: Any

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n p q k"]:
        init = _torch_uniform(9 * x.shape[-1])
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", init, shape, x.dtype)
        bias = self.param("bias", init, (self.features,), x.dtype)
        y = convolution.convolve(x, kernel, self.padding, self.precision)
        return y + bias[None, None, None, :]


class _Linear(nn.Module):
    features: int
    precision: Any

    @nn.compact
    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n k"]:
        init = _torch_uniform(x.shape[-1])
        kernel = self.param("kernel", init, (x.shape[-1], self.features), x.dtype)
        bias = self.param("bias", init, (self.features,), x.dtype)
        return jnp.matmul(x, kernel, precision=self.precision) + bias[None, :]


class _Norm(nn.Module):
    """Normalises over a batch, an image, or groups of its channels; affine."""

    kind: str

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        n, h, w, c = x.shape
        shape = (h, w, c) if self.kind == "layer" else (1, 1, c)
        scale = self.param("scale", nn.initializers.ones, shape, x.dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, x.dtype)
        if self.kind == "batch":
            parts, axes = x, (0, 1, 2)
        elif self.kind == "instance":
            parts, axes = x, (1, 2)
        else:
            groups = 1 if self.kind == "layer" else _GROUPS
            parts, axes = x.reshape(n, h, w, groups, c // groups), (1, 2, 4)
        # Centred before squared: variances here are differentiated.
        centred = parts - jnp.mean(parts, axis=axes, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=axes, keepdims=True)
        y = (centred * jax.lax.rsqrt(variance + _EPSILON)).reshape(x.shape)
        return y * scale[None] + bias[None]


def _pool(x: Float[Array, "n h w c"], kind: str) -> Float[Array, "n p q c"]:
    """2x2, stride 2, no padding: an odd last row or column is left out."""
    if kind == "none":
        return x
    if kind == "max":
        return nn.max_pool(x, (2, 2), (2, 2))
    h, w = x.shape[1:3]
    return convolution.average(x[:, : h // 2 * 2, : w // 2 * 2])


class ConvNet(nn.Module):
    """Conv 3x3, norm, activation and 2x2 pooling per block, then a linear layer.

    Images of one channel are padded by 3 rather than 1 in the first convolution: 28
    pixels become 32. At 32 pixels and default sizes there are 2048 features.

    Attributes:
      num_outputs: number of classes.
      width: channels of every block.
      depth: number of blocks.
      activation: "sigmoid", "relu", "leaky_relu" (slope 0.01) or "swish".
      norm: "none", "batch", "layer" (over height, width and channels), "instance" or
        "group" (4 groups). Batch normalisation always uses the statistics of the batch
        at hand, as random networks do in DM; it keeps no running ones.
      pooling: "none", "max" or "avg".
      precision: of products, such as `jax.lax.Precision.HIGHEST`; None is the
        backend's default, which an accelerator may take below float32.

    Raises:
      ValueError: a size below 1, an unknown name, a width that 4 groups do not divide,
        or an image too small for the depth.

    Example:
      >>> import jax
      >>> from ntk_privacy import models
      >>> net = models.ConvNet(width=4, depth=1)
      >>> params = net.init_params(jax.random.key(0), (8, 8, 3))
      >>> net.apply_fn(params, jax.numpy.zeros((2, 8, 8, 3))).shape
      (2, 10)
    """

    num_outputs: int = 10
    width: int = 128
    depth: int = 3
    activation: str = "relu"
    norm: str = "instance"
    pooling: str = "avg"
    precision: Any = None

    def __post_init__(self):
        super().__post_init__()
        _checks.at_least(
            1, num_outputs=self.num_outputs, width=self.width, depth=self.depth
        )
        _checks.one_of(tuple(_ACTIVATIONS), activation=self.activation)
        _checks.one_of(_NORMS, norm=self.norm)
        _checks.one_of(_POOLINGS, pooling=self.pooling)
        if self.norm == "group" and self.width % _GROUPS:
            raise ValueError(
                f"width={self.width} does not split into the {_GROUPS} groups of "
                f"norm='group': use a multiple of {_GROUPS}."
            )

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], features_only: bool = False
    ) -> Float[Array, "n k"]:
        """Returns one row of logits per image, or of features."""
        act = _ACTIVATIONS[self.activation]
        for i in range(self.depth):
            padding = 3 if i == 0 and x.shape[-1] == 1 else 1
            x = _Conv(self.width, padding, self.precision, name=f"Conv_{i}")(x)
            if self.norm != "none":
                x = _Norm(self.norm, name=f"Norm_{i}")(x)
            x = _pool(act(x), self.pooling)
            if x.size == 0:
                raise ValueError(
                    f"depth={self.depth} pools these images to nothing after "
                    f"{i + 1} blocks: use a smaller depth, or pooling='none'."
                )
        features = x.reshape(x.shape[0], -1)
        if features_only:
            return features
        return _Linear(self.num_outputs, self.precision, name="Linear")(features)

    def init_params(
        self, key: Array, image_shape: Sequence[int], dtype: Any = None
    ) -> Params:
        """Returns random parameters by PyTorch's default law.

        Args:
          key: typed key.
          image_shape: (height, width, depth) in pixels.
          dtype: float32 unless given.
        """
        _checks.typed_key(key=key)
        dtype = jnp.dtype(dtype or jnp.float32)
        shape = tuple(image_shape)
        shapes = _shapes(self, shape, dtype)  # pyright: ignore[reportArgumentType]  # flax's dataclass is hashable
        # One draw for all layers: the law is Flax's, at a fraction of its compilation.
        drawn = [name for name in shapes if not name.startswith("Norm")]
        sizes = [leaf.size for name in drawn for leaf in shapes[name].values()]
        uniform = jax.random.uniform(key, (sum(sizes),), dtype, -1, 1)
        params, offset = {}, 0
        for name, layer in shapes.items():
            params[name] = {}
            for leaf_name, leaf in layer.items():
                if name not in drawn:
                    fill = jnp.ones if leaf_name == "scale" else jnp.zeros
                    params[name][leaf_name] = fill(leaf.shape, dtype)
                    continue
                values = uniform[offset : offset + leaf.size].reshape(leaf.shape)
                bound = math.prod(layer["kernel"].shape[:-1]) ** -0.5
                params[name][leaf_name] = values * bound
                offset += leaf.size
        return params

    def apply_fn(
        self, params: Params, x: Float[Array, "n h w c"]
    ) -> Float[Array, "n k"]:
        """The pure function of the network: `(params, images) -> logits`."""
        out = self.apply({"params": params}, x)
        assert not isinstance(out, tuple)  # as where `mutable` is given
        return out

    def embed_fn(
        self, params: Params, x: Float[Array, "n h w c"]
    ) -> Float[Array, "n k"]:
        """`(params, images) -> features`: what the linear layer sees, flattened."""
        out = self.apply({"params": params}, x, features_only=True)
        assert not isinstance(out, tuple)  # as where `mutable` is given
        return out


def embed_in_blocks(
    model: Network, params: Params, x: Float[Array, "n h w c"]
) -> Float[Array, "n k"]:
    """Returns `model.embed_fn(params, x)`, on CPU so many images at once as it caches.

    Args:
      model: a network.
      params: its parameters.
      x: images.
    """
    n, h, w, _ = x.shape
    size = 0
    # Batch normalisation mixes images; an accelerator wants all of them at once.
    split = isinstance(model, ConvNet) and model.norm != "batch"
    if isinstance(model, ConvNet) and split and _platform.name() == "cpu":
        fits = max(1, _CACHED // (h * w * model.width))
        size = max(d for d in range(1, min(fits, n) + 1) if n % d == 0)
        # An awkward number of images: small blocks cost more than they save.
        size = size if size > fits // 4 else 0
    if size in (0, n):
        return model.embed_fn(params, x)
    blocks = x.reshape(n // size, size, *x.shape[1:])
    features = jax.lax.map(lambda block: model.embed_fn(params, block), blocks)
    return features.reshape(n, -1)


@functools.lru_cache(maxsize=64)
def _shapes(model: ConvNet, image_shape: tuple[int, ...], dtype: Any) -> Params:
    """Returns the shapes of the parameters, layer by layer."""
    x = jax.ShapeDtypeStruct((1, *image_shape), dtype)
    return jax.eval_shape(model.init, jax.random.key(0), x)["params"]


_OPTIONS: Mapping[str, tuple[str, Any]] = {
    "ASwish": ("activation", "swish"),
    "AS": ("activation", "sigmoid"),
    "AR": ("activation", "relu"),
    "AL": ("activation", "leaky_relu"),
    "NN": ("norm", "none"),
    "BN": ("norm", "batch"),
    "LN": ("norm", "layer"),
    "IN": ("norm", "instance"),
    "GN": ("norm", "group"),
    "NP": ("pooling", "none"),
    "MP": ("pooling", "max"),
    "AP": ("pooling", "avg"),
}


def named(name: str, *, num_outputs: int = 10) -> ConvNet:
    """Returns a variant by the name that the papers give it.

    Args:
      name: "ConvNet" and any of D1 to D9 (depth), W with a number (width), AS, AR, AL,
        ASwish (activation), NN, BN, LN, IN, GN (norm), NP, MP, AP (pooling), such as
        "ConvNetD4" or "ConvNetW64BN".
      num_outputs: number of classes.

    Raises:
      ValueError: the name has another part.
    """
    part = re.compile(r"D(\d)|W(\d+)|" + "|".join(_OPTIONS))
    options, rest = {}, name.removeprefix("ConvNet")
    while rest and name.startswith("ConvNet"):
        found = part.match(rest)
        if found is None:
            break
        if found[1]:
            options["depth"] = int(found[1])
        elif found[2]:
            options["width"] = int(found[2])
        else:
            key, value = _OPTIONS[found[0]]
            options[key] = value
        rest = rest[found.end() :]
    if rest or not name.startswith("ConvNet"):
        raise ValueError(
            f"name={name!r} is unknown at {rest or name!r}: use ConvNet with D or W "
            f"and a number, or any of {', '.join(_OPTIONS)}."
        )
    return ConvNet(num_outputs=num_outputs, **options)
