"""CIFAR-10 from its binary version."""

from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

from ntk_privacy.data.raw import Raw, find_folder

FOLDERS = ("cifar-10-batches-bin",)
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
_REMEDY = "delete the file and fetch it again"


def load_raw(root: Path) -> Raw:
    """Reads the five training batches and the test batch under `root`.

    Args:
        root: The folder that holds the files, or one `cifar-10-batches-bin` that does.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is corrupt.
    """
    folder = find_folder("cifar10", root, FOLDERS, missing_files)
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
    """Names of the files that `folder` lacks."""
    names = (*TRAIN_FILES, TEST_FILE)
    return [name for name in names if not (folder / name).is_file()]


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
    return parse_batch(path.read_bytes(), source=str(path))
