"""Any folder of pictures with a sub-folder per class, such as ImageNette."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from ntk_privacy import _checks, _files
from ntk_privacy.data import decoding
from ntk_privacy.data.raw import Raw

SUFFIXES = (".jpg", ".jpeg", ".png")
TEST_FOLDERS = ("val", "validation", "valid", "test")
_FORMATS = ("JPEG", "PNG")
_REMEDY = "repair or delete it"


def load_raw(folder: Path | str, *, size: int) -> Raw:
    """Reads `train/CLASS/*` and `val/CLASS/*`, or `test` where there is no `val`.

    Classes are the sorted names of the folders in `train`; of the test set some may be
    missing. Images may lie one folder deeper, `CLASS/images/*`. Files other than .jpg,
    .jpeg and .png (in capitals too), hidden ones and what systems leave behind are
    passed over; pictures of other formats among them with a warning.

    Args:
        folder: Holds `train` and `val` or `test`.
        size: Pixels a side of the images; see `decode`.

    Raises:
        FileNotFoundError: The folder, `train`, or both `val` and `test` are missing.
        ValueError: There is no class, a class without images or one that `train` does
            not have, a damaged image, what is no regular file or too large, or size is
            below 1.
    """
    _checks.at_least(1, size=size)
    folder = Path(folder)
    train, test = _parts(folder)
    names, tested = _class_names(train), _class_names(test)
    unknown = [name for name in tested if name not in names]
    if unknown:
        raise ValueError(
            f"{_files.shown(test)} holds class '{_files.shown(unknown[0])}', which is "
            f"not among the {len(names)} of {_files.shown(train)}: rename or remove it."
        )
    images_train, labels_train = _read(train, names, size)
    images_test, labels_test = _read(test, names, size)
    return Raw(
        images_train,
        labels_train,
        images_test,
        labels_test,
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


def _parts(folder: Path) -> tuple[Path, Path]:
    if not folder.is_dir():
        told = _files.kind(folder) or "a file"
        raise FileNotFoundError(
            f"{_files.shown(folder)} is no folder but {told}: name the one that holds "
            "train and val."
        )
    train, tests = _named(folder, ("train",)), _named(folder, TEST_FOLDERS)
    if not train or not tests:
        lacks = "val or test" if train else "train"
        raise FileNotFoundError(
            f"{_files.shown(folder)} has no folder {lacks}{_elsewhere(folder)}: images "
            "are looked for in train/CLASS and val/CLASS, or test/CLASS."
        )
    return train[0], tests[0]


def _named(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """Returns folders of these names, in capitals or not, in the order of the names."""
    there = {p.name.lower(): p for p in _files.entries(folder) if p.is_dir()}
    return [there[name] for name in names if name in there]


def _elsewhere(folder: Path) -> str:
    """Returns where the images seem to be, if the folder is a level too high or low."""
    below = [path for path in _files.entries(folder) if path.is_dir()]
    for path in below:
        if _named(path, ("train",)):
            return f", but {_files.shown(path.name)} in it has: name that one"
    above = folder.absolute().parent
    if _named(above, ("train",)) and _named(above, TEST_FOLDERS):
        return f", but {_files.shown(above)} above it has: name that one"
    names = [path.name for path in below]
    return f", only {_files.told_of(names)}" if names else ""


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


def _read(
    folder: Path, names: list[str], size: int
) -> tuple[UInt8[np.ndarray, "n size size 3"], Int32[np.ndarray, " n"]]:
    remedy = "add images, or remove the folder"
    per_class = [
        decoding.list_images(folder / name, suffixes=SUFFIXES, remedy=remedy)
        if (folder / name).is_dir()
        else []
        for name in names
    ]
    paths = [path for part in per_class for path in part]
    images = _files.room(
        len(paths),
        (size, size, 3),
        source=folder,
        remedy="ask for a smaller size, or keep fewer images",
    )
    for image, path in zip(images, paths, strict=True):
        data = _files.read(path, most=_files.MAX_IMAGE_BYTES, remedy=_REMEDY)
        image[:] = decode(data, size=size, source=_files.shown(path))
    counts = [len(part) for part in per_class]
    return images, np.repeat(np.arange(len(names), dtype=np.int32), counts)
