"""Expert runs: networks trained on real images, with their parameters of every epoch.

A folder holds one .npy file per expert and manifest.json, which has a checksum of each
and tells what made them. What trajectory matching asks for is the first few epochs of
each (`load`).

Source: Cazenavette et al., CVPR 2022 (MTT, arXiv:2203.11932), released code.
"""

import functools
import hashlib
import io
import json
import os
import pathlib
import shutil
import warnings
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from ntk_privacy import _checks, _class_checks, _files, _loop, resume
from ntk_privacy._types import Callback, Params
from ntk_privacy.data import augmentation
from ntk_privacy.models.convnet import Classifier
from ntk_privacy.training import classification

__all__ = ["Experts", "load", "record", "recorded"]

_MANIFEST = "manifest.json"


class Experts(NamedTuple):
    """params: of k experts at their start and after each of the first epochs, each leaf
    (k, epochs + 1, ...). files: where they come from. left_out: files that were missing
    or damaged, and why.
    """  # noqa: D205

    params: Params
    files: tuple[str, ...]
    left_out: dict[str, str]


def _write(path: pathlib.Path, content: bytes) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _npy(array: np.ndarray) -> bytes:
    """An array as a .npy file, in bytes that depend on it alone."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=False)
    return stream.getvalue()


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _layout(params: Params) -> list[list[Any]]:
    """Names, shapes and dtypes in the order in which a file has the parameters."""
    return [
        [jax.tree_util.keystr(path), list(leaf.shape), str(leaf.dtype)]
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]


def _write_manifest(folder, recipe, params, experts) -> None:
    manifest = {"recipe": recipe, "layout": _layout(params)}
    manifest["experts"] = dict(sorted(experts.items()))
    _write(folder / _MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())


def _read_text(path: pathlib.Path) -> bytes:
    if _files.kind(path) == "missing":
        raise FileNotFoundError(f"{path} is missing: give a folder that record wrote.")
    return _files.read(path, most=_files.MAX_TEXT_BYTES, remedy="remove the folder")


def _read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / _MANIFEST
    try:
        manifest = json.loads(_read_text(path))
        _ = int(manifest["recipe"]["num_epochs"]), manifest["recipe"]["model"]
        _ = jnp.dtype(manifest["layout"][0][2]), manifest["experts"].items()
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): remove the folder to train the experts anew."
        ) from error
    return manifest


def recorded(folder: str | pathlib.Path) -> tuple[str, ...]:
    """Returns the files of a folder's experts, sound or not; none without a folder.

    Args:
      folder: where `record` wrote, or was about to.

    Raises:
      ValueError: the manifest is damaged.
    """
    folder = pathlib.Path(folder).expanduser()
    known = (folder / _MANIFEST).exists()
    return tuple(_read_manifest(folder)["experts"]) if known else ()


def record(
    folder: str | pathlib.Path,
    x_train: Float[Array, "n h w d"],
    labels: Int[Array, " n"],
    *,
    model: Classifier,
    key: Array,
    num_experts: int = 100,
    num_epochs: int = 50,
    learning_rate: float = 0.01,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    batch_size: int = 256,
    operations: tuple[str, ...] = augmentation.OPERATIONS,
    at_once: int = 10,
    parallel: bool | None = None,
    callback: Callback | None = None,
) -> pathlib.Path:
    """Trains experts and saves their parameters at the start and after every epoch.

    Killed at any moment and called again with the same arguments it goes on from the
    last epoch, to the same bits; experts that are there already are not trained again,
    and files that are missing or damaged are made again.

    Args:
      folder: made if it is missing.
      x_train: normalised images.
      labels: the class of each, an integer from 0.
      model: of every expert.
      key: typed key; expert i has `fold_in(key, i)`.
      num_experts: how many.
      num_epochs: of each.
      learning_rate: of SGD, constant.
      momentum: of SGD.
      weight_decay: of SGD.
      batch_size: images of a step.
      operations: of `data.augmentation`, drawn per batch.
      at_once: experts that are trained together.
      parallel: by vmap rather than one after the other within each step; None does so
        on accelerators.
      callback: `(epochs_done, state, metrics)` after each epoch of each group;
        `metrics["expert"]` is the first of the group.

    Returns:
      The folder.

    Raises:
      ValueError: the folder has experts of another recipe or a damaged manifest, a
        label has no output, a number is out of range, or parameters are not finite.
    """
    _checks.typed_key(key=key)
    _checks.at_least(
        1,
        num_experts=num_experts,
        num_epochs=num_epochs,
        at_once=at_once,
        batch_size=batch_size,
    )
    # Before anything is written: a recipe that cannot be trained is not kept.
    _checks.positive(learning_rate=learning_rate)
    _checks.in_range(0, 1, momentum=momentum)
    _checks.at_least(0, weight_decay=weight_decay)
    _class_checks.labelled(model, x_train, labels, names=("x_train", "labels"))
    augmentation.check(operations)
    folder = pathlib.Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    like = model.init_params(key, x_train.shape[1:], x_train.dtype)
    data = np.ascontiguousarray(x_train), np.ascontiguousarray(labels)
    recipe = {
        "model": repr(model),
        "data": _checksum(b"".join(part.tobytes() for part in data)),
        "key": np.asarray(_checks.key_data(key=key)).tolist(),
        "num_epochs": num_epochs,
        "learning_rate": learning_rate,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "batch_size": batch_size,
        "operations": list(operations),
    }
    known: dict[str, str] = {}
    if (folder / _MANIFEST).exists():
        manifest = _read_manifest(folder)
        wrong = [
            f"{name}: {manifest['recipe'].get(name)} there, {value} asked"
            for name, value in recipe.items()
            if manifest["recipe"].get(name) != value
        ]
        if wrong:
            raise ValueError(
                f"{folder} has experts of another recipe ({'; '.join(wrong)}): ask for "
                "the same, or give another folder."
            )
        known = manifest["experts"]
    else:
        _write_manifest(folder, recipe, like, known)
    names = [f"expert_{i:04d}.npy" for i in range(num_experts)]
    todo = [
        i
        for i, name in enumerate(names)
        if name not in known or _damage(folder / name, known[name])
    ]
    # An epoch is long, and what it leaves is small: each is kept.
    stage = resume.resumed(folder, timer=resume.Timer(), seconds=0.0)
    for begin in range(0, len(todo), at_once):
        group = todo[begin : begin + at_once]
        # By all of its members: a damaged file may join others than before.
        members = zlib.crc32(repr(group).encode())
        name = f"unfinished_steps_{group[0]:04d}_{members:08x}"
        told = _with_expert(callback, group[0]) if callback is not None else None
        snapshots = _train(
            functools.partial(stage, name),
            x_train,
            labels,
            model=model,
            keys=jnp.stack([jax.random.fold_in(key, i) for i in group]),
            num_epochs=num_epochs,
            callback=told,
            learning_rate=learning_rate,
            momentum=momentum,
            weight_decay=weight_decay,
            batch_size=batch_size,
            operations=operations,
            parallel=parallel,
        )
        if snapshots is None:
            break
        if not np.isfinite(snapshots).all():
            shutil.rmtree(folder / name, ignore_errors=True)
            raise ValueError(
                f"Experts {group[0]} to {group[-1]} of {folder} are not finite after "
                f"{num_epochs} epochs with learning_rate={learning_rate}: lower it, in "
                "another folder."
            )
        for row, i in enumerate(group):
            content = _npy(snapshots[row])
            _write(folder / names[i], content)
            known[names[i]] = _checksum(content)
        _write_manifest(folder, recipe, like, known)
        shutil.rmtree(folder / name, ignore_errors=True)
    return folder


def _with_expert(callback: Callback, first: int) -> Callback:
    def told(step, state, metrics):
        return callback(step, state, {**metrics, "expert": first})

    return told


def _train(
    stage, x_train, labels, *, model, keys, num_epochs, callback, **options
) -> np.ndarray | None:
    """Returns parameters as rows, (experts, epochs + 1, size); None when stopped."""
    x, k = jnp.asarray(x_train), len(keys)
    state = classification.init(x, model=model, keys=keys)
    rows = jax.vmap(lambda params: ravel_pytree(params)[0])
    first = np.asarray(rows(state.params))
    snapshots = np.zeros((k, num_epochs + 1, first.shape[1]), first.dtype)
    snapshots[:, 0] = first
    per_epoch = -(-len(x) // min(options["batch_size"], len(x)))

    def go(start, done, told):
        del done  # the state knows
        snapshots = np.array(start["snapshots"])

        def after_epoch(step, state, metrics):
            epoch = step // per_epoch
            snapshots[:, epoch] = rows(state.params)
            # Kept before the user hears of it: no epoch that was told is done again.
            stop = told(step, {"state": state, "snapshots": snapshots}, metrics)
            return _loop.asks_to_stop(callback, epoch, state, metrics) or stop

        state = classification.train(
            x,
            labels,
            model=model,
            keys=keys,
            num_epochs=num_epochs,
            state=start["state"],
            chunk=per_epoch,
            callback=after_epoch,
            **options,
        )
        return snapshots if int(state.steps) == num_epochs * per_epoch else None

    start = {"state": state, "snapshots": snapshots}
    return stage(start, go, num_epochs * per_epoch).result


def _damage(path: pathlib.Path, checksum: str) -> str:
    """Returns what is wrong with a file, or an empty text."""
    if told := _files.kind(path):
        return f"is {told}"
    try:
        with _files.opened(path, remedy="train it again") as stream:
            # In pieces: whoever has put it there may have put a large one.
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except ValueError as error:
        return f"is not to be read ({error})"
    return "" if found == checksum else "is damaged"


def load(
    folder: str | pathlib.Path,
    *,
    model: Classifier,
    image_shape: tuple[int, ...],
    num_epochs: int | None = None,
    at_least: int = 1,
) -> Experts:
    """Returns the first epochs of all sound experts of a folder.

    Files that are missing or damaged are named in a warning and left out.

    Args:
      folder: where `record` wrote.
      model: of the experts.
      image_shape: (height, width, depth) in pixels.
      num_epochs: of each expert; None is all.
      at_least: experts without which there is no use in going on.

    Raises:
      FileNotFoundError: there is no manifest.
      ValueError: the manifest is damaged or of another network, there are fewer epochs,
        or fewer sound experts than `at_least`.
    """
    folder = pathlib.Path(folder).expanduser()
    manifest = _read_manifest(folder)
    dtype = manifest["layout"][0][2]
    like = model.init_params(jax.random.key(0), image_shape, jnp.dtype(dtype))
    if _layout(like) != manifest["layout"]:
        raise ValueError(
            f"{folder} has experts of another network ({manifest['recipe']['model']}): "
            f"its parameters are not those of {model!r} for images of {image_shape}."
        )
    there = int(manifest["recipe"]["num_epochs"])
    num_epochs = there if num_epochs is None else num_epochs
    if not 1 <= num_epochs <= there:
        raise ValueError(
            f"{folder} has experts of {there} epochs, not {num_epochs}: ask for 1 to "
            f"{there}, or train experts for longer in another folder."
        )
    left_out, rows = {}, {}
    for name, checksum in manifest["experts"].items():
        told = _damage(folder / name, checksum)
        if told:
            left_out[name] = told
            continue
        stored = np.load(folder / name, mmap_mode="r", allow_pickle=False)
        rows[name] = np.array(stored[: num_epochs + 1])
    told = "; ".join(f"{name} {why}" for name, why in left_out.items())
    if len(rows) < at_least:
        raise ValueError(
            f"{folder} has {len(rows)} sound experts of {len(manifest['experts'])}, "
            f"not {at_least}{': ' if told else ''}{told}: train the others again with "
            "record, or ask for fewer."
        )
    if left_out:
        warnings.warn(f"Experts left out of {folder}: {told}.", stacklevel=2)
    unravel = ravel_pytree(like)[1]
    stacked = jnp.asarray(np.stack(list(rows.values())))
    return Experts(jax.vmap(jax.vmap(unravel))(stacked), tuple(rows), left_out)
