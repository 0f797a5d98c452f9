"""The attacks behind `experiments.reconstruct --method=...`, resumable."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments._progress import Progress
from experiments._timing import Timer
from experiments._victim import Every, Victim
from experiments._workdir import Workdir
from ntk_privacy import checkpoint
from ntk_privacy.reconstruction import algebraic, kkt, replay

REPLAY_POINTS = 8
"""Points of a replayed training at which features are taken."""

MAX_REPLAY_MISS = 0.3
"""Of a replay that is followed: the line from theta_0 to theta_T is no farther off."""

# Above this ratio of singular values the rank is beyond doubt: the change is a sum of
# one outer product per image, as linearized dynamics leave it.
_LINEAR_GAP = 100.0


class Attacked(NamedTuple):
    """images: reconstructions. duals: their multipliers, (q, m, c). losses: of the
    search, one per step. extra: further entries of results.json. arrays: further
    entries of arrays.npz.
    """  # noqa: D205

    images: np.ndarray
    duals: np.ndarray
    losses: np.ndarray
    extra: dict[str, Any]
    arrays: dict[str, np.ndarray]


class UndecodableError(ValueError):
    """The network is not one that decoding takes."""


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


def _common(config: Any, victim: Victim) -> dict[str, Any]:
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
    folder = workdir.checkpoint_folder / name
    # NaN where a search that was lost did not get.
    losses = np.full(num_steps, np.nan, np.dtype(config.precision))
    first = checkpoint.latest_step(folder) or 0
    if first:
        like = {"state": attack.state, "losses": losses, "seconds": np.zeros(2)}
        stored = checkpoint.restore(folder, first, like)
        attack = attack._replace(state=stored["state"])
        losses = np.array(stored["losses"])
        timer.run, timer.compile = map(float, stored["seconds"])
        # The search ends at a chunk whose last loss is not finite; so does its rerun.
        if not np.isfinite(losses[first - 1]):
            first = num_steps
    every = Every(config.checkpoint_seconds)
    with (
        timer(),
        Progress(
            num_steps, description=name, first_step=first, show=config.progress
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

        result = run(attack, first, callback)
        jax.block_until_ready(result.images)
    return result, losses


def _search(
    config: Any, workdir: Workdir, name: str, attack: kkt.Attack, timer: Timer
) -> tuple[kkt.Reconstruction, np.ndarray]:
    return search(
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


def run_kkt(config: Any, workdir: Workdir, victim: Victim, timer: Timer) -> Attacked:
    """Searches for twice as many images as there are, from noise."""
    settings, points = kkt_settings(config)
    attack = kkt.prepare(
        victim.model,
        victim.params_0,
        victim.params_t,
        num_images=config.num_candidates or 2 * config.num_images,
        points=points,
        settings=settings,
        **_common(config, victim),
    )
    result, losses = _search(config, workdir, "attack", attack, timer)
    return Attacked(
        images=np.asarray(result.images),
        duals=np.asarray(result.duals),
        losses=losses,
        extra={"nonfinite": not bool(np.isfinite(losses).all())},
        arrays={},
    )


def _decode(config: Any, workdir: Workdir, victim: Victim, timer: Timer):
    """Decodes, or reads back what an earlier start of this run decoded."""
    path = workdir.checkpoint_folder / "decoded.npz"
    name = str(path.relative_to(workdir.folder))
    if path.exists():
        stored = workdir.read_arrays(name)
        timer.run, timer.compile = map(float, stored.pop("seconds"))
        return {k: v.item() if v.ndim == 0 else v for k, v in stored.items()}
    auxiliary = None
    if config.auxiliary == "test_images":
        auxiliary = jnp.asarray(
            victim.dataset.x_test[:2000], jnp.dtype(config.precision)
        )
    common = _common(config, victim)
    common.pop("bounds")
    with timer():
        try:
            decoded = algebraic.reconstruct(
                victim.params_0, victim.params_t, auxiliary=auxiliary, **common
            )
        except ValueError as error:
            raise UndecodableError(str(error)) from error
        decoded = {k: np.asarray(v) for k, v in decoded._asdict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    workdir.write_arrays(
        name, seconds=np.asarray([timer.run, timer.compile]), **decoded
    )
    return {k: v.item() if v.ndim == 0 else v for k, v in decoded.items()}


def _told(decoded: dict[str, Any]) -> dict[str, Any]:
    """What results.json says of a decoding."""
    return {
        "estimated_num_images": decoded["estimated_num_images"],
        "rank_gap": decoded["rank_gap"],
        "num_certified": int(np.sum(decoded["certified"])),
        "certified": decoded["certified"],
        "residuals": decoded["residuals"],
        "message": decoded["message"],
    }


def run_algebraic(
    config: Any, workdir: Workdir, victim: Victim, timer: Timer
) -> Attacked:
    """Decodes the gates; no search."""
    decoded = _decode(config, workdir, victim, timer)
    return Attacked(
        images=decoded["images"],
        duals=decoded["duals"][None],
        losses=np.zeros(0),
        extra=_told(decoded),
        arrays={name: decoded[name] for name in ("activations", "gates")},
    )


def _searched_only(
    found: Attacked, message: str, estimate: int | None = None
) -> Attacked:
    """Says that decoding was no help."""
    return found._replace(
        extra={
            **found.extra,
            "estimated_num_images": estimate,
            "num_certified": 0,
            "certified": [False] * len(found.images),
            "sources": ["kkt"] * len(found.images),
            "message": message,
        }
    )


def _labels(victim: Victim, images: np.ndarray) -> jax.Array:
    """Returns the labels nearest to what the trained network makes of images."""
    outputs = np.asarray(victim.model.apply_fn(victim.params_t, jnp.asarray(images)))
    codes = np.unique(victim.dataset.y_train, axis=0).astype(outputs.dtype)
    distances = np.sum((outputs[:, None] - codes[None]) ** 2, axis=-1)
    return jnp.asarray(codes[distances.argmin(1)])


def _replayed(
    config: Any,
    workdir: Workdir,
    victim: Victim,
    timer: Timer,
    result: kkt.Reconstruction,
    losses: np.ndarray,
) -> tuple[kkt.Reconstruction, np.ndarray, list[float]]:
    """Polishes along the training that the images explain, `config.replays` times."""
    misses = []
    for i in range(config.replays):
        images = np.asarray(result.images)
        with timer():
            path = replay.replay(
                victim.model,
                victim.params_0,
                victim.params_t,
                jnp.asarray(images),
                _labels(victim, images),
                num_points=REPLAY_POINTS,
            )
        misses.append(path.miss)
        if path.miss > MAX_REPLAY_MISS:
            break
        q = len(path.features)
        attack = kkt.prepare(
            victim.model,
            victim.params_0,
            victim.params_t,
            num_images=len(images),
            features=path.features,
            settings=kkt.REPLAYED,
            initial_images=images,
            initial_duals=np.repeat(
                np.asarray(result.duals).sum(0)[None] / q, q, axis=0
            ),
            **_common(config, victim),
        )
        result, losses = _search(config, workdir, f"replay_{i + 1}", attack, timer)
    return result, losses, misses


def run_auto(config: Any, workdir: Workdir, victim: Victim, timer: Timer) -> Attacked:
    """Decodes, searches for what is missing, polishes where dynamics are not linear."""
    try:
        decoded = _decode(config, workdir, victim, timer)
    except UndecodableError as error:
        return _searched_only(
            run_kkt(config, workdir, victim, timer), f"not decoded ({error})"
        )
    settings, points = kkt_settings(config)
    linear = decoded["rank_gap"] > _LINEAR_GAP
    if not linear and np.mean(decoded["certified"]) < 0.5:
        # What moving features made of most rows is worse than noise to start from.
        return _searched_only(
            run_kkt(config, workdir, victim, timer),
            f"searched from noise: of the decoding, {decoded['message']}",
            decoded["estimated_num_images"],
        )
    # Uncertified images of linear dynamics may be anything: the search replaces them.
    keep = decoded["certified"] if linear else np.ones(len(decoded["images"]), bool)
    images, duals = decoded["images"][keep], decoded["duals"][keep]
    certified, sources = decoded["certified"][keep], ["decoded"] * len(images)
    duals = np.repeat(duals[None] / len(points), len(points), axis=0)
    losses = np.zeros(0)
    missing, misses = decoded["estimated_num_images"] - len(images), []
    common = {**_common(config, victim), "points": points}
    network = (victim.model, victim.params_0, victim.params_t)
    if missing > 0:
        extra = 2 * missing
        start = kkt.prepare(*network, num_images=extra, settings=settings, **common)
        noise = start.step.pixels(start.state.latents, start.problem)
        start = kkt.prepare(
            *network,
            num_images=len(images) + extra,
            settings=settings,
            initial_images=np.concatenate(
                [images, np.asarray(noise).reshape(extra, *images.shape[1:])]
            ),
            initial_duals=np.concatenate(
                [duals, np.zeros((len(points), extra, duals.shape[2]))], axis=1
            ),
            movable=np.arange(len(images) + extra) >= len(images),
            **common,
        )
        result, losses = _search(config, workdir, "fill", start, timer)
        # Held images stay as decoded, to the bit.
        images = np.concatenate([images, np.asarray(result.images)[len(images) :]])
        duals = np.asarray(result.duals)
        certified = np.concatenate([certified, np.zeros(extra, bool)])
        sources += ["kkt"] * extra
    if not linear:
        if config.dynamics == "standard" and config.points is None:
            # Near the truth a finer quadrature pays.
            common["points"] = kkt.parse_points("three")
        q = len(common["points"])
        start = kkt.prepare(
            *network,
            num_images=len(images),
            settings=kkt.POLISH,
            initial_images=images,
            initial_duals=np.repeat(duals.sum(0)[None] / q, q, axis=0),
            **common,
        )
        result, losses = _search(config, workdir, "polish", start, timer)
        images, duals = np.asarray(result.images), np.asarray(result.duals)
        sources = [f"{source}, polished" for source in sources]
        # More candidates than images would train another network.
        if len(images) == decoded["estimated_num_images"]:
            result, losses, misses = _replayed(
                config, workdir, victim, timer, result, losses
            )
            images, duals = np.asarray(result.images), np.asarray(result.duals)
    return Attacked(
        images=images,
        duals=duals,
        losses=losses,
        extra={
            **_told(decoded),
            "certified": certified,
            "sources": sources,
            "replay_misses": misses,
        },
        arrays={"decoded": decoded["images"]},
    )
