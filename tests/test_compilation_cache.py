"""Compiled programs outlive their process: hits, bounds, folders that are refused."""

import json
import os
import pathlib
import subprocess
import sys
import types

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from experiments import _run, kernel
from ntk_privacy import compilation_cache

ROOT = pathlib.Path(__file__).parents[1]
CODE = """
import json, sys, warnings
import jax, jax.numpy as jnp
from ntk_privacy import compilation_cache
warnings.simplefilter("error")  # from here on: what JAX says of the cache
heard = []
jax.monitoring.register_event_listener(lambda event, **_: heard.append(event))
compilation_cache._SHORTEST = 0.0
folder = compilation_cache.enable(sys.argv[1], max_bytes=int(sys.argv[2]))
x = jnp.linspace(0.0, 1.0, 60).reshape(6, 10)
values = [float(jax.jit(lambda x: jnp.sum(jnp.tanh(x @ x.T) ** k))(x)) for k in (1, 2)]
hits = heard.count("/jax/compilation_cache/cache_hits")
print(json.dumps([str(folder), values, hits]))
"""


def _process(folder, max_bytes=10**9):
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "1"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(folder), str(max_bytes)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _entries(folder):
    return sorted(folder.glob("*-cache"))


def test_the_next_process_compiles_nothing_and_finds_the_same(tmp_path):
    folder = tmp_path / "made" / "here"
    named, values, hits = _process(folder)
    assert named == str(folder)
    assert hits == 0
    assert folder.stat().st_mode & 0o077 == 0
    kept = _entries(folder)
    assert len(kept) >= 3
    # As a kill between the two files of a program leaves it.
    torn = kept[0]
    torn.write_bytes(torn.read_bytes()[:20])
    torn.with_name(torn.name.removesuffix("-cache") + "-atime").unlink()
    cut = kept[1]  # as a disk that filled up leaves it
    cut.write_bytes(cut.read_bytes()[:-5])
    assert _process(folder) == [named, values, len(kept) - 2]
    assert _entries(folder) == kept
    assert torn.stat().st_size > 20
    assert _process(folder) == [named, values, len(kept)]


def test_the_folder_is_bounded(tmp_path):
    _process(tmp_path)
    sizes = [entry.stat().st_size for entry in _entries(tmp_path)]
    most = max(sizes) + 100
    assert sum(sizes) > most
    for entry in tmp_path.iterdir():
        entry.unlink()
    _process(tmp_path, most)
    assert 0 < sum(entry.stat().st_size for entry in _entries(tmp_path)) <= most


@pytest.fixture
def config(monkeypatch):
    """JAX's settings, as they are without a cache, and put back at the end."""
    names = (
        "jax_enable_compilation_cache",
        "jax_compilation_cache_dir",
        "jax_compilation_cache_max_size",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", True)
    yield jax.config
    for name, value in before.items():
        jax.config.update(name, value)
    # Else what was found without one stands for the tests that follow.
    jax_cache.reset_cache()


def test_the_folder_is_the_users_and_the_processors(config, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = compilation_cache.enable()
    assert found == compilation_cache.default_folder()
    assert found.is_relative_to(tmp_path)
    assert config.jax_compilation_cache_dir == str(found)
    monkeypatch.setattr(compilation_cache.platform, "machine", lambda: "another")
    assert compilation_cache.default_folder() != found


def test_what_jax_was_told_stays(config, tmp_path):
    config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
    config.update("jax_compilation_cache_max_size", 77)
    assert compilation_cache.enable(tmp_path / "ours") == tmp_path / "theirs"
    assert config.jax_compilation_cache_max_size == 77
    config.update("jax_enable_compilation_cache", False)
    assert compilation_cache.enable(tmp_path / "ours") is None
    assert not (tmp_path / "ours").exists()


def _shared(place):
    place.mkdir()
    place.chmod(0o777)


def _unbounded(place):
    place.mkdir(mode=0o700)
    (place / f"jit_f-{'0' * 64}-cache").write_bytes(b"a program of JAX's own")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (_shared, "may be written by others"),
        (_unbounded, "holds programs that JAX keeps without a bound"),
        (lambda place: place.write_text("a file"), "cannot be used .File exists"),
    ],
    ids=["of all", "unbounded", "a file"],
)
def test_a_folder_that_may_not_be_trusted_is_not_used(config, tmp_path, make, told):
    make(tmp_path / "x")
    before = sorted(tmp_path.rglob("*"))
    with pytest.warns(UserWarning, match=f"{told}.*are not kept for the next run"):
        assert compilation_cache.enable(tmp_path / "x") is None
    assert config.jax_compilation_cache_dir is None
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_of_ours_survives_a_kill_in_its_first_program(config, tmp_path):
    _unbounded(tmp_path / "x")
    (tmp_path / "x" / ".lockfile").touch()
    others = tmp_path / "x" / "notes-cache"
    others.write_text("not of JAX")
    assert compilation_cache.enable(tmp_path / "x") == tmp_path / "x"
    assert list((tmp_path / "x").glob("*-cache")) == [others]


def test_bounds_of_nothing_are_refused():
    with pytest.raises(ValueError, match="max_bytes=0"):
        compilation_cache.enable(max_bytes=0)


@pytest.mark.parametrize("asked", [True, False])
def test_binaries_keep_programs_unless_told_not_to(asked, monkeypatch, tmp_path):
    called = []
    monkeypatch.setattr(compilation_cache, "enable", lambda: called.append(1))
    monkeypatch.setattr(_run, "run", lambda _: {})
    flag = "--compilation_cache" if asked else "--nocompilation_cache"
    told = ["--dataset=digits", f"--workdir={tmp_path}", flag]
    group = kernel.PROGRAM.parse(told).group
    kind = types.SimpleNamespace(told=lambda *_: "")
    _run.main(types.SimpleNamespace(group=group, kind=kind))
    assert len(called) == asked
