"""Saving and restoring the state of long runs: orbax, atomic, no pickle."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

__all__ = ["latest_step", "restore", "save"]


def _manager(folder: str | pathlib.Path) -> ocp.CheckpointManager:
    path = pathlib.Path(folder).absolute()
    path.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2, enable_async_checkpointing=False
    )
    return ocp.CheckpointManager(path, options=options)


def save(folder: str | pathlib.Path, step: int, state: Any) -> None:
    """Saves a pytree as the checkpoint of `step`; the two newest are kept.

    A checkpoint appears whole or not at all: a killed process leaves the last one.

    Args:
      folder: made if it is missing.
      step: number of steps done, at least 0.
      state: pytree of arrays (typed keys: store `jax.random.key_data`).
    """
    with _manager(folder) as manager:
        manager.save(step, args=ocp.args.StandardSave(state))
        manager.wait_until_finished()


def latest_step(folder: str | pathlib.Path) -> int | None:
    """Returns the newest complete step in `folder`, or None without one."""
    if not pathlib.Path(folder).is_dir():
        return None
    with _manager(folder) as manager:
        return manager.latest_step()


def restore(folder: str | pathlib.Path, step: int, like: Any) -> Any:
    """Returns the state saved at `step`, in the structure and dtypes of `like`.

    Args:
      folder: where `save` wrote.
      step: a step that was saved, such as `latest_step(folder)`.
      like: pytree with the shapes and dtypes to expect.

    Raises:
      ValueError: the checkpoint's structure or shapes are not those of `like`.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    with _manager(folder) as manager:
        try:
            return manager.restore(step, args=ocp.args.StandardRestore(abstract))
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise ValueError(
                f"The checkpoint of step {step} in {folder} cannot be restored "
                f"({str(error).splitlines()[0][:200]}): remove the folder to start anew."
            ) from error
