"""Any folder of pictures with a sub-folder per class, such as ImageNette."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from ntk_privacy import _checks, _files
from ntk_privacy.data import decoding, splits
from ntk_privacy.data.raw import Raw

SUFFIXES = (".jpg", ".jpeg", ".png")
TEST_FOLDERS = ("val", "validation", "valid", "test")
SIZE = 64
"""Pixels a side, where the pictures have no size of their own."""
_FORMATS = ("JPEG", "PNG")
_REMEDY = "repair or delete it"


def load_raw(folder: Path | str, *, size: int | None = None) -> Raw:
    """Reads `train/CLASS/*` and `val/CLASS/*`, or `test` where there is no `val`.

    Where there are folders of classes alone, `CLASS/*`, a fifth of each is held out to
    test on, always the same: see `splits.hold_out`.

    Classes are the sorted names of the folders in `train`; of the test set some may be
    missing. Images may lie one folder deeper, `CLASS/images/*`. Files other than .jpg,
    .jpeg and .png (in capitals too), hidden ones and what systems leave behind are
    passed over; pictures of other formats among them with a warning. Where all pictures
    are grey the images have one channel, else three.

    Args:
        folder: Holds `train` and `val` or `test`, or the classes.
        size: Pixels a side of the images; see `decode`. None for that of the pictures
            if they are squares of one size up to 64, else 64.

    Raises:
        FileNotFoundError: The folder, `train`, or both `val` and `test` are missing.
        ValueError: There is no class, a class without images or one that `train` does
            not have, a damaged image, what is no regular file or too large, or size is
            below 1.
    """
    if size is not None:
        _checks.at_least(1, size=size)
    parts = _parts(Path(folder))
    names = _class_names(parts[0])
    listed = [_list(part, names) for part in parts]
    if size is None:
        size = own_size([path for paths, _ in listed for path in paths])
    classes = [labels for _, labels in listed]
    images = [
        read(part, paths, size) for part, (paths, _) in zip(parts, listed, strict=True)
    ]
    if all(is_grey(part) for part in images):
        images = [part[..., :1].copy() for part in images]
    if len(parts) == 1:
        rows = splits.hold_out(classes[0])
        images, classes = ([a[0][r] for r in rows] for a in (images, classes))
    return Raw(
        *(images[0], classes[0], images[1], classes[1]),
        class_names=tuple(_files.shown(name) for name in names),
        max_intensity=255,
    )


def decode(
    data: bytes, *, size: int, source: str = "image"
) -> UInt8[np.ndarray, "size size 3"]:
    """Decodes one picture: its central square, resized, in RGB.

    The filter is bilinear and as wide as pixels that become one, so that shrinking
    does not alias. What a camera noted of its rotation is passed over; transparency is
    dropped.

    Args:
        data: The bytes of a JPEG or PNG file.
        size: Pixels a side.
        source: The file's name, for messages.

    Raises:
        ValueError: The bytes are no complete JPEG or PNG with 8 bits a channel.
    """
    with decoding.opened(
        data, formats=_FORMATS, source=source, remedy=_REMEDY
    ) as image:
        mode = image.mode
        if mode in decoding.MODES:
            return np.asarray(_square(decoding.rgb(image), size), dtype=np.uint8)
    raise ValueError(
        f"{source} has pixels of mode {mode}, expected 8 bits a channel: convert it, "
        "or delete it."
    )


def _square(image: Any, size: int) -> Any:
    """Returns the central square, resized in one go: of the rest nothing is made."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return image.resize(
        (size, size),
        Image.Resampling.BILINEAR,
        box=(left, top, left + side, top + side),
    )


def _parts(folder: Path) -> tuple[Path, ...]:
    """Returns the folders to train and to test on, or one of classes alone."""
    if not folder.is_dir():
        told = _files.kind(folder) or "a file"
        raise FileNotFoundError(
            f"{_files.shown(folder)} is no folder but {told}: name the one that holds "
            "train and val."
        )
    train, tests = _named(folder, ("train",)), _named(folder, TEST_FOLDERS)
    if not train and not tests and _holds_classes(folder):
        return (folder,)
    if not train or not tests:
        lacks = "val or test" if train else "train"
        raise FileNotFoundError(
            f"{_files.shown(folder)} has no folder {lacks}{_elsewhere(folder)}: images "
            "are looked for in train/CLASS and val/CLASS, or test/CLASS, or in CLASS."
        )
    return train[0], tests[0]


def _holds_classes(folder: Path) -> bool:
    """Returns whether each folder in it holds pictures, and none lies too high."""
    below = [path for path in _files.entries(folder) if path.is_dir()]
    if len(below) < 2 or _elsewhere(folder, briefly=True):
        return False
    return all(_pictures(path) for path in below)


def _pictures(folder: Path) -> list[Path]:
    """Returns pictures of a folder, or of the one folder that is in it."""
    there = _files.entries(folder)
    found = [path for path in there if path.suffix.lower() in SUFFIXES]
    if found or len(there) != 1 or not there[0].is_dir():
        return found
    below = _files.entries(there[0])
    return [path for path in below if path.suffix.lower() in SUFFIXES]


def _named(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """Returns folders of these names, in capitals or not, in the order of the names."""
    there = {p.name.lower(): p for p in _files.entries(folder) if p.is_dir()}
    return [there[name] for name in names if name in there]


def _elsewhere(folder: Path, *, briefly: bool = False) -> str:
    """Returns where the images seem to be, if the folder is a level too high or low.

    Args:
        folder: That was named.
        briefly: Say nothing of what else is in it.
    """
    below = [path for path in _files.entries(folder) if path.is_dir()]
    for path in below:
        if _named(path, ("train",)):
            return f", but {_files.shown(path.name)} in it has: name that one"
    above = folder.absolute().parent
    if _named(above, ("train",)) and _named(above, TEST_FOLDERS):
        return f", but {_files.shown(above)} above it has: name that one"
    names = [path.name for path in below]
    return f", only {_files.told_of(names)}" if names and not briefly else ""


def _class_names(folder: Path) -> list[str]:
    there = _files.entries(folder)
    names = [path.name for path in there if path.is_dir()]
    if not names:
        lies = [path for path in there if path.suffix.lower() in SUFFIXES]
        told = f" but {len(lies)} images without one" if lies else ""
        raise ValueError(
            f"{_files.shown(folder)} holds no class{told}: put the images of each into "
            "a folder of its own."
        )
    return names


def _list(folder: Path, names: list[str]) -> tuple[list[Path], Int32[np.ndarray, " n"]]:
    """Returns the pictures of a part, and the class of each."""
    unknown = [name for name in _class_names(folder) if name not in names]
    if unknown:
        raise ValueError(
            f"{_files.shown(folder)} holds class '{_files.shown(unknown[0])}', which "
            f"is not among the {len(names)} of the folder train: rename or remove it."
        )
    remedy = "add images, or remove the folder"
    per_class = [
        decoding.list_images(folder / name, suffixes=SUFFIXES, remedy=remedy)
        if (folder / name).is_dir()
        else []
        for name in names
    ]
    counts = [len(part) for part in per_class]
    labels = np.repeat(np.arange(len(names), dtype=np.int32), counts)
    return [path for part in per_class for path in part], labels


def own_size(paths: list[Path]) -> int:
    """Returns the pixels a side of all pictures, or the default.

    Args:
        paths: Those of the pictures.
    """
    sizes = set()
    for path in paths:
        with decoding.opened(
            _bytes(path), formats=_FORMATS, source=_files.shown(path), remedy=_REMEDY
        ) as image:
            sizes.add(image.size)
        width, height = image.size
        if width != height or width > SIZE or len(sizes) > 1:
            return SIZE
    return next(iter(sizes))[0]


def _bytes(path: Path) -> bytes:
    return _files.read(path, most=_files.MAX_IMAGE_BYTES, remedy=_REMEDY)


def read(
    folder: Path, paths: list[Path], size: int
) -> UInt8[np.ndarray, "n size size 3"]:
    """Returns pictures of a folder, `size` pixels a side.

    Args:
        folder: The folder, for messages.
        paths: Those of the pictures, in the order wanted.
        size: Pixels a side.
    """
    images = _files.room(
        len(paths),
        (size, size, 3),
        source=folder,
        remedy="ask for a smaller size, or keep fewer images",
    )
    for image, path in zip(images, paths, strict=True):
        image[:] = decode(_bytes(path), size=size, source=_files.shown(path))
    return images


def is_grey(images: UInt8[np.ndarray, "n size size 3"]) -> bool:
    """Returns whether all channels of every picture are alike.

    Args:
        images: Pictures in RGB, bytes.
    """
    return all(
        np.array_equal(image[..., 0], image[..., channel])
        for image in images
        for channel in (1, 2)
    )
