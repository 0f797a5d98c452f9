"""Undecorated image sets, and where their files are looked for."""

import fnmatch
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from ntk_privacy import _files

ENVIRONMENT_VARIABLE = "NTK_PRIVACY_DATA"
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar", ".xz", ".bz2", ".zst")
_TABLES = (".parquet", ".arrow", ".csv", ".feather", ".h5", ".hdf5", ".pt", ".pkl")
_UNFINISHED = (".part", ".crdownload", ".download", ".tmp", ".aria2")


class Raw(NamedTuple):
    """An image set as its files hold it, in file order.

    Attributes:
        images_train: Training images, (n, h, w, c), unsigned bytes.
        labels_train: Class of each training image, (n,), in [0, len(class_names)).
        images_test: Test images, (m, h, w, c), unsigned bytes.
        labels_test: Class of each test image, (m,).
        class_names: One name per class, in label order.
        max_intensity: The byte that stands for intensity 1: 255, or 16 for `digits`.

    Example:
        >>> from ntk_privacy import data
        >>> raw = data.load_raw("digits")
        >>> raw.images_train.shape, raw.class_names[:3], raw.max_intensity
        ((1437, 8, 8, 1), ('0', '1', '2'), 16)
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
    *,
    alike: str,
    taken: Callable[[Path], list[Path]],
    note: Callable[[Path], str] = lambda _: "",
) -> Path:
    """Returns the first folder that holds every file of a set.

    Args:
        name: The set's name, for the message.
        root: The folder to look in.
        patterns: Sub-folder names or globs in small letters, "a/b" for one in another,
            in order of preference; capitals are taken alike; `root` itself comes last.
        missing: Names of the files that a folder lacks.
        alike: A regular expression of names, in small letters, that may be what is
            missing, under another name or packed.
        taken: Files of a folder that are right.
        note: What to say of such a file, if anything.

    Raises:
        FileNotFoundError: No folder is complete; what is alike is named.
        ValueError: A folder may not be looked into.
    """
    found = [path for pattern in patterns for path in _matching(root, pattern)]
    candidates = [path for path in [*found, root] if path.is_dir()]
    for folder in candidates:
        if not missing(folder):
            return folder
    # The one that lacks least; of equals the first.
    wanted = min(candidates, key=lambda f: len(missing(f)), default=root)
    raise FileNotFoundError(
        f"{name}: {', '.join(missing(wanted))} not found in {_files.shown(wanted)}"
        f"{_near_misses(candidates, alike, taken, note)}: give the folder as data_dir "
        f"or in {ENVIRONMENT_VARIABLE}, or ask for a download with download=True "
        "(--download)."
    )


def _matching(root: Path, pattern: str) -> list[Path]:
    found = [root] if root.is_dir() else []
    for part in pattern.split("/"):
        found = [
            path
            for folder in found
            for path in _files.entries(folder)
            if fnmatch.fnmatchcase(path.name.lower(), part) and path.is_dir()
        ]
    return found


def _near_misses(folders, alike, taken, note) -> str:
    """Returns what is there instead, grouped by what is wrong with it."""
    told: dict[str, list[str]] = {}
    for folder in dict.fromkeys(folders):
        right = {*taken(folder), *folders}
        for path in _files.entries(folder):
            name = path.name.lower()
            likely = re.search(alike, name) or name.endswith(_TABLES)
            if likely and path not in right:
                why = note(path) or _why_not(path)
                told.setdefault(why, []).append(path.name)
    parts = [
        _files.told_of(names) + (f" ({why})" if why else "")
        for why, names in told.items()
    ]
    return f"; found {'; '.join(parts)}" if parts else ""


def _why_not(path: Path) -> str:
    if path.name.lower().endswith(_ARCHIVES):
        return "packed: unpack it"
    if path.name.lower().endswith(_TABLES):
        return "a format that is not read: get the files as published"
    if path.name.lower().endswith(_UNFINISHED):
        return "an unfinished download"
    told = _files.kind(path)
    if told != "a folder":
        return told
    try:
        return told if any(path.iterdir()) else "an empty folder"
    except OSError:
        return "a folder that may not be looked into"
