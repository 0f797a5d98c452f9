"""Trained networks in a folder: model.json and params.npz, no pickle.

model.json holds `format` (1), `architecture` ("ConvNet", "MLP" or "ResNet18"), `fields`
of it, `image_shape`, `mean` and `deviation` per channel, `class_names`, `dtype`,
`dtypes` and `about`; params.npz one array per parameter, named by its path, such as
"params/Conv_0/kernel", and per running statistic, such as "stats/0/mean". What NumPy
has no numbers for, such as bfloat16, is there as unsigned ones of the same bits.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _archives, _checks, _files
from ntk_privacy._types import Params
from ntk_privacy.models.convnet import ConvNet
from ntk_privacy.models.mlp import MLP
from ntk_privacy.models.resnet import ResNet18

__all__ = ["SavedModel", "is_saved", "load", "logits_fn", "save"]

_ABOUT, _PARAMS = "model.json", "params.npz"
_REMEDY = "save the model again"
_ARCHITECTURES = {"ConvNet": ConvNet, "MLP": MLP, "ResNet18": ResNet18}
# Flax's own, and what matters to the start of a training alone.
_NO_FIELDS = ("parent", "name", "kernel_inits")


class SavedModel(NamedTuple):
    """A network with what surrounds it.

    Attributes:
      logits_fn: `images -> logits`, images with intensities in [0, 1]; a pytree.
      model: the network.
      params: of it.
      stats: running statistics of a ResNet18, else None.
      image_shape: (height, width, channels).
      mean, deviation: of intensities per channel, by which images are normalised.
      class_names: in the order of the logits.
      about: whatever was noted beside.
    """

    logits_fn: Any
    model: Any
    params: Params
    stats: Any
    image_shape: tuple[int, int, int]
    mean: Float[Array, " c"]
    deviation: Float[Array, " c"]
    class_names: tuple[str, ...]
    about: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Normalised:
    model: Any

    def __call__(
        self, params: Params, stats: Any, mean: Array, deviation: Array, x: Array
    ) -> Any:
        cast = [v.astype(x.dtype)[None, None, None, :] for v in (mean, deviation)]
        x = (x - cast[0]) / cast[1]
        params, stats = jax.tree.map(lambda v: v.astype(x.dtype), (params, stats))
        if stats is None:
            return self.model.apply_fn(params, x)
        return self.model.eval_fn(params, stats, x)


def logits_fn(
    model: Any,
    params: Params,
    *,
    mean: Float[Array | np.ndarray, " c"],
    deviation: Float[Array | np.ndarray, " c"],
    stats: Any = None,
) -> Any:
    """Returns `images -> logits` that normalises inside, for `evasion`.

    Args:
      model: has `apply_fn`, or `eval_fn` if there are statistics.
      params: of it.
      mean: of intensities per channel.
      deviation: theirs.
      stats: running statistics.
    """
    constants = (jnp.asarray(mean), jnp.asarray(deviation))
    return jax.tree_util.Partial(_Normalised(model), params, stats, *constants)


def _flat(params: Params, stats: Any) -> dict[str, Any]:
    tree = {"params": params, "stats": stats}
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _fields(model: Any) -> dict[str, Any]:
    told = {}
    for field in dataclasses.fields(model):
        if field.name in _NO_FIELDS:
            continue
        value = getattr(model, field.name)
        if isinstance(value, jax.lax.Precision):
            value = value.name
        told[field.name] = list(value) if isinstance(value, tuple | list) else value
    return told


@contextlib.contextmanager
def _replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Yields a file that appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.filename is None and error.errno is not None:  # of a full disk
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def save(
    folder: str | pathlib.Path,
    model: Any,
    params: Params,
    *,
    image_shape: Sequence[int],
    mean: Float[Array | np.ndarray, " c"] | Sequence[float] | None = None,
    deviation: Float[Array | np.ndarray, " c"] | Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
    stats: Any = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Saves a network; model.json appears last.

    Args:
      folder: made if it is missing.
      model: a ConvNet, MLP or ResNet18 with at least two outputs.
      params: of it.
      image_shape: (height, width, channels).
      mean: of intensities per channel; 0 if None.
      deviation: theirs; 1 if None.
      class_names: in the order of the logits; numbers if None.
      stats: running statistics, of a ResNet18.
      about: what else to note, as JSON holds it.

    Raises:
      ValueError: another network, params that are not its own or not finite, or
        numbers that do not fit its channels and classes.

    Example:
      >>> import tempfile
      >>> import jax
      >>> from ntk_privacy import models
      >>> from ntk_privacy.models import saved
      >>> net = models.MLP(widths=(8,), num_outputs=2)
      >>> params = net.init_params(jax.random.key(0), (4, 4, 1))
      >>> folder = tempfile.mkdtemp()
      >>> saved.save(folder, net, params, image_shape=(4, 4, 1))
      >>> saved.load(folder).model == net
      True
    """
    kind = type(model).__name__
    _checks.one_of(tuple(_ARCHITECTURES), architecture=kind)
    _checks.at_least(2, num_outputs=model.num_outputs)
    channels, classes = _channels(image_shape), model.num_outputs
    mean = np.zeros(channels) if mean is None else np.asarray(mean, float)
    deviation = np.ones(channels) if deviation is None else np.asarray(deviation, float)
    names = map(str, range(classes)) if class_names is None else class_names
    names = list(names)
    _surroundings(mean, deviation, names, channels, classes)
    arrays = {
        name: _floating(name, leaf) for name, leaf in _flat(params, stats).items()
    }
    dtypes = {name: str(array.dtype) for name, array in arrays.items()}
    dtype = next(iter(dtypes.values()), "float32")
    _agree(arrays, _flat(*_like(model, image_shape, dtype)), "params")
    _checks.finite(params=params, stats=stats)
    told = {
        "format": 1,
        "architecture": kind,
        "fields": _fields(model),
        "image_shape": [int(v) for v in image_shape],
        "mean": [float(v) for v in mean],
        "deviation": [float(v) for v in deviation],
        "class_names": [str(v) for v in names],
        "dtype": dtype,
        "dtypes": dtypes,
        "about": dict(about or {}),
    }
    try:
        text = json.dumps(told, indent=2)
    except TypeError as error:
        raise ValueError(
            f"about cannot be written as JSON ({error}): give text, numbers, and lists "
            "and dicts of these, such as float(loss)."
        ) from error
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    plain = {name: _archives.plain(array) for name, array in arrays.items()}
    with _replacing(folder / _PARAMS) as file:
        # None of them is called allow_pickle.
        np.savez(file, **plain)  # pyright: ignore[reportArgumentType]
    with _replacing(folder / _ABOUT) as file:
        file.write((text + "\n").encode())


def _channels(image_shape: Sequence[int]) -> int:
    shape = np.shape(image_shape), *np.ravel(image_shape).tolist()
    if shape[0] != (3,) or not all(isinstance(v, int) and v > 0 for v in shape[1:]):
        raise ValueError(
            f"image_shape={image_shape} must be (height, width, channels), whole "
            "numbers above 0."
        )
    return shape[-1]


def _surroundings(
    mean: Any, deviation: Any, names: Sequence[str], channels: int, classes: int
) -> None:
    """Refuses numbers and names that do not fit a network's channels and classes."""
    for name, values, wants in (
        ("mean", mean, (channels,)),
        ("deviation", deviation, (channels,)),
        ("class_names", names, (classes,)),
    ):
        if np.shape(values) != wants:
            raise ValueError(f"{name} has shape {np.shape(values)}: give {wants}.")
        if name != "class_names" and not np.isfinite(values).all():
            raise ValueError(
                f"{name} has entries that are NaN or infinite: give those of the "
                "training images."
            )
    _checks.positive(least_deviation=float(np.min(deviation)))


def _floating(name: str, leaf: Any) -> np.ndarray:
    """Returns a parameter as NumPy has it; text, keys, whole numbers are none."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        told = f"a {type(leaf).__name__}" if dtype is None else f"an array of {dtype}"
        raise ValueError(
            f"{name} is {told}: give the parameters of this network, floating-point "
            "arrays."
        )
    return np.asarray(leaf)


def _like(model: Any, image_shape: Sequence[int], dtype: str) -> tuple[Any, Any]:
    """Returns parameters and statistics as shapes."""

    def start():
        key = jax.random.key(0)
        params = model.init_params(key, tuple(image_shape), jnp.dtype(dtype))
        has = hasattr(model, "init_stats")
        return params, model.init_stats(jnp.dtype(dtype)) if has else None

    return jax.eval_shape(start)


def _agree(arrays: Mapping[str, Any], like: Mapping[str, Any], what: str) -> None:
    has, wants = ({k: v.shape for k, v in t.items()} for t in (arrays, like))
    for name in sorted(has.keys() | wants.keys()):
        if has.get(name) != wants.get(name):
            raise ValueError(
                f"{what} has {has.get(name, 'nothing')} at {name}, not "
                f"{wants.get(name, 'nothing')}: give the parameters of this network."
            )


def is_saved(folder: str | pathlib.Path) -> bool:
    """Returns whether `save` has written to a folder.

    Args:
      folder: it need not be there.
    """
    return (pathlib.Path(folder) / _ABOUT).is_file()


def _read(path: pathlib.Path) -> bytes:
    if _files.kind(path) == "missing":
        raise FileNotFoundError(f"{path} is missing: give the folder that save wrote.")
    return _files.read(path, most=_files.MAX_TEXT_BYTES, remedy=_REMEDY)


def _arrays(path: pathlib.Path, like: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Reads the arrays of a network, after a look at all of their shapes."""
    if _files.kind(path) == "missing":
        raise FileNotFoundError(f"{path} is missing: give the folder that save wrote.")
    options = {"source": str(path), "remedy": _REMEDY}
    with _files.opened(path, remedy=_REMEDY) as stream:
        there = _archives.shapes(stream, **options)
        has = {k: jax.ShapeDtypeStruct(v, jnp.uint8) for k, v in there.items()}
        try:
            _agree(has, like, "it")
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged or of another model ({error}): {_REMEDY}."
            ) from error
        wanted = {
            name: lambda shape, _, s=leaf.shape: shape == s
            for name, leaf in like.items()
        }
        return _archives.read(stream, wanted, **options)


def load(folder: str | pathlib.Path) -> SavedModel:
    """Returns a network that `save` wrote.

    Args:
      folder: that was given to `save`.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is damaged, no regular file, or of another format.
    """
    folder = pathlib.Path(folder)
    path = folder / _ABOUT
    text = _read(path)
    try:
        told = json.loads(text)
        version, kind = told["format"], told["architecture"]
        _checks.one_of((1,), format=version)
        _checks.one_of(tuple(_ARCHITECTURES), architecture=kind)
        fields = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in told["fields"].items()
        }
        precision = fields.get("precision")
        if isinstance(precision, str):
            fields["precision"] = jax.lax.Precision[precision]
        model = _ARCHITECTURES[kind](**fields)
        shape = tuple(int(v) for v in told["image_shape"])
        mean, deviation = (
            jnp.asarray(told[name], jnp.float32) for name in ("mean", "deviation")
        )
        names, dtype = tuple(told["class_names"]), told["dtype"]
        classes = model.num_outputs
        _surroundings(mean, deviation, names, _channels(shape), classes)
        height, width, depth = shape
        about, like = dict(told["about"]), _like(model, shape, dtype)
        # Earlier versions noted the first one alone.
        dtypes = dict(told.get("dtypes", {}))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged or of another format ({error}): {_REMEDY}."
        ) from error
    path, flat = folder / _PARAMS, _flat(*like)
    arrays = _arrays(path, flat)
    try:
        arrays = {
            name: _floating(
                name,
                _archives.of_dtype(array, dtypes.get(name, dtype))
                if name in dtypes or array.dtype.kind == "V"
                else array,
            )
            for name, array in arrays.items()
        }
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged or of another model ({error}): {_REMEDY}."
        ) from error
    leaves = [jnp.asarray(arrays[name]) for name in flat]
    tree = {"params": like[0], "stats": like[1]}
    tree = jax.tree.unflatten(jax.tree.structure(tree), leaves)
    params, stats = tree["params"], tree["stats"]
    try:
        _checks.finite(params=params, stats=stats)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    function = logits_fn(model, params, mean=mean, deviation=deviation, stats=stats)
    return SavedModel(
        logits_fn=function,
        model=model,
        params=params,
        stats=stats,
        image_shape=(height, width, depth),
        mean=mean,
        deviation=deviation,
        class_names=names,
        about=about,
    )
