"""What an attacker sees after training on a distilled set, and what the set copies.

Source: Loo et al., ICLR 2024 (arXiv:2302.01428): networks are trained on the set and
attacked for twice as many images; those found are compared with the original ones.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import _attacks, _distillation, _victim, reconstruct
from experiments._distillation import Distilled
from experiments._workdir import Workdir
from ntk_privacy import data
from ntk_privacy.evaluation import reconstruction_curve
from ntk_privacy.evaluation.reconstruction_curve import RECOVERED_PSNR
from ntk_privacy.reports import plots
from ntk_privacy.resume import Timer

ATTACKS = ("kkt", "auto")
"""The published search; and decoding exactly, then searching for the rest."""


# Training images at a time, whose products with the distilled ones are in memory.
_ROWS = 4096


class Real(NamedTuple):
    """What `nearest` asks for, where there is no `data.Dataset`.

    x_train: images less the mean. mean: of their intensities.
    """

    x_train: np.ndarray
    mean: np.ndarray


def _closest(rows: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Returns the row next to each point, up to rounding."""
    points = points.reshape(len(points), -1)
    least, index = np.full(len(points), np.inf), np.zeros(len(points), int)
    for first in range(0, len(rows), _ROWS):
        block = rows[first : first + _ROWS].reshape(-1, points.shape[1])
        scores = np.sum(block**2, axis=1)[:, None] - 2 * block @ points.T
        found = scores.min(axis=0)
        index = np.where(found < least, first + scores.argmin(axis=0), index)
        least = np.minimum(found, least)
    return index


def nearest(
    dataset: data.Dataset | Real, images: np.ndarray, noise: np.ndarray | None
) -> dict[str, Any]:
    """Returns each distilled image's nearest training image: does the method copy?

    Args:
      dataset: of the training images.
      images: distilled ones, mean-subtracted.
      noise: entries that are noise for good, which alone keep the PSNR of a copy low.

    Returns:
      index and distances (L2, intensity) of the nearest; psnr_index and psnr (distilled
      images clipped to [0, 1]) of that with the greatest PSNR, which clipping may make
      another one; num_copies, those whose PSNR counts as recovered, and with noise
      psnr_outside_noise, the best over all training images of the other entries.
    """
    index = _closest(dataset.x_train, images)
    apart = (dataset.x_train[index] - images).reshape(len(images), -1)
    shown = np.clip(images + dataset.mean, 0, 1)
    truth = np.clip(dataset.x_train + dataset.mean, 0, 1)
    psnr_index = _closest(truth, shown)
    errors = np.mean((truth[psnr_index] - shown) ** 2, axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        psnr = (-10 * np.log10(errors)).tolist()
    told: dict[str, Any] = {
        "index": index.tolist(),
        "distances": np.linalg.norm(apart, axis=1).tolist(),
        "psnr_index": psnr_index.tolist(),
        "psnr": psnr,
        "num_copies": int(np.sum(np.asarray(psnr) >= RECOVERED_PSNR)),
    }
    if noise is not None:
        told["psnr_outside_noise"] = [
            _best_psnr(truth, image, ~mask)
            for image, mask in zip(shown, noise, strict=True)
        ]
    return told


def _best_psnr(truth: np.ndarray, image: np.ndarray, kept: np.ndarray) -> float:
    """Returns the greatest PSNR, in decibels; inf of an equal image."""
    errors = ((truth - image[None]) ** 2)[:, kept].mean(axis=1)
    with np.errstate(divide="ignore"):
        return float(-10 * np.log10(errors.min()))


def attack(
    config: Any,
    workdir: Workdir,
    dataset: data.Dataset,
    distilled: Distilled,
    key: jax.Array,
    timer: Timer,
) -> dict[str, Any]:
    """Trains a network on the set, attacks it and returns entries of results.json.

    Draws defence.png and writes the reconstructions to attack.npz.

    Args:
      config: of `experiments.distill`.
      workdir: keeps the checkpoints.
      dataset: of the original images, which the reconstructions are compared with.
      distilled: what the network is trained on.
      key: of the network.
      timer: of all of it.
    """
    spec = _distillation.network_config(config, len(distilled.images), method="auto")
    victim_set = dataset._replace(x_train=distilled.images, y_train=distilled.labels)
    training = Timer()
    with Workdir(
        workdir.checkpoint_folder / "attack", spec, ignore=reconstruct.NOT_RESULTS
    ) as inner:
        victim = _victim.make(spec, inner, victim_set, key, training)
        moved = _victim.figures(spec, victim_set, victim)["kernel_distance"]
        told, arrays, spent = {}, {}, training.run
        for name in ATTACKS:
            clock, asked = Timer(), dataclasses.replace(spec, method=name)
            found = _attacks.run(asked, inner, victim_set, victim, clock)
            extra = _attacks.entries(found)
            spent += clock.run
            timer.compile += clock.compile
            told[name] = _judge(dataset, distilled, found.images)
            told[name] |= {
                entry: extra[entry]
                for entry in ("num_certified", "message", "nonfinite")
                if entry in extra
            } | {"verdict": found.verdict}
            arrays[f"reconstructions_{name}"] = found.images
    timer.run, timer.compile = spent, timer.compile + training.compile
    workdir.write_arrays("attack.npz", **arrays)
    curves = {
        f"{config.method}, {name}": told[name]["squared_distances"] for name in ATTACKS
    }
    plots.curve(
        {label: np.asarray(values) for label, values in curves.items()},
        workdir.path("defence.png"),
        image_shape=dataset.x_train.shape[1:],
        title="Original images against what the attacker finds",
    )
    return {
        **told,
        "train_loss": victim.loss,
        "kernel_distance": moved,
    }


def _judge(dataset, distilled, images) -> dict[str, Any]:
    """Compares reconstructions with original and with distilled images."""
    original = reconstruction_curve.evaluate(dataset.x_train, images, mean=dataset.mean)
    own = reconstruction_curve.match(distilled.images, images).squared_distances
    limit = reconstruction_curve.squared_distance_at(
        RECOVERED_PSNR, dataset.x_train.shape[1:]
    )
    return {
        "num_recovered": original.num_recovered,
        "recovered": original.train_index[original.psnr >= RECOVERED_PSNR],
        # Of nothing found there is none.
        "best_psnr": float(original.psnr.max(initial=-np.inf)),
        "squared_distances": original.squared_distances,
        "psnr": original.psnr,
        # Of the set itself: did the attack work at all?
        "num_distilled_recovered": int(np.sum(own <= limit)),
        "distilled_squared_distances": own,
    }
