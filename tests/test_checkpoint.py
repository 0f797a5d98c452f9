"""Checkpoints come back to the bit, whole or not at all."""

import doctest
import gc
import logging
import os
import shutil
import subprocess
import sys
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest

from ntk_privacy import checkpoint


class State(NamedTuple):
    params: dict
    optimizer: optax.OptState
    key_data: jax.Array
    step: jax.Array


def _state(seed=0):
    key = jax.random.key(seed)
    params = {
        "layer": {"kernel": jax.random.normal(key, (3, 2), jnp.float32)},
        "half": jax.random.normal(key, (4,), jnp.bfloat16),
        "double": jax.random.normal(key, (2,), jnp.float64).at[0].set(jnp.nan),
    }
    optimizer = optax.adam(jnp.float32(1e-3)).init(params["layer"])
    return State(params, optimizer, jax.random.key_data(key), jnp.int32(seed))


def _bits(tree):
    return [(a.dtype, a.shape, np.asarray(a).tobytes()) for a in jax.tree.leaves(tree)]


def test_a_state_comes_back_to_the_bit(tmp_path):
    state = _state()
    checkpoint.save(tmp_path, 0, state)
    back = checkpoint.restore(tmp_path, 0, jax.tree.map(jnp.zeros_like, state))
    assert type(back) is State
    chex.assert_trees_all_equal_structs(back, state)
    assert _bits(back) == _bits(state)
    key = jax.random.wrap_key_data(back.key_data)
    assert jax.random.uniform(key) == jax.random.uniform(jax.random.key(0))


def test_a_restored_state_runs_the_program_of_the_first_and_stays_where_it_was(
    tmp_path,
):
    free, bound = jnp.ones(3), jax.device_put(jnp.ones(3), jax.devices()[0])
    program = jax.jit(lambda x: 2 * x)
    program(free)
    checkpoint.save(tmp_path, 0, {"free": free, "bound": bound})
    back = checkpoint.restore(tmp_path, 0, {"free": free, "bound": bound})
    assert (back["free"].committed, back["bound"].committed) == (False, True)
    for like in (back, None):
        program(checkpoint.restore(tmp_path, 0, like)["free"])
    assert program._cache_size() == 1


def test_the_newest_two_are_kept(tmp_path):
    for step in (5, 10, 200):
        checkpoint.save(tmp_path, step, _state(step))
    assert checkpoint.latest_step(tmp_path) == 200
    kept = sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit())
    assert kept == [10, 200]
    assert _bits(checkpoint.restore(tmp_path, 10, _state())) == _bits(_state(10))


def test_a_folder_without_checkpoints_has_no_step(tmp_path):
    assert checkpoint.latest_step(tmp_path) is None
    assert checkpoint.latest_step(tmp_path / "absent") is None
    assert not (tmp_path / "absent").exists()


def test_a_half_written_step_is_ignored(tmp_path):
    checkpoint.save(tmp_path, 10, _state(10))
    # What a process killed while saving leaves behind: the folder under its
    # temporary name, with some of the files.
    half = tmp_path / "20.orbax-checkpoint-tmp-1"
    shutil.copytree(tmp_path / "10", half)
    (half / "_CHECKPOINT_METADATA").unlink()
    assert checkpoint.latest_step(tmp_path) == 10
    checkpoint.save(tmp_path, 20, _state(20))
    assert checkpoint.latest_step(tmp_path) == 20
    assert _bits(checkpoint.restore(tmp_path, 20, _state())) == _bits(_state(20))


def _renamed(state):
    return state._replace(params={"other": state.params["half"]})


def _reshaped(state):
    half = jnp.zeros((9,), jnp.bfloat16)
    return state._replace(params={**state.params, "half": half})


def _smaller(state):
    params = {k: v for k, v in state.params.items() if k != "half"}
    return state._replace(params=params)


def _retyped(state):
    half = jnp.zeros((4,), jnp.float32)
    return state._replace(params={**state.params, "half": half})


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (
            _renamed,
            r"at params/double it has shape \(2,\) and dtype float64, not no leaf",
        ),
        (_reshaped, r"at params/half it has shape \(4,\) .* not shape \(9,\)"),
        (_smaller, r"at params/half it has shape \(4,\) .* not no leaf"),
        (_retyped, r"at params/half .* dtype bfloat16, not .* dtype float32"),
    ],
)
def test_another_structure_is_one_clear_line(tmp_path, change, difference):
    checkpoint.save(tmp_path, 3, _state())
    with pytest.raises(ValueError, match=difference) as caught:
        checkpoint.restore(tmp_path, 3, change(_state()))
    text = str(caught.value)
    assert text.startswith("The checkpoint of step 3 in ")
    assert text.endswith("remove the folder to start anew.")
    assert "\n" not in text


# Orbax drops its other reads when one fails; they complain when they are collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("victim", ["manifest.ocdbt", "_METADATA"])
def test_a_damaged_or_missing_step_is_one_clear_line(tmp_path, victim):
    checkpoint.save(tmp_path, 3, _state())
    with pytest.raises(ValueError, match="checkpoint of step 4"):
        checkpoint.restore(tmp_path, 4, _state())
    (hit,) = tmp_path.glob(f"3/*/{victim}")
    hit.write_bytes(b"broken")
    with pytest.raises(ValueError, match="checkpoint of step 3") as caught:
        checkpoint.restore(tmp_path, 3, _state())
    del caught
    gc.collect()


@pytest.mark.parametrize(
    "bad",
    [3, np.float32(1), jax.random.key(0), np.array(["relu"]), np.array([None])],
)
def test_leaves_that_are_no_arrays_are_refused_before_anything_is_written(
    tmp_path, bad
):
    with pytest.raises(ValueError, match=r"state\['step'\] is a .*: make scalars"):
        checkpoint.save(tmp_path / "new", 1, {"x": jnp.zeros(2), "step": bad})
    assert not (tmp_path / "new").exists()


def test_empty_arrays_come_back_empty(tmp_path):
    state = {"a": jnp.zeros((0, 3)), "b": jnp.ones(2)}
    checkpoint.save(tmp_path, 1, state)
    chex.assert_trees_all_equal(checkpoint.restore(tmp_path, 1, state), state)


@pytest.mark.parametrize("step", [-1, 1.5])
def test_a_step_that_is_none_and_a_file_in_the_way_are_refused(
    tmp_path, step, monkeypatch
):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=f"steps={step} must be"):
        checkpoint.save(tmp_path / "new", step, {"x": jnp.zeros(2)})
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="a file is in its way: give another"):
            checkpoint.save(folder, 1, {"x": jnp.zeros(2)})


_FILLING = """
import pathlib, shutil, sys
import numpy as np
from ntk_privacy import checkpoint
disk, leaf = pathlib.Path(sys.argv[1]), np.random.default_rng(0).normal
state = [{"kernel": leaf(size=(3, 30)), "bias": leaf(size=4)} for _ in range(9)]
checkpoint.save(disk / "steps", 1, state)
for left in range(0, 40_000, 4096):
    (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - left))
    try:
        checkpoint.save(disk / "steps", 2, state)
    except OSError as error:
        print(error)
        assert checkpoint.latest_step(disk / "steps") == 1
    else:
        break
    finally:
        (disk / "filler").unlink()
assert left
checkpoint.save(disk / "steps", 3, state)
assert checkpoint.latest_step(disk / "steps") == 3
"""


def test_a_full_disk_is_one_sentence_and_leaves_the_last_step(tmp_path):
    """On a real one, which only root may mount; a process by itself shows all."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=900k", "small", str(disk)]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("no small disk can be mounted")
    try:
        done = subprocess.run(
            [sys.executable, "-c", _FILLING, str(disk)],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    assert (done.returncode, done.stderr) == (0, "")
    lines = set(done.stdout.splitlines())
    assert len(lines) == 1
    assert "step 2 cannot be written" in lines.pop()


@pytest.mark.parametrize(
    ("message", "error", "news"),
    [
        ("run() raised an exception: %s", OSError(28, "No space left"), False),
        (
            "run() raised an exception: %s",
            ValueError("No space left on device"),
            False,
        ),
        ("Task exception was never retrieved %s", OSError(28, "No space"), False),
        (
            "Task exception was never retrieved %s",
            RuntimeError("cannot schedule new futures after shutdown"),
            False,
        ),
        ("run() raised an exception: %s", ValueError("a fault of the program"), True),
        ("Task exception was never retrieved %s", RuntimeError("another"), True),
        ("slow callback %s", OSError(28, "No space left"), True),
    ],
)
def test_after_a_full_disk_threads_that_end_late_tell_nothing_new(message, error, news):
    told = (type(error), error, None)
    record = logging.LogRecord("absl", 40, "", 0, message, (error,), told)
    assert checkpoint._is_news(record) is news


def test_a_record_without_an_error_is_news():
    record = logging.LogRecord("absl", 40, "", 0, "run() raised an exception", (), None)
    assert checkpoint._is_news(record)


def test_the_examples_print_what_they_say():
    found = doctest.testmod(checkpoint)
    assert found.attempted
    assert found.failed == 0
