"""`experiments.distill` with dm and its kind: files, stages, going on, refusals."""

import json

import jax
import numpy as np
import pytest
from command_lines import asked, chunks, command_line, summary

from experiments import _flags, distill
from ntk_privacy import checkpoint, data
from ntk_privacy.data.choice import Data
from ntk_privacy.distillation import distribution_matching, dm, robust_mean
from ntk_privacy.evaluation import students
from ntk_privacy.models import ConvNet

TOY = {
    "method": "rdm",
    "num_train": 300,
    "num_test": 60,
    "width": 4,
    "images_per_class": 2,
    "num_steps": 6,
    "batch_size": 8,
    "num_networks": 2,
    "num_epochs": 4,
    "progress": False,
}


def _run(folder, **changes):
    return distill.run(asked(TOY, **{"workdir": str(folder), **changes}))


def _arguments(folder, *flags, **changes):
    return command_line(distill.PROGRAM, TOY, *flags, workdir=folder, **changes)


def test_a_run_writes_every_file_and_is_evaluated_later(tmp_path):
    results = _run(tmp_path)
    for name in ("distilled.png", "losses.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    with np.load(tmp_path / "arrays.npz") as stored:
        arrays = dict(stored)
    assert arrays["images"].shape == (20, 8, 8, 1)
    np.testing.assert_array_equal(arrays["labels"], np.repeat(np.arange(10), 2))
    assert arrays["losses"].shape == (6,)
    assert results["loss"] == pytest.approx(arrays["losses"].mean())
    assert "accuracy" not in results
    # The library's own call gives the same set.
    images = data.load_set("digits").subset(num_train=300, num_test=60)
    same = distribution_matching.distill(
        jax.numpy.asarray(images.normalised(images.x_train)),
        jax.numpy.asarray(images.class_train),
        model=ConvNet(10, 4),
        key=jax.random.split(jax.random.key(0), 3)[0],
        images_per_class=2,
        num_steps=6,
        batch_size=8,
        mean_fn=robust_mean.calibrated(rate=0.1),
        operations=images.operations,
        optimizer=dm._sgd(50.0),
        chunk=dm._CHUNK,
    )
    np.testing.assert_array_equal(arrays["images"], same.images)
    stamp = (tmp_path / "arrays.npz").stat().st_mtime_ns
    more = _run(tmp_path, evaluate=True)
    assert (tmp_path / "arrays.npz").stat().st_mtime_ns == stamp
    for entry, runs in (("accuracy", "condensed"), ("accuracy_random", "random")):
        values = more["runs"][runs]
        assert len(values) == 2
        assert more[entry]["convnet"] == pytest.approx(np.mean(values))
        assert more[entry]["convnet_deviation"] == pytest.approx(np.std(values, ddof=1))
    assert "random real images" in summary(more)
    assert _run(tmp_path) == more
    # A set that was damaged and deleted is made again, and what is known of it kept.
    sound = (tmp_path / "arrays.npz").read_bytes()
    (tmp_path / "arrays.npz").unlink()
    assert _run(tmp_path)["accuracy"] == more["accuracy"]
    assert (tmp_path / "arrays.npz").read_bytes() == sound
    # Flags that make another set are refused.
    with pytest.raises(_flags.UsageError, match="num_steps: 6 in the folder, 7 asked"):
        _run(tmp_path, num_steps=7)
    name = tmp_path / "results.json"
    name.write_text(name.read_text()[:30])
    with pytest.raises(ValueError, match=r"results\.json is damaged"):
        _run(tmp_path)


class _Killed(BaseException):
    """Nothing in a run may catch it."""


@pytest.mark.slow
def test_interrupted_at_any_checkpoint_it_ends_with_the_same_bytes(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(students, "_CHUNK", 2)
    chunks(monkeypatch, 2)
    # Chunks of one length: fewer programs to compile.
    changes = {"evaluate": True, "checkpoint_seconds": 0.0, "num_epochs": 3}
    whole = _run(tmp_path / "whole", **changes)
    save, stops = checkpoint.save, []

    def save_and_die(folder, step, state):
        save(folder, step, state)
        stops.append((str(folder.relative_to(folder.parents[1])), step))
        if stops[-1] in (("checkpoints/distill", 4), ("condensed/students", 2)):
            raise _Killed

    monkeypatch.setattr(checkpoint, "save", save_and_die)
    for _ in range(2):
        with pytest.raises(_Killed):
            _run(tmp_path / "cut", **changes)
        assert not (tmp_path / "cut" / "results.json").exists()
    cut = _run(tmp_path / "cut", **changes)
    # Nothing is done twice.
    assert stops == [
        *(("checkpoints/distill", step) for step in (2, 4, 6)),
        *(("condensed/students", step) for step in (2, 4)),
        ("condensed/told", 1),
        *(("random/students", step) for step in (2, 4)),
        ("random/told", 1),
    ]
    assert cut["runs"] == whole["runs"]
    bytes_of = [(tmp_path / n / "arrays.npz").read_bytes() for n in ("whole", "cut")]
    assert bytes_of[0] == bytes_of[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--diag_reg=0.1"],
            "--diag_reg has no effect with --method=rdm: leave",
        ),
        (["--attack"], "--attack has no effect with --method=rdm"),
        (["--noattack"], "--noattack has no effect with --method=rdm"),
        (["--method=dm", "--rate=0.01"], "(it is a flag of rdm, dm_truncated,"),
        (["--method=rkip", "--num_test=60"], "--num_test has no effect with"),
        (["--rate=0.05"], "0.5 of one class, which must lie in [0, 1/3)"),
        (["--batch_size=300"], "batch_size=300 is more than the"),
        (["--images_per_class=0"], "images_per_class=0 must be at least 1"),
        (["--num_epochs=0"], "num_epochs=0 must be at least 1"),
        (["--train_learning_rate=0"], "train_learning_rate=0.0 must be above 0"),
        (["--preset=tpu"], "did you mean cpu? Use one of cpu, paper"),
        (["--preset=papr"], "did you mean paper? Use one of cpu, paper"),
    ],
)
def test_bad_flags_are_one_line_exit_2_and_leave_nothing(
    tmp_path, capsys, flags, message
):
    folder = tmp_path / "new"
    arguments = _arguments(folder, *flags)
    assert _flags.call(distill.main, distill.PROGRAM.parse, arguments) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert not folder.exists()


def test_presets_fill_in_what_is_not_given():
    paper = distill.PROGRAM.asked(method="dm", preset="paper")
    sizes = paper.config
    assert (sizes.width, sizes.images_per_class, sizes.num_steps) == (128, 50, 20_000)
    assert not hasattr(sizes, "rate")
    assert paper.group(Data).num_train is None
    assert paper.flat()["num_epochs"] == 1000
    assert distill.PROGRAM.asked(method="rdm").preset == "cpu"
    assert distill.PROGRAM.asked(method="rdm").flat()["num_epochs"] == 100
    assert distill.PROGRAM.asked(method="rdm", width=7).config.width == 7
    kernels = distill.PROGRAM.asked(method="kip")
    assert (kernels.config.width, kernels.config.num_steps) == (4096, 50_000)
    assert kernels.config.learning_rate == 1e-3
    assert kernels.group(Data).num_train == 500
    assert kernels.config.batch_size is None


def test_folders_that_are_older_than_a_flag_are_read(tmp_path):
    """Names that other methods have, values that were none, fields that were not."""
    whole = _run(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    old = config | {"diag_reg": 1e-5, "table": False, "num_distilled": 20}
    del old["fingerprint"], old["image_size"], old["rate"]
    for given in (old, old | {"rate": None}):
        path.write_text(json.dumps(given))
        assert _run(tmp_path) == whole
    with pytest.raises(_flags.UsageError, match=r"rate: 0\.01 in the folder, 0"):
        _run(tmp_path, rate=0.02)
    path.write_text(json.dumps(old | {"unheard_of": 3}))
    with pytest.raises(_flags.UsageError, match="unheard_of: 3 in the folder, absent"):
        _run(tmp_path)
