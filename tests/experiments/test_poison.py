"""`experiments.poison` at toy size: files, the table, going on, exit codes."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from command_lines import chunks, command_line

from experiments import _condensed, _flags, _image_sets, _poisoning, poison
from ntk_privacy import checkpoint, data, distillation
from ntk_privacy.data import sets
from ntk_privacy.distillation import METHODS
from ntk_privacy.evaluation import protocol

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
    return poison.run(poison.Config(**{**TOY, "workdir": str(folder), **changes}))


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
    images = _image_sets.part(poison.Config(**TOY), num_train=400, num_test=50)
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
        (["--bound=0"], 2, "bound=0 must lie in [1, 255]"),
        (["--width=0"], 2, "width=0 must be above 0"),
        (["--batch_size=300"], 2, "batch_size=300 is more than the"),
        (["--batch_size=1"], 2, "drops 1 of 1 samples"),
        (["--num_train=2000"], 2, "2000 training images are more than the"),
        (["--num_train=5"], 2, "Class 0 of 10 has no training images among 5"),
        (["--methods=dm,dm"], 2, "methods names dm twice"),
        (["--rate=0"], 2, "is no poison at all: use a rate of at least 0.0025"),
        (["--rate=0.001"], 2, "is no poison at all: use a rate of at least 0.0025"),
        (["--attack=dm", "--bound=15"], 2, "below one step of digits, which is 1/16"),
        (["--num_seeds=x"], 2, "num_seeds"),
        (["--dataset=mnist", "--data_dir=/nowhere"], 1, "/nowhere"),
    ],
)
def test_faults_are_one_line(tmp_path, capsys, flags, code, message):
    given = command_line(poison.Config, TOY, *flags, workdir=tmp_path)
    assert _flags.call(poison.main, poison.Config, given) == code
    out, error = capsys.readouterr()
    assert message in error
    assert error.count("\n") == 1
    assert not out
    assert not list(tmp_path.iterdir())


def test_a_seed_without_enough_images_is_told_before_any_is_run(tmp_path, capsys):
    flags = "--num_seeds=40", "--rate=0.03"
    given = command_line(poison.Config, TOY, *flags, workdir=tmp_path)
    images = _image_sets.part(poison.Config(**TOY), num_train=400, num_test=50)
    assert np.bincount(images.class_train).min() > 12  # what 3% of 400 asks for
    few = dataclasses.replace(
        images, class_train=np.where(np.arange(400) < 4, 0, images.class_train % 9 + 1)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_image_sets, "part", lambda *args, **kwargs: few)
        for name in ("dm", "rdm"):
            known = dataclasses.replace(METHODS[name], check=lambda *args: None)
            patch.setitem(METHODS, name, known)
        assert _flags.call(poison.main, poison.Config, given) == 2
    assert "asks for 12 poisons, class 0 has 4 images" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_every_scene_poisons_another_class_than_the_target_s():
    config = poison.Config(**TOY)
    images = _image_sets.part(config, num_train=400, num_test=50)
    scenes = [_poisoning.scene(config, images, seed) for seed in range(30)]
    for scene in scenes:
        assert scene.target_class == images.class_test[scene.target]
        assert scene.adversarial_class != scene.target_class
        assert set(images.class_train[scene.where]) == {scene.adversarial_class}
        assert len(set(scene.where)) == 4
    assert len({(s.target, s.adversarial_class) for s in scenes}) > 20


@pytest.mark.parametrize(("bound", "steps"), [(64, 4), (73, 4), (80, 5), (255, 16)])
def test_the_bound_is_never_passed_on_a_coarser_grid(bound, steps):
    config = poison.Config(**TOY | {"bound": bound})
    images = _image_sets.part(config, num_train=400, num_test=50)
    assert _poisoning.bound_in_steps(config, images) == steps
    assert steps / images.levels <= bound / 255
    assert (
        _poisoning.bound_in_steps(config, dataclasses.replace(images, levels=255))
        == bound
    )


def test_each_cell_condenses_poisoned_images_and_is_asked_about_the_target(
    tmp_path, monkeypatch
):
    seen = []

    def condense(method, config, images, key, **rest):
        seen.append([method, images.normalised(images.x_train), key, None])
        return _condensed.Condensed(np.zeros((10, 8, 8, 1)), np.arange(10), np.ones(4))

    def evaluate(images, condensed, config, key, *, targets, **rest):
        seen[-1][3] = targets
        wanted = [6, 6] if seen[-1][0] == "dm" else [6, 1]
        return protocol.Evaluated(np.array([0.2, 0.4]), np.array(wanted)[:, None], None)

    monkeypatch.setattr(_condensed, "condense", condense)
    monkeypatch.setattr(_condensed, "evaluate", evaluate)
    config = poison.Config(**TOY)
    images = _image_sets.part(config, num_train=400, num_test=50)
    scene = _poisoning.scene(config, images, 0)
    monkeypatch.setattr(
        _poisoning, "scene", lambda *args: scene._replace(adversarial_class=6)
    )
    monkeypatch.setattr(_poisoning, "deviation", lambda *args: dict.fromkeys(
        ("poison_dropped", "clean_dropped", "deviation_of_mean", "deviation"), 0.5
    ))  # fmt: skip
    rows = _run(tmp_path, num_runs=2, control=False)["table"]
    target = images.normalised(images.x_test[scene.target][None])
    want = np.array(images.normalised(images.x_train))
    want[scene.where] = target
    assert [method for method, *_ in seen] == ["dm", "dm", "rdm", "rdm"]
    for _, x, _, asked in seen:
        np.testing.assert_array_equal(x, want)
        np.testing.assert_array_equal(asked, target)
    keys = [tuple(np.asarray(jax.random.key_data(key))) for _, _, key, _ in seen]
    assert keys[0] == keys[2] != keys[1] == keys[3]  # by run, alike for all methods
    dm, rdm = rows
    assert (dm["attack_success"], dm["attack_success_std"]) == (1, 0)
    spread = pytest.approx(3**-0.5)  # of a sample of four
    assert (rdm["attack_success"], rdm["attack_success_std"]) == (0.5, spread)
    assert dm["num_decisions"] == rdm["num_decisions"] == 4
    assert rdm["accuracy"] == pytest.approx(0.3)
    assert rdm["accuracy_std"] == pytest.approx((0.04 / 3) ** 0.5)


def test_every_target_is_also_asked_of_networks_of_clean_images(tmp_path, monkeypatch):
    seen = []

    def condense(method, config, images, key, **rest):
        x = images.normalised(images.x_train)
        seen.append((method, np.array(x), np.asarray(jax.random.key_data(key))))
        return _condensed.Condensed(np.zeros((10, 8, 8, 1)), np.arange(10), np.ones(4))

    def evaluate(images, condensed, config, key, *, targets, **rest):
        # Networks that take image i of many for class i % 10, and a lone one for 3.
        read = np.arange(len(targets)) % 10 if len(targets) > 1 else np.array([3])
        return protocol.Evaluated(np.array([0.2, 0.4]), np.stack([read] * 2), None)

    monkeypatch.setattr(_condensed, "condense", condense)
    monkeypatch.setattr(_condensed, "evaluate", evaluate)
    given = {"methods": ("dm", "rdm"), "num_runs": 2}
    results = _run(tmp_path, **given, num_seeds=2)
    config = poison.Config(**TOY)
    images = _image_sets.part(config, num_train=400, num_test=50)
    clean = np.asarray(images.normalised(images.x_train))
    controls = [part for part in seen if np.array_equal(part[1], clean)]
    assert [method for method, *_ in controls] == ["dm", "dm", "rdm", "rdm"]
    # The draws are those of the first seed's own cell, which stands before each.
    keys = [tuple(key) for *_, key in seen[:8]]
    assert keys[::2] == keys[1::2]
    assert keys[0] != keys[2]
    scenes = [_poisoning.scene(config, images, seed) for seed in range(2)]
    wrong = [s.target % 10 == s.adversarial_class for s in scenes]
    for row in results["table"]:
        assert row["success_without_attack"] == np.mean(wrong)
        assert row["attack_success"] == np.mean(
            [s.adversarial_class == 3 for s in scenes]
        )
    for entry in results["runs"]:
        told = [scenes[entry["seed"]].target % 10] * 2
        assert entry["target_classes_without_attack"] == told
    # A third seed asks the networks that are there.
    count = len(seen)
    more = _run(tmp_path, **given, num_seeds=3)
    assert len(seen) == count + 4
    assert more["table"][0]["num_decisions"] == 12
    # Without an attack there is nothing to control.
    none = _run(tmp_path / "none", attack="none", **given)
    assert "target_classes_without_attack" not in none["runs"][0]


def test_a_row_takes_the_entries_of_its_method_alone():
    entry = {"adversarial_class": 2, "target_classes": [2, 2, 1, 0]}
    entry |= dict.fromkeys(("poison_dropped", "clean_dropped"), 0.25)
    entry |= dict.fromkeys(("deviation_of_mean", "deviation"), 1.0)
    other = entry | {"method": "rdm", "accuracies": [0.9] * 4, "deviation": 9.0}
    entry |= {"method": "dm", "accuracies": [0.1, 0.2, 0.3, 0.2]}
    row = poison._row(poison.Config(**TOY), "dm", [entry, other])
    assert row["accuracy"] == pytest.approx(0.2)
    assert row["accuracy_std"] == pytest.approx((0.02 / 3) ** 0.5)
    spread = pytest.approx(3**-0.5)
    assert (row["attack_success"], row["attack_success_std"]) == (0.5, spread)
    assert row["success_without_attack"] is None
    assert (row["deviation"], row["num_decisions"]) == (1.0, 4)
    told = entry | dict.fromkeys(("poison_dropped", "clean_dropped", "deviation"))
    row = poison._row(poison.Config(**TOY), "dm", [told, told])
    assert (row["deviation"], row["deviation_of_mean"]) == (None, 1.0)


def test_condensation_descends_with_the_published_momentum():
    sgd = distillation.dm._sgd(2.0)
    state, moved = sgd.init(np.zeros(1)), 0.0
    for _ in range(2):
        update, state = sgd.update(np.ones(1), state)
        moved += float(update[0])
    assert moved == -2 - 2 * 1.5


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
    options |= {"num_steps": 6, "num_epochs": 5, "attack_steps": 6}
    chunks(monkeypatch, 2)
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
    images = _image_sets.part(config, num_train=400, num_test=50)
    scene = _poisoning.scene(config, images, 0)
    # As far off as the poison: 9 deviations.
    x = np.array(images.normalised(images.x_train))
    x[scene.where] = 9
    poisoned = SimpleNamespace(
        x_train=x,
        class_train=images.class_train,
        num_classes=10,
        operations=(),
        normalised=lambda x: x,
    )
    monkeypatch.setattr(_condensed, "model", lambda config, images: _Pixels())
    dm, rdm, median = (
        _poisoning.deviation(config, poisoned, scene, name)
        for name in ("dm", "rdm", "dm_median")
    )
    # 8 of about 40 are alike and far off: of 20, 12 are dropped, all these among them.
    assert rdm["poison_dropped"] == 1
    assert 0.4 < rdm["clean_dropped"] < 0.7
    assert rdm["deviation"] == 0
    members = images.class_train == scene.adversarial_class
    good = np.asarray(x)[members & ~np.isin(np.arange(400), scene.where)]
    apart = np.linalg.norm(9 - good.mean(0))
    spread = np.sqrt(np.square(good - good.mean(0)).sum((1, 2, 3)).mean())
    expected = 8 / members.sum() * apart / spread
    assert dm["deviation"] == pytest.approx(expected, rel=0.25)  # 16 batches of 20
    # A median drops values, not images: how much of the poison is left has no meaning.
    assert median["deviation_of_mean"] == dm["deviation"]
    assert median["deviation"] is median["poison_dropped"] is None


def test_damaged_files_are_named(tmp_path, capsys):
    given = command_line(poison.Config, TOY, "--methods=dm", workdir=tmp_path)
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
    paper = _image_sets.part(poison.Config(preset="paper"))
    np.testing.assert_allclose(paper.normal.mean, [0.4914, 0.4822, 0.4465])
    np.testing.assert_allclose(paper.normal.deviation, [0.2023, 0.1994, 0.2010])
    cpu = _image_sets.part(poison.Config())
    x = cpu.normalised(cpu.x_train)
    np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(x.std((0, 1, 2)), 1, rtol=1e-5)


def test_presets_fill_in_what_is_not_given():
    paper = poison.Config(preset="paper")
    assert (paper.width, paper.images_per_class, paper.num_steps) == (128, 50, 20_000)
    assert (paper.batch_size, paper.num_epochs, paper.num_runs) == (256, 1000, 5)
    assert poison.Config(width=7).width == 7
