"""Pictures that an audit is given: a folder, a file or arrays, in [0, 1].

All that are there are taken: an audit holds nothing out, and needs no classes.
"""

import math
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ntk_privacy import _archives, _checks, _files
from ntk_privacy.data import decoding, image_folder
from ntk_privacy.data.given_arrays import checked_images, checked_labels

__all__ = ["GivenImages", "read"]

_NAMES = {
    "images": "labels",
    "x_train": "y_train",
    "train_images": "train_labels",
    "images_train": "labels_train",
    "x": "y",
}
_REMEDY = "save the pictures by np.savez_compressed(file, images=...)"
_REPAIR = "repair or delete it"


class GivenImages(NamedTuple):
    """Pictures, and what is known of them.

    Attributes:
      images: (n, h, w, c), intensities in [0, 1].
      classes: (n,), or None where nothing tells them.
      source: where they are from, for people.
      class_names: of folders, in the order of their numbers; None of arrays.
    """

    images: Float[np.ndarray, "n h w c"]
    classes: Int[np.ndarray, " n"] | None
    source: str
    class_names: tuple[str, ...] | None = None


def read(
    given: Any, *, name: str, image_shape: tuple[int, int, int] | None = None
) -> GivenImages:
    """Returns pictures as intensities.

    Args:
      given: a folder of pictures, or of one folder per class, of which "train" alone is
        read where there is one; an .npz file with an array `images`; or an array,
        (n, h, w, c) or (n, h, w): unsigned bytes, or numbers in [0, 1].
      name: of the argument, for messages.
      image_shape: (height, width, depth) that they are to have; pictures of folders
        are resized to it. None takes that of the pictures.

    Raises:
      FileNotFoundError: there is no such file or folder.
      ValueError: what is there is damaged or holds no pictures, of that shape, with
        intensities in [0, 1] or bytes.

    Example:
      >>> import numpy as np
      >>> from ntk_privacy.auditing import given_images
      >>> grey = np.full((2, 4, 4), 51, np.uint8)
      >>> found = given_images.read(grey, name="images")
      >>> found.images.shape, float(found.images.max())
      ((2, 4, 4, 1), 0.20000000298023224)
    """
    if isinstance(given, GivenImages):
        found = given
    elif not isinstance(given, str | os.PathLike):
        found = GivenImages(_intensities(name, given), None, "an array")
    else:
        path = pathlib.Path(given)
        found = _file(path, name, image_shape)
    if image_shape is not None and found.images.shape[1:] != tuple(image_shape):
        has, wants = (
            "x".join(map(str, shape)) for shape in (found.images.shape[1:], image_shape)
        )
        raise ValueError(
            f"{name} are {has} (height x width x channels), the network takes {wants}: "
            "give the pictures as it saw them, or another image_shape."
        )
    return found


def _file(
    path: pathlib.Path, name: str, image_shape: tuple[int, int, int] | None
) -> GivenImages:
    source, kind = _files.shown(path), _files.kind(path)
    if kind == "missing":
        raise FileNotFoundError(
            f"{name}={source} is missing: name a folder of pictures, or an .npz file."
        )
    if path.is_dir():
        return _folder(path, image_shape)
    try:
        arrays = _archive(path)
    except ValueError as error:
        told = str(error)
        raise ValueError(told if source in told else f"{source}: {told}") from error
    images, classes = arrays
    try:
        x = _intensities("images", images)
        y = None if classes is None else checked_labels(len(x), labels=classes)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return GivenImages(x, y, source)


def _intensities(name: str, array: Any) -> Float[np.ndarray, "n h w c"]:
    checked = checked_images(**{name: array})
    if checked.dtype == np.uint8:
        return checked.astype(np.float32) / np.float32(255)
    return checked


def _archive(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray | None]:
    about = {"source": _files.shown(path), "remedy": _REMEDY}
    with _files.opened(path, remedy=_REMEDY) as stream:
        shapes = _archives.shapes(stream, **about)
        known = [pair for pair in _NAMES.items() if pair[0] in shapes]
        if not known:
            has = _files.told_of(sorted(shapes)) if shapes else "nothing"
            raise ValueError(f"{about['source']} holds {has}: {_REMEDY}.")
        (images, labels), *_ = known
        wanted = {name: _fits for name in (images, labels) if name in shapes}
        stream.seek(0)
        found = _archives.read(stream, wanted, **about)
    return found[images], found.get(labels)


def _fits(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    size = math.prod(shape) * dtype.itemsize
    return dtype.kind in "biuf" and len(shape) <= 4 and size <= _files.memory()


def _folder(
    path: pathlib.Path, image_shape: tuple[int, int, int] | None
) -> GivenImages:
    """Reads pictures of a folder and of those in it, each of which is a class."""
    source, below = _files.shown(path), _folders(path)
    train = [part for part in below if part.name.lower() == "train"]
    if train:
        path, below = train[0], _folders(train[0])
    listed = [
        decoding.list_images(part, suffixes=image_folder.SUFFIXES, remedy=_FILL)
        for part in below or [path]
    ]
    paths = [one for part in listed for one in part]
    classes = np.repeat(np.arange(len(listed), dtype=np.int32), list(map(len, listed)))
    if image_shape is not None and image_shape[0] != image_shape[1]:
        raise ValueError(
            f"{source} is a folder, whose pictures become squares, but image_shape is "
            f"{image_shape}: give an .npz file with an array images."
        )
    size = image_folder.own_size(paths) if image_shape is None else image_shape[0]
    _checks.at_least(1, image_shape=size)
    images = image_folder.read(path, paths, size)
    grey = image_folder.is_grey(images)
    if image_shape[2] == 1 if image_shape is not None else grey:
        if not grey:
            raise ValueError(
                f"{source} holds pictures in colour, and the network takes one "
                "channel: convert them to grey."
            )
        images = images[..., :1]
    found = _intensities("images", np.ascontiguousarray(images))
    if not below:
        return GivenImages(found, None, source)
    return GivenImages(found, classes, source, tuple(part.name for part in below))


_FILL = "put the pictures that were trained on there"


def _folders(path: pathlib.Path) -> list[pathlib.Path]:
    return [entry for entry in _files.entries(path) if entry.is_dir()]
