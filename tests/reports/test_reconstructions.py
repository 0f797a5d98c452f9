"""A picture that a notebook shows, the same as the gallery in a file."""

import numpy as np

from ntk_privacy import reports
from ntk_privacy.evaluation import reconstruction_curve


def test_the_picture_is_the_gallery_of_the_pairs(tmp_path):
    images = np.random.default_rng(0).random((4, 8, 8, 1)) - 0.5
    found, mean = images[[2, 0]] + 0.01, np.asarray([0.5])
    shown = reports.compared(images, found, mean=mean)
    assert repr(shown) == "<2 of 2 images recovered (PSNR >= 25 dB)>"
    assert shown._repr_png_() == shown.png
    shown.save(tmp_path / "shown.png")
    pairs = reconstruction_curve.evaluate(images, found, mean=mean)
    reports.gallery(
        images[pairs.train_index],
        found[pairs.reconstruction_index],
        tmp_path / "gallery.png",
        mean=mean,
        distances=pairs.distances,
        psnr=pairs.psnr,
    )
    written = (tmp_path / "shown.png").read_bytes()
    assert written == (tmp_path / "gallery.png").read_bytes()
    assert written[:4] == b"\x89PNG"


def test_nothing_found_is_a_picture_too():
    images = np.random.default_rng(0).random((4, 8, 8, 1)) - 0.5
    shown = reports.compared(images, images[:0], mean=np.asarray([0.5]))
    assert repr(shown) == "<0 of 0 images recovered (PSNR >= 25 dB)>"
    assert shown.png[:4] == b"\x89PNG"
