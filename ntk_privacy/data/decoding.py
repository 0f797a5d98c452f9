"""Picture files in folders: which there are, and their pixels or one sentence."""

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image


@contextlib.contextmanager
def opened(
    data: bytes, *, formats: Sequence[str], source: str, remedy: str
) -> Iterator[Image.Image]:
    """Opens one picture; whatever fails while it is open is a ValueError.

    JPEG has no checksum: a truncated or malformed file is told, flipped bits inside
    the compressed pixels may decode to other pixels.

    Args:
        data: The file's bytes.
        formats: Pillow's names of those that are read.
        source: The file's name, for messages.
        remedy: Ends every message.

    Raises:
        ValueError: The bytes are no complete picture in one of the formats.
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
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # Reading PNGs passes over the checksums that they do have.
            with Image.open(io.BytesIO(data), formats=list(formats)) as image:
                image.verify()
            with Image.open(io.BytesIO(data), formats=list(formats)) as image:
                yield image
    except Exception as error:  # Pillow's decoders raise nearly anything
        told = str(error) or type(error).__name__
        raise ValueError(
            f"{source} is no readable {' or '.join(formats)} ({told}): {remedy}."
        ) from error


def list_images(folder: Path, *, suffixes: Sequence[str], remedy: str) -> list[Path]:
    """Returns a folder's picture files; hidden ones and other suffixes are left out.

    Args:
        folder: To look in, not below.
        suffixes: In small letters; files may have them in capitals.
        remedy: Ends the message.

    Raises:
        ValueError: There is none.
    """
    paths = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and not path.name.startswith(".")
    ]
    if not paths:
        told = ", ".join(f"*{suffix}" for suffix in suffixes)
        raise ValueError(f"{folder} holds no image ({told}): {remedy}.")
    # By length first, so that image 2 precedes image 10.
    return sorted(paths, key=lambda path: (len(path.name), path.name))
