"""A data set under attacks in turn: resumable, and what is told and kept of it."""

import dataclasses
import time
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from ntk_privacy import _checks, sharding
from ntk_privacy._types import Callback
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.evaluation import attacked_batches, named_attacks, robust_accuracy
from ntk_privacy.evaluation.evasion_budget import Budget
from ntk_privacy.evaluation.robust_accuracy import (
    RobustAccuracy,
    RobustnessWarning,
    RobustState,
)
from ntk_privacy.evasion import METHODS, LogitsFn, ThreatModel
from ntk_privacy.evasion import task as tasks
from ntk_privacy.evasion import threat_model as threat_models
from ntk_privacy.method import field
from ntk_privacy.resume import Stage, straight

__all__ = [
    "Attacked",
    "Config",
    "arrays",
    "attack",
    "figures",
    "probe",
    "refuse_another",
    "same",
    "shown",
]

_SHOWN = 10
_PROBED = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Budget):
    """Attacks."""

    attacks: tuple[str, ...] = field(
        ("pgd", "apgd_ce", "square", "autoattack"),
        "In turn, of " + ", ".join(METHODS) + ".",
    )
    norm: Literal["linf", "l2"] = field("linf", "Of the change.")
    batch_size: int = field(256, "Images of a batch.")
    survivors_only: bool = field(
        True,
        "Each attack gets what those before it left; else all images that are read "
        "rightly, to compare attacks.",
    )
    attack_steps: int | None = field(
        None,
        "Of every attack by steps; none is each one's own.",
        former=("num_steps",),
    )

    def __post_init__(self):
        super().__post_init__()
        _checks.named(attacks=self.attacks)
        _checks.at_least(1, batch_size=self.batch_size)
        # Unknown and repeated names, before anything is loaded.
        self.stages(1000)

    def passed_over(self) -> dict[str, str]:
        """Returns flags that are not read, each with the choice that makes it so."""
        read = {
            entry.name
            for name in self.attacks
            for entry in dataclasses.fields(METHODS[name].config)
        }
        why = f"--attacks={','.join(self.attacks)}"
        named = {"attack_steps": "num_steps", "num_queries": "num_queries"}
        return {flag: why for flag, name in named.items() if name not in read}

    @property
    def threat_model(self) -> ThreatModel:
        """What the attacker may do; a ValueError if eps is no bound."""
        return threat_models.of_text(self.eps, self.norm)

    def stages(self, num_classes: int) -> list[named_attacks.Stage]:
        """Returns the stages for a model of so many classes.

        Raises:
          ValueError: see `named_attacks.plan`.
        """
        return named_attacks.plan(
            self.attacks,
            threat_model=self.threat_model,
            num_classes=num_classes,
            num_steps=self.attack_steps,
            num_queries=self.num_queries,
        )[0]


class Attacked(NamedTuple):
    """found: of the evaluation. seconds: of each attack. probe: see `probe`."""

    found: RobustAccuracy
    seconds: dict[str, float]
    probe: Float[np.ndarray, "p k"]


def probe(
    logits_fn: LogitsFn, x: Float[Array | np.ndarray, "n h w c"], *, key: Array
) -> Float[np.ndarray, "p k"]:
    """Returns logits of the first images, by which a model is known again.

    Args:
      logits_fn: the model.
      x: images.
      key: typed key, for a random model.
    """
    few = jnp.asarray(x[:_PROBED])
    if tasks.takes_key(logits_fn):
        return np.asarray(logits_fn(few, key=key))
    return np.asarray(logits_fn(few))


def same(one: Shaped[np.ndarray, "..."], other: Shaped[np.ndarray, "..."]) -> bool:
    """Whether two probes are of one model, but for rounding.

    Args:
      one: of `probe`.
      other: of `probe`, perhaps of another model.
    """
    return one.shape == other.shape and np.allclose(one, other, rtol=1e-3, atol=1e-4)


def refuse_another(
    logits_fn: LogitsFn,
    images: ImageSet,
    known: Float[np.ndarray, "p k"],
    *,
    key: Array,
) -> None:
    """Raises ValueError unless a model is that of results.

    Args:
      logits_fn: the model.
      images: whose test images were attacked.
      known: the probe of the results.
      key: typed key, that of the attacks.

    Raises:
      ValueError: the model answers otherwise than the results' did.
    """
    if not same(known, probe(logits_fn, images.x_test, key=key)):
        raise ValueError(
            "The model is not that of the results: give the model as it was, or "
            "another folder."
        )


def attack(
    logits_fn: LogitsFn,
    x: Float[Array | np.ndarray, "n h w c"],
    y: Int[Array | np.ndarray, " n"],
    config: Config,
    *,
    key: Array,
    stage: Stage = straight,
    clock: Callable[[], float] = time.perf_counter,
) -> Attacked:
    """Attacks a data set on all devices; see `robust_accuracy`.

    Its warnings are in the result alone.

    Args:
      logits_fn: the model.
      x: images in [0, 1].
      y: labels.
      config: of the attacks.
      key: typed key.
      stage: runs the evaluation.
      clock: tells seconds.

    Raises:
      ValueError: another model than that of the checkpoint, or one that returns NaN.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from ntk_privacy import data
      >>> from ntk_privacy.evaluation import attacked_set
      >>> digits = data.load_set("digits").subset(num_test=20)
      >>> weights = jax.random.normal(jax.random.key(0), (64, 10), jnp.float32)
      >>> logits_fn = lambda x: x.reshape(len(x), 64) @ weights
      >>> labels = logits_fn(digits.x_test).argmax(axis=1)
      >>> config = attacked_set.Config(attacks=("pgd",), eps="0.3")
      >>> found = attacked_set.attack(
      ...     logits_fn, digits.x_test, labels, config, key=jax.random.key(1)
      ... )
      >>> attacked_set.figures(found, config)["accuracy"]
      {'clean': 1.0, 'pgd': 0.0, 'ensemble': 0.0}
    """
    n = len(x)
    size = min(config.batch_size, n)
    classes = attacked_batches.num_classes_of(logits_fn, (size, *x.shape[1:]))
    stages = config.stages(classes)
    known, seconds = probe(logits_fn, x, key=key), np.zeros(len(stages))
    start = {
        "state": robust_accuracy.init(x, stages=stages),
        "seconds": seconds,
        "probe": known,
    }

    def go(
        start: dict[str, Any], done: int, callback: Callback
    ) -> tuple[RobustAccuracy, np.ndarray]:
        if done and not same(np.asarray(start["probe"]), known):
            raise ValueError(
                "The model is not that of the checkpoint: give the model as it was, or "
                "another folder."
            )
        seconds, last = np.array(start["seconds"]), clock()

        def watch(done, state, metrics):
            nonlocal last
            now = clock()
            seconds[metrics["index"]] += now - last
            last = now
            entry = {"state": state, "seconds": seconds, "probe": known}
            return callback(done, entry, metrics)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RobustnessWarning)
            found = robust_accuracy.robust_accuracy(
                logits_fn,
                x,
                np.asarray(y, np.int32),
                key=key,
                attacks=config.attacks,
                threat_model=config.threat_model,
                batch_size=config.batch_size,
                survivors_only=config.survivors_only,
                num_steps=config.attack_steps,
                num_queries=config.num_queries,
                mesh=sharding.all_devices(),
                state=RobustState(*(np.array(part) for part in start["state"]))
                if done
                else None,
                callback=watch,
            )
        return found, seconds

    found, seconds = stage("evade", start, go, len(stages) * n).result
    by_name = dict.fromkeys(config.attacks, 0.0)
    for each, spent in zip(stages, seconds, strict=True):
        by_name[each.name] += float(spent)
    return Attacked(found, by_name, known)


def figures(attacked: Attacked, config: Config) -> dict[str, Any]:
    """Returns the figures of an evaluation, and what the names of attacks stand for.

    Args:
      attacked: of `attack`.
      config: of the attacks.
    """
    numbers = {"num_steps": config.attack_steps, "num_queries": config.num_queries}
    found = attacked.found
    spent = {
        name: float(values[values > 0].mean()) if (values > 0).any() else 0.0
        for name, values in found.queries.items()
    }
    nearest = {
        name: None if np.isnan(values).all() else float(np.nanmedian(values))
        for name, values in found.distance.items()
    }
    return {
        "num_images": len(found.correct),
        "eps": config.threat_model.eps,
        "norm": config.norm,
        "accuracy": {
            "clean": found.clean,
            **found.accuracy,
            "ensemble": found.ensemble,
        },
        "names": found.names,
        "left": found.left,
        "queries": spent,
        "median_distance": nearest,
        "warnings": list(found.warnings),
        "seconds": {"attacks": attacked.seconds},
        "settings": {
            name: named_attacks.settings(name, **numbers) for name in config.attacks
        },
    }


def shown(found: RobustAccuracy) -> Int[np.ndarray, " k"]:
    """Returns up to ten broken images, evenly chosen; others if none is broken.

    Args:
      found: of the evaluation.
    """
    rows = np.flatnonzero(np.array(found.found_by) != "")
    rows = rows if len(rows) else np.arange(len(found.correct))
    places = np.linspace(0, len(rows) - 1, min(_SHOWN, len(rows))).round().astype(int)
    return rows[places]


def arrays(images: ImageSet, attacked: Attacked) -> dict[str, np.ndarray]:
    """Returns what is kept: who survived what, and the images shown.

    Args:
      images: whose test images were attacked.
      attacked: of `attack`.
    """
    found, rows = attacked.found, shown(attacked.found)
    return {
        "labels": images.class_test,
        "correct": found.correct,
        "shown": rows,
        "clean": images.x_test[rows],
        "attacked": found.images[rows],
        "found_by": np.array(found.found_by, dtype=np.str_),
        "probe": attacked.probe,
        **{f"survived_{name}": kept for name, kept in found.survived.items()},
        **{f"distance_{name}": far for name, far in found.distance.items()},
    }
