"""Picture files in folders: which there are, and their pixels or one sentence."""

import contextlib
import io
import struct
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from ntk_privacy import _files

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
"""Eight bits a channel: of more, Pillow's conversion keeps the wrong ones."""
_OTHER_FORMATS = (
    *(".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2"),
    *(".jfif", ".jpe", ".ppm", ".pgm", ".tga"),
)
_PNG = b"\x89PNG\r\n\x1a\n"


@contextlib.contextmanager
def opened(
    data: bytes, *, formats: Sequence[str], source: str, remedy: str
) -> Iterator[Image.Image]:
    """Opens one picture; whatever fails while it is open is a ValueError.

    JPEG has no checksum: a truncated or malformed file is told, flipped bits inside
    the compressed pixels may decode to other pixels. What stands beside the pixels,
    such as a camera's notes, may be damaged: it is not looked at.

    Args:
        data: The file's bytes.
        formats: Pillow's names of those that are read.
        source: The file's name, for messages.
        remedy: Ends every message.

    Raises:
        ValueError: The bytes are no complete picture in one of the formats, or one of
            more than 89 million pixels.
    """
    # Pillow fills what a missing end leaves open; inside compressed pixels the
    # end-of-image marker cannot occur, so after the last scan header it is the end.
    is_jpeg = tuple(formats) == ("JPEG",) or data.startswith(b"\xff\xd8")
    if is_jpeg and b"\xff\xd9" not in data[max(data.rfind(b"\xff\xda"), 0) :]:
        raise ValueError(
            f"{source} has no end-of-image marker in its {len(data)} bytes, so it is "
            f"truncated or no JPEG: {remedy}."
        )
    try:
        data = _needed(data) if data.startswith(_PNG) else data
        with warnings.catch_warnings():
            # Of damaged notes Pillow warns, and reads the pixels, as everybody does.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=list(formats)) as image:
                image.verify()
            with Image.open(io.BytesIO(data), formats=list(formats)) as image:
                yield image
    except MemoryError as error:
        raise ValueError(
            f"{source} does not fit the memory that is left: {remedy}."
        ) from error
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{source} is no readable {' or '.join(formats)} (its {len(data)} bytes "
            f"start with {data[:8]!r}): {remedy}."
        ) from error
    except Exception as error:  # Pillow's decoders raise nearly anything
        told = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{source} is no readable {' or '.join(formats)} ({told}): {remedy}."
        ) from error


def _needed(data: bytes) -> bytes:
    """Returns of a PNG what its pixels need, up to its end.

    A chunk is length, name, content and checksum; a small first letter means that it
    may be left out: notes, colour profiles, of which all may be damaged. Reading passes
    over the checksums of the others, which `verify` is to see.
    """
    kept, at = [_PNG], len(_PNG)
    while at + 12 <= len(data):
        size = struct.unpack(">I", data[at : at + 4])[0]
        chunk = data[at : at + 12 + size]
        if not chunk[4:5].islower():
            kept.append(chunk)
        if chunk[4:8] == b"IEND":
            break
        at += 12 + size
    return b"".join(kept)


def rgb(image: Any) -> Any:
    """Returns a picture in RGB; transparency is dropped.

    Args:
        image: A picture of Pillow, of any mode.
    """
    # Pillow warns of palettes with transparency unless they become RGBA first.
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    return image.convert("RGB")


def list_images(
    folder: Path, *, suffixes: Sequence[str], remedy: str, nested: bool = True
) -> list[Path]:
    """Returns a folder's picture files; hidden ones and other suffixes are left out.

    Warns of pictures of other formats, which would go unnoticed beside others.

    Args:
        folder: To look in; if it has no picture but one folder, in that.
        suffixes: In small letters; files may have them in capitals.
        remedy: Ends every message.
        nested: Whether to look in that one folder.

    Raises:
        ValueError: There is none, or one is no regular file.
    """
    there = _files.entries(folder)
    paths = [path for path in there if path.suffix.lower() in suffixes]
    if not paths and nested:
        below = [path for path in there if path.is_dir()]
        if len(below) == 1:
            return list_images(below[0], suffixes=suffixes, remedy=remedy, nested=False)
    if not paths:
        told = ", ".join(f"*{suffix}" for suffix in suffixes)
        has = f" but {_files.told_of([p.name for p in there])}" if there else ""
        raise ValueError(
            f"{_files.shown(folder)} holds no image ({told}){has}: {remedy}."
        )
    for path in paths:
        if told := _files.kind(path):
            raise ValueError(
                f"{_files.shown(path)} is {told}, not a regular file: repair or delete "
                "it."
            )
    passed = [path.name for path in there if path.suffix.lower() in _OTHER_FORMATS]
    if passed:
        told = ", ".join(f"*{suffix}" for suffix in suffixes)
        warnings.warn(
            f"{_files.shown(folder)} holds pictures that are passed over, "
            f"{_files.told_of(passed)}: convert them to one of {told}.",
            stacklevel=2,
        )
    # By length first, so that image 2 precedes image 10.
    return sorted(paths, key=lambda path: (len(path.name), path.name))
