"""Undecorated image sets, and where their files are looked for."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

ENVIRONMENT_VARIABLE = "NTK_PRIVACY_DATA"


class Raw(NamedTuple):
    """An image set as its files hold it, in file order.

    Attributes:
        images_train: Training images, (n, h, w, c), unsigned bytes.
        labels_train: Class of each training image, (n,), in [0, len(class_names)).
        images_test: Test images, (m, h, w, c), unsigned bytes.
        labels_test: Class of each test image, (m,).
        class_names: One name per class, in label order.
        max_intensity: The byte that stands for intensity 1: 255, or 16 for `digits`.
    """

    images_train: UInt8[np.ndarray, "n h w c"]
    labels_train: Int32[np.ndarray, " n"]
    images_test: UInt8[np.ndarray, "m h w c"]
    labels_test: Int32[np.ndarray, " m"]
    class_names: tuple[str, ...]
    max_intensity: int


def data_root(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Returns the folder that holds the image sets.

    Args:
        data_dir: The folder to use, if the caller names one. Otherwise it is the
            environment variable `NTK_PRIVACY_DATA`, otherwise the cache folder
            `ntk_privacy` under `XDG_CACHE_HOME` or `~/.cache`.
    """
    if data_dir is not None:
        return Path(data_dir).expanduser()
    if named := os.environ.get(ENVIRONMENT_VARIABLE):
        return Path(named).expanduser()
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache).expanduser() / "ntk_privacy"
    return Path.home() / ".cache" / "ntk_privacy"


def find_folder(
    name: str,
    root: Path,
    patterns: Sequence[str],
    missing: Callable[[Path], list[str]],
) -> Path:
    """Returns the first folder that holds every file of a set.

    Args:
        name: The set's name, for the message.
        root: The folder to look in.
        patterns: Sub-folder names or globs, in order of preference; `root` itself
            comes last.
        missing: Names of the files that a folder lacks.

    Raises:
        FileNotFoundError: No folder is complete.
    """
    found = [path for pattern in patterns for path in sorted(root.glob(pattern))]
    candidates = [path for path in [*found, root] if path.is_dir()]
    for folder in candidates:
        if not missing(folder):
            return folder
    wanted = candidates[0] if candidates else root
    raise FileNotFoundError(
        f"{name}: {', '.join(missing(wanted))} not found in {wanted}: give the folder "
        f"as data_dir or in {ENVIRONMENT_VARIABLE}, or ask for a download with "
        "download=True (--download)."
    )
