r"""Infinite-width NNGP and NTK of convolutional networks, with pooling.

A convolution averages covariances over windows that move together on both images
(Novak et al., ICLR 2019; Arora et al., NeurIPS 2019):
$$K'[p, p'] = \frac{s^2}{|W|} \sum_{w \in W} A(K)[p + w, p' + w] + b^2.$$
Without pooling p = p' is a closed set: pixel by pixel, (n1, n2, h, w). Pooling mixes
pixels, and needs the covariance of every pixel with every other,
(n1, n2, h, h', w, w'): a million numbers for a pair of 32 x 32 images. Both run over
tiles of pairs, so memory holds a few arrays of one tile.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _checks, _platform
from ntk_privacy._types import KernelFn
from ntk_privacy.kernels import coincidence, infinite
from ntk_privacy.kernels.conv_layers import (
    AvgPool,
    Conv,
    Flatten,
    GlobalAvgPool,
    broadcasts,
    walk,
)
from ntk_privacy.kernels.dual_activation import Gaps, inverse_root, root
from ntk_privacy.kernels.infinite import Kernels
from ntk_privacy.kernels.layers import (
    Activation,
    Dense,
    Layer,
    Pair,
    Parametrization,
    Sum,
    check_width,
    own_positions,
    relu,
    resolve,
    run,
)

__all__ = [
    "AvgPool",
    "Conv",
    "Flatten",
    "GlobalAvgPool",
    "convnet",
    "kernel",
    "myrtle",
    "nngp_and_ntk",
]

# Numbers in one array of a tile, on a processor, whose cache more leaves, and on an
# accelerator, which fewer leave idle.
_TILE, _WIDE_TILE = 2**19, 2**24


def nngp_and_ntk(layers: Sequence[Layer]) -> Callable[..., Kernels]:
    """Returns `(x1, x2=None) -> Kernels(nngp, ntk)` of a convolutional network.

    Args:
      layers: of this module, and Dense, Activation and Sum of `infinite`; Flatten or
        GlobalAvgPool comes before the first Dense.

    The result takes images (n, height, width, channels) in any floating point type,
    which it keeps. None for x2, or x1 itself, halves the work and makes the kernel of
    an image with itself exact. Gradients are finite. Where patches of two images all
    but coincide, or are multiples of each other, it is right to rounding, and takes
    three times as long; but to sqrt(eps) in activations after a pooling.

    Raises:
      ValueError: layers do not end in one number per pair; the result does, for images
        of two shapes, of integers, with NaN, or smaller than a window.
    """
    layers = tuple(layers)
    flat = list(walk(layers))
    if not any(isinstance(layer, Flatten | GlobalAvgPool) for layer in flat):
        raise ValueError(
            "layers keep their positions to the end: add Flatten() or GlobalAvgPool() "
            "before the last Dense."
        )

    def both(
        x1: Float[Array, "n1 ..."], x2: Float[Array, "n2 ..."] | None = None
    ) -> Kernels:
        infinite.check_images(x1, x2)
        if x1.ndim != 4:
            raise ValueError(
                f"x1 has shape {x1.shape}: give images of four axes, (n, height, width,"
                " channels)."
            )
        return _conv_kernels(layers, x1, None if x2 is x1 else x2)

    return both


def kernel(layers: Sequence[Layer], *, get: Literal["ntk", "nngp"] = "ntk") -> KernelFn:
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


def convnet(
    depth: int = 3,
    *,
    weight_std: float = 1.0,
    bias_std: float = 0.0,
    pooling: Literal["none", "avg"] = "none",
    head: Literal["flatten", "global_pool"] = "flatten",
    extra_layer: bool = False,
    activation: Literal["relu", "erf", "gelu"] | Activation = "relu",
    padding: str = "SAME",
    filter_size: int = 3,
    parametrization: Parametrization = "ntk",
    width: int | None = None,
    use_bias: bool = True,
) -> KernelFn:
    """Returns the NTK `(x1, x2=None) -> (n1, n2)` of a convolutional network.

    Args:
      depth: blocks of convolution, activation and, if asked, pooling.
      weight_std: s of `infinite.Dense`, one for all layers.
      bias_std: b of `infinite.Dense`.
      pooling: "avg": a 2 x 2 average after each block; "none".
      head: "flatten" or "global_pool", then one Dense.
      extra_layer: one more convolution and activation before the blocks.
      activation: "relu", "erf", "gelu", or one of `infinite.abrelu`.
      padding: "SAME", "VALID" or "CIRCULAR", of every convolution.
      filter_size: height and width of the filters in pixels.
      parametrization: "ntk" or "standard", as in `infinite.mlp`.
      width: channels of each layer; "standard" needs it.
      use_bias: in "standard", whether layers have a trainable bias.

    KIP (arXiv:2107.13034) uses `weight_std=2**0.5, bias_std=0.1, pooling="avg"`:
    "ConvNet" with `extra_layer=True`, "ConvNet3" without.

    Raises:
      ValueError: a number out of range, an unknown name, or no width in "standard".

    Example:
      >>> import jax
      >>> from ntk_privacy.kernels import infinite_conv
      >>> x = jax.random.uniform(jax.random.key(0), (2, 4, 4, 1))
      >>> infinite_conv.convnet(depth=1)(x, x).shape
      (2, 2)
    """
    _checks.at_least(0 if extra_layer else 1, depth=depth)
    _checks.one_of(("none", "avg"), pooling=pooling)
    _checks.one_of(("flatten", "global_pool"), head=head)
    check_width(parametrization, width)
    weights = (weight_std, bias_std, parametrization)
    size = (filter_size, filter_size)
    conv = Conv(size, (1, 1), padding, *weights, width, use_bias)
    block = (conv, resolve(activation))
    pool = (AvgPool(),) if pooling == "avg" else ()
    top = Flatten() if head == "flatten" else GlobalAvgPool()
    dense = Dense(*weights, 1, use_bias)
    return kernel(block * extra_layer + (block + pool) * depth + (top, dense))


def myrtle(
    depth: Literal[5, 7, 10] = 10,
    *,
    weight_std: float = 2**0.5,
    bias_std: float = 0.1,
) -> KernelFn:
    """Returns the NTK of a Myrtle network (Shankar et al., ICML 2020), as KIP uses it.

    Args:
      depth: 5, 7 or 10: 4, 6 or 9 convolutions in three stages, each pooled by 2, the
        last one by 8: images have 32 x 32 pixels.
      weight_std: s of `infinite.Dense`.
      bias_std: b of `infinite.Dense`.

    Raises:
      ValueError: another depth.
    """
    stages = {5: (2, 1, 1), 7: (2, 2, 2), 10: (3, 3, 3)}
    _checks.one_of(stages, depth=depth)
    block = (Conv(weight_std=weight_std, bias_std=bias_std), relu)
    first, second, third = stages[depth]
    return kernel(
        block * first
        + (AvgPool(),)
        + block * second
        + (AvgPool(),)
        + block * third
        + (AvgPool((8, 8)), Flatten(), Dense(weight_std, bias_std))
    )


def _start(x1: Array, x2: Array, *, full: bool) -> Pair:
    """The kernels of pixels: the mean over channels of products."""
    c = x1.shape[-1]
    q1 = jnp.sum(x1 * x1, axis=-1)[:, None] / c
    q2 = jnp.sum(x2 * x2, axis=-1)[None, :] / c
    if not full:
        k = sum(x1[:, None, ..., i] * x2[None, :, ..., i] for i in range(c)) / c
        assert isinstance(k, Array)  # there are channels
        return Pair(k, None, q1, q2, c, anchor=q1[0, 0, 0, 0])
    k = jnp.einsum("ahwc,bijc->abhiwj", x1, x2, precision="highest") / c
    q1, q2 = q1[:, :, :, None, :, None], q2[:, :, None, :, None, :]
    return Pair(k, None, q1, q2, c, anchor=q1[0, 0, 0, 0, 0, 0])


def _with_gaps(pair: Pair, x1: Array, x2: Array) -> Pair:
    """Adds the gaps of pixels, from differences of their colours."""
    c = x1.shape[-1]
    axes = ((1,), (0,)) if pair.nngp.ndim == 4 else ((1, 3, 5), (0, 2, 4))
    unit1, unit2 = (
        jnp.expand_dims(x * inverse_root(jnp.sum(x * x, -1, keepdims=True) / c), axis)
        for x, axis in zip((x1, x2), axes, strict=True)
    )
    lengths = root(pair.variance1) * root(pair.variance2) / c
    return pair._replace(
        gaps=Gaps(
            lengths * sum((unit1[..., i] - unit2[..., i]) ** 2 for i in range(c)),
            lengths * sum((unit1[..., i] + unit2[..., i]) ** 2 for i in range(c)),
        )
    )


def _run(
    layers: tuple[Layer, ...], start: Pair, x1: Array, x2: Array, own: Array | None
) -> Kernels:
    """Applies `layers`; with gaps, if units are close before the first activation.

    Either way a computation of its own, and done again for its gradient.

    Args:
      layers: of the network.
      start: of pixels.
      x1: images of one side.
      x2: images of the other side.
      own: which of them are one image.
    """
    flat = list(walk(layers))
    kinds = [isinstance(layer, Activation) for layer in flat]
    pools = [isinstance(layer, AvgPool | GlobalAvgPool) for layer in flat]
    if True not in kinds or True in pools[: kinds.index(True)]:
        return _finished(run(layers, start))
    bends = [isinstance(x, Sum | Activation) for x in layers]
    first, last = bends.index(True), len(bends) - bends[::-1].index(True)
    pair = run(layers[:first], start)
    same = None if own is None else own_positions(pair.nngp.shape) & own
    q1, q2 = pair.variance1, pair.variance2
    close = jax.lax.stop_gradient(
        coincidence.any_close(pair.nngp, q1, q2, except_for=same)
    )

    def kernels(pair: Pair) -> Kernels:
        out = run(layers[last:], pair._replace(gaps=None))
        return _finished(out)

    @jax.checkpoint
    def near(x1: Array, x2: Array) -> Kernels:
        # From the images again: what a branch is given would be kept for both.
        fresh = _start(x1, x2, full=pair.nngp.ndim == 6)
        fresh = fresh._replace(pooled=start.pooled, same=start.same)
        with_gaps = _with_gaps(fresh, x1, x2)
        return kernels(run(layers[:last], with_gaps))

    @jax.checkpoint
    def plain(*_) -> Kernels:
        return kernels(run(layers[first:last], pair))

    return jax.lax.cond(close, near, plain, x1, x2)


def _finished(out: Pair) -> Kernels:
    if out.nngp.ndim != 2 or out.ntk is None:
        raise ValueError(
            "layers end in kernels of shape "
            f"{out.nngp.shape}: end in Flatten() or GlobalAvgPool(), then Dense()."
        )
    return Kernels(out.nngp, out.ntk)


def _pooled_variances(layers: tuple[Layer, ...], x: Array) -> tuple[Array, ...]:
    """The variances of every image after each pooling, (n, 1, h, w) each."""

    def one(image: Array) -> tuple[Array, ...]:
        pair = _start(image[None], image[None], full=True)
        pair = pair._replace(pooled=None, same=jnp.asarray(True))
        recorded = run(layers, pair).recorded
        return jax.tree.map(lambda v: v[0], recorded)

    return jax.lax.map(jax.checkpoint(one), x)


@functools.partial(jax.jit, static_argnames="layers")
def _conv_kernels(layers: tuple[Layer, ...], x1: Array, x2: Array | None) -> Kernels:
    flat = list(walk(layers))
    pools = [i for i, x in enumerate(flat) if isinstance(x, AvgPool | GlobalAvgPool)]
    full = bool(pools)
    # An activation after a pooling needs variances that only whole images give.
    tracked = full and any(isinstance(x, Activation) for x in flat[pools[0] :])
    symmetric = x2 is None
    positions = math.prod(x1.shape[1:3]) ** (2 if full else 1)
    tile_size = _TILE if _platform.name() == "cpu" else _WIDE_TILE
    side = max(1, math.isqrt(tile_size // positions))

    def tiles(x: Array) -> tuple[Array, tuple[Array, ...]]:
        # Tiles of equal size: the last one is not padded by more than it must.
        t = math.ceil(x.shape[0] / math.ceil(x.shape[0] / side))
        x = jnp.pad(x, [(0, -x.shape[0] % t)] + [(0, 0)] * 3)
        pooled = _pooled_variances(layers, x) if tracked else ()
        return jax.tree.map(lambda a: a.reshape(-1, t, *a.shape[1:]), (x, pooled))

    images1, pooled1 = tiles(x1)
    images2, pooled2 = (images1, pooled1) if symmetric else tiles(x2)

    def tile(where: Array) -> Kernels:
        i, j = where[0], where[1]
        pair = _start(images1[i], images2[j], full=full)
        meets = []
        for v1, v2 in zip(pooled1, pooled2, strict=True):
            second = jnp.swapaxes(v2[j], 0, 1)
            meets.append((broadcasts(v1[i])[0], broadcasts(second)[1]))
        # By the recursion of variances: free of the rounding of arccos near 1.
        own = i == j if symmetric else None
        pair = pair._replace(pooled=tuple(meets), same=own if full else None)
        return _run(layers, pair, images1[i], images2[j], own)

    rows, columns = images1.shape[0], images2.shape[0]
    i, j = np.indices((rows, columns)).reshape(2, -1)
    index = np.arange(rows * columns).reshape(rows, columns)
    if symmetric:
        upper = i <= j
        i, j = i[upper], j[upper]
        index[i, j] = index[j, i] = np.arange(len(i))
    done = jax.lax.map(jax.checkpoint(tile), jnp.asarray(np.stack([i, j], axis=1)))
    n1, n2 = x1.shape[0], (x1 if x2 is None else x2).shape[0]

    def assemble(blocks: Array) -> Array:
        grid = blocks[index]
        if symmetric:
            below = (np.arange(rows)[:, None] > np.arange(columns))[..., None, None]
            grid = jnp.where(below, jnp.swapaxes(grid, 2, 3), grid)
        grid = jnp.swapaxes(grid, 1, 2)
        return grid.reshape(rows * grid.shape[1], -1)[:n1, :n2]

    out = jax.tree.map(assemble, done)
    if symmetric and not full:
        # As `same`, but without a pass over each tile.
        q = (jnp.sum(x1 * x1, axis=-1) / x1.shape[-1])[:, None]
        own = run(layers, Pair(q, None, q, q, x1.shape[-1], equal=True))
        assert own.ntk is not None  # _run has looked
        eye = jnp.eye(n1, dtype=bool)
        exact = Kernels(own.nngp, own.ntk)
        out = jax.tree.map(lambda k, d: jnp.where(eye, d, k), out, exact)
    return out
