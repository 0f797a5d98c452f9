"""`experiments.poison` at toy size: files, the table, going on, exit codes."""

import json

import jax
import numpy as np
import pytest

from experiments import _condensed, _flags, _image_sets, _poisoning, poison
from ntk_privacy import checkpoint

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
    # DM drops nothing; the calibration drops ceil(0.3 * 8) of 8.
    dm, rdm = results["table"]
    assert dm["poison_dropped"] == dm["clean_dropped"] == 0
    assert dm["deviation"] == dm["deviation_of_mean"] == rdm["deviation_of_mean"] > 0
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
    _run(tmp_path, methods=("dm",), attack=attack, num_steps=1, num_epochs=1)
    with np.load(tmp_path / "poisons_0.npz") as stored:
        poisons, where = stored["poisons"], stored["where"]
    images = _image_sets.load(poison.Config(**TOY), num_train=400, num_test=50)
    change = np.rint(16 * (poisons.astype(float) - images.x[where]))
    assert 0 < np.abs(change).max() <= 4  # 64/255 in steps of 1/16
    assert set(images.classes[where]) == {
        json.loads((tmp_path / "cell_0_dm_0.json").read_text())["adversarial_class"]
    }


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--methods=kip"], 2, "methods='kip' is unknown"),
        (["--rate=0.05"], 2, "0.5 of one class, which must lie in [0, 1/3): use a"),
        (["--rate=-0.1"], 2, "use a rate below 0.0333"),
        (["--bound=0"], 2, "bound=0 must lie in [1, 255]"),
        (["--width=0"], 2, "width=0 must be above 0"),
        (["--batch_size=300"], 2, "batch_size=300 is more than the"),
        (["--batch_size=1"], 2, "drops 1 of 1 samples"),
        (["--num_train=2000"], 2, "num_train=2000 is more than the"),
        (["--num_seeds=x"], 2, "num_seeds"),
        (["--dataset=mnist", "--data_dir=/nowhere"], 1, "/nowhere"),
    ],
)
def test_faults_are_one_line(tmp_path, capsys, flags, code, message):
    given = [f"--{k}={str(v).lower()}" for k, v in TOY.items()]
    given = [*given, f"--workdir={tmp_path}", *flags]
    assert _flags.call(poison.main, poison.Config, given) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


class Killed(BaseException):
    """Stands for a signal: nothing catches it."""


@pytest.mark.parametrize("attack", ["direct", "dm"])
@pytest.mark.parametrize("stage", ["craft", "condense", "evaluate"])
def test_a_killed_run_goes_on_within_a_cell_to_the_bit(
    tmp_path, monkeypatch, stage, attack
):
    if stage == "craft" and attack == "direct":
        pytest.skip("copies are not crafted")
    if stage != "craft" and attack == "dm":
        pytest.skip("the same as after the direct attack")
    options = {"methods": ("rdm",), "attack": attack, "checkpoint_seconds": 0}
    options |= {"num_steps": 6, "num_epochs": 5, "attack_steps": 6}
    for module in (_condensed, _poisoning):
        monkeypatch.setattr(module, "_CHUNK", 2)
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


class _Pixels:
    """A network whose features are the pixels."""

    def init_params(self, key, image_shape, dtype=None):
        return ()

    def apply_fn(self, params, x):
        raise NotImplementedError

    def embed_fn(self, params, x):
        return x.reshape(len(x), -1)


def test_the_calibration_takes_the_deviation_away(monkeypatch):
    config = poison.Config(**TOY | {"rate": 0.02, "batch_size": 20})
    images = _image_sets.load(config, num_train=400, num_test=50)
    images = images._replace(operations=())
    scene = _poisoning.scene(config, images, 0)
    x = images.normalised(images.x).at[scene.where].set(9)
    monkeypatch.setattr(_condensed, "model", lambda config, images: _Pixels())
    dm, rdm = (_poisoning.deviation(config, images, x, scene, m) for m in ("dm", "rdm"))
    # 8 of about 40 are alike and far off: of 20, 12 are dropped, all these among them.
    assert rdm["poison_dropped"] == 1
    assert 0.4 < rdm["clean_dropped"] < 0.7
    assert rdm["deviation"] == 0
    members = images.classes == scene.adversarial_class
    good = np.asarray(x)[members & ~np.isin(np.arange(400), scene.where)]
    apart = np.linalg.norm(9 - good.mean(0))
    spread = np.sqrt(np.square(good - good.mean(0)).sum((1, 2, 3)).mean())
    expected = 8 / members.sum() * apart / spread
    assert dm["deviation"] == pytest.approx(expected, rel=0.25)  # 16 batches of 20


def test_damaged_files_are_named(tmp_path, capsys):
    given = [f"--{k}={str(v).lower()}" for k, v in TOY.items()]
    given = [*given, f"--workdir={tmp_path}", "--methods=dm"]
    assert _flags.call(poison.main, poison.Config, given) == 0
    capsys.readouterr()
    for name in ("cell_0_dm_0.json", "poisons_0.npz"):
        path = tmp_path / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        assert _flags.call(poison.main, poison.Config, given) == 1
        error = capsys.readouterr().err
        assert f"{name} is damaged" in error
        assert error.count("\n") == 1
        path.write_bytes(whole)
    assert _flags.call(poison.main, poison.Config, [*given, "--rate=0.02"]) == 2
    assert "rate: 0.01 in the folder, 0.02 asked" in capsys.readouterr().err


def test_presets_fill_in_what_is_not_given():
    paper = poison.Config(preset="paper")
    assert (paper.width, paper.images_per_class, paper.num_steps) == (128, 50, 20_000)
    assert (paper.batch_size, paper.num_epochs, paper.num_runs) == (256, 1000, 5)
    assert poison.Config(width=7).width == 7
