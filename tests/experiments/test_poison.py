"""`experiments.poison` at toy size: files, the table, going on, exit codes."""

import json

import jax
import numpy as np
import pytest

from experiments import _flags, poison

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
    "progress": False,
}


@pytest.fixture(autouse=True)
def compiled_in_haste():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def _run(folder, **changes):
    return poison.run(poison.Config(**{**TOY, "workdir": str(folder), **changes}))


def test_a_run_writes_the_table_and_takes_more_methods_later(tmp_path):
    results = _run(tmp_path, methods=("dm", "rdm"))
    assert [row["method"] for row in results["table"]] == ["dm", "rdm"]
    for row in results["table"]:
        assert set(row) >= {"method", "attack", "accuracy", "accuracy_std"}
        assert set(row) >= {"attack_success", "attack_success_std"}
        assert 0 <= row["accuracy"] <= 1
    for name in ("poisons_0.png", "condensed_0_dm.png", "condensed_0_rdm.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    with np.load(tmp_path / "poisons_0.npz") as stored:
        assert stored["poisons"].shape == (4, 8, 8, 1)
        assert (stored["poisons"] == stored["poisons"][:1]).all()
    cell = (tmp_path / "cell_0_dm_0.json").read_bytes()
    (tmp_path / "cell_0_rdm_0.json").unlink()
    again = _run(tmp_path, methods=("dm", "rdm"))
    assert again["table"] == results["table"]
    assert (tmp_path / "cell_0_dm_0.json").read_bytes() == cell


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["dm", "gradient"])
def test_other_attacks_stay_in_their_budget_on_the_grid(tmp_path, attack):
    _run(tmp_path, methods=("dm",), attack=attack, num_steps=1, num_epochs=1)
    with np.load(tmp_path / "poisons_0.npz") as stored:
        poisons, where = stored["poisons"], stored["where"]
    images = poison._load(poison.Config(**TOY))
    change = np.rint(16 * (poisons.astype(float) - images.x[where]))
    assert 0 < np.abs(change).max() <= 4  # 64/255 in steps of 1/16
    assert set(images.classes[where]) == {
        json.loads((tmp_path / "cell_0_dm_0.json").read_text())["adversarial_class"]
    }


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--methods=kip"], 2, "methods='kip' is unknown"),
        (["--rate=0.05"], 1, r"rate=0.5 must lie in [0, 1/3)"),
        (["--bound=0"], 2, "bound=0 must lie in [1, 255]"),
        (["--width=0"], 2, "width=0 must be above 0"),
        (["--batch_size=300"], 1, "batch_size=300 is more than the"),
    ],
)
def test_faults_are_one_line(tmp_path, capsys, flags, code, message):
    given = [f"--{k}={str(v).lower()}" for k, v in TOY.items()]
    given = [*given, f"--workdir={tmp_path}", *flags]
    assert _flags.call(poison.main, poison.Config, given) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_presets_fill_in_what_is_not_given():
    paper = poison.Config(preset="paper")
    assert (paper.width, paper.images_per_class, paper.num_steps) == (128, 50, 20_000)
    assert (paper.batch_size, paper.num_epochs, paper.num_runs) == (256, 1000, 5)
    assert poison.Config(width=7).width == 7
