"""Training images and what was read back of them, in a notebook or a folder."""

import dataclasses
import io
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from ntk_privacy.data import Dataset
from ntk_privacy.evaluation import read_back, reconstruction_curve
from ntk_privacy.evaluation.reconstruction_curve import Evaluation
from ntk_privacy.reconstruction import Reconstruction, known_trunk
from ntk_privacy.reconstruction.through_trunk import EmbedFn
from ntk_privacy.reports import files, plots
from ntk_privacy.reports.atomic import replacing
from ntk_privacy.training.victim import Victim

__all__ = ["Compared", "compared", "written"]


@dataclasses.dataclass(frozen=True, eq=False)
class Compared:
    """A gallery, shown by a notebook where it is a cell's last value.

    Attributes:
      figures: of every pair of training image and reconstruction.
      png: the bytes of the picture.
    """

    figures: Evaluation
    png: bytes

    def _repr_png_(self) -> bytes:
        return self.png

    def __repr__(self) -> str:
        recovered, pairs = self.figures.num_recovered, len(self.figures.psnr)
        return f"<{recovered} of {pairs} images recovered (PSNR >= 25 dB)>"

    def save(self, path: str | pathlib.Path) -> None:
        """Writes the picture, whole or not at all.

        Args:
          path: of the PNG.
        """
        with replacing(path) as temporary:
            temporary.write_bytes(self.png)


def compared(
    images: Float[Array | np.ndarray, "n h w c"],
    reconstructions: Float[Array | np.ndarray, "m h w c"],
    *,
    mean: Float[Array | np.ndarray, " c"],
) -> Compared:
    """Matches reconstructions to training images, measures and draws the pairs.

    Args:
      images: training images less the mean (intensity).
      reconstructions: candidates in the same units.
      mean: per channel, what was subtracted (intensity).

    Raises:
      ValueError: see `evaluation.evaluate`.

    Example:
      >>> import numpy as np
      >>> from ntk_privacy import reports
      >>> images = np.random.default_rng(0).random((3, 8, 8, 1)) - 0.5
      >>> reports.compared(images, images[:2], mean=np.asarray([0.5]))
      <2 of 2 images recovered (PSNR >= 25 dB)>
    """
    figures = reconstruction_curve.evaluate(images, reconstructions, mean=mean)
    file = io.BytesIO()
    _draw(images, reconstructions, figures, file, mean=mean)
    return Compared(figures, file.getvalue())


def _draw(images: Any, found: Any, pairs: Evaluation, file: Any, *, mean: Any) -> None:
    plots.gallery(
        np.asarray(images)[pairs.train_index],
        np.asarray(found)[pairs.reconstruction_index],
        file,
        mean=mean,
        distances=pairs.distances,
        psnr=pairs.psnr,
    )


def written(
    folder: pathlib.Path,
    dataset: Dataset,
    victim: Victim,
    found: Reconstruction,
    method: str,
    *,
    trunk: EmbedFn | None = None,
) -> dict[str, Any]:
    """Writes arrays and pictures of an attack; returns its figures, see `read_back`.

    Args:
      folder: of arrays.npz, curve.png, gallery.png and, where there is one, ranked.png.
      dataset: that the network was trained on.
      victim: the network.
      found: what the attack found.
      method: its name.
      trunk: below the network, if it saw embeddings of the images.
    """
    seen = None if trunk is None else known_trunk.embedded(dataset, trunk)
    figures, images, pairs, ranking, psnr = read_back.judged(
        dataset, victim, found, seen=seen
    )
    mean, extra = dataset.mean, dict(found.kept)
    kinds = {"gradient": "one gradient", "adapter": "an adapter"}
    told_of = kinds.get(victim.evidence, victim.dynamics)
    plots.curve(
        {f"{method}, {told_of}": pairs.squared_distances},
        folder / "curve.png",
        image_shape=dataset.x_train.shape[1:],
    )
    _draw(dataset.x_train, images, pairs, folder / "gallery.png", mean=mean)
    if ranking is not None and psnr is not None:
        extra |= {"ranked": ranking.images, "ranked_train_index": ranking.train_index}
        plots.gallery(
            dataset.x_train[ranking.train_index],
            ranking.images - mean,
            folder / "ranked.png",
            mean=mean,
            distances=-ranking.ssim,
            sorted_by="SSIM",
            psnr=psnr,
            title="Training images above their reconstructions",
        )
    if victim.duals is not None:
        extra["true_duals"] = victim.duals
    files.write_arrays(
        folder / "arrays.npz",
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
