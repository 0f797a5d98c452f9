"""Stored results, of earlier versions too, are told in a few lines."""

import pathlib

import pytest

from ntk_privacy.reports import files, summaries

ROOT = pathlib.Path(__file__).parents[2] / "results"


@pytest.mark.parametrize(
    ("tell", "folder", "told"),
    [
        ("distillation", "distill/mnist_table/kip_0", "test accuracy, infinite"),
        ("distillation", "condense/mtt_mnist_1", "test accuracy, random real images"),
        ("distillation", "robust/curvature_0", "student, clean"),
    ],
)
def test_what_a_run_found_is_told_in_aligned_rows(tell, folder, told):
    results = files.read_json(ROOT / folder / "results.json")
    lines = getattr(summaries, tell)(results).splitlines()
    assert told in [line.split("  ")[0] for line in lines]
    assert lines[-1].startswith("seconds ")
    # Values stand below one another.
    start = {len(line) - len(line.split("  ", 1)[1].lstrip()) for line in lines}
    assert len(start) == 1


def test_every_reconstruction_and_attack_that_is_stored_is_told():
    for path in ROOT.rglob("results.json"):
        results = files.read_json(path)
        if "num_recovered" in results and "train_loss" in results:  # no audit
            text = summaries.reconstruction(results)
            assert "images recovered (PSNR >= 25 dB)" in text
        if "settings" in results and "queries" in results:
            assert "all within eps" in summaries.adversarial(results)
        if "condition_number" in results:
            assert "effective rank" in summaries.kernel(results)
