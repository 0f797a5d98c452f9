"""For `_defence` until it attacks by the library itself; then this file goes."""

from typing import Any

import jax

from experiments import _attacked, _progress
from experiments._victim import Config
from experiments._workdir import Workdir
from ntk_privacy import data
from ntk_privacy.reconstruction import METHODS, Reconstruction, evidence, result
from ntk_privacy.resume import Timer
from ntk_privacy.training.victim import Victim

entries = result.figures


def run(
    config: Config,
    workdir: Workdir,
    dataset: data.Dataset,
    victim: Victim,
    timer: Timer,
) -> Reconstruction:
    """Attacks the victim, from the last checkpoint; its words name flags."""
    method, count = METHODS[config.method], 2 * config.num_images
    given: dict[str, Any] = {"num_candidates": count}
    given |= {} if config.num_steps is None else {"num_steps": config.num_steps}
    found = method.run(
        evidence.told(victim, dataset),
        method.configured(**given),
        key=jax.random.fold_in(jax.random.key(1), config.seed),
        stage=_progress.stage(config, workdir.checkpoint_folder, timer),
    )
    return _attacked.in_words_of_flags(found)
