"""Files of weights as people have them: .npz, .safetensors and orbax folders.

What a file announces is looked at before room is made for it, nothing is unpickled, and
each fault is one sentence.
"""

import contextlib
import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

from ntk_privacy import _archives, _files, checkpoint

__all__ = ["read", "scale_beside"]

_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib", ".p")
_KINDS = (
    "an .npz or .safetensors file, an orbax checkpoint folder, or a folder that "
    "models.saved.save wrote"
)
_REMEDY = "export the weights again"
_EXPORT = """\
from safetensors.torch import save_file
weights = torch.load({path!r}, weights_only=True)  # or model.state_dict()
save_file({{k: v.contiguous().clone() for k, v in weights.items()}}, {there!r})"""
_PART = 0.5  # of the machine's memory, that weights may take


def read(path: pathlib.Path) -> dict[str, Any]:
    """Returns what a file of weights holds, as NumPy arrays.

    Args:
      path: `.npz` (names with slashes become nested), `.safetensors`, or a folder with
        such files or an orbax checkpoint, of which the newest step is taken.

    Raises:
      ValueError: nothing there, a pickle, another kind of file, a damaged one, or one
        that announces more than half of the machine's memory.
    """
    kind, suffix = _files.kind(path), path.suffix.lower()
    if kind == "a folder":
        return _folder(path)
    if kind:
        raise ValueError(f"{_files.shown(path)} is {kind}: give {_KINDS}.")
    if suffix in _PICKLES:
        lines = _EXPORT.format(path=str(path), there=str(path.with_suffix("")) + _SAFE)
        raise ValueError(
            f"{_files.shown(path)} is a pickle, which runs whatever its maker wrote "
            "when it is opened, so it is never opened here: export it to safetensors "
            f"where you trust it, in three lines:\n{lines}"
        )
    if suffix == ".npz":
        return _nested(_npz(path))
    if suffix == _SAFE:
        return _nested(_safetensors(path))
    raise ValueError(
        f"{_files.shown(path)} ends in {suffix or 'nothing'!r}, which is not read: "
        f"give {_KINDS}."
    )


_SAFE = ".safetensors"


def _folder(path: pathlib.Path) -> dict[str, Any]:
    inside = _files.entries(path)
    files = [entry for entry in inside if entry.suffix.lower() == _SAFE]
    if files:
        found: dict[str, np.ndarray] = {}
        for file in files:
            part = _safetensors(file)
            twice = sorted(part.keys() & found.keys())
            if twice:
                raise ValueError(
                    f"{_files.shown(path)} holds {_files.shown(twice[0])} in more than "
                    "one file: give the path of the one file that is meant."
                )
            found |= part
        return _nested(found)
    if not inside:
        raise ValueError(f"{_files.shown(path)} is an empty folder: give {_KINDS}.")
    try:
        return checkpoint.foreign(path, most=_room())
    except ValueError as error:
        raise ValueError(f"{error}; give {_KINDS}.") from error


def _room() -> int:
    return int(_PART * _files.memory())


def _too_much(path: pathlib.Path, size: int) -> ValueError:
    return ValueError(
        f"{_files.shown(path)} announces {size / 1e9:.3g} GB of weights, more than "
        f"half of this machine's memory: use a machine with more, or {_REMEDY}."
    )


def _npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    given = {"source": _files.shown(path), "remedy": _REMEDY}
    sizes: dict[str, int] = {}
    raw: list[str] = []

    def fits(name):
        def look(shape, dtype):
            # NumPy has no numbers of 16 bits but float16: others are raw bytes.
            raw.extend([name] * (dtype == np.dtype("V2")))
            sizes[name] = math.prod(shape) * dtype.itemsize
            return sum(sizes.values()) <= _room()

        return look

    with _files.opened(path, remedy=_REMEDY) as stream:
        names = _archives.shapes(stream, **given)
        try:
            found = _archives.read(stream, {n: fits(n) for n in names}, **given)
        except ValueError as error:
            if sum(sizes.values()) > _room():
                raise _too_much(path, sum(sizes.values())) from error
            raise
    return found | {name: _archives.of_dtype(found[name], jnp.bfloat16) for name in raw}


@contextlib.contextmanager
def _told(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except (safetensors.SafetensorError, OSError, TypeError, KeyError) as error:
        told = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{_files.shown(path)} is damaged or no safetensors file ({told}): "
            f"{_REMEDY}."
        ) from error


def _safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    kind = _files.kind(path)
    if kind:
        raise ValueError(f"{_files.shown(path)} is {kind}: give {_KINDS}.")
    # The library compares what the header announces with the size of the file.
    size = path.stat().st_size
    if size > _room():
        raise _too_much(path, size)
    with _told(path), safetensors.safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Takes names with slashes apart, as Flax's folders have them."""
    found: dict[str, Any] = {}
    for name, leaf in flat.items():
        *way, last = name.split("/")
        node = found
        for part in way:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ValueError(  # noqa: TRY004
                    f"{name} lies within another array: {_REMEDY}."
                )
        node[last] = leaf
    return found


def scale_beside(path: pathlib.Path) -> float | None:
    """Returns the scale of a LoRA that PEFT saved, by `adapter_config.json` beside it.

    Args:
      path: of the folder, or of a file in it.

    Raises:
      ValueError: the file is there, but says no scale.
    """
    folder = path if _files.kind(path) == "a folder" else path.parent
    config = folder / "adapter_config.json"
    if _files.kind(config):
        return None
    text = _files.read(config, most=_files.MAX_TEXT_BYTES, remedy=_REMEDY)
    try:
        told = json.loads(text)
        if told.get("rank_pattern") or told.get("alpha_pattern"):
            raise ValueError("layers have their own, by a pattern")
        rank = float(told["r"])
        return float(told["lora_alpha"]) / (
            math.sqrt(rank) if told.get("use_rslora") else rank
        )
    except (
        *(ValueError, KeyError, TypeError, AttributeError),
        *(ZeroDivisionError, RecursionError),
    ) as error:
        raise ValueError(
            f"{_files.shown(config)} does not tell r and lora_alpha ({error!r}): tell "
            "adapter_scale."
        ) from error
