"""What was read back: figures, pictures and arrays in the folder."""

from typing import Any

import numpy as np

from experiments._workdir import Workdir
from ntk_privacy import data
from ntk_privacy.evaluation import (
    max_margin_ranking,
    reconstruction_curve,
    trained_network,
)
from ntk_privacy.reconstruction import Reconstruction, result
from ntk_privacy.reports import plots
from ntk_privacy.training.victim import Victim

_EVALUATED = (
    *("num_recovered", "mean_error", "mean_squared_error", "squared_distances"),
    *("distances", "psnr", "ssim"),
)


def written(
    workdir: Workdir,
    dataset: data.Dataset,
    victim: Victim,
    found: Reconstruction,
    method: str,
) -> dict[str, Any]:
    """Writes arrays and pictures; returns entries of results.json."""
    images, extra = found.images, dict(found.kept)
    told_of = victim.dynamics if victim.gradient is None else "one gradient"
    told = result.figures(found)
    if victim.centre is not None:
        told["ranking"] = _ranked(workdir, dataset, images, extra)
        # The network takes images less their mean image.
        images = images + victim.centre
    figures = reconstruction_curve.evaluate(dataset.x_train, images, mean=dataset.mean)
    plots.curve(
        {f"{method}, {told_of}": figures.squared_distances},
        workdir.path("curve.png"),
        image_shape=dataset.x_train.shape[1:],
    )
    plots.gallery(
        dataset.x_train[figures.train_index],
        images[figures.reconstruction_index],
        workdir.path("gallery.png"),
        mean=dataset.mean,
        distances=figures.distances,
        psnr=figures.psnr,
    )
    if victim.duals is not None:
        extra["true_duals"] = victim.duals
    workdir.write_arrays(
        "arrays.npz",
        images=dataset.x_train,
        labels=dataset.y_train,
        mean=dataset.mean,
        reconstructions=images,
        duals=found.duals,
        losses=found.losses,
        train_index=figures.train_index,
        reconstruction_index=figures.reconstruction_index,
        **extra,
    )
    return {
        "verdict": found.verdict,
        "dynamics": victim.dynamics,
        "evidence": "weights" if victim.gradient is None else "gradient",
        "train_loss": victim.loss,
        "train_steps": victim.steps,
        "converged": victim.reached,
        **trained_network.figures(victim, dataset),
        **{name: getattr(figures, name) for name in _EVALUATED},
        "attack_loss": float(found.losses[-1]) if len(found.losses) else None,
        **told,
    }


def _ranked(
    workdir: Workdir,
    dataset: data.Dataset,
    images: np.ndarray,
    arrays: dict[str, np.ndarray],
) -> dict[str, Any]:
    """Draws ranked.png, adds to arrays.npz; returns figures."""
    ranking, unseen, psnr = max_margin_ranking.compared(dataset, images)
    arrays |= {"ranked": ranking.images, "ranked_train_index": ranking.train_index}
    plots.gallery(
        dataset.x_train[ranking.train_index],
        ranking.images - dataset.mean,
        workdir.path("ranked.png"),
        mean=dataset.mean,
        distances=-ranking.ssim,
        sorted_by="SSIM",
        psnr=psnr,
        title="Training images above their reconstructions",
    )
    return max_margin_ranking.figures(ranking, unseen)
