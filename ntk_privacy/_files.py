"""Reading files that others made: what they are and how large is asked first.

A named pipe blocks whoever opens it, a link to an endless device never ends, and a
sparse file of a hundred gigabytes takes no room until it is read. So only regular files
are opened, without waiting, and never more is read than a bound.
"""

import contextlib
import io
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

MAX_IMAGE_BYTES = 200_000_000
"""Of one picture file; the largest of ImageNet has 15 million."""
MAX_TEXT_BYTES = 50_000_000
"""Of a list of classes or images; Tiny ImageNet's largest has 3 million."""

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def shown(path: Path | str) -> str:
    """Returns a path as one line that any terminal and any JSON file can hold."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def kind(path: Path) -> str:
    """Returns "" for a regular file (or a link to one), else what is there instead."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "a link to nothing" if path.is_symlink() else "missing"
    except OSError as error:
        return f"not to be had ({error.strerror})"
    if stat.S_ISREG(mode):
        return ""
    return next((name for test, name in _KINDS if test(mode)), "no regular file")


@contextlib.contextmanager
def opened(path: Path, *, remedy: str) -> Iterator[io.BufferedReader]:
    """Opens a regular file for reading, without ever waiting for it.

    Args:
        path: The file, or a link to it.
        remedy: Ends every message.

    Raises:
        ValueError: It is no regular file, may not be read, breaks off while it is read,
            or does not fit the memory.
    """
    told = kind(path)
    if told:
        raise ValueError(f"{shown(path)} is {told}, not a regular file: {remedy}.")
    try:
        # Between the look and this a pipe may have taken its place: do not wait.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(handle, "rb") as stream:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise ValueError(
                    f"{shown(path)} is no longer a regular file: {remedy}."
                )
            yield stream
    except OSError as error:
        raise ValueError(
            f"{shown(path)} cannot be read ({error.strerror or error}): give the right "
            f"to read it, or {remedy}."
        ) from error
    except MemoryError as error:
        raise ValueError(
            f"{shown(path)} does not fit the memory that is left: close other "
            f"programs, or {remedy}."
        ) from error


def read(path: Path, *, most: int, remedy: str) -> bytes:
    """Returns a file's bytes.

    Args:
        path: The file.
        most: Bytes that such a file may have.
        remedy: Ends every message.

    Raises:
        ValueError: See `opened`; or the file has more bytes.
    """
    with opened(path, remedy=remedy) as stream:
        size, content = os.fstat(stream.fileno()).st_size, b""
        if size <= most:
            # It may grow while it is read.
            content = stream.read(most + 1)
        if max(size, len(content)) > most:
            raise ValueError(
                f"{shown(path)} has {size} bytes, more than the {most} that are read "
                f"of such a file: {remedy}."
            )
        return content


def room(
    count: int, shape: tuple[int, ...], *, source: Path, remedy: str
) -> UInt8[np.ndarray, "..."]:
    """Returns space for images, if the machine has so much memory at all.

    Args:
        count: Images.
        shape: Of each, in bytes.
        source: What they are read from.
        remedy: Ends the message.

    Raises:
        ValueError: It has not.
    """
    need = count * int(np.prod(shape, dtype=object))
    has = memory()
    try:
        if need <= has:
            return np.empty((count, *shape), dtype=np.uint8)
    except MemoryError:
        has = 0
    told = f"more than the {has / 1e9:.3g} GB of this machine" if has else "too much"
    raise ValueError(
        f"The {count} images of {shown(source)} take {need / 1e9:.3g} GB as "
        f"{'x'.join(map(str, shape))}, {told}: {remedy}."
    )


def memory() -> int:
    """Returns the bytes of memory of the machine; without a bound where unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 2**62


def entries(folder: Path) -> list[Path]:
    """Returns what a folder holds, by name; hidden things and others' leavings not.

    Raises:
        ValueError: It may not be looked into.
    """
    try:
        found = sorted(folder.iterdir())
    except OSError as error:
        raise ValueError(
            f"{shown(folder)} cannot be looked into ({error.strerror}): give the right "
            "to read it, or name another folder."
        ) from error
    return [path for path in found if not is_leaving(path.name)]


def is_leaving(name: str) -> bool:
    """Returns whether a name is one that systems leave behind: hidden, or such."""
    known = ("__macosx", "@eadir", "thumbs.db", "desktop.ini", "lost+found")
    return name.startswith(".") or name.lower() in known


def told_of(names: Sequence[str], *, most: int = 5) -> str:
    """Returns a few names as text, and how many more there are."""
    told = ", ".join(shown(name) for name in names[:most])
    more = len(names) - most
    return f"{told} and {more} more" if more > 0 else told
