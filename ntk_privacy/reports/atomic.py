"""Files that appear whole or not at all."""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator

__all__ = ["replacing"]

# Of writing, which has no file's name.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def replacing(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a temporary path beside `path`; what is written there replaces `path`.

    On an exception the temporary file is removed and an older `path` stays as it was.
    The folder is made if it is missing.

    Args:
      path: of the file.

    Raises:
      OSError: the disk is full; it names the file.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.filename is None and error.errno in _FULL:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
