"""The attacks behind `experiments.reconstruct --method=...`, resumable."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments._progress import Progress
from experiments._timing import Timer
from experiments._victim import Every, Victim
from experiments._workdir import Workdir
from ntk_privacy import checkpoint
from ntk_privacy.reconstruction import kkt


class Attacked(NamedTuple):
    """images: reconstructions. duals: their multipliers, (q, m, c). losses: of the
    search, one per step. extra: further entries of results.json.
    """  # noqa: D205

    images: np.ndarray
    duals: np.ndarray
    losses: np.ndarray
    extra: dict[str, Any]


def kkt_settings(config: Any) -> tuple[kkt.Settings, Any]:
    """Returns the search's settings and points: the preset, then what flags override.

    Raises:
      ValueError: a number out of range.
    """
    if config.preset == "paper":
        settings, points = kkt.PAPER, "final"
    elif config.dynamics == "standard":
        settings, points = kkt.STANDARD, "both"
    else:
        settings, points = kkt.FAST, "init"
    given = {
        "num_steps": config.num_steps,
        "learning_rate": config.learning_rate,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if config.points is not None:
        points = kkt.parse_points(config.points)
    if config.dynamics == "linearized":
        # The gradients of a linearized network are those at theta_0, everywhere.
        points = "init"
    return dataclasses.replace(settings, **given), points


def run_kkt(config: Any, workdir: Workdir, victim: Victim, timer: Timer) -> Attacked:
    """Runs the KKT attack, from its last checkpoint if there is one."""
    settings, points = kkt_settings(config)
    dtype = jnp.dtype(config.precision)
    shape = victim.dataset.x_train.shape[1:]
    folder = workdir.checkpoint_folder / "attack"
    common = {
        "key": jax.random.fold_in(jax.random.key(1), config.seed),
        "image_shape": shape,
        "num_images": config.num_candidates or 2 * config.num_images,
        "bounds": victim.dataset.bounds,
        "points": points,
        "settings": settings,
    }
    losses = np.zeros(settings.num_steps, dtype)
    attack = kkt.prepare(victim.model, victim.params_0, victim.params_t, **common)
    seconds = np.zeros(2)
    state, first = attack.state, checkpoint.latest_step(folder) or 0
    if first:
        like = {"state": state, "losses": losses, "seconds": seconds}
        stored = checkpoint.restore(folder, first, like)
        state, losses = stored["state"], np.array(stored["losses"])
        seconds = np.asarray(stored["seconds"])
        timer.run, timer.compile = timer.run + seconds[0], timer.compile + seconds[1]
    every = Every(config.checkpoint_seconds)
    with (
        timer(),
        Progress(
            settings.num_steps,
            description="attack",
            first_step=first,
            show=config.progress,
        ) as bar,
    ):

        def callback(step, state, metrics):
            chunk = np.asarray(metrics["loss"])
            losses[step - len(chunk) : step] = chunk
            bar(step, state, metrics)
            if every():
                spent = np.asarray([timer.elapsed(), timer.compile])
                checkpoint.save(
                    folder, step, {"state": state, "losses": losses, "seconds": spent}
                )

        result = kkt.run(
            attack._replace(state=state), first_step=first, chunk=50, callback=callback
        )
    return Attacked(
        images=np.asarray(result.images),
        duals=np.asarray(result.duals),
        losses=losses,
        extra={"nonfinite": result.nonfinite},
    )
