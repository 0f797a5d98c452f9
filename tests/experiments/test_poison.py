"""`experiments.poison` at toy size: files, the table, going on, exit codes."""

import dataclasses
import functools
import json

import numpy as np
import pytest
from command_lines import chunks, command_line

from experiments import _flags, poison
from ntk_privacy import checkpoint, data
from ntk_privacy.data import sets
from ntk_privacy.distillation import METHODS
from ntk_privacy.evaluation import poisoned_means, students
from ntk_privacy.poisoning import METHODS as ATTACKS

TOY = {
    "dataset": "digits",
    "num_seeds": 1,
    "width": 4,
    "num_train": 400,
    "num_test": 50,
    "images_per_class": 1,
    "num_steps": 4,
    "batch_size": 8,
    "num_epochs": 3,
    "attack_steps": 2,
    "num_restarts": 1,
    "num_clean": 2,
    "num_networks": 2,
    "progress": False,
}


def _run(folder, **changes):
    return poison.run(_asked(workdir=str(folder), **changes))


def _asked(**changes):
    names = poison.PROGRAM.names(changes.get("attack", "direct"))
    own = {name: value for name, value in TOY.items() if name in names}
    return poison.PROGRAM.asked(**{**own, **changes})


def test_a_run_writes_the_table_and_takes_more_methods_later(tmp_path):
    results = _run(tmp_path, methods=("dm", "rdm"))
    assert [row["method"] for row in results["table"]] == ["dm", "rdm"]
    for row in results["table"]:
        assert set(row) >= {"method", "attack", "accuracy", "accuracy_std"}
        assert set(row) >= {"attack_success", "attack_success_std"}
        assert 0 <= row["accuracy"] <= 1
    for name in ("poisons_0.png", "condensed_0_rdm.png", "losses.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    with np.load(tmp_path / "poisons_0.npz") as stored:
        assert stored["poisons"].shape == (4, 8, 8, 1)
        assert (stored["poisons"] == stored["poisons"][:1]).all()
    # DM drops nothing; the calibration drops ceil(0.3 * 8) of 8.
    dm, rdm = results["table"]
    assert dm["poison_dropped"] == dm["clean_dropped"] == 0
    assert 0 < dm["deviation"] == pytest.approx(dm["deviation_of_mean"], rel=1e-5)
    assert rdm["deviation_of_mean"] == pytest.approx(dm["deviation_of_mean"], rel=1e-5)
    shares = rdm["poison_dropped"], rdm["clean_dropped"]
    assert min(shares) <= 3 / 8 <= max(shares)
    cell = (tmp_path / "cell_0_dm_0.json").read_bytes()
    (tmp_path / "cell_0_rdm_0.json").unlink()
    again = _run(tmp_path, methods=("dm", "rdm"))
    assert again["table"] == results["table"]
    assert (tmp_path / "cell_0_dm_0.json").read_bytes() == cell


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["dm", "gradient"])
def test_other_attacks_stay_in_their_budget_on_the_grid(tmp_path, attack):
    results = _run(tmp_path, methods=("dm",), attack=attack, num_steps=1, num_epochs=1)
    assert results["seconds"]["craft"] > 0
    with np.load(tmp_path / "poisons_0.npz") as stored:
        poisons, where = stored["poisons"], stored["where"]
    images = poison.load(_asked())
    change = np.rint(16 * (poisons.astype(float) - images.x_train[where]))
    assert 0 < np.abs(change).max() <= 4  # 64/255 in steps of 1/16
    assert set(images.class_train[where]) == {
        json.loads((tmp_path / "cell_0_dm_0.json").read_text())["adversarial_class"]
    }


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--methods=kip"], 2, "methods='kip' is unknown"),
        (["--rate=0.05"], 2, "0.5 of one class, which must lie in [0, 1/3): use a"),
        (["--rate=-0.1"], 2, "use a rate below 0.0333"),
        (["--attack=dm", "--bound=0"], 2, "bound=0 must lie in [1, 255]"),
        (["--width=0"], 2, "width=0 must be at least 1"),
        (["--batch_size=300"], 2, "batch_size=300 is more than the"),
        (["--batch_size=1"], 2, "drops 1 of 1 samples"),
        (["--num_train=2000"], 2, "2000 training images are more than the"),
        (["--num_train=5"], 2, "Class 0 of 10 has no training images among 5"),
        (["--methods=dm,dm"], 2, "methods names dm twice"),
        (["--rate=0"], 2, "is no poison at all: use a rate of at least 0.0025"),
        (["--rate=0.001"], 2, "is no poison at all: use a rate of at least 0.0025"),
        (["--attack=dm", "--bound=15"], 2, "below one step of digits, which is 1/16"),
        (["--num_seeds=x"], 2, "num_seeds"),
        (["--bound=16"], 2, "--bound has no effect with --attack=direct: leave it out"),
        (["--dataset=mnist", "--data_dir=/nowhere"], 1, "/nowhere"),
    ],
)
def test_faults_are_one_line(tmp_path, capsys, flags, code, message):
    given = command_line(poison.PROGRAM, TOY, *flags, workdir=tmp_path)
    assert _flags.call(poison.main, poison.PROGRAM.parse, given) == code
    out, error = capsys.readouterr()
    assert message in error
    assert error.count("\n") == 1
    assert not out
    assert not list(tmp_path.iterdir())


def test_a_seed_without_enough_images_is_told_before_any_is_run(tmp_path, capsys):
    flags = "--num_seeds=40", "--rate=0.03"
    given = command_line(poison.PROGRAM, TOY, *flags, workdir=tmp_path)
    images = poison.load(_asked())
    assert np.bincount(images.class_train).min() > 12  # what 3% of 400 asks for
    few = dataclasses.replace(
        images, class_train=np.where(np.arange(400) < 4, 0, images.class_train % 9 + 1)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(poison, "load", lambda asked: few)
        for name in ("dm", "rdm"):
            known = dataclasses.replace(METHODS[name], check=lambda *args: None)
            patch.setitem(METHODS, name, known)
        assert _flags.call(poison.main, poison.PROGRAM.parse, given) == 2
    assert "asks for 12 poisons, class 0 has 4 images" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


class Killed(BaseException):
    """Stands for a signal: nothing catches it."""


@pytest.mark.parametrize("attack", ["direct", "dm"])
@pytest.mark.parametrize(
    "stage",
    [pytest.param("craft", marks=pytest.mark.slow), "distill", "evaluate"],
)
def test_a_killed_run_goes_on_within_a_cell_to_the_bit(
    tmp_path, monkeypatch, stage, attack
):
    if stage == "craft" and attack == "direct":
        pytest.skip("copies are not crafted")
    if stage != "craft" and attack == "dm":
        pytest.skip("the same as after the direct attack")
    options = {"methods": ("rdm",), "attack": attack, "checkpoint_seconds": 0}
    options |= {"num_steps": 6, "num_epochs": 5}
    options |= {"attack_steps": 6} if attack == "dm" else {}
    chunks(monkeypatch, 2)
    monkeypatch.setattr(students, "_CHUNK", 2)
    short = functools.partial(ATTACKS["dm"].run, chunk=2)
    monkeypatch.setitem(ATTACKS, "dm", dataclasses.replace(ATTACKS["dm"], run=short))
    whole = _run(tmp_path / "whole", **options)
    save, saved = checkpoint.save, []

    def dying(folder, step, state):
        save(folder, step, state)
        saved.append(folder.name)
        if saved.count(stage) == 2:
            raise Killed

    monkeypatch.setattr(checkpoint, "save", dying)
    with pytest.raises(Killed):
        _run(tmp_path / "killed", **options)
    monkeypatch.setattr(checkpoint, "save", save)
    resumed = _run(tmp_path / "killed", **options)
    for entry in (*whole["runs"], *resumed["runs"]):
        del entry["seconds"]
    assert resumed["runs"] == whole["runs"]
    for name in ("poisons_0.npz", "condensed_0_rdm.png"):
        same = [(tmp_path / run / name).read_bytes() for run in ("whole", "killed")]
        assert same[0] == same[1]
    assert not list((tmp_path / "killed" / "checkpoints").iterdir())


def test_damaged_files_are_named(tmp_path, capsys):
    given = command_line(poison.PROGRAM, TOY, "--methods=dm", workdir=tmp_path)
    assert _flags.call(poison.main, poison.PROGRAM.parse, given) == 0
    capsys.readouterr()
    for name in ("cell_0_dm_0.json", "poisons_0.npz"):
        path = tmp_path / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        # Of a run that goes on; a whole one is told from its results.
        (tmp_path / "results.json").unlink(missing_ok=True)
        assert _flags.call(poison.main, poison.PROGRAM.parse, given) == 1
        error = capsys.readouterr().err
        assert f"{name} is damaged" in error
        assert error.count("\n") == 1
        path.write_bytes(whole)
    assert _flags.call(poison.main, poison.PROGRAM.parse, [*given, "--rate=0.02"]) == 2
    assert "rate: 0.01 in the folder, 0.02 asked" in capsys.readouterr().err


def test_the_paper_s_preset_normalises_by_the_published_constants(monkeypatch):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (20, 2, 2, 3)).astype(np.uint8)
    labels = np.arange(20, dtype=np.int32) % 10
    raw = data.Raw(
        images_train=images,
        labels_train=labels,
        images_test=images[:5],
        labels_test=labels[:5],
        max_intensity=255,
        class_names=tuple("abcdefghij"),
    )
    monkeypatch.setattr(sets, "load_raw", lambda *args: raw)
    paper = poison.load(poison.PROGRAM.asked(preset="paper"))
    np.testing.assert_allclose(paper.normal.mean, [0.4914, 0.4822, 0.4465])
    np.testing.assert_allclose(paper.normal.deviation, [0.2023, 0.1994, 0.2010])
    cpu = poison.load(poison.PROGRAM.asked())
    x = cpu.normalised(cpu.x_train)
    np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(x.std((0, 1, 2)), 1, rtol=1e-5)


def test_presets_fill_in_what_is_not_given():
    paper = poison.PROGRAM.asked(preset="paper", attack="gradient").flat()
    names = ("width", "images_per_class", "num_steps", "batch_size", "num_epochs")
    assert [paper[name] for name in names] == [128, 50, 20_000, 256, 1000]
    names = ("num_runs", "num_networks", "attack_steps", "num_restarts", "num_clean")
    assert [paper[name] for name in names] == [5, 1, 250, 8, 16]
    cpu = poison.PROGRAM.asked(width=7, attack="gradient").flat()
    names = ("width", "num_runs", "num_networks", "attack_steps", "num_clean")
    assert [cpu[name] for name in names] == [7, 1, 3, 150, 4]


def _again(*_, **__):
    pytest.fail("measured again")


def test_what_poison_does_to_a_mean_is_measured_once(tmp_path, monkeypatch):
    changes = {"methods": ("dm",), "num_steps": 1, "num_epochs": 1, "control": False}
    results = _run(tmp_path, **changes)
    (tmp_path / "results.json").unlink()
    monkeypatch.setattr(
        poisoned_means, "deviation", lambda *_, **__: pytest.fail("again")
    )
    assert _run(tmp_path, **changes)["runs"] == results["runs"]
