"""One config, one writer, whole files, equal bytes."""

import dataclasses
import errno
import importlib.metadata
import json
import os
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from experiments._run import Stored, versions
from ntk_privacy.data import ArgumentError
from ntk_privacy.reports.atomic import replacing
from ntk_privacy.reports.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 1024
    hidden: tuple[int, ...] = (1, 2)
    workdir: str = ""
    progress: bool = True


_IGNORE = {"workdir", "progress"}


def _open(folder, **changes):
    return Workdir(folder, Config(**changes), ignore=_IGNORE)


def test_first_start_writes_the_config_and_the_second_goes_on(tmp_path):
    folder = tmp_path / "a" / "b"
    with _open(folder):
        stored = json.loads((folder / "config.json").read_text())
    assert stored == {"width": 1024, "hidden": [1, 2], "workdir": "", "progress": True}
    with _open(folder, workdir="elsewhere", progress=False) as workdir:
        assert not workdir.is_done()
        assert workdir.read_json("config.json") == stored
        workdir.write_json("results.json", {})
        assert workdir.is_done()


def test_another_config_is_refused_with_every_difference_named(tmp_path):
    _open(tmp_path).close()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        ArgumentError, match=r"hidden: \[1, 2\] in the folder, \[3\] asked"
    ):
        _open(tmp_path, width=4096, hidden=(3,))
    with pytest.raises(
        ArgumentError, match=r"width: 1024 in the folder, 4096 asked.*give"
    ):
        _open(tmp_path, width=4096)
    assert sorted(tmp_path.rglob("*")) == before
    _open(tmp_path).close()  # the refusal let the lock go


def test_fields_that_came_or_went_are_differences(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"width": 1024, "hidden": [1, 2], "depth": 2}'
    )
    with pytest.raises(ArgumentError, match="depth: 2 in the folder, absent asked"):
        _open(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_broken_config_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ArgumentError, match=r"config.json is no config: give another"):
        _open(tmp_path)


def test_foreign_results_and_files_are_refused(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ArgumentError, match=r"holds results.json but no config.json"):
        _open(tmp_path)
    with pytest.raises(ArgumentError, match="is a file: give a folder"):
        _open(tmp_path / "results.json")


def test_one_writer_at_a_time_in_one_process(tmp_path):
    with (
        _open(tmp_path),
        pytest.raises(ArgumentError, match="in use by another process"),
    ):
        _open(tmp_path)
    _open(tmp_path).close()


def test_one_writer_at_a_time_and_a_killed_one_lets_go(tmp_path):
    # The lock alone, without the seconds that importing JAX takes.
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, sys, time; f = open(sys.argv[1], 'w');"
            "fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)",
            str(tmp_path / ".lock"),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(ArgumentError, match="in use"):
            _open(tmp_path)
    finally:
        holder.kill()
        holder.communicate()
    _open(tmp_path).close()


def test_equal_arrays_give_equal_bytes(tmp_path, monkeypatch):
    arrays = {"b": jnp.arange(3), "a": np.eye(2, dtype=np.float32), "c": np.array("x")}
    with _open(tmp_path) as workdir:
        workdir.write_arrays("1.npz", **arrays)
        monkeypatch.setattr(time, "time", lambda: 1e9)
        workdir.write_arrays("2.npz", **dict(reversed(arrays.items())))
        assert workdir.path("1.npz").read_bytes() == workdir.path("2.npz").read_bytes()
        stored = workdir.read_arrays("1.npz")
    assert set(stored) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(stored[name], array)
        assert stored[name].dtype == array.dtype


@pytest.mark.parametrize("bad", [np.array([{}]), jnp.zeros(2, jnp.bfloat16)])
def test_arrays_that_need_pickle_are_refused_and_nothing_is_left(tmp_path, bad):
    with _open(tmp_path) as workdir:
        workdir.write_arrays("a.npz", x=np.zeros(1))
        with pytest.raises(ValueError, match="array y has dtype"):
            workdir.write_arrays("a.npz", x=np.ones(1), y=bad)
        np.testing.assert_array_equal(workdir.read_arrays("a.npz")["x"], [0.0])
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*.tmp"))


def test_json_is_strict_and_takes_arrays(tmp_path):
    with _open(tmp_path) as workdir:
        workdir.write_json(
            "r.json",
            {"a": jnp.float32(0.5), "b": np.array([1, 2]), "c": [np.inf, float("nan")]},
        )
        text = workdir.path("r.json").read_text()
    value = json.loads(text, parse_constant=lambda c: pytest.fail(f"not JSON: {c}"))
    assert value == {"a": 0.5, "b": [1, 2], "c": ["inf", "nan"]}


def test_leftovers_of_a_killed_process_are_swept_away(tmp_path):
    places = [tmp_path, tmp_path / "model", tmp_path / "cell" / "model"]
    for place in places:
        place.mkdir(exist_ok=True, parents=True)
        (place / f".params.npz.{_dead()}.tmp").write_bytes(b"half")
    # Another run's folder, whose own process may be at work.
    (tmp_path / "cell" / ".lock").touch()
    others = [".draft.tmp", f".x.{os.getpid()}.tmp"]
    for name in others:
        (tmp_path / "model" / name).write_text("not of a killed process")
    (tmp_path / ".y.1.tmp").mkdir()
    _open(tmp_path).close()
    # Nothing is known of a folder that held no run.
    assert all(len(list(place.glob(".*.npz.*.tmp"))) == 1 for place in places)
    _open(tmp_path).close()
    left = [place for place in places if list(place.glob(".*.npz.*.tmp"))]
    assert left == places[2:]
    assert all((tmp_path / "model" / name).exists() for name in others)


def _dead():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "new" / "x.txt"
    with replacing(path) as temporary:
        temporary.write_text("old")

    def fail():
        with replacing(path) as temporary:
            temporary.write_text("half")
            assert path.read_text() == "old"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["x.txt"]
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space") as told, replacing(path):
        raise full
    assert (told.value.errno, told.value.filename) == (errno.ENOSPC, str(path))


def test_versions_are_texts_for_every_part():
    told = versions()
    assert set(told) == {
        "python", "jax", "jaxlib", "flax", "optax", "numpy", "ntk_privacy", "device"
    }  # fmt: skip
    assert all(isinstance(v, str) and v for v in told.values())


def test_a_checkout_that_is_not_installed_says_so(monkeypatch):
    version = importlib.metadata.version

    def of_others(name):
        if name == "ntk_privacy":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", of_others)
    assert versions()["ntk_privacy"] == "not installed"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[1]", "holds no results: delete it"),
        ("{", "is damaged"),
        ('{"a": 1}', "lacks 'b': delete it to make it again"),
    ],
)
def test_results_that_hold_something_else_are_one_sentence(tmp_path, text, told):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"results.json {told}"):
        Stored(path)["b"]
    path.write_text('{"b": 2}')
    assert Stored(path) == {"b": 2}
