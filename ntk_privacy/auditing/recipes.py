"""What is known of the training: a recipe, of a file or of values, and what it changes.

It has keys alone that change what attacks do or what an audit says; what is told and
not used by the attacks on the evidence at hand is said, by `unused`.
"""

import dataclasses
import json
import pathlib
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from ntk_privacy import _checks
from ntk_privacy.models.mlp import MLP
from ntk_privacy.reconstruction import Evidence
from ntk_privacy.reconstruction.evidence import Dynamics
from ntk_privacy.training.recipe import LOSSES, Loss

__all__ = ["KnownTraining", "Rule", "read", "unused"]

Rule = Literal[
    "gd", "sgd", "momentum", "nesterov", "adam", "adamw", "adagrad", "rmsprop", "lion"
]
"""Optimizers; the latter five treat every entry of a weight by itself."""

_BY_ENTRY = ("adam", "adamw", "adagrad", "rmsprop", "lion")
_MOST_BYTES = 1_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnownTraining:
    """What is known of a training; None is not known.

    Attributes:
      loss: "mse", "logistic" or "cross_entropy".
      dynamics: "linearized" where the first-order Taylor model was trained.
      num_images: N.
      labels: the values that labels take, a row of one number per output each; of one
        output, numbers do.
      optimizer: see `Rule`.
      learning_rate: of a step.
      batch_size: images of a step.
      weight_decay: as the optimizer takes it.
      epochs: passes over the images.

    Raises:
      ValueError: a value that is out of range or of another form.

    Example:
      >>> from ntk_privacy.auditing import recipes
      >>> recipes.KnownTraining(loss="mse", optimizer="adamw").is_by_entry
      True
    """

    loss: Loss | None = None
    dynamics: Dynamics | None = None
    num_images: int | None = None
    labels: Sequence[float | Sequence[float]] | None = None
    optimizer: Rule | None = None
    learning_rate: float | int | None = None
    batch_size: int | None = None
    weight_decay: float | int | None = None
    epochs: int | None = None

    def __post_init__(self):
        _check(self.told())

    @property
    def is_by_entry(self) -> bool:
        """Whether steps are no sums of gradients: each entry has a rate of its own."""
        return self.optimizer in _BY_ENTRY

    def told(self) -> dict[str, Any]:
        """Returns what is known, by name."""
        return {name: v for name, v in vars(self).items() if v is not None}

    def of_evidence(self, *, is_gradient: bool) -> dict[str, Any]:
        """Returns fields of `Evidence`.

        Args:
          is_gradient: the evidence is one gradient, which has no dynamics.
        """
        fields: dict[str, Any] = {"objective": self.loss, "num_images": self.num_images}
        if not is_gradient:
            fields["dynamics"] = self.dynamics
        if self.labels is not None:
            fields["labels"] = _rows(self.labels)
        return {name: v for name, v in fields.items() if v is not None}


def _check(told: Mapping[str, Any]) -> None:
    """Refuses values out of range; files hold values of any type."""
    for name, options in (
        ("loss", LOSSES),
        ("dynamics", get_args(Dynamics)),
        ("optimizer", get_args(Rule)),
    ):
        if name in told:
            _checks.one_of(options, **{name: told[name]})
    for name in ("num_images", "batch_size", "epochs"):
        if name in told:
            _whole(name, told[name])
    for name in ("learning_rate", "weight_decay"):
        is_number = isinstance(told.get(name, 0), int | float | np.number)
        if not is_number:
            raise ValueError(f"{name}={told[name]!r} must be one number.")
    if "learning_rate" in told:
        _checks.positive(learning_rate=told["learning_rate"])
    if "weight_decay" in told:
        _checks.at_least(0, weight_decay=told["weight_decay"])
    if "labels" in told:
        _rows(told["labels"])


def _whole(name: str, value: Any) -> None:
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_whole or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number, at least 1.")


def _rows(labels: Any) -> np.ndarray:
    """Returns values of labels as rows, (k, c)."""
    try:
        rows = np.asarray(labels, np.float32)
    except (TypeError, ValueError):  # text, or rows of several lengths
        rows = np.zeros(0)
    rows = rows[:, None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or not rows.size or not np.all(np.isfinite(rows)):
        raise ValueError(
            f"labels={labels!r} must be the values that labels take, such as [-1, 1], "
            "or one row per class, such as [[1, 0], [0, 1]]."
        )
    return rows


def read(
    source: KnownTraining | Mapping[str, Any] | str | pathlib.PurePath,
) -> KnownTraining:
    """Returns what a recipe tells.

    Args:
      source: a .json or .toml file, or values by name.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a file that is not read, a key that there is not, a value out of
        range; each in one sentence.

    Example:
      >>> from ntk_privacy.auditing import recipes
      >>> recipes.read({"loss": "cross_entropy", "epochs": 20}).told()
      {'loss': 'cross_entropy', 'epochs': 20}
    """
    if isinstance(source, KnownTraining):
        return source
    name = "recipe"
    if isinstance(source, str | pathlib.PurePath):
        name, values = f"recipe {source}", _parsed(pathlib.Path(source))
    else:
        values = source
    is_named = isinstance(values, Mapping)
    if not is_named:
        raise ValueError(
            f"{name} must hold values by name, such as loss and optimizer: it is a "
            f"{type(values).__name__}."
        )
    known = [field.name for field in dataclasses.fields(KnownTraining)]
    for key in values:
        if key not in known:
            raise ValueError(f"{name}: key {key!r} is {_checks.unknown(key, known)}")
    told = {key: value for key, value in values.items() if value is not None}
    try:
        _check(told)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return KnownTraining(**told)


def _parsed(path: pathlib.Path) -> Any:
    if path.suffix not in (".json", ".toml"):
        raise ValueError(f"recipe {path} must be a .json or a .toml file.")
    if not path.is_file():
        raise FileNotFoundError(f"recipe {path}: there is no such file.")
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"recipe {path} is larger than {_MOST_BYTES} bytes.")
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        told = " ".join(str(error).split()) or "it is nested too deep"
        kind = path.suffix[1:].upper()
        raise ValueError(f"recipe {path} is no {kind}: {told.rstrip('.')}.") from None


def unused(training: KnownTraining, evidence: Evidence) -> tuple[str, ...]:
    """Returns what is told and not used by the attacks on this evidence, in sentences.

    Args:
      training: as it is told.
      evidence: with the weights before training, where their seed was found.

    Example:
      >>> from ntk_privacy.auditing import recipes
      >>> from ntk_privacy.models import MLP
      >>> from ntk_privacy.reconstruction import Evidence
      >>> net = MLP((2,))
      >>> known = Evidence(network=net, params_t={}, image_shape=(2, 2, 1))
      >>> recipes.unused(recipes.KnownTraining(epochs=5), known)
      ('recipe: epochs=5 is not used: a max-margin search takes the loss and N alone.',)
    """
    told = training.told()
    for name in ("num_images", "optimizer"):
        if not (name == "optimizer" and evidence.is_gradient):
            told.pop(name, None)
    if evidence.is_gradient:
        return _together(
            told, "one gradient is read, of any loss, whatever steps are made of it"
        )
    if evidence.is_adapter:
        return _together(
            told, "an adapter's factors are read after steps of any size on any loss"
        )
    if evidence.params_0 is None:
        told.pop("loss", None)
        return _together(told, "a max-margin search takes the loss and N alone")
    told.pop("dynamics", None)
    notes = []
    replays = (
        isinstance(evidence.network, MLP)
        and evidence.dynamics == "standard"
        and evidence.objective == "mse"
    )
    if replays:
        told.pop("labels", None)
        told.pop("loss", None)
    else:
        names = {n: told.pop(n) for n in ("loss", "labels") if n in told}
        notes += _together(
            names,
            "closed units and decoding take any loss; replays, which alone take it and "
            "labels, are of an MLP on squared loss",
        )
    for name, why in _WHY.items():
        if name in told:
            notes += _together({name: told.pop(name)}, why)
    notes += _together(told, "attacks take steps of any size and number")
    return tuple(notes)


_WHY = {
    "batch_size": "closed units and decoding take batches of any size, and a replay "
    "takes all images at every step",
    "weight_decay": "closed units recognise decay by the weights, and decoding and "
    "searches assume none",
}


def _together(told: Mapping[str, Any], why: str) -> tuple[str, ...]:
    if not told:
        return ()
    values = ", ".join(f"{name}={value}" for name, value in told.items())
    are = "is" if len(told) == 1 else "are"
    return (f"recipe: {values} {are} not used: {why}.",)
