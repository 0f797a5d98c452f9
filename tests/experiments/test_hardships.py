"""Disks that are full or may only be read, archives that unpack to more than they say.

At toy size, by what `hardships` gives all binaries for an hour.
"""

import contextlib
import os
import tracemalloc

import hardships
import numpy as np
import pytest

from experiments import _flags, kernel

TOY = ("--dataset=digits", "--num_images=10", "--noprogress", "--nocompilation_cache")


def _call(capsys, folder, *flags):
    arguments = [*TOY, f"--workdir={folder}", *flags]
    code = _flags.call(kernel.main, kernel.PROGRAM.parse, arguments)
    return code, capsys.readouterr().err


@pytest.fixture
def small(tmp_path):
    """A disk of one page."""
    if os.geteuid():
        pytest.skip("only root may mount a disk")
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(hardships.disk(tmp_path / "disk", 4096))
        except hardships.subprocess.CalledProcessError:
            pytest.skip("no small disk can be mounted")
        yield folder


def test_a_full_disk_is_one_sentence_and_room_on_it_lets_the_run_go_on(
    small, tmp_path, capsys
):
    code, told = _call(capsys, small)
    assert hardships.wrong({"code": code, "said": told.strip(), "bytes": 0}) == []
    assert "No space left on device" in told
    assert str(small) in told
    assert not (small / "results.json").exists()
    hardships.changed(small, "size=8m")
    assert _call(capsys, small)[0] == 0
    assert _call(capsys, tmp_path / "whole")[0] == 0
    found, whole = (f / "arrays.npz" for f in (small, tmp_path / "whole"))
    with np.load(found) as one, np.load(whole) as other:
        assert list(one) == list(other)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_a_folder_that_may_only_be_read_is_one_sentence(small, capsys):
    hardships.changed(small, "ro")
    code, told = _call(capsys, small)
    assert hardships.wrong({"code": code, "said": told.strip(), "bytes": 0}) == []
    assert str(small) in told
    assert list(small.iterdir()) == []


@pytest.mark.parametrize(("count", "size"), [(10, 256 << 20), (10**12, 1 << 20)])
def test_an_archive_that_unpacks_to_more_is_refused_before_it_is(
    count, size, tmp_path, capsys
):
    hardships.bomb(tmp_path / "bomb.npz", count, size)
    tracemalloc.start()
    code, told = _call(capsys, tmp_path / "run", f"--dataset={tmp_path / 'bomb.npz'}")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert hardships.wrong({"code": code, "said": told.strip(), "bytes": 0}) == []
    assert "bomb.npz" in told
    assert most < 32 << 20
    assert not (tmp_path / "run").exists()
