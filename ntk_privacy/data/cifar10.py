"""CIFAR-10 from its binary version."""

import re
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

from ntk_privacy import _files
from ntk_privacy.data.raw import Raw, find_folder

_NAMES = ("cifar10", "cifar-10", "cifar_10", "cifar-10-binary")
FOLDERS = (
    "cifar-10-batches-bin",
    *(f"{name}{end}" for end in ("/cifar-10-batches-bin", "") for name in _NAMES),
)
TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST_FILE = "test_batch.bin"
CLASS_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
RECORD_BYTES = 1 + 3 * 32 * 32
MAX_RECORDS = 1_000_000
_ALIKE = r"cifar|^data_batch|^test_batch|^batches"
_PICKLES = (
    "the python version, which is pickles and never loaded: get the binary version, "
    "cifar-10-binary.tar.gz"
)
_REMEDY = "give the file as published, of cifar-10-binary.tar.gz"


def load_raw(root: Path) -> Raw:
    """Reads the five training batches and the test batch under `root`.

    Args:
        root: The folder that holds the files, or one `cifar-10-batches-bin` that does.

    Raises:
        FileNotFoundError: A file is missing; the python version, which is pickles, is
            told apart and never loaded.
        ValueError: A file is corrupt, no regular file or too large.

    Example:
        >>> import pathlib, tempfile
        >>> from ntk_privacy import data
        >>> from ntk_privacy.data import cifar10
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for name in (*cifar10.TRAIN_FILES, cifar10.TEST_FILE):
        ...     _ = (folder / name).write_bytes(bytes([9]) + bytes(3 * 32 * 32))
        >>> raw = data.SETS["cifar10"].load_raw(folder)
        >>> raw.images_train.shape, raw.class_names[raw.labels_test[0]]
        ((5, 32, 32, 3), 'truck')
    """
    folder = find_folder(
        "cifar10",
        root,
        FOLDERS,
        missing_files,
        alike=_ALIKE,
        taken=_taken,
        note=_note,
    )
    batches = [_read_batch(folder / name) for name in TRAIN_FILES]
    images_test, labels_test = _read_batch(folder / TEST_FILE)
    return Raw(
        images_train=np.concatenate([images for images, _ in batches]),
        labels_train=np.concatenate([labels for _, labels in batches]),
        images_test=images_test,
        labels_test=labels_test,
        class_names=CLASS_NAMES,
        max_intensity=255,
    )


def missing_files(folder: Path) -> list[str]:
    """Names of the files that `folder` lacks.

    Args:
        folder: The folder that the files should lie in.
    """
    names = (*TRAIN_FILES, TEST_FILE)
    return [name for name in names if _files.kind(folder / name)]


def _taken(folder: Path) -> list[Path]:
    lacks = missing_files(folder)
    return [folder / n for n in (*TRAIN_FILES, TEST_FILE) if n not in lacks]


def _note(path: Path) -> str:
    name = path.name.lower()
    if name in ("batches.meta.txt", "batches.meta"):
        return _PICKLES if name == "batches.meta" else "a list of class names"
    if name in ("cifar-10-batches-py", "cifar-10-python.tar.gz"):
        return _PICKLES
    if re.match(r"cifar[-_]?100", name):
        return "another set, of 100 classes"
    if name in ("cifar-10-batches-mat", "cifar-10-matlab.tar.gz") or ".mat" in name:
        return "the Matlab version: get the binary version, cifar-10-binary.tar.gz"
    if re.fullmatch(r"(data_batch_[1-5]|test_batch)(\.pkl|\.pickle)?", name):
        return _files.kind(path) or _PICKLES
    return ""


def parse_batch(
    data: bytes, *, source: str = "batch"
) -> tuple[UInt8[np.ndarray, "n 32 32 3"], Int32[np.ndarray, " n"]]:
    """Reads one batch: per record a label byte, then 3x32x32 bytes, channel first.

    Args:
        data: The file's bytes.
        source: The file's name, for messages.

    Returns:
        Images, channel last, and labels.

    Raises:
        ValueError: The size is no multiple of 3,073 bytes, or a label is above 9.
    """
    if not data or len(data) % RECORD_BYTES:
        raise ValueError(
            f"{source} holds {len(data)} bytes, expected a positive multiple of "
            f"{RECORD_BYTES} (one record): {_REMEDY}."
        )
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, RECORD_BYTES)
    labels = records[:, 0]
    if labels.max() >= len(CLASS_NAMES):
        where = int(np.argmax(labels >= len(CLASS_NAMES)))
        raise ValueError(
            f"{source} has label {labels[where]} at record {where}, expected 0 to 9: "
            f"{_REMEDY}."
        )
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels.astype(np.int32)


def _read_batch(path: Path):
    data = _files.read(path, most=MAX_RECORDS * RECORD_BYTES, remedy=_REMEDY)
    return parse_batch(data, source=_files.shown(path))
