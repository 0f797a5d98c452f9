"""What a text names: an image set, or the file or folder of one's own images."""

import difflib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from ntk_privacy import _files

__all__ = ["fingerprint", "is_npz", "place_of", "title", "unknown"]

_CHUNK = 2**20
_REMEDY = "name an .npz file of images, or a folder with a folder per class"


def place_of(
    name: str | os.PathLike[str], names: Sequence[str], *, told: str = "name"
) -> Path | None:
    """Returns the place of one's own images, None for a named set.

    A text is a place if it ends in .npz or has a slash, or if there is a folder of that
    name. Whether anything is there is told by who reads it.

    Args:
        name: Of a set, or a path; what is no text is a path.
        names: Of the sets.
        told: What the name is called in messages.

    Raises:
        ValueError: It is neither.
    """
    if not isinstance(name, str):
        return Path(name).expanduser()
    if name in names:
        return None
    path = Path(name).expanduser()
    slashes = (os.sep, os.altsep or os.sep)
    if is_npz(path) or any(s in name for s in slashes) or path.is_dir():
        return path
    raise unknown(names, **{told: name})


def unknown(names: Sequence[str], **name: str) -> ValueError:
    """Returns the error that says which sets there are, and which was meant.

    Args:
        names: The sets that there are.
        **name: One argument: what it is called, and the value that is unknown.
    """
    ((told, given),) = name.items()
    near = difflib.get_close_matches(given.lower(), names, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return ValueError(
        f"{told}={given!r} is unknown{hint}: use one of {', '.join(names)}, the path "
        "of an .npz file, or that of a folder with a folder of pictures per class."
    )


def is_npz(path: Path) -> bool:
    """Returns whether a path is that of an .npz file, by its name.

    Args:
        path: The path; nothing has to be there.
    """
    return path.suffix.lower() == ".npz"


def title(path: Path) -> str:
    """Returns what images are called in messages: the last part of their path.

    Args:
        path: Of a file or a folder.
    """
    return _files.shown(path.absolute().name)


def fingerprint(path: Path) -> str | None:
    """Returns what tells one's images from others at the same place.

    Of a file it is made of its bytes; of a folder, of the names and sizes of the files
    in it, for to read them all takes as long as to load them.

    Args:
        path: Of the file or the folder.

    Returns:
        Sixteen hexadecimal digits; None if nothing is there.

    Raises:
        ValueError: It may not be read.
    """
    if not path.exists():
        return None
    found = hashlib.sha256()
    if path.is_dir():
        for part in _listed(path):
            found.update(part)
    else:
        with _files.opened(path, remedy=_REMEDY) as stream:
            while chunk := stream.read(_CHUNK):
                found.update(chunk)
    return found.hexdigest()[:16]


def _listed(folder: Path) -> list[bytes]:
    """Returns name and size of each file, as far down as images are looked for."""
    out, level = [], [folder]
    # PART/CLASS/images/FILE
    for _ in range(4):
        there = [path for parent in level for path in _files.entries(parent)]
        for path in there:
            if not _files.kind(path):
                name = os.fsencode(path.relative_to(folder))
                out.append(name + b"\0%d\0" % path.stat().st_size)
        level = [path for path in there if path.is_dir()]
    return out
