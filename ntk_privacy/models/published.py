"""Parameters as people have them, from a file or from memory, as arrays of NumPy.

`read` takes paths (`weight_files`), what Flax (linen, NNX), Equinox, Haiku and PyTorch
hold, and plain pytrees. The structure stays, so that the function of a network that is
no MLP takes what is returned; names, orders and transposes are for those who read
layers. What was left out is noted.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ntk_privacy import _files
from ntk_privacy._types import Params
from ntk_privacy.models import saved, weight_files

__all__ = ["Published", "as_numpy", "opened", "read"]

# Collections of the parameters within what is saved beside them.
_COLLECTIONS = ("params", "state_dict", "model_state_dict", "model")
# A layer may be called model: beside these it is all of them.
_BESIDE_MODEL = {"optimizer", "optimizer_state_dict", "opt_state", "epoch", "step"}
_COUNTERS = ("num_batches_tracked", "step", "count", "epoch")
_TOLD = 3  # names in a note
_DROPPED = "left out"


class Published(NamedTuple):
    """Parameters, and what was found beside them.

    Attributes:
      params: a pytree of floating-point arrays.
      notes: sentences on what was left out or found.
      network: of a folder that `models.saved` wrote, else None.
      image_shape: that it tells, else None.
      bounds: of intensities in [0, 1] as it normalises them, else None.
    """

    params: Params
    notes: tuple[str, ...] = ()
    network: Any = None
    image_shape: tuple[int, int, int] | None = None
    bounds: tuple[Any, Any] | None = None


def read(source: Any) -> Params:
    """Returns parameters from a file or from memory, as floating-point arrays.

    Args:
      source: a path: `.npz`, `.safetensors`, an orbax checkpoint folder, or one that
        `models.saved` wrote. Or what is in memory: Flax variables, with or without
        their `params` collection; NNX states and modules; Equinox modules; Haiku's
        dicts; PyTorch modules and state_dicts; any pytree of arrays.

    Raises:
      ValueError: a file that is missing, damaged, of another kind, or a pickle; arrays
        of integers or objects; NaN; nothing at all.

    Example:
      >>> import numpy as np
      >>> from ntk_privacy.models import published
      >>> found = published.read({"params": {"w": np.ones((3, 2))}, "step": 7})
      >>> {name: leaf.shape for name, leaf in found.items()}
      {'w': (3, 2)}
    """
    return opened(source).params


def opened(source: Any, *, name: str | None = None) -> Published:
    """Returns parameters with notes on what was left out.

    Args:
      source: see `read`.
      name: what messages call it; None is its path, or "params".

    Raises:
      ValueError: see `read`.
    """
    if not isinstance(source, str | pathlib.PurePath):
        return _checked(_from_memory(source), name or "params")
    if not str(source) or "\0" in str(source):
        raise ValueError(f"{str(source)!r} is no path: give that of a file or folder.")
    path = pathlib.Path(source)
    told = _files.shown(path)
    if _files.kind(path) == "a folder" and saved.is_saved(path):
        return _saved(path, told)
    return _checked(weight_files.read(path), told)


def _saved(path: pathlib.Path, told: str) -> Published:
    try:
        model = saved.load(path)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error
    mean, deviation = (np.asarray(part) for part in (model.mean, model.deviation))
    found = _checked(model.params, told)
    notes = (f"{told} tells its network, the shape of its images and their range",)
    if model.stats is not None:
        notes += (f"{told}: running statistics are {_DROPPED}",)
    return found._replace(
        notes=found.notes + notes,
        network=model.model,
        image_shape=model.image_shape,
        bounds=(-mean / deviation, (1 - mean) / deviation),
    )


def as_numpy(leaf: Any) -> np.ndarray:
    """Returns an array on the host; PyTorch's may have gradients or be bfloat16.

    Args:
      leaf: of JAX, NumPy or PyTorch.
    """
    if hasattr(leaf, "detach"):
        leaf = leaf.detach().cpu()
        if str(leaf.dtype) == "torch.bfloat16":
            return np.asarray(leaf.float()).astype(jnp.bfloat16)
    return np.asarray(leaf)


def _from_memory(source: Any) -> Any:
    """Returns nested dicts, or the pytree as it is."""
    if isinstance(source, nnx.Module):
        source = nnx.state(source)
    if isinstance(source, nnx.State):
        return _of_nnx(source)
    if isinstance(source, Mapping):
        return source
    if callable(getattr(source, "state_dict", None)):  # a module of PyTorch
        return source.state_dict()
    held = getattr(source, "params", None)  # a TrainState
    return {"params": held} if isinstance(held, Mapping) else source


def _of_nnx(state: Any) -> dict[str, Any]:
    """Puts parameters, and other variables, in collections as linen has them."""
    flat = nnx.to_flat_state(state)
    if not any(isinstance(leaf, nnx.Variable) for _, leaf in flat):
        return nnx.to_pure_dict(state)
    kinds: dict[str, Any] = {"params": {}}
    for path, leaf in flat:
        if isinstance(leaf, nnx.Param | nnx.LoRAParam):
            node = kinds["params"]
            for part in path[:-1]:
                node = node.setdefault(part, {})
            node[path[-1]] = leaf.get_value()
        else:
            kinds.setdefault(type(leaf).__name__, {})[path] = leaf
    return kinds


def _checked(tree: Any, name: str) -> Published:
    """Takes parameters out of their collection, and each leaf to NumPy."""
    notes: list[str] = []
    dropped: list[str] = []
    while isinstance(tree, Mapping):
        inner = [k for k in _COLLECTIONS if isinstance(tree.get(k), Mapping)]
        if inner == ["model"] and not _BESIDE_MODEL & set(tree):
            break
        if not inner:
            break
        others = [str(key) for key in tree if key != inner[0]]
        if others:
            notes.append(
                f"{name}: {_files.told_of(others)} beside {inner[0]} {_are(others)} "
                f"{_DROPPED}"
            )
        tree = tree[inner[0]]
    params = _walk(tree, name, (), dropped)
    if not jax.tree.leaves(params):
        raise ValueError(
            f"{name} holds no arrays: give the parameters of a network, as a pytree of "
            "arrays or a path."
        )
    if dropped:
        notes.append(
            f"{name}: {_files.told_of(dropped, most=_TOLD)} {_are(dropped)} no weights "
            f"and {_DROPPED}"
        )
    return Published(params, tuple(notes))


def _are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _walk(node: Any, name: str, path: tuple[str, ...], dropped: list[str]) -> Any:
    """Returns a tree of arrays; dicts keep their order, which jax.tree would not."""

    def inside(key, value):
        return _walk(value, name, (*path, str(key)), dropped)

    if isinstance(node, Mapping):
        found = {key: inside(key, value) for key, value in node.items()}
        return {key: value for key, value in found.items() if value is not None}
    if type(node) in (list, tuple):
        return type(node)(inside(i, value) for i, value in enumerate(node))
    if node is None or _is_array(node):
        return _leaf(node, name, path, dropped)
    try:
        whole = jax.tree_util.all_leaves([node])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is no pytree ({error}).") from error
    if whole:  # a number, a function, a name
        dropped.append(".".join(path) or type(node).__name__)
        return None
    return jax.tree_util.tree_map_with_path(_below(name, path), node)


def _below(name: str, path: tuple[str, ...]) -> Callable[[Any, Any], Any]:
    """Of modules that are pytrees: their functions and settings are no news."""

    def take(more, leaf):
        told = jax.tree_util.keystr(more, simple=True, separator=".")
        return _leaf(leaf, name, (*path, told), []) if _is_array(leaf) else None

    return take


def _is_array(node: Any) -> bool:
    return hasattr(node, "dtype") and hasattr(node, "shape")


def _leaf(leaf: Any, name: str, path: tuple[str, ...], dropped: list[str]) -> Any:
    """Returns an array; None where it is a counter or a key."""
    told = ".".join(path)
    where = f"{name}[{told}]" if told else name
    if leaf is None:
        return None
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        dropped.append(told)
        return None
    try:
        array = as_numpy(leaf)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{where} is a {type(leaf).__name__} that cannot be had as an array "
            f"({' '.join(str(error).split())[:200]}): give dense arrays on a CPU."
        ) from error
    wide = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize > 1
    if array.dtype.kind in "iub" and not wide:
        if array.size == 1 or told.rpartition(".")[2] in _COUNTERS:
            dropped.append(told)
            return None
        raise ValueError(
            f"{where} holds integers ({array.dtype}): leave it out if it is no weight, "
            "or give the weights as floating-point numbers, before quantisation."
        )
    if not wide:
        raise ValueError(
            f"{where} has dtype {array.dtype}: give real floating-point weights, of 16 "
            "bits at least."
        )
    bad = int(np.sum(~np.isfinite(array)))
    if bad:
        raise ValueError(
            f"{where} has {bad} values that are NaN or infinite: give weights of a "
            "training that did not diverge."
        )
    return array
