"""Reconstructions of `--method=max_margin`, ranked by SSIM as in the paper.

Source: Haim et al., NeurIPS 2022, arXiv:2206.07758.
"""

from typing import Any

import numpy as np

from experiments._workdir import Workdir
from ntk_privacy import data
from ntk_privacy.evaluation import max_margin_ranking
from ntk_privacy.reports import plots
from ntk_privacy.training import logistic


def rank(
    workdir: Workdir, dataset: data.Dataset, found: np.ndarray
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Draws `ranked.png`; returns entries of results.json and of arrays.npz.

    Args:
      workdir: of the picture.
      dataset: of the training images, and of test images to compare with.
      found: reconstructions less the mean image.
    """
    x, centre = logistic.preprocess(dataset.x_train)
    mean_image = centre + dataset.mean
    ranking = max_margin_ranking.rank(x, found, mean=mean_image)
    # Unseen images under the same measure: what no leak at all would score.
    unseen = max_margin_ranking.rank(
        dataset.x_test[: len(x)] - centre, found, mean=mean_image
    )
    order = ranking.train_index
    plots.gallery(
        dataset.x_train[order],
        ranking.images - dataset.mean,
        workdir.path("ranked.png"),
        mean=dataset.mean,
        distances=-ranking.ssim,
        sorted_by="SSIM",
        psnr=_psnr(dataset.x_train[order] + dataset.mean, ranking.images),
        title="Training images above their reconstructions",
    )
    told = {
        "ssim": ranking.ssim,
        "mean_ssim_best_10": ranking.mean_ssim_best,
        "mean_ssim_best_10_of_unseen_images": unseen.mean_ssim_best,
        "mean_dssim_best_10": ranking.mean_dssim_best,
    }
    return {"ranking": told}, {"ranked": ranking.images, "ranked_train_index": order}


def _psnr(images: np.ndarray, found: np.ndarray) -> np.ndarray:
    return -10 * np.log10(np.mean((images - found) ** 2, axis=(1, 2, 3)))
