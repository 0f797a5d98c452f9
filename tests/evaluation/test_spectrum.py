"""Figures of a kernel: against what eigenvalues say, and the examples run."""

import doctest

import jax
import numpy as np
import pytest

from ntk_privacy import _versions, data
from ntk_privacy.evaluation import (
    kernel_movement,
    kernel_study,
    spectrum,
    trained_network,
)
from ntk_privacy.kernels import named
from ntk_privacy.reconstruction import candidates


def test_figures_are_those_of_the_eigenvalues():
    rng = np.random.default_rng(0)
    factor, y = rng.normal(size=(6, 9)), rng.normal(size=(6, 2))
    kernel = factor @ factor.T
    values = spectrum.eigenvalues(kernel.astype(np.float32))
    assert values.dtype == np.float64
    assert (np.diff(values) < 0).all()
    found = spectrum.figures(kernel, y)
    assert found["trace"] == pytest.approx(values.sum(), 1e-5)
    assert found["condition_number"] == pytest.approx(values[0] / values[-1], 1e-3)
    rank = values.sum() ** 2 / (values**2).sum()
    assert found["effective_rank"] == pytest.approx(rank, 1e-5)
    assert 0 < found["target_alignment"] < 1
    assert spectrum.figures(y @ y.T, y)["target_alignment"] == pytest.approx(1)
    negative = spectrum.figures(np.diag([1.0, -1.0]), y[:2])
    assert negative["condition_number"] == float("inf")


def test_kernels_without_a_spectrum_are_told():
    y = np.ones((2, 1))
    with pytest.raises(ValueError, match="kernel has NaN or infinite values in 1 rows"):
        spectrum.figures(np.asarray([[np.nan, 0.0], [0.0, 1.0]]), y)
    with pytest.raises(ValueError, match="kernel is zero everywhere"):
        spectrum.figures(np.zeros((2, 2)), y)


def test_a_streamed_kernel_is_studied_like_one_in_memory(tmp_path):
    key = jax.random.key(0)
    digits = data.load("digits", num_train=10, key=key)
    method = named.KERNELS["infinite_mlp"]
    kernel = method.run(named.Problem(digits.x_train, 1), method.configured(), key=key)
    images = (digits.x_train, digits.y_train, digits.class_train[::-1])
    whole = kernel_study.study(kernel, *images, train=True)
    path = tmp_path / "kernel.npy"
    streamed = kernel_study.study(kernel, *images, path=path, budget=0.01)
    assert (np.diff(whole.arrays["classes"]) >= 0).all()
    # All images are shown, in the order of the kernel's rows.
    np.testing.assert_array_equal(whole.part_classes, whole.arrays["classes"])
    assert (whole.moved, whole.num_images, list(whole.spectra)) == (
        None,
        10,
        ["kernel"],
    )
    assert "kernel" not in streamed.arrays
    np.testing.assert_allclose(np.load(path), whole.arrays["kernel"], rtol=1e-5)
    assert streamed.figures == pytest.approx(whole.figures, 1e-2)


@pytest.mark.parametrize(
    "module",
    [candidates, kernel_movement, spectrum, trained_network],
    ids=lambda module: module.__name__,
)
def test_the_examples_print_what_they_say(module):
    with _versions.enable_x64(False):
        failed, attempted = doctest.testmod(module)
    assert (failed, attempted > 0) == (0, True)
