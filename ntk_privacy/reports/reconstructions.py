"""Training images and what was read back of them, as a picture for notebooks."""

import dataclasses
import io
import pathlib

import numpy as np
from jaxtyping import Array, Float

from ntk_privacy.evaluation import reconstruction_curve
from ntk_privacy.evaluation.reconstruction_curve import Evaluation
from ntk_privacy.reports import plots
from ntk_privacy.reports.atomic import replacing

__all__ = ["Compared", "compared"]


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
    plots.gallery(
        np.asarray(images)[figures.train_index],
        np.asarray(reconstructions)[figures.reconstruction_index],
        file,
        mean=mean,
        distances=figures.distances,
        psnr=figures.psnr,
    )
    return Compared(figures, file.getvalue())
