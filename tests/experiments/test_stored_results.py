"""Every folder in results/ is one that today's binaries would go on with."""

import json
import pathlib
import shutil

import pytest

from experiments import (
    _run,
    audit,
    compare,
    distill,
    evade,
    kernel,
    poison,
    reconstruct,
)

ROOT = pathlib.Path(__file__).parents[2] / "results"
FOLDERS = sorted(path.parent for path in ROOT.rglob("config.json"))
PROGRAMS = {
    "audit": audit,
    "evade": evade,
    "kernel": kernel,
    "poison": poison,
    "reconstruct": reconstruct,
}


def _name(folder):
    return str(folder.relative_to(ROOT))


def _tuples(value):
    return tuple(value) if isinstance(value, list) else value


def _opened(folder, stored):
    """Opens the folder as its binary does."""
    module = PROGRAMS.get(folder.name.split("__")[-1], distill)
    if "methods" in stored and "method" not in stored and module is distill:
        module = compare
    return _run.opened(_asked(module.PROGRAM, stored, workdir=str(folder)))


def _asked(program, stored, **changes):
    """What a program is asked by flags of the stored values."""
    stored = program.today(stored)
    names = program.names(stored[program.flag]) | {program.flag, "preset"}
    own = {k: _tuples(v) for k, v in stored.items() if k in names and v is not None}
    return program.asked(**{**own, **changes})


@pytest.mark.parametrize("folder", FOLDERS, ids=_name)
def test_a_stored_folder_is_accepted(tmp_path, folder):
    first = folder.relative_to(ROOT).parts[0]
    kind = "evade" if folder.name == "evade" else first
    copy = tmp_path / f"run__{kind}"
    copy.mkdir()
    for name in ("config.json", "results.json"):
        shutil.copy(folder / name, copy / name)
    stored = json.loads((folder / "config.json").read_text())
    with _opened(copy, stored) as workdir:
        assert workdir.is_done()


def test_there_are_stored_folders():
    assert len(FOLDERS) > 100
