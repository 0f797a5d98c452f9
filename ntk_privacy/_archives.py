"""NumPy archives that others made: each header is looked at before its bytes are.

`np.load` makes room for whatever a header announces, and has no word for the numbers of
`ml_dtypes` (bfloat16, float8): it gives them as raw bytes.
"""

import contextlib
import io
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

Fits = Callable[[tuple[int, ...], np.dtype], bool]
"""`(shape, dtype) -> whether an array may be read`."""

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def read(
    stream: io.BufferedIOBase, wanted: Mapping[str, Fits], *, source: str, remedy: str
) -> dict[str, np.ndarray]:
    """Returns the arrays of an .npz file that are asked for.

    Args:
        stream: The file.
        wanted: What each may be.
        source: The file's name, for messages.
        remedy: Ends every message.

    Raises:
        ValueError: It is no such archive, lacks an array, or has one that does not fit;
            objects, which are pickles, never do.
    """
    with _told(source, remedy), zipfile.ZipFile(stream) as archive:
        return {name: _array(archive, name, fits) for name, fits in wanted.items()}


@contextlib.contextmanager
def _told(source: str, remedy: str) -> Iterator[None]:
    """Whatever a damaged archive raises is one sentence."""
    try:
        yield
    except (
        *(ValueError, TypeError, KeyError, EOFError, NotImplementedError),
        *(zipfile.BadZipFile, zlib.error, RuntimeError, OverflowError, SyntaxError),
    ) as error:
        told = " ".join(str(error.args[0] if error.args else error).split())
        raise ValueError(
            f"{source} is damaged or of another kind ({told}): {remedy}."
        ) from error


def shapes(
    stream: io.BufferedIOBase, *, source: str, remedy: str
) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each array of an .npz file, by its header.

    Args:
        stream: The file.
        source: The file's name, for messages.
        remedy: Ends every message.

    Raises:
        ValueError: It is no such archive.
    """
    with _told(source, remedy), zipfile.ZipFile(stream) as archive:
        found = {}
        for name in archive.namelist():
            with archive.open(name) as member:
                found[name.removesuffix(".npy")] = _header(member, name)[0]
        return found


def _header(member: Any, name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(member)
    header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if header is None:
        raise ValueError(f"{name} has version {version} of the format")
    return header(member)


def _array(archive: zipfile.ZipFile, name: str, fits: Fits) -> np.ndarray:
    with archive.open(f"{name}.npy") as member:
        shape, columns_first, dtype = _header(member, name)
        if dtype.hasobject or not fits(shape, dtype):
            raise ValueError(f"{name} is {dtype} of shape {shape}")
        size = math.prod(shape) * dtype.itemsize
        # One more: reveals what is too much, and reaches the checksum.
        body = member.read(size + 1)
    if len(body) != size:
        have = f"only {len(body)}" if len(body) < size else "more"
        raise ValueError(f"{name} announces {size} bytes but holds {have}")
    order = "F" if columns_first else "C"
    return np.frombuffer(body, dtype).reshape(shape, order=order)


def plain(array: np.ndarray) -> np.ndarray:
    """Returns an array as NumPy can store it: others' numbers as unsigned ones."""
    if array.dtype.isbuiltin == 1:
        return array
    return array.view(_UNSIGNED[array.dtype.itemsize])


def of_dtype(array: np.ndarray, dtype: Any) -> np.ndarray:
    """Returns what `plain`, or NumPy by itself, made of an array of a dtype.

    Raises:
        ValueError: It cannot have been of that dtype.
    """
    dtype = jnp.dtype(dtype)
    raw = array.dtype.kind == "V" or array.dtype == _UNSIGNED.get(dtype.itemsize)
    if array.dtype != dtype and dtype.isbuiltin != 1 and raw:
        return array.view(dtype)
    if array.dtype != dtype:
        raise ValueError(f"an array is {array.dtype}, not {dtype}")
    return array
