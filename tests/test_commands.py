"""One command for all binaries, in a checkout and in an installation."""

import os
import pathlib
import subprocess
import sys
import zipfile

import pytest

import ntk_privacy
from experiments import __main__ as commands

ROOT = pathlib.Path(__file__).parents[1]


def test_every_binary_is_listed_with_what_it_does(capsys):
    assert commands.main([]) == 0
    told = capsys.readouterr().out
    for name, about in commands.names().items():
        assert f"  {name}" in told
        assert about
        assert about in told
    assert {"distill", "evade", "kernel", "poison", "reconstruct"} <= set(
        commands.names()
    )


def test_a_command_that_is_none_gets_the_nearest_name(capsys):
    assert commands.main(["reconstuct", "--width=4"]) == 2
    told = capsys.readouterr().err
    assert "'reconstuct' is no command" in told
    assert "did you mean reconstruct?" in told
    assert len(told.splitlines()) == 1


def test_a_command_takes_its_flags_and_gives_its_code(capsys, tmp_path):
    assert commands.main(["kernel", "--help"]) == 0
    assert "--workdir" in capsys.readouterr().out
    assert commands.main(["kernel", f"--workdir={tmp_path}", "--widht=3"]) == 2
    assert "widht" in capsys.readouterr().err


def test_the_version_is_that_of_the_project():
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{ntk_privacy.__version__}"' in project


@pytest.mark.slow
def test_a_wheel_holds_the_binaries_inside_the_package_and_runs_elsewhere(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet"]
    copy = tmp_path / "source"
    kept = ("ntk_privacy", "experiments", "setup.py", "pyproject.toml", "README.md")
    subprocess.run(
        ["git", "clone", "--quiet", str(ROOT), str(copy)], check=True, timeout=60
    )
    for name in kept:  # as it stands, committed or not
        subprocess.run(["cp", "-r", str(ROOT / name), str(copy)], check=True)
    subprocess.run([*build, "-w", str(tmp_path), str(copy)], check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0].split("-")[0] for name in names}
    assert tops == {"ntk_privacy"}
    assert "ntk_privacy/experiments/reconstruct.py" in names
    assert "ntk_privacy/py.typed" in names
    assert "ntk_privacy/reports/templates/audit.html.j2" in names
    place = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(place)
    env = {**os.environ, "PYTHONPATH": str(place), "JAX_PLATFORMS": "cpu"}
    run = [sys.executable, "-m", "ntk_privacy"]

    def told(*arguments):
        return subprocess.run(
            [*run, *arguments], cwd=tmp_path, env=env, timeout=300,
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip

    assert "reconstruct" in told()
    made = ["--dataset=digits", "--width=64", "--num_train=4", "--noprogress"]
    told("reconstruct", *made, f"--workdir={tmp_path / 'run'}")
    assert (tmp_path / "run" / "results.json").is_file()
