"""`--dataset` of every binary: a name, a file, a folder; and what stays honest."""

import dataclasses
import importlib
import json
import pathlib

import numpy as np
import pytest

from experiments import (
    _flags,
    _run,
    compare,
    distill,
    evade,
    kernel,
    poison,
    reconstruct,
)
from experiments._program import Asked
from ntk_privacy import data
from ntk_privacy.data.choice import Choice
from ntk_privacy.data.sets import SETS, Set
from ntk_privacy.reports.workdir import Workdir

CONFIGS = {
    "compare": (compare.PROGRAM.asked, {}),
    "distill": (distill.PROGRAM.asked, {}),
    "dm": (distill.PROGRAM.asked, {"method": "dm"}),
    "evade": (evade.PROGRAM.asked, {"train": "plain"}),
    "kernel": (kernel.PROGRAM.asked, {}),
    "poison": (poison.PROGRAM.asked, {}),
    "reconstruct": (reconstruct.PROGRAM.asked, {}),
    "sre2l": (distill.PROGRAM.asked, {"method": "sre2l"}),
}
every_binary = pytest.mark.parametrize("binary", CONFIGS)


def _config(binary, **flags):
    kind, own = CONFIGS[binary]
    return kind(**{**own, **flags})


def _data(config):
    """The flags of the set."""
    return config.group(Choice) if isinstance(config, Asked) else config


def _npz(path, seed=0, *, each=6):
    shape = (2 * each, 4, 4)
    images = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    np.savez(path, images=images, labels=np.arange(2 * each) % 2)
    return str(path)


@every_binary
def test_every_binary_takes_a_file_and_knows_what_is_in_it(tmp_path, binary):
    one = _data(_config(binary, dataset=_npz(tmp_path / "a.npz")))
    assert one.fingerprint == _data(_config(binary, dataset=one.dataset)).fingerprint
    other = _data(_config(binary, dataset=_npz(tmp_path / "b.npz", seed=1)))
    assert one.fingerprint != other.fingerprint
    assert dataclasses.replace(one, seed=1) if hasattr(one, "seed") else True
    assert one.image_shape() == (4, 4, 1)
    # The file is another now: the config is still of the images that it was.
    _npz(tmp_path / "a.npz", seed=1)
    with pytest.raises(data.ArgumentError, match="give those, or leave fingerprint"):
        one.read()


@every_binary
@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"dataset": "mnits"}, r"dataset='mnits' is unknown \(did you mean mnist\?\)"),
        (
            {"dataset": "x.npz", "data_dir": "y"},
            "data_dir=y and download=False are",
        ),
        ({"dataset": "x.npz", "image_size": 9}, "image_size=9 is for dataset='image_f"),
        ({"dataset": "digits", "image_size": 9}, "image_size=9 is for dataset='image_"),
        ({"dataset": "./x", "image_size": 0}, "image_size=0 must be at least 1"),
        ({"dataset": "digits", "fingerprint": "a"}, "fingerprint='a' is for one's own"),
        ({"dataset": "image_folder"}, "name the folder that holds train and val"),
    ],
)
def test_every_binary_refuses_what_does_not_fit_its_set(binary, flags, told):
    with pytest.raises(ValueError, match=told):
        _config(binary, **flags)


def test_a_set_more_is_one_row_for_the_binaries(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 6, 6, 1)).astype(np.uint8)
    labels = np.arange(40, dtype=np.int32) % 4
    raw = data.Raw(images, labels, images[:8], labels[:8], tuple("abcd"), 255)
    monkeypatch.setitem(SETS, "toy", Set(lambda _: raw, (6, 6, 1), flips=False))
    images = _data(_config("reconstruct", dataset="toy", num_images=8))
    dataset, _ = images.load(0)
    assert (dataset.x_train.shape, dataset.y_train.shape) == ((8, 6, 6, 1), (8, 4))
    config = _config("poison", dataset="toy", num_train=20)
    found = _data(config).part(published=False)
    assert (found.x_train.shape, found.num_classes) == ((20, 6, 6, 1), 4)
    assert "flip" not in found.operations
    assert _data(_config("distill", dataset="toy")).image_shape() == (
        6,
        6,
        1,
    )
    # No task of two superclasses, of which the logistic loss is.
    options = {"num_images": 8, "workdir": str(tmp_path / "run")}
    asked = _config("reconstruct", dataset="toy", method="max_margin", **options)
    with pytest.raises(ValueError, match="takes two classes: use a binary task"):
        reconstruct.run(asked)
    assert not (tmp_path / "run").exists()


TOY = {
    "compare": {"methods": ("dm",), "preset": "cpu"},
    "distill": {"num_images": 4, "num_distilled": 2},
    "dm": {"batch_size": 4},
    "evade": {},
    "kernel": {"num_images": 4},
    "poison": {"batch_size": 4, "num_seeds": 1, "rate": 0.01, "attack": "direct"},
    "reconstruct": {"num_images": 4},
    "sre2l": {"num_images": 200, "num_test": 2},
}
RUN = {"sre2l": distill.run, "dm": distill.run}


@every_binary
def test_a_run_is_of_its_images_wherever_they_lie(tmp_path, binary):
    run = RUN.get(binary) or globals()[binary].run
    flags = {**TOY[binary], "workdir": str(tmp_path / "run")}
    first = _config(binary, dataset=_npz(tmp_path / "a.npz", each=200), **flags)
    told = first.flat() if isinstance(first, Asked) else first
    with Workdir(flags["workdir"], told):
        pass
    other = _config(binary, dataset=_npz(tmp_path / "b.npz", seed=1, each=200), **flags)
    with pytest.raises(_flags.UsageError, match="another config") as caught:
        run(other)
    # The path is another, too, which alone would not matter.
    assert "(fingerprint: " in str(caught.value)
    assert "dataset: " not in str(caught.value)
    with pytest.raises(_flags.UsageError, match=r"another config \(.*dataset: "):
        run(_config(binary, dataset="digits", **flags))


def test_what_was_made_of_images_that_are_gone_may_be_looked_at(tmp_path):
    config = _config("kernel", dataset=_npz(tmp_path / "a.npz"))
    ignore = _data(config).not_results(())
    with Workdir(tmp_path / "run", config.flat(), ignore=ignore):
        pass
    (tmp_path / "a.npz").unlink()
    gone = _config("kernel", dataset=_data(config).dataset)
    ignore = _data(gone).not_results(())
    with Workdir(tmp_path / "run", gone.flat(), ignore=ignore):
        assert _data(gone).fingerprint is None
    with pytest.raises(FileNotFoundError, match="is missing"):
        _data(gone).read()


def test_folders_of_older_runs_of_named_sets_go_on():
    for config in (_data(_config(name, dataset="digits")) for name in CONFIGS):
        ignored = config.not_results(("workdir", "data_dir"))
        assert set(ignored) == {"workdir", "data_dir", "image_size", "fingerprint"}


def test_max_margin_refuses_more_than_two_classes_of_a_file(tmp_path, capsys):
    images = np.random.default_rng(0).random((12, 4, 4))
    np.savez(tmp_path / "three.npz", images=images, labels=np.arange(12) % 3)
    flags = ["--method=max_margin", f"--dataset={tmp_path / 'three.npz'}"]
    flags += ["--num_images=3", "--width=8", f"--workdir={tmp_path / 'run'}"]
    assert _flags.call(reconstruct.main, reconstruct.PROGRAM.parse, flags) == 2
    assert "takes two classes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


WHOLE = {
    "poison": {"attack": "none", "methods": ("dm",), "num_seeds": 1, "num_test": 4},
    "compare": {"methods": ("dm",), "images_per_class": 1, "width": 4},
    "evade": {"train": "plain"},
    "distill": {"method": "full", "num_images": 4},
    "kernel": {"num_images": 4},
    "reconstruct": {"num_images": 4},
}


@pytest.mark.parametrize("binary", WHOLE)
def test_a_whole_run_is_told_when_its_images_are_gone(tmp_path, binary):
    place, folder = _npz(tmp_path / "own.npz"), tmp_path / "run"
    given = {"dataset": place, "workdir": str(folder), **WHOLE[binary]}
    asked = _config(binary, **given)
    module = importlib.import_module(f"experiments.{binary}")
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(asked.flat()))
    np.savez(folder / "arrays.npz", none=np.zeros(1))
    # As an earlier version wrote it: its versions are not today's.
    told = {"versions": {"jax": "0.1"}, "table": []}
    (folder / "results.json").write_text(json.dumps(told))
    pathlib.Path(place).unlink()
    assert module.run(_config(binary, **given)) == told
    assert json.loads((folder / "results.json").read_text()) == told


def test_another_number_of_seeds_is_no_whole_run(tmp_path):
    works = {"load": lambda _: 3, "work": lambda *_: {"made": 1}}
    kind = dataclasses.replace(poison.KIND, **works)
    program = dataclasses.replace(poison.PROGRAM, kind=lambda _: kind)
    asked = program.asked(num_seeds=2, workdir=str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(asked.flat()))
    (tmp_path / "results.json").write_text("{}")

    assert _run.run(asked) == {}
    more = program.asked(num_seeds=3, workdir=str(tmp_path))
    assert _run.run(more)["made"] == 1
    assert json.loads((tmp_path / "config.json").read_text())["num_seeds"] == 3
