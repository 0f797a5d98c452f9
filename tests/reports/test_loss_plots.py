"""Loss curves say what the loss is, and leave out what no logarithm has."""

import numpy as np
import pytest

from ntk_privacy import distillation
from ntk_privacy.reports import canvas, loss_plots


@pytest.fixture
def figures(monkeypatch):
    kept = []
    real = canvas.Figure

    def made(*args, **options):
        kept.append(real(*args, **options))
        return kept[-1]

    monkeypatch.setattr(canvas, "Figure", made)
    return kept


def test_the_axis_has_the_kind_and_lines_the_positive_losses(figures, tmp_path):
    history = np.array([4.0, np.nan, 0.0, 2.0])
    path = tmp_path / "losses.png"
    loss_plots.losses({"dc": history}, path, title="dc", kind="distance of gradients")
    (axes,) = figures[0].axes
    assert axes.get_ylabel() == "loss (distance of gradients)"
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), [1, 4])
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [4, 2])
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_losses_of_nothing_are_drawn(figures, tmp_path):
    loss_plots.losses({"mean": np.zeros(3)}, tmp_path / "none.png", title="mean")
    assert figures[0].axes[0].get_yscale() == "linear"


def test_every_method_names_its_loss():
    kinds = {name: method.loss for name, method in distillation.METHODS.items()}
    assert kinds["rdm"] == kinds["dm"] == "squared feature distance"
    assert kinds["dc"] == kinds["dsa"] == "distance of gradients, by layer"
    assert kinds["mtt"] == kinds["tesla"] == "squared distance over the expert's"
