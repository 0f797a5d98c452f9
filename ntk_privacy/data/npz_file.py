"""Images from a NumPy .npz file, as people save them; a pickle is never loaded."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from ntk_privacy import _archives, _files
from ntk_privacy.data.image_set import ImageSet

SPELLINGS = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("images_train", "labels_train", "images_test", "labels_test"),
    ("images", "labels", "images_test", "labels_test"),
    ("images", "labels", "test_images", "test_labels"),
    ("images", "labels"),
    ("x", "y"),
)
"""Names of the arrays: training images and classes, and of the test part, if any."""
CLASS_NAMES = "class_names"
_LARGEST = 8
"""Bytes a number: none of ours is larger."""
_REMEDY = (
    "save it by np.savez_compressed(file, x_train=..., y_train=..., x_test=..., "
    "y_test=...), or images and labels alone to have a fifth held out"
)


def load_set(path: Path) -> ImageSet:
    """Reads images and classes, and a test part, else a fifth is held out.

    Arrays are named in one of the `SPELLINGS`; names of the classes may stand in
    `class_names`. What they must be is what `ImageSet.from_arrays` says.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: There is no file.
        ValueError: It is no such file, is damaged, does not fit the memory, or holds
            what are no images and classes.
    """
    source = _files.shown(path)
    if _files.kind(path) == "missing":
        raise FileNotFoundError(f"{source} is missing: name an .npz file of images.")
    with _files.opened(path, remedy=_REMEDY) as stream:
        shapes = _archives.shapes(stream, source=source, remedy=_REMEDY)
        names = _spelling(set(shapes), source)
        _check_room(shapes, names, source)
        wanted: dict[str, Any] = dict.fromkeys(names, _is_numbers)
        if CLASS_NAMES in shapes:
            wanted[CLASS_NAMES] = _is_text
        stream.seek(0)
        found = _archives.read(stream, wanted, source=source, remedy=_REMEDY)
    given = found.get(CLASS_NAMES)
    class_names = None if given is None else [str(name) for name in given]
    try:
        return ImageSet.from_arrays(
            *(found[name] for name in names),
            class_names=class_names,
            name=_files.shown(path.stem),
        )
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _spelling(there: set[str], source: str) -> tuple[str, ...]:
    for names in SPELLINGS:
        if there.issuperset(names):
            # Of what is only half there, nothing is held out.
            _refuse_half(there, names, source)
            return names
    told = _files.told_of(sorted(there)) if there else "nothing"
    raise ValueError(f"{source} holds {told}: {_REMEDY}.")


def _refuse_half(there: set[str], names: tuple[str, ...], source: str) -> None:
    tests = {name for spelling in SPELLINGS for name in spelling[2:]}
    if len(names) == 2 and there & tests:
        told = ", ".join(sorted(there & tests))
        raise ValueError(f"{source} holds {told}, half of a test part: {_REMEDY}.")


def _check_room(
    shapes: dict[str, tuple[int, ...]], names: tuple[str, ...], source: str
) -> None:
    """Refuses what a header announces and this machine cannot hold, before it is."""
    need = sum(math.prod(shapes[name]) for name in names)
    has = _files.memory()
    if need > has:
        raise ValueError(
            f"{source} announces {need / 1e9:.3g} GB as bytes, more than the "
            f"{has / 1e9:.3g} GB of this machine: keep fewer or smaller images."
        )


def _is_numbers(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    size = math.prod(shape) * dtype.itemsize
    fits = len(shape) <= 4 and dtype.itemsize <= _LARGEST and size <= _files.memory()
    return fits and dtype.kind in "biuf"


def _is_text(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    size = math.prod(shape) * dtype.itemsize
    return len(shape) == 1 and dtype.kind == "U" and size <= _files.MAX_TEXT_BYTES
