"""Saving and restoring the state of long runs: orbax, atomic, no pickle."""

import contextlib
import errno
import logging
import math
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from ntk_privacy import _checks, hosts

__all__ = ["as_begun", "foreign", "latest_step", "restore", "save"]

_METADATA = "_METADATA"  # where orbax tells what a checkpoint of arrays holds
_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
_ARRAYS = (jax.Array, np.ndarray, jax.ShapeDtypeStruct)


def _manager(folder: str | pathlib.Path) -> ocp.CheckpointManager:
    path = pathlib.Path(folder).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(
            f"{path} cannot be a folder of checkpoints, for a file is in its way: give "
            "another folder."
        ) from error
    given: dict[str, Any] = {}
    if jax.process_count() > 1:
        # Orbax would have all hosts save at once; here one does what it is asked.
        own = jax.process_index()
        given["multiprocessing_options"] = ocp.options.MultiprocessingOptions(
            primary_host=own, active_processes={own}, barrier_sync_key_prefix=str(own)
        )
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2, create=False, enable_async_checkpointing=False, **given
    )
    handler = ocp.StandardCheckpointHandler(**given)
    return ocp.CheckpointManager(path, options=options, item_handlers=handler)


def _require_arrays(tree: Any) -> None:
    """Raises ValueError at a leaf that would not come back as it went."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        held = isinstance(leaf, _ARRAYS) and (
            jnp.issubdtype(leaf.dtype, np.number) or leaf.dtype == bool
        )
        if not held:
            dtype = getattr(leaf, "dtype", None)
            told = f" of {dtype}" * (dtype is not None)
            raise ValueError(
                f"state{jax.tree_util.keystr(path)} is a {type(leaf).__name__}{told}, "
                "which no checkpoint can hold: make scalars arrays, keys key data, and "
                "leave out what is no number."
            )


def _leaves(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Returns shape and dtype of each leaf by its path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            tuple(leaf.shape),
            str(jnp.dtype(leaf.dtype)),
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _refuse_another_structure(stored: Any, like: Any) -> None:
    """Raises ValueError that names the first leaf in which the two differ."""
    # Orbax itself casts, or complains over a hundred lines when half of it is read.
    has, wants = _leaves(stored), _leaves(like)
    for name in sorted(has.keys() | wants.keys()):
        if has.get(name) != wants.get(name):
            told = [
                "no leaf" if leaf is None else f"shape {leaf[0]} and dtype {leaf[1]}"
                for leaf in (has.get(name), wants.get(name))
            ]
            raise ValueError(f"at {name} it has {told[0]}, not {told[1]}")


def _filled(tree: Any) -> Any:
    """Puts one zero in place of each empty leaf, which orbax would refuse."""
    return jax.tree.map(
        lambda leaf: leaf if leaf.size else np.zeros(1, leaf.dtype), tree
    )


def _placed(like: Any, leaf: Any) -> Any:
    """Returns a stored leaf, bound to its device only where the one expected is."""
    if not like.size:
        empty = np if isinstance(like, np.ndarray) else jnp
        return empty.zeros(like.shape, like.dtype)
    if not isinstance(leaf, jax.Array) or len(leaf.sharding.device_set) > 1:
        return leaf
    if isinstance(like, jax.Array):
        bound = like.committed
    else:
        bound = getattr(like, "sharding", None) is not None
    # Orbax binds it, and for that alone a loop would be compiled again, twice.
    return leaf if bound else jax.device_put(np.asarray(leaf))


def _as_stored(metadata: Any) -> Any:
    """Returns the shapes of a checkpoint's leaves, and whether there is one at all."""
    if metadata is None:
        raise FileNotFoundError("it holds no arrays")
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype),
        getattr(metadata, "tree", metadata),
    )


def _not_of_closed_loops(hook: Any) -> Any:
    """Returns a hook that shows what `hook` does, not what comes after the end."""

    def show(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    return show


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a record is of anything but a disk of which was told.

    Other leaves fail as well: threads of orbax log it, and asyncio tells of it when
    they are collected, or that Python has ended before they did.
    """
    message = record.getMessage()
    error = record.exc_info[1] if record.exc_info else None
    if not isinstance(error, Exception):
        return True
    late = "never retrieved" in message or "raised an exception" in message
    ended = "cannot schedule new futures after" in str(error)
    return not (late and (ended or _cause(error) in _OF_DISKS))


def _cause(error: Exception) -> int | None:
    """Returns the number of the system's error, which TensorStore has in its text."""
    if isinstance(error, OSError):
        return error.errno
    text = str(error)
    return next((n for n in _OF_DISKS if os.strerror(n) in text), None)


@contextlib.contextmanager
def _in_one_sentence(folder: pathlib.Path, step: int) -> Iterator[None]:
    """Says why a step cannot be written, where orbax logs pages, and removes its part.

    Raises:
      OSError: the disk is full, or the folder is not to be written.
    """
    logger, kept = logging.getLogger("absl"), []

    def keep(record: logging.LogRecord) -> bool:
        kept.append(record)
        return False

    logger.addFilter(keep)
    hook = sys.unraisablehook
    sys.unraisablehook = _not_of_closed_loops(hook)
    try:
        yield
    except Exception as error:  # of orbax, TensorStore and the file system
        for part in folder.glob(f"{step}.orbax-checkpoint-tmp*"):
            shutil.rmtree(part, ignore_errors=True)
        number = _cause(error)
        if number not in _OF_DISKS:
            raise  # a fault of the program
        for late in (logger, logging.getLogger("asyncio")):
            late.addFilter(_is_news)
        raise OSError(
            f"The checkpoint of step {step} cannot be written to {folder} "
            f"({os.strerror(number)}): make room or give the right to write there, and "
            "start again to go on from the one before."
        ) from error
    finally:
        logger.removeFilter(keep)
    sys.unraisablehook = hook  # not after a failure: it may still come
    for record in kept:
        logger.handle(record)


def save(folder: str | pathlib.Path, step: int, state: Any) -> None:
    """Saves a pytree as the checkpoint of `step`; the two newest are kept.

    A checkpoint appears whole or not at all: a killed process leaves the last one.

    Args:
      folder: made if it is missing.
      step: number of steps done, at least 0.
      state: pytree of arrays (typed keys: store `jax.random.key_data`).

    Raises:
      ValueError: a leaf is no array of numbers, the step no whole number from 0, or the
        folder a file.
      OSError: the disk is full, or the folder is not to be written.
    """
    _checks.at_least(0, steps=step)
    _require_arrays(state)
    state = hosts.tree_on_host(state)
    with _manager(folder) as manager, _in_one_sentence(pathlib.Path(folder), step):
        manager.save(step, args=ocp.args.StandardSave(_filled(state)))
        manager.wait_until_finished()


def latest_step(folder: str | pathlib.Path) -> int | None:
    """Returns the newest complete step in `folder`, or None without one.

    Args:
      folder: that `save` writes to; it need not be there.

    Example:
      >>> from ntk_privacy import checkpoint
      >>> checkpoint.latest_step("no_such_folder") is None
      True
    """
    if not pathlib.Path(folder).is_dir():
        return None
    with _manager(folder) as manager:
        return manager.latest_step()


def restore(folder: str | pathlib.Path, step: int, like: Any) -> Any:
    """Returns the state saved at `step`, in the structure and dtypes of `like`.

    Args:
      folder: where `save` wrote.
      step: a step that was saved, such as `latest_step(folder)`.
      like: pytree of arrays, or of `jax.ShapeDtypeStruct`, to expect; None takes what
        is there, as dictionaries and lists of arrays.

    Raises:
      ValueError: the checkpoint is missing or damaged, or its structure, shapes or
        dtypes are not those of `like`.
    """
    _require_arrays(like)
    like = hosts.tree_on_host(like)
    with _manager(folder) as manager:
        try:
            if like is None:
                like = _as_stored(manager.item_metadata(step))
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _filled(like))
            _refuse_another_structure(manager.item_metadata(step), abstract)
            stored = manager.restore(step, args=ocp.args.StandardRestore(abstract))
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise ValueError(
                f"The checkpoint of step {step} in {folder} cannot be restored "
                f"({str(error).splitlines()[0][:200]}): remove the folder to start "
                "anew."
            ) from error
    return jax.tree.map(_placed, like, stored)


def as_begun(start: Any, state: Any) -> Any:
    """Returns a state with NumPy's arrays where a loop began with them, else JAX's.

    NumPy has float64 where JAX has not.

    Args:
      start: pytree of arrays, of the structure of `state`; None is JAX's everywhere.
      state: what `restore` returned.

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> from ntk_privacy import checkpoint
      >>> start = {"seconds": np.zeros(1), "weights": jnp.zeros(2)}
      >>> state = {"seconds": np.ones(1), "weights": np.ones(2, np.float32)}
      >>> checkpoint.as_begun(start, state)["seconds"]
      array([1.])
    """

    def kept(like: Any, leaf: Any) -> Any:
        return np.array(leaf) if isinstance(like, np.ndarray) else jnp.asarray(leaf)

    if start is None:
        return jax.tree.map(jnp.asarray, state)
    return jax.tree.map(kept, start, state)


def foreign(folder: str | pathlib.Path, *, most: int) -> Any:
    """Returns what others wrote with orbax, as arrays of NumPy.

    Args:
      folder: a checkpoint, or a `CheckpointManager`'s, of which the newest step is
        taken.
      most: bytes that it may take.

    Raises:
      ValueError: there is none, several in one step, a damaged one, or a larger one.
    """
    item = _item(pathlib.Path(folder).absolute())
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            told = reader.metadata(item)
            told = getattr(told, "item_metadata", told)
            told = getattr(told, "tree", told)
            arrays = [leaf for leaf in jax.tree.leaves(told) if hasattr(leaf, "shape")]
            size = sum(
                math.prod(leaf.shape or ()) * np.dtype(leaf.dtype).itemsize
                for leaf in arrays
            )
            _refuse_more(size, most)
            # NumPy's: nothing of the devices that it was written on.
            kinds = jax.tree.map(
                lambda leaf: ocp.RestoreArgs(
                    restore_type=np.ndarray if hasattr(leaf, "shape") else None
                ),
                told,
            )
            wanted = ocp.args.PyTreeRestore(restore_args=kinds)
            return reader.restore(item, args=wanted)
    except Exception as error:  # of tensorstore, JSON, protobuf and the file system
        first = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(
            f"{item} cannot be restored as an orbax checkpoint ({first})"
        ) from error


def _refuse_more(size: int, most: int) -> None:
    if size > most:
        raise ValueError(
            f"it announces {size / 1e9:.3g} GB, more than the {most / 1e9:.3g} GB that "
            "weights may take on this machine"
        )


def _item(folder: pathlib.Path) -> pathlib.Path:
    """Finds the one checkpoint of arrays in a folder."""
    if (folder / _METADATA).is_file():
        return folder
    inside = [path for path in folder.iterdir() if path.is_dir()]
    steps = [path for path in inside if path.name.isdecimal()]
    if steps:
        return _item(max(steps, key=lambda path: int(path.name)))
    items = [path for path in inside if (path / _METADATA).is_file()]
    if len(items) != 1:
        names = ", ".join(sorted(path.name for path in items))
        told = f"several checkpoints ({names}): name one" if items else "no checkpoint"
        raise ValueError(f"{folder} holds {told}")
    return items[0]
