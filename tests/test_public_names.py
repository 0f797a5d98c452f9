"""`import ntk_privacy` is enough: public names are there, in a fresh process."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import ntk_privacy


def test_one_import_reaches_every_method():
    code = (
        "import ntk_privacy as n\n"
        "n.data.load; n.models.MLP; n.kernels.structured.ntk\n"
        "n.training.train.full_batch; n.training.linearized.decompose\n"
        "n.reconstruction.kkt.reconstruct; n.reconstruction.algebraic.reconstruct\n"
        "n.reconstruction.max_margin.reconstruct; n.kip.distill; n.rkip.distill\n"
        "n.reconstruction.auto.reconstruct; n.reconstruction.METHODS['kkt'].run\n"
        "n.training.victim.train; n.reports.compared\n"
        "n.evaluation.evaluate; n.evaluation.kernel_distance.kernel_distance\n"
        "n.reports.gallery; n.checkpoint.save\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "name",
    [
        "ntk_privacy",
        *(m.name for m in pkgutil.walk_packages(ntk_privacy.__path__, "ntk_privacy.")),
    ],
)
def test_every_name_of_all_exists(name):
    if name.endswith("neural_tangents"):
        pytest.importorskip("neural_tangents")
    module = importlib.import_module(name)
    assert module.__doc__
    assert "TODO" not in module.__doc__
    for public in getattr(module, "__all__", ()):
        assert hasattr(module, public), public
