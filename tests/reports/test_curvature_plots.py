"""The eigenvalue figure is written, and refuses what it cannot show."""

import numpy as np
import pytest

from ntk_privacy.reports import curvature_plots


def test_a_figure_of_two_networks(tmp_path):
    rng = np.random.default_rng(0)
    found = {
        "plain": np.concatenate([rng.lognormal(1, 1, 50), np.zeros(3), -np.ones(1)]),
        "regularised": rng.lognormal(-1, 1, 50),
    }
    path = tmp_path / "eigenvalues.png"
    curvature_plots.eigenvalues(found, path, title="Squeezed")
    assert path.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match=r"largest_eigenvalue=0.0 must be above 0"):
        curvature_plots.eigenvalues({"dead": np.zeros(4)}, path, title="")
    with pytest.raises(ValueError, match="num_networks=0 must be at least 1"):
        curvature_plots.eigenvalues({}, path, title="")
