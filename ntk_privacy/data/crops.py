"""Random resized crops, flips and CutMix as data: drawn once, replayed at will.

Source: torchvision's RandomResizedCrop; Yun et al., ICCV 2019 (CutMix,
arXiv:1905.04899); Shen & Xing, ECCV 2022 (stored draws, arXiv:2112.01528).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ntk_privacy import _checks
from ntk_privacy.data import augmentation

__all__ = ["Mix", "draw_boxes", "draw_mix", "mixed", "pad_crop_flip", "resized_crop"]

Images = Float[Array, "n h w c"]
Boxes = Int[Array, "m 4"]

_TRIES = 10
_RATIO = 4 / 3


class Mix(NamedTuple):
    """What CutMix does to a batch.

    partner: the image that shows within the window, per image. window: top, left,
    height and width in pixels, one for the batch.
    """

    partner: Int[Array, " n"]
    window: Int[Array, "4"]


def draw_boxes(
    key: Array,
    num: int,
    *,
    size: tuple[int, int],
    min_share: _checks.Number | Float[Array, ""] = 0.08,
) -> Boxes:
    """Returns top, left, height and width of crops, in pixels.

    The area is uniform in [min_share, 1] of the image, the logarithm of the ratio of
    sides in that of [3/4, 4/3]; the first of ten draws that fits, else all of it.

    Args:
      key: typed key.
      num: boxes.
      size: height and width of the images.
      min_share: least share of the area; may be traced.
    """
    h, w = size
    keys = jax.random.split(key, 3)
    uniform = jax.random.uniform(keys[0], (2, num, _TRIES), jnp.float32)
    low = jnp.asarray(min_share, jnp.float32)
    area = (low + (1 - low) * uniform[0]) * (h * w)
    ratio = jnp.exp((2 * uniform[1] - 1) * jnp.log(jnp.float32(_RATIO)))
    widths = jnp.round(jnp.sqrt(area * ratio)).astype(jnp.int32)
    heights = jnp.round(jnp.sqrt(area / ratio)).astype(jnp.int32)
    fits = (widths >= 1) & (widths <= w) & (heights >= 1) & (heights <= h)
    first = jnp.argmax(fits, axis=1)[:, None]
    some = jnp.any(fits, axis=1)

    def take(values, whole):
        return jnp.where(some, jnp.take_along_axis(values, first, 1)[:, 0], whole)

    height, width = take(heights, h), take(widths, w)
    top = _below(keys[1], h - height + 1)
    left = _below(keys[2], w - width + 1)
    return jnp.stack([top, left, height, width], axis=1)


def _below(key: Array, limits: Int[Array, " n"]) -> Int[Array, " n"]:
    """Returns uniform integers from 0 to below each limit."""
    u = jax.random.uniform(key, limits.shape, jnp.float32)
    floor = jnp.floor(u * limits.astype(jnp.float32)).astype(jnp.int32)
    return jnp.minimum(floor, limits - 1)


def _sampling(
    start: Int[Array, " m"], length: Int[Array, " m"], size: int, dtype
) -> Float[Array, "m s s"]:
    """Returns bilinear weights of a line's pixels for each of a stretched interval."""
    pixels = jnp.arange(size, dtype=dtype)
    scale = length.astype(dtype)[:, None] / size
    inside = (pixels[None] + 0.5) * scale - 0.5
    inside = jnp.clip(inside, 0, length.astype(dtype)[:, None] - 1)
    source = inside + start.astype(dtype)[:, None]
    distance = jnp.abs(source[:, :, None] - pixels[None, None])
    return jnp.maximum(1 - distance, 0)


def resized_crop(x: Images, boxes: Boxes) -> Images:
    """Returns crops, stretched to the size of the image; bilinear, differentiable.

    Args:
      x: images.
      boxes: of `draw_boxes`, one per image, or one for all.
    """
    h, w = x.shape[1:3]
    rows = _sampling(boxes[:, 0], boxes[:, 2], h, x.dtype)
    columns = _sampling(boxes[:, 1], boxes[:, 3], w, x.dtype)
    high = jax.lax.Precision.HIGHEST
    if len(boxes) == 1:
        x = jnp.einsum("ph,nhwc->npwc", rows[0], x, precision=high)
        return jnp.einsum("qw,npwc->npqc", columns[0], x, precision=high)
    x = jnp.einsum("nph,nhwc->npwc", rows, x, precision=high)
    return jnp.einsum("nqw,npwc->npqc", columns, x, precision=high)


def flipped(x: Images, flips: Bool[Array, " m"]) -> Images:
    """Mirrors the images that are flagged, or all by the only flag."""
    return jnp.where(flips[:, None, None, None], x[:, :, ::-1], x)


def pad_crop_flip(key: Array, x: Images, *, padding: int, flip: bool = True) -> Images:
    """Shifts each image by up to `padding` pixels, filled with zero, and mirrors half.

    Zero is the mean of normalised images; torchvision pads with black.

    Args:
      key: typed key.
      x: normalised images.
      padding: greatest shift in pixels.
      flip: whether to mirror.
    """
    key_down, key_right, key_flip = jax.random.split(key, 3)
    n = len(x)
    if padding:
        x = augmentation.translate(
            x,
            jax.random.randint(key_down, (n,), -padding, padding + 1),
            jax.random.randint(key_right, (n,), -padding, padding + 1),
        )
    return flipped(x, jax.random.bernoulli(key_flip, 0.5, (n,))) if flip else x


def draw_mix(key: Array, num: int, *, size: tuple[int, int]) -> Mix:
    """Returns a draw of CutMix: the window's share of the image is uniform.

    Beta(1, 1) is uniform; the window is cut where it leaves the image.

    Args:
      key: typed key.
      num: images of the batch.
      size: height and width of the images.
    """
    key_share, key_place, key_partner = jax.random.split(key, 3)
    share = jax.random.uniform(key_share, (), jnp.float32)
    place = jax.random.uniform(key_place, (2,), jnp.float32)
    ends = []
    for i, length in enumerate(size):
        side = jnp.floor(length * jnp.sqrt(share)).astype(jnp.int32)
        centre = jnp.floor(place[i] * length).astype(jnp.int32)
        first = jnp.clip(centre - side // 2, 0, length)
        last = jnp.clip(centre + side // 2, 0, length)
        ends.append((first, last - first))
    (top, height), (left, width) = ends
    partner = jax.random.permutation(key_partner, num).astype(jnp.int32)
    return Mix(partner, jnp.stack([top, left, height, width]))


def mixed(x: Images, mix: Mix) -> Images:
    """Shows each image's partner within the window.

    Args:
      x: images.
      mix: of `draw_mix`.
    """
    top, left, height, width = mix.window
    rows, columns = (jnp.arange(size, dtype=top.dtype) for size in x.shape[1:3])
    inside = ((rows >= top) & (rows < top + height))[:, None]
    inside &= ((columns >= left) & (columns < left + width))[None]
    return jnp.where(inside[None, :, :, None], x[mix.partner], x)
