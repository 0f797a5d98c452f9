"""MNIST from its IDX files, gzipped or plain."""

import gzip
import io
import math
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

from ntk_privacy.data.raw import Raw, find_folder

FOLDERS = ("mnist",)
FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
CLASS_NAMES = tuple(str(digit) for digit in range(10))
IMAGE_SHAPE = (28, 28)
MAX_RECORDS = 1_000_000
_MAGIC = {1: 0x00000801, 3: 0x00000803}
_GZIP_MAGIC = b"\x1f\x8b"
_REMEDY = "delete the file and fetch it again"


def load_raw(root: Path) -> Raw:
    """Reads the four IDX files under `root`.

    Args:
        root: The folder that holds the files, or a folder `mnist` that does.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is corrupt, or images and labels differ in number.
    """
    folder = find_folder("mnist", root, FOLDERS, missing_files)
    train = _read_pair(folder, FILES[0], FILES[1])
    test = _read_pair(folder, FILES[2], FILES[3])
    return Raw(*train, *test, class_names=CLASS_NAMES, max_intensity=255)


def missing_files(folder: Path) -> list[str]:
    """Names of the files that `folder` holds neither gzipped nor plain."""
    return [f"{name}.gz" for name in FILES if _path(folder, name) is None]


def parse_idx_images(
    data: bytes, *, source: str = "images"
) -> UInt8[np.ndarray, "n 28 28"]:
    """Reads 28x28 images from the bytes of an IDX file, gzipped or plain.

    Args:
        data: The file's bytes.
        source: The file's name, for messages.

    Raises:
        ValueError: The bytes are not exactly one IDX file of 28x28 byte images.
    """
    return _read_idx(io.BytesIO(data), IMAGE_SHAPE, source)


def parse_idx_labels(data: bytes, *, source: str = "labels") -> Int32[np.ndarray, " n"]:
    """Reads digit labels from the bytes of an IDX file, gzipped or plain.

    Args:
        data: The file's bytes.
        source: The file's name, for messages.

    Raises:
        ValueError: The bytes are not exactly one IDX file of labels 0 to 9.
    """
    return _check_labels(_read_idx(io.BytesIO(data), (), source), source)


def _path(folder: Path, name: str) -> Path | None:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    return None


def _read_pair(folder: Path, image_name: str, label_name: str):
    image_path, label_path = _path(folder, image_name), _path(folder, label_name)
    assert image_path is not None  # find_folder has seen both
    assert label_path is not None
    with image_path.open("rb") as stream:
        images = _read_idx(stream, IMAGE_SHAPE, str(image_path))
    with label_path.open("rb") as stream:
        labels = _check_labels(_read_idx(stream, (), str(label_path)), str(label_path))
    if len(images) != len(labels):
        raise ValueError(
            f"{image_path} holds {len(images)} images but {label_path} holds "
            f"{len(labels)} labels: give the two files of one set."
        )
    return images[..., None], labels


def _read_idx(
    stream: io.BufferedIOBase, record_shape: tuple[int, ...], source: str
) -> UInt8[np.ndarray, "..."]:
    """Reads one IDX file of bytes, never more than its header announces."""
    # IDX starts with two zero bytes, so the content tells gzip, whatever the name.
    zipped = stream.read(2) == _GZIP_MAGIC
    stream.seek(0)
    if not zipped:
        return _read_plain_idx(stream, record_shape, source)
    try:
        with gzip.GzipFile(fileobj=stream) as unzipped:
            return _read_plain_idx(unzipped, record_shape, source)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{source} is a broken gzip file ({error}): {_REMEDY}."
        ) from error


def _read_plain_idx(
    stream: io.BufferedIOBase, record_shape: tuple[int, ...], source: str
) -> UInt8[np.ndarray, "..."]:
    ndim = 1 + len(record_shape)
    header_size = 4 + 4 * ndim
    header = stream.read(header_size)
    if len(header) < header_size:
        raise ValueError(
            f"{source} holds {len(header)} bytes, fewer than the {header_size} of an "
            f"IDX header: {_REMEDY}."
        )
    magic, count, *shape = (int(v) for v in np.frombuffer(header, dtype=">u4"))
    if magic != _MAGIC[ndim]:
        raise ValueError(
            f"{source} starts with 0x{magic:08x}, expected 0x{_MAGIC[ndim]:08x} (IDX, "
            f"unsigned bytes, {ndim} dimensions) or gzip: give the original file."
        )
    if tuple(shape) != record_shape:
        told, wanted = ("x".join(map(str, s)) for s in (shape, record_shape))
        raise ValueError(
            f"{source} announces images of {told} pixels, expected {wanted}: {_REMEDY}."
        )
    if not 1 <= count <= MAX_RECORDS:
        raise ValueError(
            f"{source} announces {count} records, expected 1 to {MAX_RECORDS}: "
            f"{_REMEDY}."
        )
    size = count * math.prod(record_shape)
    # One byte more than announced: reveals trailing bytes, reaches gzip's checksum,
    # and bounds what a decompression bomb can take.
    body = stream.read(size + 1)
    if len(body) != size:
        have = f"only {len(body)}" if len(body) < size else f"more than {size}"
        raise ValueError(
            f"{source} announces {count} records, {size} bytes, but holds {have}: "
            f"{_REMEDY}."
        )
    return np.frombuffer(body, dtype=np.uint8).reshape(count, *record_shape)


def _check_labels(labels: np.ndarray, source: str) -> Int32[np.ndarray, " n"]:
    if labels.max() >= len(CLASS_NAMES):
        where = int(np.argmax(labels >= len(CLASS_NAMES)))
        raise ValueError(
            f"{source} has label {labels[where]} at record {where}, expected 0 to 9: "
            f"{_REMEDY}."
        )
    return labels.astype(np.int32)
