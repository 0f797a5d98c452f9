"""`--method=auto`: decodes, searches for the rest, and polishes what was found.

Where features move, polishing goes on along the training that the images explain
(`reconstruction.replay`).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments._attacks import (
    Attacked,
    UndecodableError,
    common,
    decode,
    in_flags,
    kkt_settings,
    run_kkt,
    run_search,
    told,
)
from experiments._victim import Victim
from experiments._workdir import Workdir
from ntk_privacy.reconstruction import algebraic, judging, kkt, replay
from ntk_privacy.resume import Timer

REPLAY_POINTS = 8
"""Points of a replayed training at which features are taken."""

MAX_REPLAY_MISS = 0.7
"""Of a replay that is followed: images farther off explain nothing."""

SAME_IMAGE = 0.9
"""Cosine above which two candidates show the same image."""

# Above this ratio of singular values the rank is beyond doubt: the change is a sum of
# one outer product per image, as linearized dynamics leave it.
_LINEAR_GAP = 100.0


def _searched_only(
    found: Attacked, message: str, estimate: int | None = None
) -> Attacked:
    """Says that decoding was no help."""
    told = f"{found.verdict.reason.rstrip('.')}; {message.rstrip('.')}."
    return found._replace(
        verdict=found.verdict._replace(reason=told),
        extra={
            "sources": ["kkt"] * len(found.images),
            **found.extra,
            "estimated_num_images": estimate,
            "num_certified": 0,
            "certified": [False] * len(found.images),
            "message": message,
        },
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
    """Polishes along the training that the images explain, `config.replays` times.

    How far a replay ends from the trained network says how good the images are: a
    polish after which it ends farther off is taken back.
    """
    path = _path(victim, timer, result)
    misses = [path.miss]
    for i in range(config.replays):
        if path.miss > MAX_REPLAY_MISS:
            break
        q = len(path.features)
        attack = kkt.prepare(
            victim.model,
            victim.params_0,
            victim.params_t,
            num_images=len(result.images),
            features=path.features,
            settings=kkt.REPLAYED,
            initial_images=result.images,
            initial_duals=np.repeat(
                np.asarray(result.duals).sum(0)[None] / q, q, axis=0
            ),
            **common(config, victim),
        )
        polished = run_search(config, workdir, f"replay_{i + 1}", attack, timer)
        path = _path(victim, timer, polished[0])
        misses.append(path.miss)
        if misses[-1] >= misses[-2]:
            break
        result, losses = polished
    verdict = judging.replayed(result.verdict, min(misses))
    return result._replace(verdict=verdict), losses, misses


def _path(victim: Victim, timer: Timer, result: kkt.Reconstruction) -> replay.Replay:
    images = np.asarray(result.images)
    with timer():
        return replay.replay(
            victim.model,
            victim.params_0,
            victim.params_t,
            jnp.asarray(images),
            _labels(victim, images),
            num_points=REPLAY_POINTS,
        )


def _refined(
    config: Any,
    workdir: Workdir,
    victim: Victim,
    timer: Timer,
    images: np.ndarray,
    duals: np.ndarray,
    *,
    replays: bool,
) -> tuple[kkt.Reconstruction, np.ndarray, list[float]]:
    """Polishes images that are nearly right, then along the training they explain."""
    _, points = kkt_settings(config)
    if config.dynamics == "standard" and config.points is None:
        # Near the truth a finer quadrature pays.
        points = kkt.parse_points("three")
    q = len(points)
    start = kkt.prepare(
        victim.model,
        victim.params_0,
        victim.params_t,
        num_images=len(images),
        points=points,
        settings=kkt.POLISH,
        initial_images=images,
        initial_duals=np.repeat(duals.sum(0)[None] / q, q, axis=0),
        **common(config, victim),
    )
    result, losses = run_search(config, workdir, "polish", start, timer)
    if not replays or config.dynamics != "standard":
        return result, losses, []
    return _replayed(config, workdir, victim, timer, result, losses)


def distinct(
    images: np.ndarray, duals: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Merges candidates that show the same image; keeps those that explain most.

    Args:
      images: (m, h, w, d) of a search.
      duals: (q, m, c) theirs.
      count: how many to keep at most.

    Returns:
      Indices of the kept, their duals (q, k, c) with those of their likes added, and
      indices of the candidates that are neither.
    """
    flat = images.reshape(len(images), -1).astype(np.float64)
    norms = np.maximum(np.linalg.norm(flat, axis=1), 1e-30)
    alike = (flat @ flat.T) / np.outer(norms, norms) > SAME_IMAGE
    strength = np.linalg.norm(duals.sum(0), axis=1) * norms
    kept: list[int] = []
    sums: list[np.ndarray] = []
    free = np.ones(len(images), bool)
    for i in np.argsort(-strength, kind="stable"):
        if free[i] and len(kept) < count:
            group = alike[i] & free
            kept.append(int(i))
            sums.append(duals[:, group].sum(1))
            free &= ~group
    return np.asarray(kept), np.stack(sums, 1), np.flatnonzero(free)


def _searched_and_refined(
    config: Any, workdir: Workdir, victim: Victim, timer: Timer, count: int | None
) -> Attacked:
    """Searches from noise; refines as many images as there are, where features move."""
    found = run_kkt(config, workdir, victim, timer)
    unknown = count is None or found.extra["nonfinite"]
    if unknown or config.dynamics != "standard":
        return found
    kept, duals, rest = distinct(found.images, found.duals, count)
    result, losses, misses = _refined(
        config,
        workdir,
        victim,
        timer,
        found.images[kept],
        duals,
        replays=len(kept) == count,
    )
    images = np.concatenate([np.asarray(result.images), found.images[rest]])
    totals = np.asarray(result.duals).sum(0), found.duals[:, rest].sum(0)
    return Attacked(
        images=images,
        duals=np.concatenate(totals)[None],
        losses=losses,
        extra={
            **found.extra,
            "contributions": np.concatenate(
                [result.contributions, np.zeros(len(rest))]
            ),
            "sources": ["kkt, polished"] * len(kept) + ["kkt"] * len(rest),
            "replay_misses": misses,
        },
        arrays={},
        verdict=result.verdict,
    )


def run(config: Any, workdir: Workdir, victim: Victim, timer: Timer) -> Attacked:
    """Decodes, searches for what is missing, polishes where features move."""
    try:
        decoded = decode(config, workdir, victim, timer)
    except UndecodableError as error:
        count = config.known_num_images or algebraic.count_images(
            victim.params_0, victim.params_t, key=jax.random.key(config.seed)
        )
        return _searched_only(
            _searched_and_refined(config, workdir, victim, timer, count),
            f"not decoded ({error})",
            count,
        )
    settings, points = kkt_settings(config)
    linear = decoded["rank_gap"] > _LINEAR_GAP
    count = decoded["estimated_num_images"]
    if count is None or (not linear and 2 * np.sum(decoded["accepted"]) < count):
        # What moving features made of most rows is worse than noise to start from.
        return _searched_only(
            _searched_and_refined(config, workdir, victim, timer, count),
            f"searched from noise: of the decoding, {in_flags(decoded['message'])}",
            count,
        )
    # Images that contradict themselves may be anything: the search replaces them.
    keep = decoded["accepted"] if linear else np.ones(len(decoded["images"]), bool)
    images, duals = decoded["images"][keep], decoded["duals"][keep]
    certified, sources = decoded["certified"][keep], ["decoded"] * len(images)
    duals = np.repeat(duals[None] / len(points), len(points), axis=0)
    losses = np.zeros(0)
    missing, misses = count - len(images), []
    verdict, extra_told = decoded["verdict"], {}
    given = {**common(config, victim), "points": points}
    network = (victim.model, victim.params_0, victim.params_t)
    if missing > 0:
        extra = 2 * missing
        start = kkt.prepare(*network, num_images=extra, settings=settings, **given)
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
            **given,
        )
        result, losses = run_search(config, workdir, "fill", start, timer)
        # Held images stay as decoded, to the bit.
        images = np.concatenate([images, np.asarray(result.images)[len(images) :]])
        duals = np.asarray(result.duals)
        certified = np.concatenate([certified, np.zeros(extra, bool)])
        sources += ["kkt"] * extra
        verdict = judging.completed(verdict, result.verdict)
        extra_told = {"contributions": result.contributions}
    if not linear:
        # More candidates than images would be another training.
        whole = len(images) == count
        result, losses, misses = _refined(
            config, workdir, victim, timer, images, duals, replays=whole
        )
        images, duals = np.asarray(result.images), np.asarray(result.duals)
        sources = [f"{source}, polished" for source in sources]
        # The certificates were of the images before they moved.
        certified = np.zeros(len(images), bool)
        verdict = result.verdict._replace(gap=decoded["verdict"].gap)
        extra_told = {"contributions": result.contributions, "num_certified": 0}
    return Attacked(
        images=images,
        duals=duals,
        losses=losses,
        extra={
            **told(decoded),
            "certified": certified,
            "sources": sources,
            "replay_misses": misses,
            **extra_told,
        },
        arrays={"decoded": decoded["images"]},
        verdict=verdict,
    )
