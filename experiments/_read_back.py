"""What was read back: figures, pictures and arrays in the folder."""

from typing import Any

from experiments._workdir import Workdir
from ntk_privacy import data
from ntk_privacy.evaluation import read_back
from ntk_privacy.reconstruction import Reconstruction
from ntk_privacy.reports import plots
from ntk_privacy.training.victim import Victim


def written(
    workdir: Workdir,
    dataset: data.Dataset,
    victim: Victim,
    found: Reconstruction,
    method: str,
    seen: data.Dataset | None = None,
) -> dict[str, Any]:
    """Writes arrays and pictures; returns entries of results.json.

    What the network saw is `seen`, where it was not the images.
    """
    figures, images, pairs, ranking, psnr = read_back.judged(
        dataset, victim, found, seen=seen
    )
    mean, extra = dataset.mean, dict(found.kept)
    told_of = victim.dynamics if victim.gradient is None else "one gradient"
    plots.curve(
        {f"{method}, {told_of}": pairs.squared_distances},
        workdir.path("curve.png"),
        image_shape=dataset.x_train.shape[1:],
    )
    plots.gallery(
        dataset.x_train[pairs.train_index],
        images[pairs.reconstruction_index],
        workdir.path("gallery.png"),
        mean=mean,
        distances=pairs.distances,
        psnr=pairs.psnr,
    )
    if ranking is not None and psnr is not None:
        extra |= {"ranked": ranking.images, "ranked_train_index": ranking.train_index}
        plots.gallery(
            dataset.x_train[ranking.train_index],
            ranking.images - mean,
            workdir.path("ranked.png"),
            mean=mean,
            distances=-ranking.ssim,
            sorted_by="SSIM",
            psnr=psnr,
            title="Training images above their reconstructions",
        )
    if victim.duals is not None:
        extra["true_duals"] = victim.duals
    workdir.write_arrays(
        "arrays.npz",
        images=dataset.x_train,
        labels=dataset.y_train,
        mean=mean,
        reconstructions=images,
        duals=found.duals,
        losses=found.losses,
        train_index=pairs.train_index,
        reconstruction_index=pairs.reconstruction_index,
        **extra,
    )
    return figures
