"""The folder of one run: its config, its results, its checkpoints, one writer."""

import dataclasses
import fcntl
import importlib.metadata
import json
import math
import pathlib
import platform
import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments._flags import UsageError
from ntk_privacy.reports.atomic import replacing

_EPOCH = (1980, 1, 1, 0, 0, 0)


def _plain(value: Any) -> Any:
    """Returns a value as JSON can hold it; NaN and infinities become texts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    elif (as_dict := getattr(value, "_asdict", None)) is not None:
        value = as_dict()
    elif isinstance(value, np.ndarray | np.generic | jax.Array):
        value = np.asarray(value).tolist()
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, pathlib.Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


class _Older(NamedTuple):
    """How a folder is read that was written before some fields were: see `Workdir`."""

    absent: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    foreign: set[str]
    never_none: set[str]
    were: dict[str, Any]

    def completed(
        self, stored: dict[str, Any], config: dict[str, Any]
    ) -> dict[str, Any]:
        """Returns a stored config as today's code would have written it."""
        kept = {
            name: value
            for name, value in stored.items()
            if (name in config or name not in self.foreign)
            and not (value is None and name in self.never_none)
        }
        absent = _plain(self.absent(kept))
        found = {k: v for k, v in absent.items() if k in config} | kept
        for name, was in self.were.items():
            if found.get(name) == was and config[name] == absent[name]:
                found[name] = config[name]
        return found


def _defaults(config: object) -> dict[str, Any]:
    """Returns what fields stand for in folders that were written before they were."""
    if not dataclasses.is_dataclass(config):
        return {}
    found = {}
    for entry in dataclasses.fields(config):
        default = entry.default
        if entry.default_factory is not dataclasses.MISSING:
            default = entry.default_factory()
        if default is not dataclasses.MISSING:
            found[entry.name] = default
    return found | _metadata(config, "before")


def _metadata(config: object, name: str) -> dict[str, Any]:
    """Returns what fields say of older folders: "before" of none, "was" of a number."""
    if not dataclasses.is_dataclass(config):
        return {}
    return {
        entry.name: entry.metadata[name]
        for entry in dataclasses.fields(config)
        if name in entry.metadata
    }


def _to_json(value: Any) -> str:
    return json.dumps(_plain(value), indent=2, allow_nan=False) + "\n"


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the arrays of an npz file.

    Args:
      path: of `Workdir.write_arrays`.

    Raises:
      OSError: it is not there.
      ValueError: it is damaged.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return dict(stored)
    except (TypeError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        # TypeError: a single array under that name.
        raise ValueError(
            f"{path} is damaged ({error}): delete it to make it again."
        ) from error


class Workdir:
    """One run's folder, held by one process at a time; a context manager.

    The first start writes config.json; later starts with the same config go on, and
    another config is refused. Every file appears whole or not at all.

    Args:
      folder: made if it is missing.
      config: a dataclass instance, written to config.json.
      ignore: names of config fields that do not change the results (the folder itself,
        the progress bar): they may differ from start to start.
      absent: given an older folder's fields, those that it lacks; of a dataclass they
        are its defaults, or its metadata `before`. Where a field has metadata `was`,
        that value in an older folder stands for the default.
      foreign: names that an older folder may hold and that mean nothing here: flags of
        other methods.
      never_none: fields for which an older folder's none meant "not given".

    Raises:
      UsageError: another config or another process has the folder, it is a file, or
        its name is empty, which would be the current folder.
    """

    def __init__(
        self,
        folder: str | pathlib.Path,
        config: object,
        *,
        ignore: Collection[str] = ("workdir",),
        absent: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
        foreign: Collection[str] = (),
        never_none: Collection[str] = (),
    ) -> None:
        if not str(folder).strip():
            raise UsageError("workdir is empty: name a folder for the results.")
        self.folder = pathlib.Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"workdir={self.folder} is a file: give a folder.")
        self.folder.mkdir(parents=True, exist_ok=True)
        # The system drops the lock when the process ends, however it ends.
        self._lock = (self.folder / ".lock").open("w")
        try:
            self._take()
            known = absent or (lambda _: _defaults(config))
            were = _metadata(config, "was")
            older = _Older(known, set(foreign), set(never_none), were)
            self._agree(_plain(config), set(ignore), older)
        except BaseException:
            self.close()
            raise

    def _take(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"workdir={self.folder} is in use by another process: wait for it or "
                "give another --workdir."
            ) from error
        for leftover in self.folder.glob(".*.tmp"):
            leftover.unlink()  # of a killed process: the lock says no other lives

    def _agree(
        self,
        config: dict[str, Any],
        ignore: set[str],
        older: "_Older",
    ) -> None:
        path = self.folder / "config.json"
        if not path.exists():
            foreign = [
                name
                for name in ("results.json", "arrays.npz", "checkpoints")
                if (self.folder / name).exists()
            ]
            if foreign:
                raise UsageError(
                    f"workdir={self.folder} holds {foreign[0]} but no config.json, so "
                    "it is unknown what made it: give another --workdir."
                )
            self.write_json("config.json", config)
            return
        stored = older.completed(self._read_config(path), config)
        differences = [
            f"{name}: {self._told(stored, name)} in the folder, "
            f"{self._told(config, name)} asked"
            for name in [*config, *(name for name in stored if name not in config)]
            if name not in ignore
            and self._told(stored, name) != self._told(config, name)
        ]
        if differences:
            raise UsageError(
                f"workdir={self.folder} belongs to another config ("
                + "; ".join(differences)
                + "): ask for the same, or give another --workdir."
            )

    @staticmethod
    def _read_config(path: pathlib.Path) -> dict[str, Any]:
        try:
            stored = json.loads(path.read_text())
        except ValueError:
            stored = None
        if not isinstance(stored, dict):
            raise UsageError(f"{path} is no config: give another --workdir.")
        return stored

    @staticmethod
    def _told(config: dict[str, Any], name: str) -> str:
        return json.dumps(config[name]) if name in config else "absent"

    @property
    def checkpoint_folder(self) -> pathlib.Path:
        """Where `ntk_privacy.checkpoint` saves; not made before the first save."""
        return self.folder / "checkpoints"

    def path(self, name: str) -> pathlib.Path:
        """Returns the path of a file in the folder."""
        return self.folder / name

    def is_done(self) -> bool:
        """True once results.json is there: write it last."""
        return self.path("results.json").exists()

    def write_json(self, name: str, value: Any) -> None:
        """Writes strict JSON; NaN and infinities become "nan", "inf" and "-inf"."""
        self.write_text(name, _to_json(value))

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file."""
        with replacing(self.path(name)) as temporary:
            temporary.write_text(text)

    def read_json(self, name: str) -> Any:
        """Returns what `write_json` wrote."""
        path = self.path(name)
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged ({error}): delete it to make it again."
            ) from error

    def write_arrays(self, name: str, **arrays: Any) -> None:
        """Writes an .npz: equal arrays give equal bytes.

        Raises:
          ValueError: an array that a reader could only unpickle, such as objects.
        """
        with replacing(self.path(name)) as temporary:
            _write_npz(temporary, {k: np.asarray(v) for k, v in arrays.items()})

    def read_arrays(self, name: str) -> dict[str, np.ndarray]:
        """Returns what `write_arrays` wrote."""
        return read_arrays(self.path(name))

    def close(self) -> None:
        """Lets another process take the folder."""
        self._lock.close()

    def __enter__(self) -> "Workdir":
        """Returns itself; the folder is held already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Lets another process take the folder."""
        self.close()


def _write_npz(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    # np.savez stamps each member with the time of day; members here have fixed stamps
    # and stand in order of their names.
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(arrays):
            if arrays[name].dtype.kind not in "biufcSU":
                raise ValueError(
                    f"array {name} has dtype {arrays[name].dtype}, which .npz cannot "
                    "hold without pickle: convert it to numbers or text."
                )
            info = zipfile.ZipInfo(f"{name}.npy", date_time=_EPOCH)
            info.create_system = 3
            info.external_attr = 0o644 << 16
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, arrays[name], allow_pickle=False)


def versions() -> dict[str, str]:
    """Returns what the figures depend on: software versions and the device."""
    device = jax.devices()[0]
    told = {"python": platform.python_version()}
    for name in ("jax", "jaxlib", "flax", "optax", "numpy", "ntk_privacy"):
        try:
            told[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout
            told[name] = "not installed"
    told["device"] = f"{device.platform}: {device.device_kind}"
    return told
