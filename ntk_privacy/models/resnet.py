"""ResNet18 in torchvision's layout, its batch normalisation an open book.

Running statistics are a tree of their own, and what a batch does to each layer of
normalisation is a result: data-free recovery (SRe2L) matches the one with the other.

Source: He et al., CVPR 2016 (arXiv:1512.03385), as torchvision has it; the stems for
32 and 64 pixels as in SRe2L (arXiv:2306.13092), released code.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntk_privacy import _checks
from ntk_privacy._types import Params
from ntk_privacy.models import convolution

__all__ = ["BatchNormNetwork", "Moments", "ResNet18", "Stats"]

_EPSILON = 1e-5
# Of the new batch in the running statistics.
_MOMENTUM = 0.1


class Moments(NamedTuple):
    """mean, variance: of each channel over images, height and width."""

    mean: Float[Array, " c"]
    variance: Float[Array, " c"]


Stats = tuple[Moments, ...]
"""One entry per layer of batch normalisation, in the order of the forward pass; the
first is the stem's, and a shortcut's follows those of its block."""


class _Stem(NamedTuple):
    size: int
    stride: int
    padding: int
    pools: bool


_STEMS: Mapping[str, _Stem] = {
    "cifar": _Stem(3, 1, 1, False),
    "imagenet": _Stem(7, 2, 3, True),
    "tiny224": _Stem(3, 2, 3, False),
}


@runtime_checkable
class BatchNormNetwork(Protocol):
    """A classifier whose batch normalisation keeps running statistics."""

    def init_params(
        self, key: Array, image_shape: Sequence[int], dtype: Any = None
    ) -> Params:
        """Returns random parameters for images of (height, width, depth)."""
        ...

    def init_stats(self, dtype: Any = None) -> Stats:
        """Returns running statistics before the first batch."""
        ...

    def train_fn(self, params: Params, stats: Stats, x: Any) -> Any:
        """Returns logits with the batch's statistics, and the running ones after."""
        ...

    def eval_fn(self, params: Params, stats: Stats, x: Any) -> Any:
        """Returns logits with running statistics."""
        ...

    def moments_fn(self, params: Params, stats: Stats, x: Any) -> Any:
        """Returns logits as `eval_fn`, and the moments of what enters each layer."""
        ...


def _moments(x: Float[Array, "n h w c"]) -> Moments:
    """Returns the mean and the biased variance, centred before it is squared."""
    mean = jnp.mean(x, axis=(0, 1, 2))
    centred = x - mean[None, None, None]
    return Moments(mean, jnp.mean(jnp.square(centred), axis=(0, 1, 2)))


def _normalised(x: Array, moments: Moments, affine: Params) -> Array:
    gain = affine["scale"] * jax.lax.rsqrt(moments.variance + _EPSILON)
    return (x - moments.mean[None, None, None]) * gain[None, None, None] + affine[
        "bias"
    ][None, None, None]


def _max_pool(x: Array) -> Array:
    """3x3, stride 2, padding 1."""
    return jax.lax.reduce_window(
        x,
        -jnp.inf,
        jax.lax.max,
        (1, 3, 3, 1),
        (1, 2, 2, 1),
        ((0, 0), (1, 1), (1, 1), (0, 0)),
    )


Normalise = Callable[[Array, Params], Array]
Layer = Callable[..., Array]


@dataclasses.dataclass(frozen=True)
class ResNet18:
    """Stem, four stages of two basic blocks, global average pooling, a linear layer.

    A block is conv 3x3, norm, ReLU, conv 3x3, norm, plus the block's input (through a
    1x1 convolution and norm where the shape changes), ReLU. Convolutions have no bias.

    Attributes:
      num_outputs: number of classes.
      width: channels of the first stage; each later one has twice as many.
      stem: "cifar" (3x3, stride 1, no pooling: 32 and 64 pixels), "imagenet" (7x7,
        stride 2, 3x3 max pooling: 224 pixels) or "tiny224" (3x3, stride 2, padding 3,
        no pooling: Tiny ImageNet at 224 pixels).
      blocks: per stage; fewer make a smaller network of the same layout.
      precision: of products, such as `jax.lax.Precision.HIGHEST`; None is the
        backend's default, which an accelerator may take below float32.

    Raises:
      ValueError: a size below 1, or an unknown stem.

    Example:
      >>> import jax
      >>> from ntk_privacy import models
      >>> net = models.ResNet18(width=2, blocks=(1,))
      >>> params = net.init_params(jax.random.key(0), (8, 8, 3))
      >>> net.apply_fn(params, jax.numpy.zeros((2, 8, 8, 3))).shape
      (2, 10)
    """

    num_outputs: int = 10
    width: int = 64
    stem: str = "cifar"
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    precision: Any = None

    def __post_init__(self):
        _checks.at_least(1, num_outputs=self.num_outputs, width=self.width)
        _checks.one_of(tuple(_STEMS), stem=self.stem)
        _checks.at_least(1, stages=len(self.blocks))
        for count in self.blocks:
            _checks.at_least(1, blocks=count)

    def _plan(self) -> Iterator[tuple[str, int, int, int]]:
        """Yields the name, channels in and out, and stride of each block."""
        before = self.width
        for stage, count in enumerate(self.blocks):
            after = self.width * 2**stage
            for i in range(count):
                stride = 2 if stage and i == 0 else 1
                yield f"stage_{stage}_block_{i}", before, after, stride
                before = after

    def _kernels(self, depth: int) -> dict[str, dict[str, tuple[int, ...]]]:
        """Returns the shapes of the convolutions, in the order of their norms."""
        size = _STEMS[self.stem].size
        shapes: dict[str, dict[str, tuple[int, ...]]] = {
            "stem": {"0": (size, size, depth, self.width)}
        }
        for name, before, after, stride in self._plan():
            shapes[name] = {"0": (3, 3, before, after), "1": (3, 3, after, after)}
            if stride > 1 or before != after:
                shapes[name]["shortcut"] = (1, 1, before, after)
        return shapes

    @property
    def num_norms(self) -> int:
        """Layers of batch normalisation: 20 of the full network."""
        return sum(len(layers) for layers in self._kernels(1).values())

    def init_params(
        self, key: Array, image_shape: Sequence[int], dtype: Any = None
    ) -> Params:
        """Returns random parameters by torchvision's law.

        Convolutions are N(0, 2 / fan_out), the linear layer is uniform within
        1 / sqrt(fan_in), norms are the identity.

        Args:
          key: typed key.
          image_shape: (height, width, depth) in pixels.
          dtype: float32 unless given.
        """
        _checks.typed_key(key=key)
        dtype = jnp.dtype(dtype or jnp.float32)
        key_kernels, key_linear = jax.random.split(key)
        shapes = self._kernels(image_shape[-1])
        sizes = [math.prod(s) for layers in shapes.values() for s in layers.values()]
        # One draw for all layers: the same law, at a fraction of the compilation.
        normal = jax.random.normal(key_kernels, (sum(sizes),), dtype)
        params: dict[str, Any] = {}
        offset = 0
        for name, layers in shapes.items():
            params[name] = {}
            for layer, shape in layers.items():
                values = normal[offset : offset + math.prod(shape)].reshape(shape)
                fan_out = shape[0] * shape[1] * shape[3]
                params[name][f"conv_{layer}"] = values * (2 / fan_out) ** 0.5
                params[name][f"norm_{layer}"] = {
                    "scale": jnp.ones(shape[3], dtype),
                    "bias": jnp.zeros(shape[3], dtype),
                }
                offset += math.prod(shape)
        fan_in = self.width * 2 ** (len(self.blocks) - 1)
        uniform = jax.random.uniform(
            key_linear, (fan_in + 1, self.num_outputs), dtype, -1, 1
        )
        uniform = uniform * fan_in**-0.5
        params["linear"] = {"kernel": uniform[:-1], "bias": uniform[-1]}
        return params

    def init_stats(self, dtype: Any = None) -> Stats:
        """Returns running statistics before the first batch: mean 0, variance 1."""
        dtype = jnp.dtype(dtype or jnp.float32)
        return tuple(
            Moments(jnp.zeros(shape[3], dtype), jnp.ones(shape[3], dtype))
            for layers in self._kernels(1).values()
            for shape in layers.values()
        )

    def _features(
        self, params: Params, x: Float[Array, "n h w d"], layer: Layer
    ) -> Float[Array, "n k"]:
        stem = _STEMS[self.stem]
        x = layer(x, params["stem"], "0", stride=stem.stride, padding=stem.padding)
        x = jax.nn.relu(x)
        if stem.pools:
            x = _max_pool(x)
        for name, _, _, stride in self._plan():
            at, before = params[name], x
            x = jax.nn.relu(layer(x, at, "0", stride=stride, padding=1))
            x = layer(x, at, "1", stride=1, padding=1)
            if "conv_shortcut" in at:
                before = layer(before, at, "shortcut", stride=stride, padding=0)
            x = jax.nn.relu(x + before)
        return jnp.mean(x, axis=(1, 2))

    def _normalising(self, normalise: Normalise) -> Layer:
        """Returns a layer that convolves, then normalises."""

        def layer(x, at, name, **geometry):
            kernel = at[f"conv_{name}"]
            x = convolution.convolve_strided(
                x, kernel, precision=self.precision, **geometry
            )
            return normalise(x, at[f"norm_{name}"])

        return layer

    def _folding(self, stats: Stats) -> Layer:
        """Returns a layer whose kernel bears the norm's gain: one pass over images.

        Most of all in derivatives, where the gain's own need no images any more.
        """
        layers = iter(stats)

        def layer(x, at, name, **geometry):
            affine, moments = at[f"norm_{name}"], next(layers)
            gain = affine["scale"] * jax.lax.rsqrt(moments.variance + _EPSILON)
            kernel = at[f"conv_{name}"] * gain[None, None, None]
            x = convolution.convolve_strided(
                x, kernel, precision=self.precision, **geometry
            )
            return x + (affine["bias"] - moments.mean * gain)[None, None, None]

        return layer

    def _logits(self, params: Params, features: Float[Array, "n k"]) -> Array:
        at = params["linear"]
        product = jnp.matmul(features, at["kernel"], precision=self.precision)
        return product + at["bias"][None]

    def _check(self, stats: Stats) -> None:
        if len(stats) != self.num_norms:
            raise ValueError(
                f"stats has {len(stats)} layers but the network normalises "
                f"{self.num_norms}: use its own init_stats, or what train_fn returned."
            )

    def train_fn(
        self, params: Params, stats: Stats, x: Float[Array, "n h w d"]
    ) -> tuple[Float[Array, "n k"], Stats]:
        """Returns logits, normalised by the batch, and the running statistics after it.

        Those move by a tenth towards the batch's mean and unbiased variance, without
        a gradient.

        Raises:
          ValueError: `stats` is of another network.
        """
        self._check(stats)
        after: list[Moments] = []

        def normalise(x, affine):
            moments, old = _moments(x), stats[len(after)]
            count = x.size // x.shape[-1]
            new = Moments(moments.mean, moments.variance * (count / max(count - 1, 1)))
            after.append(
                jax.tree.map(
                    lambda o, n: o + _MOMENTUM * (jax.lax.stop_gradient(n) - o),
                    old,
                    new,
                )
            )
            return _normalised(x, moments, affine)

        features = self._features(params, x, self._normalising(normalise))
        return self._logits(params, features), tuple(after)

    def eval_fn(
        self, params: Params, stats: Stats, x: Float[Array, "n h w d"]
    ) -> Float[Array, "n k"]:
        """Returns logits, normalised by running statistics: each image's are its own.

        Raises:
          ValueError: `stats` is of another network.
        """
        self._check(stats)
        features = self._features(params, x, self._folding(stats))
        return self._logits(params, features)

    def moments_fn(
        self, params: Params, stats: Stats, x: Float[Array, "n h w d"]
    ) -> tuple[Float[Array, "n k"], Stats]:
        """Returns the logits of `eval_fn`, and moments of what enters each norm.

        The variances are biased, as those that normalise a batch; layers are in the
        order of `stats`.

        Raises:
          ValueError: `stats` is of another network.
        """
        self._check(stats)
        found: list[Moments] = []

        def normalise(x, affine):
            found.append(_moments(x))
            return _normalised(x, stats[len(found) - 1], affine)

        features = self._features(params, x, self._normalising(normalise))
        return self._logits(params, features), tuple(found)

    def embed_fn(
        self, params: Params, x: Float[Array, "n h w d"]
    ) -> Float[Array, "n k"]:
        """`(params, images) -> features` before the linear layer, of batch statistics.

        As with random networks, for which there are no running ones.
        """

        def normalise(x, affine):
            return _normalised(x, _moments(x), affine)

        return self._features(params, x, self._normalising(normalise))

    def apply_fn(
        self, params: Params, x: Float[Array, "n h w d"]
    ) -> Float[Array, "n k"]:
        """`(params, images) -> logits`, normalised by the batch at hand."""
        return self._logits(params, self.embed_fn(params, x))
