"""Differentiable augmentation, siamese or not.

One operation is drawn per call and applied to all images of it. Siamese, its parameters
are shared too: two calls with one key treat both batches alike. Images are taken as
normalised, so that a pixel filled with zero has the data's mean.

Source: Zhao & Bilen, ICML 2021 (DSA, arXiv:2102.08259), released code; warps with
`align_corners=False`, PyTorch's default of today.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntk_privacy import _checks

__all__ = ["NO_FLIP", "OPERATIONS", "augment", "check", "cut_out", "translate", "warp"]

Images = Float[Array, "n h w c"]

SHIFT = 0.125
CUTOUT = 0.5
SCALE = 1.2
DEGREES = 15.0


def translate(x: Images, down: Int[Array, " m"], right: Int[Array, " m"]) -> Images:
    """Moves images by whole pixels and fills with zero.

    Args:
      x: images.
      down: pixels that each image moves down, or one number for all (m = 1).
      right: pixels to the right, likewise.
    """
    h, w = x.shape[1:3]
    rows = jnp.arange(h)[None] - down[:, None]
    columns = jnp.arange(w)[None] - right[:, None]
    inside = ((rows >= 0) & (rows < h))[:, :, None]
    inside &= ((columns >= 0) & (columns < w))[:, None, :]

    def take(image, row, column):
        return image.at[row[:, None], column[None, :]].get(mode="clip")

    moved = _each(take, x, rows, columns)
    return jnp.where(inside[..., None], moved, 0)


def cut_out(
    x: Images, row: Int[Array, " m"], column: Int[Array, " m"], size: tuple[int, int]
) -> Images:
    """Fills a window with zero; what of it lies outside of the image is left out.

    Args:
      x: images.
      row: the window's centre: it starts size // 2 before it; one per image, or one.
      column: likewise.
      size: height and width of the window in pixels.
    """
    top, left = row - size[0] // 2, column - size[1] // 2
    rows = jnp.arange(x.shape[1])[None] - top[:, None]
    columns = jnp.arange(x.shape[2])[None] - left[:, None]
    hit = ((rows >= 0) & (rows < size[0]))[:, :, None]
    hit &= ((columns >= 0) & (columns < size[1]))[:, None, :]
    return jnp.where(hit[..., None], 0, x)


def warp(x: Images, matrix: Float[Array, "m 2 2"]) -> Images:
    """Samples images bilinearly where a linear map sends each pixel; zero outside.

    Args:
      x: images.
      matrix: maps (x, y) of a pixel of the result, in [-1, 1] from edge to edge of the
        image, to where it is read; one per image, or one for all.
    """
    h, w = x.shape[1:3]
    y = (2 * jnp.arange(h, dtype=matrix.dtype) + 1) / h - 1
    u = (2 * jnp.arange(w, dtype=matrix.dtype) + 1) / w - 1
    grid = jnp.stack(jnp.broadcast_arrays(u[None, :], y[:, None]), axis=-1)
    source = jnp.einsum(
        "mij,hwj->mhwi", matrix, grid, precision=jax.lax.Precision.HIGHEST
    )
    columns = ((source[..., 0] + 1) * w - 1) / 2
    rows = ((source[..., 1] + 1) * h - 1) / 2

    def sample(image, row, column):
        top, left = jnp.floor(row), jnp.floor(column)
        total = jnp.zeros_like(image)
        for r, weight_r in ((top, top + 1 - row), (top + 1, row - top)):
            for c, weight_c in ((left, left + 1 - column), (left + 1, column - left)):
                inside = (r >= 0) & (r < h) & (c >= 0) & (c < w)
                weight = jnp.where(inside, weight_r * weight_c, 0)[..., None]
                at = (r.astype(jnp.int32), c.astype(jnp.int32))
                total += weight * image.at[at].get(mode="clip")
        return total

    return _each(sample, x, rows, columns)


def _each(function: Callable, x: Images, first: Array, second: Array) -> Images:
    """Maps over images with their own parameters, or with the only ones."""
    if len(first) == 1:
        return jax.vmap(lambda image: function(image, first[0], second[0]))(x)
    return jax.vmap(function)(x, first, second)


def _uniform(key, m, x, low=0.0, high=1.0):
    return jax.random.uniform(key, (m,), x.dtype, low, high)


def _color(key: Array, x: Images, m: int) -> Images:
    """Brightness, then saturation, then contrast."""
    by, saturation, contrast = (
        _uniform(k, m, x).reshape(m, 1, 1, 1) for k in jax.random.split(key, 3)
    )
    x = x + (by - 0.5)
    mean = jnp.mean(x, axis=3, keepdims=True)
    x = (x - mean) * (2 * saturation) + mean
    mean = jnp.mean(x, axis=(1, 2, 3), keepdims=True)
    return (x - mean) * (contrast + 0.5) + mean


def _crop(key: Array, x: Images, m: int) -> Images:
    key_rows, key_columns = jax.random.split(key)
    down, right = (int(SHIFT * size + 0.5) for size in x.shape[1:3])
    return translate(
        x,
        jax.random.randint(key_rows, (m,), -down, down + 1),
        jax.random.randint(key_columns, (m,), -right, right + 1),
    )


def _cutout(key: Array, x: Images, m: int) -> Images:
    key_rows, key_columns = jax.random.split(key)
    h, w = x.shape[1:3]
    size = (int(CUTOUT * h + 0.5), int(CUTOUT * w + 0.5))
    row = jax.random.randint(key_rows, (m,), 0, h + 1 - size[0] % 2)
    column = jax.random.randint(key_columns, (m,), 0, w + 1 - size[1] % 2)
    return cut_out(x, row, column, size)


def _flip(key: Array, x: Images, m: int) -> Images:
    flipped = (_uniform(key, m, x) < 0.5).reshape(m, 1, 1, 1)
    return jnp.where(flipped, x[:, :, ::-1], x)


def _scale(key: Array, x: Images, m: int) -> Images:
    factors = jax.random.uniform(key, (m, 2), x.dtype, 1 / SCALE, SCALE)
    return warp(x, jax.vmap(jnp.diag)(factors))


def _rotate(key: Array, x: Images, m: int) -> Images:
    angle = jnp.deg2rad(_uniform(key, m, x, -DEGREES, DEGREES))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    matrix = jnp.stack([jnp.stack([cos, -sin], 1), jnp.stack([sin, cos], 1)], 1)
    return warp(x, matrix)


_FUNCTIONS: Mapping[str, Callable[[Array, Images, int], Images]] = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}
OPERATIONS = tuple(_FUNCTIONS)
"""All six, for natural images."""
NO_FLIP = tuple(name for name in OPERATIONS if name != "flip")
"""For digits."""


def check(operations: Sequence[str]) -> None:
    """Raises ValueError if there is no such operation.

    Args:
      operations: names.

    Raises:
      ValueError: a name is none of `OPERATIONS`.
    """
    for name in operations:
        _checks.one_of(OPERATIONS, operations=name)


def augment(
    key: Array,
    images: Images,
    *,
    operations: Sequence[str] = OPERATIONS,
    siamese: bool = False,
) -> Images:
    """Applies one operation, drawn uniformly, to all images; differentiable in them.

    Args:
      key: typed key; fixes the operation and its parameters. With `siamese` they do not
        depend on the number of images.
      images: normalised images.
      operations: to draw from; none at all returns the images as they are.
      siamese: one draw of parameters for the whole batch, rather than one per image.

    Raises:
      ValueError: an unknown operation.
    """
    check(operations)
    if not operations:
        return images
    key_choice, key_parameters = jax.random.split(key)
    m = 1 if siamese else len(images)
    branches = [
        lambda x, name=name: _FUNCTIONS[name](key_parameters, x, m)
        for name in operations
    ]
    choice = jax.random.randint(key_choice, (), 0, len(operations))
    return jax.lax.switch(choice, branches, images)
