"""Pictures of studies: everything that is drawn is within the axes."""

import numpy as np
import pytest

from ntk_privacy.reports import canvas
from ntk_privacy.studies import figures


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    found = []
    monkeypatch.setattr(canvas, "write", lambda figure, path: found.append(figure))
    return found


def test_bars_of_all_panels_share_a_scale_that_holds_them(drawn, tmp_path):
    shown = {
        "low": {"a": np.array([0.1, 0.2, 0.3])},
        "high": {"a": np.array([5.0, 6.0, 7.0]), "b": np.array([40.0])},
    }
    figures.bars(shown, tmp_path / "x.png", y_label="y", title="t")
    (figure,) = drawn
    low, high = figure.axes
    assert low.get_ylim() == high.get_ylim()
    assert low.get_ylim()[0] == 0
    assert low.get_ylim()[1] >= 40
    heights = [patch.get_height() for patch in high.patches]
    assert heights == [6.0, 40.0]
    # Every draw is a dot.
    dots = [line for line in high.lines if line.get_marker() == "o"]
    assert sum(len(line.get_ydata()) for line in dots) == 4


def test_lines_are_means_with_their_spread(drawn, tmp_path):
    values = np.array([[1.0, 2.0], [3.0, 6.0]])
    shown = {
        "one": {"a": ([8.0, 16.0], values)},
        "two": {"a": ([8.0], np.ones((1, 1)))},
    }
    figures.lines(
        shown, tmp_path / "x.png", x_label="x", y_label="y", title="t", log_x=True
    )
    one, two = drawn[0].axes
    np.testing.assert_array_equal(one.lines[0].get_ydata(), [2.0, 4.0])
    band = one.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(4 + np.sqrt(8))
    assert one.get_ylim()[1] >= 4 + np.sqrt(8)
    assert two.get_ylim() == one.get_ylim()
    assert one.get_xscale() == "log"


def test_a_picture_is_a_whole_file(tmp_path):
    path = tmp_path / "folder" / "x.png"
    figures.bars({"p": {"a": np.ones(2)}}, path, y_label="y", title="t")
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="num_panels"):
        canvas.panels(path, [], title="t").__enter__()
