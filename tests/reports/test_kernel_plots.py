"""Figures of kernels: whole files, hard inputs, faults."""

import numpy as np
import pytest
from matplotlib import image

from ntk_privacy.reports import canvas, kernel_plots


def _read(path):
    assert path.read_bytes()[:4] == b"\x89PNG"
    return image.imread(path)[..., :3]


def test_picture_shows_its_entries_in_order(tmp_path):
    kernel = np.zeros((40, 40))
    kernel[:20, :20] = 1.0
    kernel[0, 0] = 1e6  # one entry does not take all colours
    kernel_plots.picture(kernel, tmp_path / "k.png", title="two classes")
    pixels = _read(tmp_path / "k.png")
    yellow = (pixels[..., 0] > 0.9) & (pixels[..., 2] < 0.3)
    h, w = np.nonzero(yellow[:, : pixels.shape[1] * 3 // 4])
    assert len(h) > 10_000
    assert h.max() < 0.6 * pixels.shape[0]  # the upper left quarter
    assert w.max() < 0.6 * pixels.shape[1]


def test_hard_inputs_are_drawn(tmp_path):
    kernel_plots.picture(np.ones((1, 1)), tmp_path / "one.png", title="constant")
    values = {"a": np.array([3.0, 0.0, -1e-9]), "b": np.logspace(2, -12, 200)}
    kernel_plots.spectrum(values, tmp_path / "s.png", rounding=1e-5)
    kernel_plots.spectrum({"zero": np.zeros(3)}, tmp_path / "z.png")
    nothing = np.array([0, 10, 20]), np.zeros(3), np.array([1.0, np.nan, 0.5])
    kernel_plots.distances(*nothing, tmp_path / "d.png")
    for name in ("one", "s", "z", "d"):
        assert _read(tmp_path / f"{name}.png").std() > 0.01


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="num_finite_entries=0 must be at least 1"):
        kernel_plots.picture(np.full((2, 2), np.nan), tmp_path / "k.png", title="")
    with pytest.raises(ValueError, match="num_spectra=0 must be at least 1"):
        kernel_plots.spectrum({}, tmp_path / "s.png")
    assert list(tmp_path.iterdir()) == []


def test_axes_say_class_names(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(canvas, "write", lambda figure, path: drawn.append(figure))
    kernel, path = np.eye(6), tmp_path / "k.png"
    kernel_plots.picture(
        kernel, path, title="", classes=["cat"] * 2 + ["dog"] * 3 + ["a name of no end"]
    )
    kernel_plots.picture(kernel, path, title="")
    named, numbered = (figure.axes[0] for figure in drawn)
    for axis in (named.xaxis, named.yaxis):
        assert [tick.get_text() for tick in axis.get_ticklabels()][:2] == ["cat", "dog"]
        # In the middle of rows 0 and 1, and of rows 2 to 4.
        np.testing.assert_allclose(axis.get_majorticklocs(), [0.5, 3, 5])
        np.testing.assert_allclose(axis.get_minorticklocs(), [1.5, 4.5])
    assert (named.get_xlabel(), numbered.get_xlabel()) == (
        "class of the image",
        "image",
    )
    with pytest.raises(ValueError, match=r"kernel.*classes"):
        kernel_plots.picture(kernel, path, title="", classes=["cat"])
