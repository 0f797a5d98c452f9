"""Arrays that others made, as images and classes: taken as they are, or one sentence.

Nothing is guessed: bytes are 0 to 255, numbers with a point lie in [0, 1], classes are
whole numbers. What is otherwise is named, with the line that repairs it.
"""

from typing import Any

import numpy as np
from jaxtyping import Int32

__all__ = ["checked_images", "checked_labels"]

_CHANNELS = (1, 3)


def checked_images(levels: int | None = None, **images: Any) -> np.ndarray:
    """Returns images as bytes or float32 intensities, (n, h, w, c).

    Args:
        levels: The byte that is intensity 1; None for 255.
        **images: One array, by its name in messages.

    Raises:
        ValueError: It is no array of numbers, or of another shape, kind or range.
    """
    ((name, given),) = images.items()
    array = _array(name, given)
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise ValueError(
            f"{name} has dtype {array.dtype}, expected unsigned bytes of 0 to 255 or "
            f"numbers in [0, 1]: convert it, such as {name}.astype(np.uint8)."
        )
    array = _with_channels(name, array)
    if array.dtype == np.uint8:
        _check_bytes(name, array, levels)
        return array
    if levels is not None:
        raise ValueError(
            f"levels={levels} is for images of bytes, but {name} has {array.dtype}: "
            "leave it out."
        )
    low, high = array.min(), array.max()
    # Written so that NaN is outside.
    if not (low >= 0 and high <= 1):
        bad = int((~np.isfinite(array)).sum())
        told = f"{bad} values that are NaN or infinite" if bad else _range(low, high)
        remedy = "repair or remove those images" if bad else _remedy(name, low, high)
        raise ValueError(f"{name} has {told}, expected [0, 1]: {remedy}.")
    return array.astype(np.float32)


def checked_labels(
    count: int, *, num_classes: int | None = None, **labels: Any
) -> Int32[np.ndarray, " n"]:
    """Returns classes, (n,).

    Args:
        count: Images that they belong to.
        num_classes: That there are; None if that is to be seen.
        **labels: One array, by its name in messages, (n,) or (n, 1).

    Raises:
        ValueError: It holds no whole numbers from 0, or not one per image.
    """
    ((name, given),) = labels.items()
    array = _array(name, given)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(
            f"{name} has shape {array.shape}, expected one class per image, (n,): "
            f"of one-hot rows give {name}.argmax(axis=1)."
        )
    if array.dtype.kind not in "iu":
        raise ValueError(
            f"{name} has dtype {array.dtype}, expected whole numbers: convert it, such "
            f"as {name}.astype(np.int32)."
        )
    if len(array) != count:
        raise ValueError(
            f"{name} has {len(array)} entries for {count} images: give one each."
        )
    low, high = int(array.min()), int(array.max())
    if num_classes is not None and not 0 <= low <= high < num_classes:
        raise ValueError(
            f"{name} goes from {low} to {high}, expected the classes of the training "
            f"images, 0 to {num_classes - 1}: give training images of each class."
        )
    # Without gaps no class is as high as the number of images.
    if not 0 <= low <= high < max(count, num_classes or 0):
        raise ValueError(
            f"{name} goes from {low} to {high}, expected classes from 0 without gaps: "
            f"number them, such as np.unique({name}, return_inverse=True)[1]."
        )
    return array.astype(np.int32)


def _array(name: str, given: Any) -> np.ndarray:
    try:
        array = np.asarray(given)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{name} is no array of one shape ({error}): give rows of one size."
        ) from error
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"{name} has dtype {array.dtype}, which is not of numbers: give numbers."
        )
    if not array.size:
        raise ValueError(
            f"{name} has shape {array.shape}, so it is empty: give images."
        )
    return array


def _with_channels(name: str, array: np.ndarray) -> np.ndarray:
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4:
        raise ValueError(
            f"{name} has shape {array.shape}, expected (n, h, w) or (n, h, w, c): "
            f"restore it, such as {name}.reshape(-1, 28, 28)."
        )
    if array.shape[-1] in _CHANNELS:
        return array
    remedy = "convert them to RGB or grey"
    if array.shape[1] in _CHANNELS:
        remedy = f"put channels last, {name}.transpose(0, 2, 3, 1)"
    elif array.shape[-1] == 4:
        remedy = f"drop the transparency, {name}[..., :3]"
    raise ValueError(
        f"{name} has shape {array.shape}, so {array.shape[-1]} channels, expected 1 or "
        f"3: {remedy}."
    )


def _check_bytes(name: str, array: np.ndarray, levels: int | None) -> None:
    most = int(array.max())
    if levels is None and most == 1:
        raise ValueError(
            f"{name} has bytes of 0 and 1, which are black of 255: say levels=1, or "
            f"give numbers, {name}.astype(np.float32)."
        )
    if levels is not None and not most <= levels <= 255:
        raise ValueError(
            f"levels={levels} must lie in [{max(most, 1)}, 255]: {name} has bytes up "
            f"to {most}."
        )


def _range(low: Any, high: Any) -> str:
    return f"values from {low:.4g} to {high:.4g}"


def _remedy(name: str, low: Any, high: Any) -> str:
    if low >= 0:
        by = 255 if high <= 255 else f"{high:.6g}"
        return f"divide by what is white, such as {name} / {by}"
    if low >= -1 and high <= 1:
        return f"undo the centring, such as ({name} + 1) / 2"
    return "undo the normalisation: give intensities, black 0 and white 1"
