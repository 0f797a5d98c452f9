"""What is given away is whole, runs far from a checkout and leaves that as it was."""

import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# What lies about in a checkout and belongs to nobody else.
STRAY = (
    *("docs/_build/html/index.html", "docs/api/x.md", "runs/digits/results.json"),
    *(".venv/x.py", "build/lib/x.py", "ntk_privacy/__pycache__/x.cpython-311.pyc"),
    *("tests/__pycache__/x.pyc", "results/study/x/work/y.json"),
)


def _run(*command, cwd, timeout=300, **changes):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, timeout=timeout, check=True,
        capture_output=True, text=True, env=environment | changes,
    ).stdout  # fmt: skip


@pytest.fixture(scope="module")
def tracked():
    """Names of the files of the repository that are here, committed or not."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no git here that tells what belongs to the repository")
    told = _run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard",
                cwd=ROOT)  # fmt: skip
    return sorted(n for n in told.split("\0") if n and (ROOT / n).is_file())


@pytest.fixture(scope="module")
def checkout(tracked, tmp_path_factory):
    """A copy of the repository, with what use leaves in one."""
    copy = tmp_path_factory.mktemp("checkout") / "source"
    for name in [n for n in tracked if not n.startswith("results/")]:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name)
    for name in STRAY:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("stray")
    return copy


def _files(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_the_source_archive_has_every_file(checkout, tracked, tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    build = "import sys; from setuptools.build_meta import *; build_sdist(sys.argv[1])"
    _run(sys.executable, "-c", build, tmp_path, cwd=checkout)
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        files = [m.name.partition("/")[2] for m in archive if m.isfile()]
    # What setuptools tells of a package.
    own = {"PKG-INFO", "setup.cfg"}
    found = {n for n in files if not n.startswith("ntk_privacy.egg-info/")} - own
    assert found == {name for name in tracked if not name.startswith("results/")}


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory):
    before, folder = _files(checkout), tmp_path_factory.mktemp("wheel")
    _run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet",
         "--disable-pip-version-check", "-w", folder, "./source",
         cwd=checkout.parent)  # fmt: skip
    left = {n for n in _files(checkout) - before if ".egg-info/" not in n}
    assert not left, "building leaves files in the checkout"
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment with the wheel; what that needs is the one of the tests."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    python = folder / "env" / "bin" / "python"
    # Before the other environment is seen, which has the package itself.
    _run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps",
         "--quiet", "--disable-pip-version-check", wheel, cwd=folder)  # fmt: skip
    site = _run(python, "-c", "import site; print(site.getsitepackages()[0])",
                cwd=folder).strip()  # fmt: skip
    import jax

    others = pathlib.Path(jax.__file__).parents[1]
    pathlib.Path(site, "others.pth").write_text(f"{others}\n")
    return folder, pathlib.Path(site)


@pytest.mark.slow
def test_a_wheel_holds_the_binaries_inside_the_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"ntk_privacy"}
    held = {name for name in names if name.startswith("ntk_privacy/")}
    folders = ("ntk_privacy", "experiments")
    here = [p for f in folders for p in (ROOT / f).rglob("*") if p.is_file()]
    kept = {str(p.relative_to(ROOT)) for p in here if "__pycache__" not in p.parts}
    assert held == {n.replace("experiments", "ntk_privacy/experiments", 1)
                    if n.startswith("experiments") else n for n in kept}  # fmt: skip


@pytest.mark.slow
def test_an_installation_runs_far_from_the_checkout(installed):
    folder, site = installed
    run = folder / "env" / "bin" / "python"
    place = "import ntk_privacy as n; print(n.__file__); print(n.__version__)"
    file, version = _run(run, "-c", place, cwd=folder).split()
    assert pathlib.Path(file) == site / "ntk_privacy" / "__init__.py"
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text()
    assert not (site / "experiments").exists()
    none = "from importlib import util; print(util.find_spec('experiments'))"
    assert _run(run, "-c", none, cwd=folder).strip() == "None"
    listed = _run(run, "-m", "ntk_privacy", cwd=folder)
    command = folder / "env" / "bin" / "ntk-privacy"
    assert _run(command, cwd=folder) == listed
    assert "  reconstruct" in listed
    _run(command, "reconstruct", "--dataset=digits", "--width=64", "--num_train=4",
         "--noprogress", "--workdir=run", cwd=folder, JAX_PLATFORMS="cpu")  # fmt: skip
    assert (folder / "run" / "results.json").is_file()
