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


def test_modules_are_found_by_the_names_that_they_had():
    told = (
        "import ntk_privacy.condensation, ntk_privacy.kip\n"
        "from ntk_privacy import distillation\n"
        "from ntk_privacy.condensation import sre2l, trajectory_matching\n"
        "from ntk_privacy.condensation.robust_mean import mean\n"
        "from ntk_privacy.rkip import distill\n"
        "from ntk_privacy.training.target_duals import target_duals\n"
        # One module by two names, not two modules.
        "assert sre2l is distillation.sre2l\n"
        "assert mean is distillation.robust_mean.mean\n"
        "assert distill is distillation.rkip.distill\n"
    )
    subprocess.run([sys.executable, "-c", told], check=True)


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
