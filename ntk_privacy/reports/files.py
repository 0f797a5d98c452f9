"""Files of results: strict JSON, and arrays whose bytes are equal where they are.

Every file appears whole or not at all.
"""

import dataclasses
import json
import math
import pathlib
import zipfile
import zlib
from typing import Any

import jax
import numpy as np

from ntk_privacy.reports.atomic import replacing

__all__ = [
    "plain",
    "read_arrays",
    "read_json",
    "write_arrays",
    "write_json",
    "write_string",
]

_EPOCH = (1980, 1, 1, 0, 0, 0)


def plain(value: Any) -> Any:
    """Returns a value as JSON can hold it; NaN and infinities become texts.

    Args:
      value: dataclasses, named tuples, dicts, lists, arrays, paths and scalars.

    Example:
      >>> import numpy as np
      >>> from ntk_privacy.reports import files
      >>> files.plain({"psnr": np.array([25.0, np.inf])})
      {'psnr': [25.0, 'inf']}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    elif (as_dict := getattr(value, "_asdict", None)) is not None:
        value = as_dict()
    elif isinstance(value, np.ndarray | np.generic | jax.Array):
        value = np.asarray(value).tolist()
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, pathlib.Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes what `plain` makes of a value.

    Args:
      path: of the file.
      value: see `plain`.
    """
    text = json.dumps(plain(value), indent=2, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_string(path: pathlib.Path, text: str) -> None:
    """Writes a text file.

    Args:
      path: of the file.
      text: what it will hold.
    """
    with replacing(path) as temporary:
        temporary.write_text(text)


def read_json(path: pathlib.Path) -> Any:
    """Returns what `write_json` wrote.

    Args:
      path: of the file.

    Raises:
      OSError: it is not there.
      ValueError: it is damaged.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise _damaged(path, error) from error


def write_arrays(path: pathlib.Path, **arrays: Any) -> None:
    """Writes an .npz: equal arrays give equal bytes, whenever they are written.

    Args:
      path: of the file.
      **arrays: by name.

    Raises:
      ValueError: an array that a reader could only unpickle, such as objects.
    """
    # np.savez stamps each member with the time of day; members here have fixed stamps
    # and stand in order of their names.
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name in sorted(arrays):
            array = np.asarray(arrays[name])
            if array.dtype.kind not in "biufcSU":
                raise ValueError(
                    f"array {name} has dtype {array.dtype}, which .npz cannot hold "
                    "without pickle: convert it to numbers or text."
                )
            info = zipfile.ZipInfo(f"{name}.npy", date_time=_EPOCH)
            info.create_system = 3
            info.external_attr = 0o644 << 16
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the arrays of an .npz file.

    Args:
      path: of the file.

    Raises:
      OSError: it is not there.
      ValueError: it is damaged.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return dict(stored)
    except (TypeError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        # TypeError: a single array under that name.
        raise _damaged(path, error) from error


def _damaged(path: pathlib.Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is damaged ({error}): delete it to make it again.")
