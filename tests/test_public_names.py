"""`import ntk_privacy` is enough: public names are there, in a fresh process."""

import ast
import importlib
import pathlib
import pkgutil
import subprocess
import sys

import pytest

import ntk_privacy

PACKAGES = [
    "ntk_privacy",
    *(
        f"ntk_privacy.{m.name}"
        for m in pkgutil.iter_modules(ntk_privacy.__path__)
        if m.ispkg
    ),
]
SLOW_TO_IMPORT = ("jax", "sklearn", "scipy", "matplotlib", "orbax", "flax")


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


def test_threads_that_ask_at_once_find_whole_modules():
    names = ["kip", "rkip.distill", "distillation", "kernels", "evasion", "audit"]
    code = (
        "import operator, threading, ntk_privacy\n"
        "found, start = [], threading.Barrier(6)\n"
        "def ask(name):\n"
        "    start.wait()\n"
        "    found.append(operator.attrgetter(name)(ntk_privacy))\n"
        f"all = [threading.Thread(target=ask, args=(name,)) for name in {names}]\n"
        "[each.start() for each in all], [each.join() for each in all]\n"
        "assert len(found) == 6\n"
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


def test_the_package_alone_imports_nothing_that_takes_time():
    told = f"""
import sys, ntk_privacy
print(ntk_privacy.__version__, *[n for n in {SLOW_TO_IMPORT} if n in sys.modules])
ntk_privacy.data.load
print(*[n for n in {SLOW_TO_IMPORT} if n in sys.modules])
import ntk_privacy.reports
print(*[n for n in {SLOW_TO_IMPORT} if n in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", told], capture_output=True, text=True, check=True
    )
    alone, of_data, of_reports = done.stdout.splitlines()
    assert alone == ntk_privacy.__version__
    assert "jax" in of_data
    assert not {"sklearn", "matplotlib", "orbax"} & set(of_reports.split())


@pytest.mark.parametrize("name", PACKAGES)
def test_tab_completion_shows_public_names_alone(name):
    package = importlib.import_module(name)
    for module in pkgutil.iter_modules(package.__path__, f"{name}."):
        if not module.name.endswith(("neural_tangents", "__main__")):
            importlib.import_module(module.name)  # what is imported becomes a name
    shown = [n for n in dir(package) if not n.startswith("__")]
    assert shown == sorted(package.__all__)
    assert {"__doc__", "__name__", "__file__"} <= set(dir(package))


@pytest.mark.parametrize("name", ["ntk_privacy", "ntk_privacy.reports"])
def test_a_name_that_does_not_exist_is_no_attribute(name):
    package = importlib.import_module(name)
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'x'"):
        package.x  # noqa: B018
    assert not hasattr(package, "__wrapped__")


def test_all_names_that_checkers_see_are_found():
    """Types come from imports that no process runs: they must say the same."""
    for name in ("ntk_privacy", "ntk_privacy.reports"):
        package = importlib.import_module(name)
        source = ast.parse(pathlib.Path(package.__file__).read_text())
        (typed,) = (node for node in source.body if isinstance(node, ast.If))
        seen = {}
        for node in typed.body:
            module = importlib.import_module(node.module)
            for alias in node.names:
                seen[alias.asname or alias.name] = getattr(module, alias.name)
        assert sorted(seen) == sorted(package.__all__)
        for public, value in seen.items():
            assert getattr(package, public) is value


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
