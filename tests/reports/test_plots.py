"""Figures are drawn whole, from any number of pairs, and say what they show."""

import matplotlib
import numpy as np
import pytest
from matplotlib import image as mpl_image
from matplotlib.figure import Figure

from ntk_privacy.reports import canvas, loss_plots, plots


def _pairs(n, shape=(8, 8, 1), seed=0):
    rng = np.random.default_rng(seed)
    images = rng.uniform(size=(n, *shape))
    distances = np.sort(rng.uniform(size=n))
    return images, images, distances, 30 - 10 * distances


@pytest.fixture
def texts(monkeypatch):
    """Collects the texts of each figure that is saved."""
    found = []
    original = Figure.savefig

    def savefig(self, *args, **kwargs):
        original(self, *args, **kwargs)
        found.append([t.get_text() for t in self.findobj(matplotlib.text.Text)])

    monkeypatch.setattr(Figure, "savefig", savefig)
    return found


def _gallery(path, n, shape=(8, 8, 1), **kwargs):
    images, found, distances, psnr = _pairs(n, shape)
    plots.gallery(
        images,
        found,
        path,
        mean=np.zeros(shape[-1]),
        distances=distances,
        psnr=psnr,
        **kwargs,
    )
    return mpl_image.imread(path)


@pytest.mark.parametrize(("n", "rows"), [(1, 1), (5, 1), (20, 1), (21, 2), (70, 3)])
def test_gallery_breaks_into_blocks_of_20_and_caps_at_60(tmp_path, texts, n, rows):
    picture = _gallery(tmp_path / "g.png", n)
    one_row = 1.5 * 150
    assert rows * one_row < picture.shape[0] < (rows + 0.6) * one_row + 100
    labels = texts[0]
    assert sum(" dB" in text for text in labels) == min(n, 60)
    assert ("60 of 70 pairs" in " ".join(labels)) == (n == 70)
    marks = [text for text in labels if text in ("worst", "best")]
    assert marks == (["worst", "best"] if n > 1 else [])


def test_gallery_goes_from_worst_to_best_whatever_the_order_given(tmp_path, texts):
    images = np.zeros((3, 8, 8, 1))
    images[0] = 1.0  # the white one is nearest: it must stand rightmost
    plots.gallery(
        images,
        images,
        tmp_path / "g.png",
        mean=np.zeros(1),
        distances=[0.1, np.inf, 0.5],
        psnr=[np.inf, np.nan, 20.0],
    )
    labels = [t for t in texts[0] if t in ("exact", "no value", "20.0 dB")]
    assert labels == ["no value", "20.0 dB", "exact"]
    picture = mpl_image.imread(tmp_path / "g.png")[..., :3].mean(axis=-1)
    middle = picture.shape[1] // 2
    row = picture[picture.shape[0] // 2]
    assert row[middle] == 0
    assert row[middle - 93] == 0
    assert row[middle + 93] == 1


def test_gallery_adds_the_mean_keeps_colour_and_survives_nan(tmp_path):
    images = np.full((1, 4, 4, 3), -0.25)
    broken = np.full_like(images, np.nan)
    plots.gallery(
        images,
        broken,
        tmp_path / "g.png",
        mean=np.array([1.25, 0.25, 0.25]),
        distances=[1.0],
        psnr=[np.nan],
    )
    picture = mpl_image.imread(tmp_path / "g.png")[..., :3]
    assert (picture == [1.0, 0.0, 0.0]).all(axis=-1).sum() > 4000  # a red square
    assert (picture == 0.0).all(axis=-1).sum() > 4000  # a black one


def test_curves_of_every_length_are_drawn_with_units_and_threshold(tmp_path, texts):
    rng = np.random.default_rng(0)
    curves = {"a": rng.uniform(size=20), "b": np.r_[0.0, 1.0, np.inf]}
    plots.curve(curves, tmp_path / "few.png", image_shape=(28, 28, 1))
    plots.curve(
        {"c": rng.uniform(size=500)}, tmp_path / "many.png", image_shape=(8, 8, 1)
    )
    plots.curve({"zeros": np.zeros(3)}, tmp_path / "zeros.png", image_shape=(8, 8, 1))
    assert {"a", "b", "PSNR 25 dB (below: recovered)"} <= set(texts[0])
    assert "squared L2 distance (intensity²)" in texts[0]
    for name in ("few", "many", "zeros"):
        assert mpl_image.imread(tmp_path / f"{name}.png").std() > 0.01


def test_the_line_stands_where_the_formula_says(tmp_path, monkeypatch):
    axes = []
    monkeypatch.setattr(canvas, "write", lambda figure, path: axes.extend(figure.axes))
    plots.curve({"a": np.array([3.0, 1.0])}, tmp_path / "x", image_shape=(28, 28, 1))
    line, curve = axes[0].get_lines()
    np.testing.assert_allclose(line.get_ydata(), 784 * 10**-2.5)
    np.testing.assert_array_equal(curve.get_ydata(), [1.0, 3.0])
    assert axes[0].get_yscale() == "log"


def test_losses_that_were_thinned_out_stand_at_their_steps(tmp_path, monkeypatch):
    axes = []
    monkeypatch.setattr(canvas, "write", lambda f, path: axes.extend(f.axes))
    history = np.array([8.0, np.nan, 4.0, 2.0, 2.0, 2.0, 6.0])
    loss_plots.losses({"a": history}, tmp_path / "x", title="", every=25)
    raw, smooth = axes[0].get_lines()
    np.testing.assert_array_equal(raw.get_xdata(), [1, 51, 76, 101, 126, 151])
    np.testing.assert_array_equal(raw.get_ydata(), [8, 4, 2, 2, 2, 6])
    np.testing.assert_allclose(smooth.get_ydata(), [3.6, 3.2])
    assert smooth.get_label() == "a, mean of 5 losses, one in 25 steps"


def test_equal_figures_give_equal_bytes_and_a_failure_leaves_nothing(
    tmp_path, monkeypatch
):
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    _gallery(a, 3)
    _gallery(b, 3)
    assert a.read_bytes() == b.read_bytes()

    def fail(self, path, **kwargs):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        _gallery(b, 4)
    assert a.read_bytes() == b.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_of_nothing_reconstructed_figures_say_so(tmp_path, texts):
    plots.gallery(
        np.zeros((0, 8, 8, 1)),
        np.zeros((0, 8, 8, 1)),
        tmp_path / "g.png",
        mean=np.zeros(1),
        distances=[],
        psnr=[],
    )
    assert "nothing was reconstructed" in " ".join(texts[0])
    plots.curve({"none": np.zeros(0)}, tmp_path / "c.png", image_shape=(8, 8, 1))
    assert "none" in texts[1]
    for name in ("g", "c"):
        assert mpl_image.imread(tmp_path / f"{name}.png").std() > 0.01


def test_wrong_lengths_and_no_curve_are_one_clear_line(tmp_path):
    with pytest.raises(ValueError, match="Lengths differ: images has 2 rows"):
        plots.gallery(
            np.zeros((2, 8, 8, 1)),
            np.zeros((2, 8, 8, 1)),
            tmp_path / "g.png",
            mean=np.zeros(1),
            distances=[1.0],
            psnr=[1.0, 2.0],
        )
    with pytest.raises(ValueError, match="num_curves=0"):
        plots.curve({}, tmp_path / "c.png", image_shape=(8, 8, 1))
    assert not list(tmp_path.iterdir())


def test_pictures_have_a_note_each_and_break_into_rows(tmp_path, texts):
    images, *_ = _pairs(12)
    path = tmp_path / "p.png"
    notes = [f"note {i}" for i in range(12)]
    plots.pictures(images, path, mean=np.zeros(1), notes=notes, title="Twelve")
    assert [text for text in texts[0] if text.startswith("note")] == notes
    assert "Twelve" in texts[0]
    two_rows = mpl_image.imread(path).shape[0]
    plots.pictures(images[:3], path, mean=np.zeros(1), notes=notes[:3], title="Three")
    assert mpl_image.imread(path).shape[0] < two_rows
    with pytest.raises(ValueError, match="notes"):
        plots.pictures(images, path, mean=np.zeros(1), notes=notes[:3], title="")
