"""MNIST from its IDX files, gzipped or plain, or from the archive that Keras has."""

import gzip
import io
import math
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

from ntk_privacy import _archives, _files
from ntk_privacy.data.raw import Raw, find_folder

FOLDERS = ("mnist", "mnist/raw", "mnist/mnist/raw", "raw")
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
_REMEDY = "give the file as published"
_ALIKE = r"mnist|ubyte|^(train|t10k|test).*(image|label)"
_ARCHIVE = "mnist.npz"


def load_raw(root: Path) -> Raw:
    """Reads the four IDX files under `root`, or `mnist.npz`.

    A file may be gzipped or plain, have a dot in place of the dash before `idx`, and
    lie in a folder of its own name.

    Args:
        root: The folder that holds the files, or a folder `mnist`, `mnist/raw` or `raw`
            that does, in capitals or not.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is corrupt or no regular file, or images and labels differ in
            number.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from ntk_privacy import data
        >>> folder, images = tempfile.mkdtemp(), np.zeros((3, 28, 28), np.uint8)
        >>> half = {"x_train": images, "x_test": images[:1]}
        >>> labels = np.asarray([5, 0, 4], np.uint8)
        >>> path = pathlib.Path(folder, "mnist.npz")
        >>> np.savez(path, **half, y_train=labels, y_test=labels[:1])
        >>> raw = data.SETS["mnist"].load_raw(path.parent)
        >>> raw.images_train.shape, raw.labels_train.tolist()
        ((3, 28, 28, 1), [5, 0, 4])
    """
    folder = find_folder(
        "mnist", root, FOLDERS, missing_files, alike=_ALIKE, taken=_taken
    )
    if all(_path(folder, name) for name in FILES):
        train = _read_pair(folder, FILES[0], FILES[1])
        test = _read_pair(folder, FILES[2], FILES[3])
    else:
        train, test = _read_archive(_path(folder, _ARCHIVE))
    return Raw(*train, *test, class_names=CLASS_NAMES, max_intensity=255)


def missing_files(folder: Path) -> list[str]:
    """Names of the files that `folder` holds neither gzipped nor plain.

    Args:
        folder: The folder that the files should lie in.
    """
    lacks = [f"{name}.gz" for name in FILES if _path(folder, name) is None]
    return [] if lacks and _path(folder, _ARCHIVE) else lacks


def _taken(folder: Path) -> list[Path]:
    found = [_path(folder, name) for name in FILES]
    there = [path for path in found if path is not None]
    return there + [path.parent for path in there]


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


def _path(folder: Path, name: str, *, nested: bool = True) -> Path | None:
    """Returns where a file is, under one of its names."""
    if not folder.is_dir():
        return None
    there = {path.name.lower(): path for path in _files.entries(folder)}
    for plain in (name, name.replace("-idx", ".idx")):
        for told in (f"{plain}.gz", plain):
            path = there.get(told)
            if nested and path is not None and path.is_dir():
                # Unpacked by Kaggle: a folder of the file's name holds it.
                path = _path(path, name, nested=False)
            if path is not None and not _files.kind(path):
                return path
    return None


def _read_pair(folder: Path, image_name: str, label_name: str):
    image_path, label_path = _path(folder, image_name), _path(folder, label_name)
    assert image_path is not None  # find_folder has seen both
    assert label_path is not None
    with _files.opened(image_path, remedy=_REMEDY) as stream:
        images = _read_idx(stream, IMAGE_SHAPE, _files.shown(image_path))
    told = _files.shown(label_path)
    with _files.opened(label_path, remedy=_REMEDY) as stream:
        labels = _check_labels(_read_idx(stream, (), told), told)
    return _pair(images, labels, _files.shown(image_path), told)


def _pair(images, labels, image_source: str, label_source: str):
    if len(images) != len(labels):
        raise ValueError(
            f"{image_source} holds {len(images)} images but {label_source} holds "
            f"{len(labels)} labels: give the two files of one set."
        )
    return images[..., None], labels


def _read_archive(path: Path | None):
    """Reads x_train, y_train, x_test and y_test, bytes."""
    assert path is not None  # find_folder has seen it
    source = _files.shown(path)
    with _files.opened(path, remedy=_REMEDY) as stream:
        arrays = _archives.read(
            stream,
            {
                f"{kind}_{part}": lambda shape, dtype, inner=inner: (
                    dtype == np.uint8
                    and 1 <= (shape or (0,))[0] <= MAX_RECORDS
                    and shape[1:] == inner
                )
                for kind, inner in (("x", IMAGE_SHAPE), ("y", ()))
                for part in ("train", "test")
            },
            source=source,
            remedy=_REMEDY,
        )
    return tuple(
        _pair(
            arrays[f"x_{part}"],
            _check_labels(arrays[f"y_{part}"], f"y_{part} of {source}"),
            f"x_{part} of {source}",
            f"y_{part}",
        )
        for part in ("train", "test")
    )


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
