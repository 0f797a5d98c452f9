"""Small pictures as text: PNG in data URIs, for notebooks and pages."""

import base64
import html as escaping
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float
from PIL import Image

MOST = 40
"""Pictures that a notebook shows."""


def data_uri(image: Float[Array | np.ndarray, "h w c"]) -> str:
    """Returns one picture, clipped to [0, 1]; what is not finite is black.

    Args:
      image: of one or three channels; of any other number the mean is drawn.
    """
    pixels = np.nan_to_num(np.asarray(image, np.float64), posinf=1.0, neginf=0.0)
    if pixels.shape[-1] not in (1, 3):
        pixels = pixels.mean(axis=-1, keepdims=True)
    levels = np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels).save(
        file, format="PNG", optimize=True
    )
    return png_uri(file.getvalue())


def png_uri(png: bytes) -> str:
    """Returns the bytes of a PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def html(
    sentence: str,
    images: Float[Array | np.ndarray, "n h w c"],
    *,
    bounds: tuple[Any, Any] | None = None,
    captions: Sequence[str] = (),
) -> str:
    """Returns a sentence above pictures, as a notebook shows it.

    Args:
      sentence: plain text.
      images: in any units.
      bounds: what is black and white; None is the smallest and the largest entry.
      captions: one per picture, shown where the pointer rests; numbers without.
    """
    shown = np.asarray(images, np.float64)[:MOST]
    if bounds is None:
        sound = shown[np.isfinite(shown)]
        bounds = (sound.min(), sound.max()) if sound.size else (0.0, 1.0)
    low, high = (np.asarray(edge, np.float64) for edge in bounds)
    shown = (shown - low) / np.maximum(high - low, 1e-12)
    told = [*captions[:MOST], *(f"image {i + 1}" for i in range(len(captions), MOST))]
    style = "width:56px;height:56px;image-rendering:pixelated;margin:1px"
    pictures = "".join(
        f'<img style="{style}" src="{data_uri(one)}" alt="{name}" title="{name}">'
        for one, name in zip(shown, map(escaping.escape, told), strict=False)
    )
    more = len(images) - len(shown)
    rest = f"<p>and {more} more</p>" if more > 0 else ""
    return f"<div><p><b>{escaping.escape(sentence)}</b></p>{pictures}{rest}</div>"
