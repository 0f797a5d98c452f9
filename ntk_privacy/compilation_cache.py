"""Compiled programs, kept for the next process: what took minutes takes a second.

XLA compiles a program anew in every process unless JAX is told where to keep it. Here
is where: a folder of the user's own, one for each kind of processor, of bounded size.
"""

import hashlib
import importlib
import os
import pathlib
import platform
import re
import stat
import warnings
import zlib
from typing import Any

import jax
import pooch

from ntk_privacy import _checks

__all__ = ["DEFAULT_BYTES", "default_folder", "enable"]

DEFAULT_BYTES = 2_000_000_000
_SHORTEST = 0.05  # seconds: what compiles faster is not worth a file
_ENTRY, _USED, _LOCK = "-cache", "-atime", ".lockfile"  # JAX's names
_ZSTANDARD = b"\x28\xb5\x2f\xfd"
_NAME = re.compile(rf".+-[0-9a-f]{{64}}{_ENTRY}")


def default_folder() -> pathlib.Path:
    """Returns the folder of this user and this kind of processor.

    Programs are made for the instructions of one processor; another one that shares the
    home folder has a folder of its own.

    Example:
      >>> from ntk_privacy import compilation_cache
      >>> compilation_cache.default_folder().parent.name
      'compiled'
    """
    return pathlib.Path(pooch.os_cache("ntk_privacy")) / "compiled" / _processor()


def _processor() -> str:
    """Returns what stands for the instructions that this machine knows."""
    told = [platform.system(), platform.machine(), platform.processor()]
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        text = ""
    lines = (line.partition(":") for line in text.splitlines())
    known = {name.strip(): value.split() for name, _, value in lines}
    for name in ("model name", "flags", "Features"):
        told += sorted(known.get(name, []))
    return hashlib.sha256(" ".join(told).encode()).hexdigest()[:16]


def enable(
    folder: str | os.PathLike[str] | None = None, *, max_bytes: int = DEFAULT_BYTES
) -> pathlib.Path | None:
    """Keeps compiled programs in a folder, and takes those that are there.

    To be called before the first program is compiled. Programs that call back into
    Python, such as those of `jax.debug.print`, are not kept. A folder that JAX was
    already told of (`JAX_COMPILATION_CACHE_DIR`, `jax_compilation_cache_dir`) stays,
    and where `jax_enable_compilation_cache` is off nothing is kept.

    Args:
      folder: `default_folder()` if None. It holds machine code that is run: it must be
        the user's own, and nothing else should be in it.
      max_bytes: at most; the programs that were not used for longest go first.

    Returns:
      The folder, or None, with a warning, where nothing can be kept.

    Raises:
      ValueError: max_bytes below 1.

    Example:
      >>> from ntk_privacy import compilation_cache
      >>> folder = compilation_cache.enable(max_bytes=500_000_000)
    """
    _checks.at_least(1, max_bytes=max_bytes)
    config: Any = jax.config
    if not config.jax_enable_compilation_cache:
        return None
    if config.jax_compilation_cache_dir:
        return pathlib.Path(config.jax_compilation_cache_dir)
    place = default_folder() if folder is None else pathlib.Path(folder)
    fault = _opened(place)
    if fault:
        told = f"{place} {fault}: compiled programs are not kept for the next run."
        warnings.warn(told, stacklevel=2)
        return None
    config.update("jax_compilation_cache_dir", str(place))
    config.update("jax_compilation_cache_max_size", max_bytes)
    config.update("jax_persistent_cache_min_compile_time_secs", _SHORTEST)
    config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return place


def _opened(place: pathlib.Path) -> str:
    """Makes a folder fit to hold programs; returns what is against it, or ""."""
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        place.mkdir(mode=0o700, exist_ok=True)
        found = place.stat()
        if hasattr(os, "getuid") and found.st_uid != os.getuid():
            return "belongs to another user"
        if found.st_mode & (stat.S_IWOTH | stat.S_IWGRP):
            return "may be written by others"
        if not os.access(place, os.R_OK | os.W_OK | os.X_OK):
            return "cannot be written"
        if any(place.glob(f"*{_ENTRY}")) and not (place / _LOCK).exists():
            return "holds programs that JAX keeps without a bound"
        _swept(place)
    except (OSError, NotImplementedError) as error:  # the latter: files have no locks
        return f"cannot be used ({getattr(error, 'strerror', None) or error})"
    return ""


def _swept(place: pathlib.Path) -> None:
    """Removes programs that are cut off, as a kill or a full disk leaves them.

    JAX would warn of them in every process from then on, and never write them anew. It
    writes a program and then the time of its use: one without is half-written. What
    changed since the last sweep is looked through besides.
    """
    import filelock  # slow to import, and JAX does so only where there is a cache

    stamp = place / ".swept"
    with filelock.FileLock(place / _LOCK, timeout=10):
        last = stamp.stat().st_mtime_ns if stamp.exists() else 0
        for entry in place.glob(f"*{_ENTRY}"):
            used = entry.with_name(entry.name.removesuffix(_ENTRY) + _USED)
            if not _NAME.fullmatch(entry.name):
                continue
            if used.exists() and (entry.stat().st_mtime_ns < last or _is_whole(entry)):
                continue
            entry.unlink(missing_ok=True)
            used.unlink(missing_ok=True)
        stamp.touch()


def _is_whole(entry: pathlib.Path) -> bool:
    """Whether a program can be unpacked, as JAX packed it: by zlib or zstandard."""
    packed = entry.read_bytes()
    try:
        if packed.startswith(_ZSTANDARD):
            zstandard = importlib.import_module("zstandard")
            zstandard.ZstdDecompressor().decompress(packed)
        else:
            zlib.decompress(packed)
    except ImportError:  # it was packed elsewhere
        return True
    except Exception:  # each library has errors of its own
        return False
    return True
