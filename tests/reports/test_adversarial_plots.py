"""The figure of adversarial images: a picture, equal for equal input, faults told."""

import numpy as np
import pytest
from PIL import Image

from ntk_privacy.reports import adversarial_plots


@pytest.mark.parametrize(("count", "channels"), [(1, 1), (3, 3)])
def test_rows_of_clean_attacked_and_change(tmp_path, count, channels):
    x = np.full((count, 6, 6, channels), 0.5)
    images = x.copy()
    images[:, 2:4] += 0.05
    images[:, 4:] -= 0.05
    images[0] = x[0] if count > 1 else images[0]
    notes = [f"class {i}" for i in range(count)]
    for name in ("a", "b"):
        adversarial_plots.adversarial(
            x,
            images,
            tmp_path / name,
            clean_notes=notes,
            attacked_notes=notes,
            title="linf, eps = 0.05",
        )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    picture = np.asarray(Image.open(tmp_path / "a").convert("L"))
    # The change is enlarged: black and white fields of 2 x 6 pixels each.
    third = picture[2 * picture.shape[0] // 3 :]
    assert (third < 5).mean() > 0.02


def test_faults(tmp_path):
    x = np.zeros((2, 4, 4, 1))
    options = {"clean_notes": "ab", "attacked_notes": "ab", "title": ""}
    with pytest.raises(ValueError, match="Lengths differ"):
        adversarial_plots.adversarial(
            x, x, tmp_path / "a", **options | {"clean_notes": "a"}
        )
    empty = {"clean_notes": "", "attacked_notes": "", "title": ""}
    with pytest.raises(ValueError, match="num_images=0"):
        adversarial_plots.adversarial(x[:0], x[:0], tmp_path / "a", **empty)
    assert not (tmp_path / "a").exists()
