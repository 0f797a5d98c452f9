"""One command for all binaries, in a checkout and in an installation."""

import pathlib

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
