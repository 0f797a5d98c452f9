"""The attacks behind `experiments.reconstruct --method=...`, resumable."""

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _progress
from experiments._victim import Victim
from experiments._workdir import Workdir
from ntk_privacy.reconstruction import algebraic, judging, kkt
from ntk_privacy.reconstruction.verdict import Verdict
from ntk_privacy.resume import Timer


class Attacked(NamedTuple):
    """images: reconstructions. duals: their multipliers, (q, m, c). losses: of the
    search, one per step. extra: further entries of results.json. arrays: further
    entries of arrays.npz. verdict: what the attack says of them.
    """  # noqa: D205

    images: np.ndarray
    duals: np.ndarray
    losses: np.ndarray
    extra: dict[str, Any]
    arrays: dict[str, np.ndarray]
    verdict: Verdict


class UndecodableError(ValueError):
    """The network is not one that decoding takes."""


def in_flags(message: str) -> str:
    """Names flags where a message of the library names arguments and functions."""
    told = message.replace("reconstruction.kkt.reconstruct", "--method=kkt")
    return re.sub(r"(?<![-_\w])num_images", "--known_num_images", told)


def kkt_settings(config: Any) -> tuple[kkt.Settings, Any]:
    """Returns the search's settings and points: the preset, then what flags override.

    Raises:
      ValueError: a number out of range, or points for linearized dynamics.
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
    if config.dynamics == "linearized":
        # The gradients of a linearized network are those at theta_0, everywhere.
        if config.points not in (None, "init"):
            raise ValueError(
                f"points={config.points!r}: the gradients of a linearized network are "
                "those at initialisation; leave the flag out."
            )
        points = "init"
    elif config.points is not None:
        points = config.points
    return dataclasses.replace(settings, **given), kkt.parse_points(points)


def common(config: Any, victim: Victim) -> dict[str, Any]:
    """Returns the arguments that all attacks take."""
    return {
        "key": jax.random.fold_in(jax.random.key(1), config.seed),
        "image_shape": victim.dataset.x_train.shape[1:],
        "bounds": victim.dataset.bounds,
    }


def search(
    config: Any,
    workdir: Workdir,
    name: str,
    attack: Any,
    run: Callable[..., Any],
    num_steps: int,
    timer: Timer,
) -> tuple[Any, np.ndarray]:
    """Runs one search from its last checkpoint; returns its result and all losses.

    Args:
      config: gives precision, progress and the time between checkpoints.
      workdir: holds the checkpoints.
      name: of the checkpoint folder and the progress bar.
      attack: made ready; its `state` is what a checkpoint holds.
      run: `(attack, first_step, callback) -> result`.
      num_steps: in all.
      timer: of the attack.
    """

    def go(state, done, callback):
        return run(attack._replace(state=state), done, callback)

    stage = _progress.stage(config, workdir.checkpoint_folder, timer)
    ran = stage(name, attack.state, go, num_steps)
    # NaN where a search that was lost did not get.
    return ran.result, ran.losses.astype(config.precision)


def run_search(
    config: Any, workdir: Workdir, name: str, attack: kkt.Attack, timer: Timer
) -> tuple[kkt.Reconstruction, np.ndarray]:
    result, losses = search(
        config,
        workdir,
        name,
        attack,
        lambda ready, first, callback: kkt.run(
            ready, first_step=first, chunk=50, callback=callback
        ),
        attack.step.settings.num_steps,
        timer,
    )
    if not np.isfinite(losses).all():
        # Lost in an earlier start of this run, perhaps.
        result = result._replace(verdict=judging.of_search(None))
    return result, losses


def num_candidates(config: Any) -> int:
    """Returns how many images a search looks for: twice as many as there are."""
    return config.num_candidates or 2 * (config.known_num_images or config.num_images)


def run_kkt(config: Any, workdir: Workdir, victim: Victim, timer: Timer) -> Attacked:
    """Searches for twice as many images as there are, from noise."""
    settings, points = kkt_settings(config)
    attack = kkt.prepare(
        victim.model,
        victim.params_0,
        victim.params_t,
        num_images=num_candidates(config),
        points=points,
        settings=settings,
        **common(config, victim),
    )
    result, losses = run_search(config, workdir, "attack", attack, timer)
    return Attacked(
        images=np.asarray(result.images),
        duals=np.asarray(result.duals),
        losses=losses,
        extra={
            "nonfinite": not bool(np.isfinite(losses).all()),
            "contributions": result.contributions,
        },
        arrays={},
        verdict=result.verdict,
    )


def decode(config: Any, workdir: Workdir, victim: Victim, timer: Timer):
    """Decodes, or reads back what an earlier start of this run decoded."""
    path = workdir.checkpoint_folder / "decoded.npz"
    name = str(path.relative_to(workdir.folder))
    if path.exists():
        stored = workdir.read_arrays(name)
        timer.run, timer.compile = map(float, stored.pop("seconds"))
        return _plain(stored)
    auxiliary = None
    if config.auxiliary == "test_images":
        auxiliary = jnp.asarray(
            victim.dataset.x_test[:2000], jnp.dtype(config.precision)
        )
    given = common(config, victim)
    given.pop("bounds")
    with timer():
        try:
            decoded = algebraic.reconstruct(
                victim.params_0,
                victim.params_t,
                auxiliary=auxiliary,
                num_images=config.known_num_images,
                **given,
            )
        except ValueError as error:
            raise UndecodableError(in_flags(str(error))) from error
        verdict = decoded.verdict
        verdict = verdict._replace(reason=in_flags(verdict.reason))
        fields = decoded._asdict() | {"verdict": json.dumps(verdict._asdict())}
        decoded = {k: np.asarray(v) for k, v in fields.items() if v is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    workdir.write_arrays(
        name, seconds=np.asarray([timer.run, timer.compile]), **decoded
    )
    return _plain(decoded)


def _plain(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    decoded = {k: v.item() if v.ndim == 0 else v for k, v in arrays.items()}
    decoded.setdefault("estimated_num_images", None)
    return {**decoded, "verdict": Verdict(**json.loads(decoded["verdict"]))}


def told(decoded: dict[str, Any]) -> dict[str, Any]:
    """What results.json says of a decoding."""
    return {
        "estimated_num_images": decoded.get("estimated_num_images"),
        "rank_gap": decoded["rank_gap"],
        "num_certified": int(np.sum(decoded["certified"])),
        "certified": decoded["certified"],
        "residuals": decoded["residuals"],
        "errors": decoded["errors"],
        "message": in_flags(decoded["message"]),
    }


def run_algebraic(
    config: Any, workdir: Workdir, victim: Victim, timer: Timer
) -> Attacked:
    """Decodes the gates; no search. Nothing decoded is a result."""
    try:
        decoded = decode(config, workdir, victim, timer)
    except UndecodableError as error:
        return _undecoded(victim, str(error))
    return Attacked(
        images=decoded["images"],
        duals=decoded["duals"][None],
        losses=np.zeros(0),
        extra=told(decoded),
        arrays={name: decoded[name] for name in ("activations", "gates")},
        verdict=decoded["verdict"],
    )


def _undecoded(victim: Victim, reason: str) -> Attacked:
    """Returns no image, and why."""
    outputs = victim.dataset.y_train.shape[1]
    return Attacked(
        images=np.zeros((0, *victim.dataset.x_train.shape[1:])),
        duals=np.zeros((1, 0, outputs)),
        losses=np.zeros(0),
        extra={
            "estimated_num_images": None,
            "num_certified": 0,
            "certified": [],
            "message": f"not decoded ({reason})",
        },
        arrays={},
        verdict=Verdict("nothing found", reason),
    )
