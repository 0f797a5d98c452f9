"""One run on several hosts: all compute, the first one writes and prints."""

import contextlib
import os
import pathlib
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from ntk_privacy import hosts

from ._groups import Run
from ._program import Asked

# What another host has no use for; a kernel that is streamed is read where it is.
_LEFT_OUT = shutil.ignore_patterns(".lock", ".*.tmp", "kernel.npy*")


@contextlib.contextmanager
def own(asked: Asked[Any]) -> Iterator[Asked[Any]]:
    """Yields what is asked of this host: of any but the first, in a folder of its own.

    It is a copy of the run's folder, so that all hosts find the same there and do the
    same; what they write into it is thrown away.

    Raises:
      ValueError: hosts see different folders.
    """
    run = asked.group(Run)
    # What needs no device does not ask for one; an empty name is refused elsewhere.
    if not run.distributed or not run.workdir or jax.process_count() == 1:
        yield asked
        return
    with contextlib.ExitStack() as stack:
        folder, mine = pathlib.Path(run.workdir), asked
        with hosts.all_fail_together():
            if not hosts.is_first():
                copy = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
                hosts.throws_away(copy)
                silent = stack.enter_context(pathlib.Path(os.devnull).open("w"))
                stack.enter_context(contextlib.redirect_stdout(silent))
                copy /= "run"
                if folder.is_dir():
                    shutil.copytree(folder, copy, ignore=_LEFT_OUT)
                mine, folder = asked.replaced(workdir=str(copy), progress=False), copy
        found, told = _listing(folder), run.workdir
        first = hosts.of_first(found)
        with hosts.all_fail_together():
            if found != first:
                raise ValueError(
                    f"workdir={told} is another folder for this host than for the "
                    "first one: give one that all hosts see."
                )
        yield mine
        hosts.leave()


def _listing(folder: pathlib.Path) -> np.ndarray:
    """Returns a number that stands for the files of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    out = {name for path in files for name in _LEFT_OUT(str(path.parent), [path.name])}
    told = [
        (str(path.relative_to(folder)), path.stat().st_size)
        for path in files
        if path.name not in out
    ]
    return np.asarray(zlib.crc32(repr(told).encode()) >> 1, np.int32)
