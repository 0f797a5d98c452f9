"""Flags to an attack of the library, and its result to results.json and arrays.npz."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _progress
from experiments._workdir import Workdir
from ntk_privacy import data
from ntk_privacy.reconstruction import METHODS, Reconstruction, evidence, kkt
from ntk_privacy.resume import Timer
from ntk_privacy.training.victim import Victim


def method_config(config: Any) -> Any:
    """Returns the config of the method that the flags name: preset, then flags.

    Raises:
      ValueError: a number out of range, or points for linearized dynamics.
    """
    method = METHODS[config.method]
    names = {entry.name for entry in dataclasses.fields(method.config)}
    given = {name: getattr(config, name, None) for name in names}
    if "num_candidates" in names and given["num_candidates"] is None:
        given["num_candidates"] = 2 * (config.known_num_images or config.num_images)
    given = {name: value for name, value in given.items() if value is not None}
    preset = config.preset if config.preset in method.presets else None
    made = method.configured(preset, **given)
    if "points" in names:
        kkt.plan(kkt.Config(points=made.points), config.dynamics)
    return made


def known(config: Any, dataset: data.Dataset, victim: Victim) -> evidence.Evidence:
    """Returns what the attacker of a victim is told."""
    auxiliary = None
    if config.auxiliary == "test_images":
        auxiliary = jnp.asarray(dataset.x_test[:2000], jnp.dtype(config.precision))
    return evidence.of(
        victim,
        bounds=dataset.bounds,
        num_images=config.known_num_images,
        labels=dataset.y_train,
        auxiliary=auxiliary,
    )


def run(
    config: Any,
    workdir: Workdir,
    dataset: data.Dataset,
    victim: Victim,
    timer: Timer,
) -> Reconstruction:
    """Attacks the victim, from the last checkpoint; its words name flags.

    Args:
      config: of `experiments.reconstruct`.
      workdir: keeps the checkpoints.
      dataset: that the victim was trained on.
      victim: from `_victim.make`.
      timer: of the attack.
    """
    found = METHODS[config.method].run(
        known(config, dataset, victim),
        method_config(config),
        key=jax.random.fold_in(jax.random.key(1), config.seed),
        stage=_progress.stage(config, workdir.checkpoint_folder, timer),
    )
    verdict = found.verdict
    return found._replace(
        message=in_flags(found.message),
        verdict=verdict._replace(reason=in_flags(verdict.reason)),
    )


def in_flags(message: str) -> str:
    """Names flags where a message of the library names arguments and functions."""
    told = message.replace("reconstruction.kkt.reconstruct", "--method=kkt")
    return re.sub(r"(?<![-_\w])num_images", "--known_num_images", told)


def entries(found: Reconstruction) -> dict[str, Any]:
    """Returns what results.json says of the method's own figures."""
    out: dict[str, Any] = {
        "sources": found.sources,
        "replay_misses": found.replay_misses,
    }
    if found.contributions is not None:
        out |= {"nonfinite": found.nonfinite, "contributions": found.contributions}
    if found.message:
        out |= {
            "estimated_num_images": found.estimated_num_images,
            "num_certified": int(np.sum(found.certified)),
            "certified": found.certified,
            "message": found.message,
        }
    if found.decoded is not None:
        out |= {
            name: getattr(found.decoded, name)
            for name in ("rank_gap", "residuals", "errors")
        }
    return out


def arrays(config: Any, found: Reconstruction) -> dict[str, np.ndarray]:
    """Returns what arrays.npz holds of a decoding."""
    if found.decoded is None:
        return {}
    if config.method == "auto":
        return {"decoded": np.asarray(found.decoded.images)}
    return {
        name: np.asarray(getattr(found.decoded, name))
        for name in ("activations", "gates")
    }
