"""Any folder of pictures with a sub-folder per class, such as ImageNette."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from ntk_privacy import _checks
from ntk_privacy.data import decoding
from ntk_privacy.data.raw import Raw

SUFFIXES = (".jpg", ".jpeg", ".png")
TEST_FOLDERS = ("val", "test")
_FORMATS = ("JPEG", "PNG")
# Eight bits a channel: of more, Pillow's conversion keeps the wrong ones.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_REMEDY = "repair or delete it"


def load_raw(folder: Path, *, size: int) -> Raw:
    """Reads `train/CLASS/*` and `val/CLASS/*`, or `test` where there is no `val`.

    Classes are the sorted names of the folders in `train`; of the test set some may be
    missing. Files other than .jpg, .jpeg and .png (in capitals too), and hidden ones,
    are passed over.

    Args:
        folder: Holds `train` and `val` or `test`.
        size: Pixels a side of the images; see `decode`.

    Raises:
        FileNotFoundError: The folder, `train`, or both `val` and `test` are missing.
        ValueError: There is no class, a class without images or one that `train` does
            not have, a damaged image, or size is below 1.
    """
    _checks.at_least(1, size=size)
    train, test = _parts(folder)
    names, tested = _class_names(train), _class_names(test)
    unknown = [name for name in tested if name not in names]
    if unknown:
        raise ValueError(
            f"{test} holds class {unknown[0]!r}, which is not among the {len(names)} "
            f"of {train}: rename or remove it."
        )
    images_train, labels_train = _read(train, names, size)
    images_test, labels_test = _read(test, names, size)
    return Raw(
        images_train,
        labels_train,
        images_test,
        labels_test,
        class_names=tuple(names),
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
        if mode in _MODES:
            return np.asarray(_square(_rgb(image), size), dtype=np.uint8)
    raise ValueError(
        f"{source} has pixels of mode {mode}, expected 8 bits a channel: convert it, "
        "or delete it."
    )


def _rgb(image: Any) -> Any:
    # Pillow warns of palettes with transparency unless they become RGBA first.
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    return image.convert("RGB")


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
        raise FileNotFoundError(
            f"{folder} is no folder: name the one that holds train and val."
        )
    train = folder / "train"
    tests = [folder / name for name in TEST_FOLDERS if (folder / name).is_dir()]
    if not train.is_dir() or not tests:
        lacks = "val or test" if train.is_dir() else "train"
        raise FileNotFoundError(
            f"{folder} has no folder {lacks}: images are looked for in train/CLASS and "
            "val/CLASS, or test/CLASS."
        )
    return train, tests[0]


def _class_names(folder: Path) -> list[str]:
    names = sorted(
        path.name
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".")
    )
    if not names:
        raise ValueError(
            f"{folder} holds no class: put the images of each into a folder of its own."
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
    images = np.empty((len(paths), size, size, 3), dtype=np.uint8)
    for image, path in zip(images, paths, strict=True):
        image[:] = decode(path.read_bytes(), size=size, source=str(path))
    counts = [len(part) for part in per_class]
    return images, np.repeat(np.arange(len(names), dtype=np.int32), counts)
