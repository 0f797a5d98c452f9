"""`experiments.distill` at toy size: files, stages, studies, resuming, exit codes."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_lines import asked, chunks, command_line, summary

from experiments import _flags, _networks, _study, distill
from experiments._groups import Run
from ntk_privacy import checkpoint, data, kip, rkip
from ntk_privacy.data import choice
from ntk_privacy.distillation import kernel_methods, regressed, search
from ntk_privacy.kernels import conjugate_gradients
from ntk_privacy.reports.workdir import Workdir

TOY = {
    "num_train": 12,
    "num_distilled": 4,
    "num_steps": 40,
    "width": 16,
    "attack_steps": 20,
    "max_train_steps": 100,
    "progress": False,
}


def _config(folder, **changes):
    return asked(TOY, **{"workdir": str(folder), **changes})


def _run(folder, **changes):
    return distill.run(_config(folder, **changes))


def _call(capsys, *arguments):
    """Exit code and stderr of the command line."""
    code = _flags.call(distill.main, distill.PROGRAM.parse, arguments)
    return code, capsys.readouterr().err


def _arguments(folder, *flags, **changes):
    return command_line(distill.PROGRAM, TOY, *flags, workdir=folder, **changes)


def _arrays(folder, name="arrays.npz"):
    with np.load(folder / name) as stored:
        return dict(stored)


def test_a_run_writes_every_file_and_takes_more_stages_later(tmp_path, capsys):
    results = _run(tmp_path)
    files = {"config.json", "results.json", "arrays.npz", "distilled.png"}
    assert {p.name for p in tmp_path.iterdir()} >= {*files, "nearest.png"}
    assert (tmp_path / "distilled.png").read_bytes()[:4] == b"\x89PNG"
    assert "accuracy" not in results
    assert "attack" not in results
    arrays = _arrays(tmp_path)
    assert arrays["images"].shape == (4, 8, 8, 1)
    assert arrays["images"].dtype == np.float32
    np.testing.assert_array_equal(arrays["labels"], [[-1], [-1], [1], [1]])
    assert arrays["losses"].shape == (40,)
    assert arrays["losses"][-1] < arrays["losses"][0]
    assert results["loss"] == arrays["losses"][-1]
    # Distances to the nearest training image, by the definition.
    x = data.load("digits", num_train=12, key=_key(0)).x_train
    apart = np.linalg.norm(
        (x[None] - arrays["images"][:, None]).reshape(4, 12, -1), axis=2
    )
    np.testing.assert_allclose(results["nearest"]["distances"], apart.min(1), rtol=1e-5)
    # Later stages leave the set alone.
    stamp = (tmp_path / "arrays.npz").stat().st_mtime_ns
    more = _run(tmp_path, evaluate=True, num_runs=2)
    accuracy = more["accuracy"]
    for kind in ("infinite", "standard", "linearized"):
        assert 0.3 < accuracy[kind] <= 1
        values = [told["accuracy"] for told in more["runs"][kind]]
        spread = None if kind == "infinite" else pytest.approx(np.std(values, ddof=1))
        assert accuracy[f"{kind}_deviation"] == spread
        assert len(values) == (1 if kind == "infinite" else 2)
        assert accuracy[kind] == pytest.approx(np.mean(values))
    all_of_it = _run(tmp_path, attack=True)
    assert all_of_it["accuracy"] == accuracy
    for name in ("kkt", "auto"):
        told = all_of_it["attack"][name]
        assert told["num_recovered"] == len(told["recovered"])
        found = _arrays(tmp_path, "attack.npz")[f"reconstructions_{name}"]
        assert len(told["squared_distances"]) == min(12, len(found))
    assert (tmp_path / "defence.png").exists()
    # The config tells of all that is there, not of the last start alone.
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["evaluate"], config["attack"]) == (True, True)
    assert (config["num_runs"], config["num_finite_runs"]) == (2, None)
    assert (tmp_path / "arrays.npz").stat().st_mtime_ns == stamp
    assert "recovered, kkt" in summary(all_of_it)
    assert "test accuracy, standard" in summary(all_of_it)
    # What is there is read back; what makes another set is refused.
    assert _run(tmp_path, evaluate=True, attack=True) == all_of_it
    code, told = _call(capsys, *_arguments(tmp_path, num_steps=41))
    assert code == 2
    assert "num_steps: 40 in the folder, 41 asked" in told


def _key_distill(seed):
    both = jax.random.split(jax.random.fold_in(jax.random.key(0), seed))
    return jax.random.split(both[1], 3)[0]


def _key(seed):
    return jax.random.split(jax.random.fold_in(jax.random.key(0), seed))[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "rkip_noise", "noise_ratio": 0.3},
        {"method": "kip", "learn_labels": True, "batch_size": 4, "kernel": "standard"},
        {"method": "rkip_finite", "num_distilled": 3 * 2},
        {"method": "random", "task": "all_classes", "num_images": 20}
        | {"num_distilled": 10, "evaluate": True, "num_finite_runs": 0},
        pytest.param(
            {"method": "full", "precision": "float64", "evaluate": True},
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda changes: changes["method"],
)
def test_toy_runs_of_every_method(tmp_path, changes):
    results = _run(tmp_path, **changes)
    arrays = _arrays(tmp_path)
    assert np.isfinite(arrays["images"]).all()
    count = 12 if changes["method"] == "full" else changes.get("num_distilled", 4)
    assert len(arrays["images"]) == len(arrays["labels"]) == count
    assert results["num_distilled"] == count
    if changes["method"] == "random":
        np.testing.assert_array_equal(arrays["labels"].argmax(1), np.arange(10))
        assert results["nearest"]["num_copies"] == 10
        assert max(results["nearest"]["distances"]) == 0
    if changes["method"] == "rkip_noise":
        found = data.load("digits", num_train=12, key=_key(0))
        outside = results["nearest"]["psnr_outside_noise"]
        config = _config("x", **changes)
        loaded = _networks.load(config)
        masks = kernel_methods.noise(loaded.images, config.config, _key_distill(0))
        assert 0.1 < masks.mean() < 0.5
        x, y = regressed.targets(loaded.images, config.config)
        np.testing.assert_array_equal(x, found.x_train)
        begin = kernel_methods.start(x, y, config.config, _key_distill(0))
        start = np.asarray(begin.images)
        np.testing.assert_array_equal(arrays["images"][masks], start[masks])
        assert (arrays["images"][~masks] != start[~masks]).all()
        assert 0.6 < start[masks].std() < 1.4
        for value, image, noise in zip(outside, arrays["images"], masks, strict=True):
            apart = np.clip(image + found.mean, 0, 1) - found.mean - found.x_train
            errors = np.where(noise, 0, apart**2).sum((1, 2, 3)) / (~noise).sum()
            assert value == pytest.approx(-10 * np.log10(errors.min()), rel=1e-5)
    else:
        assert "psnr_outside_noise" not in results["nearest"]
    if changes["method"] == "kip":
        assert set(np.abs(arrays["labels"]).ravel()) != {1.0}
    if changes["method"] == "rkip_finite":
        assert results["loss"] < arrays["losses"][0]
    if "evaluate" in changes:
        trained = changes.get("num_finite_runs") != 0
        for kind in ("infinite", "standard", "linearized")[: 1 + 2 * trained]:
            assert results["accuracy"][kind] > 0.15
        assert (results["accuracy"]["standard"] is None) == (not trained)


class _Killed(BaseException):
    """Nothing in a run may catch it."""


@pytest.mark.parametrize(
    "method", ["rkip_noise", pytest.param("rkip_finite", marks=pytest.mark.slow)]
)
def test_interrupted_at_any_checkpoint_it_ends_with_the_same_bytes(
    tmp_path, monkeypatch, method
):
    chunks(monkeypatch, 10)
    is_search = method == "rkip_noise"
    changes = {"method": method, "evaluate": is_search, "attack_steps": 60}
    changes |= {"checkpoint_seconds": 0.0, "num_steps": 25, "max_train_steps": 25}
    whole = _run(tmp_path / "whole", **{**changes, "checkpoint_seconds": 1e9})
    save, stops = checkpoint.save, []

    def save_and_die(folder, step, state):
        save(folder, step, state)
        stops.append((folder.name, step))
        raise _Killed

    monkeypatch.setattr(checkpoint, "save", save_and_die)
    for _ in range(20):
        try:
            cut = _run(tmp_path / "cut", **changes)
            break
        except _Killed:
            assert not (tmp_path / "cut" / "results.json").exists()
    if is_search:
        expected = [("distill", 10), ("distill", 20), ("distill", 25)]
        expected += [("infinite_told", 1), ("linearized_0_told", 1)]
        expected += [("standard_0", 20), ("standard_0", 25), ("standard_0_told", 1)]
        assert cut["runs"] == whole["runs"]
    else:
        expected = [("victim", 0), ("rkip_finite", 50), ("rkip_finite", 60)]
    assert stops == expected
    bytes_of = [(tmp_path / n / "arrays.npz").read_bytes() for n in ("whole", "cut")]
    assert bytes_of[0] == bytes_of[1]


def test_many_targets_are_solved_once_whatever_kills_the_run(tmp_path, monkeypatch):
    chunks(monkeypatch, 10)
    changes = {"checkpoint_seconds": 0.0, "num_steps": 25}
    dense = _run(tmp_path / "dense", **changes)
    monkeypatch.setattr(kernel_methods, "_DENSE", 5)
    whole = _run(tmp_path / "whole", **{**changes, "checkpoint_seconds": 1e9})
    assert whole["loss"] == pytest.approx(dense["loss"], rel=1e-3)
    solve, starts = conjugate_gradients.solve, []
    save, write, stops = checkpoint.save, Workdir.write_arrays, []

    def counted(*arguments, state=None, **options):
        starts.append(0 if state is None else int(state.steps))
        return solve(*arguments, state=state, **options)

    def save_and_die(folder, step, state):
        save(folder, step, state)
        stops.append(folder.name)
        raise _Killed

    def write_and_die(self, name, **arrays):
        write(self, name, **arrays)
        assert not name.startswith("checkpoints/") or name.endswith(".json")

    monkeypatch.setattr(conjugate_gradients, "solve", counted)
    monkeypatch.setattr(checkpoint, "save", save_and_die)
    monkeypatch.setattr(Workdir, "write_arrays", write_and_die)
    for _ in range(20):
        try:
            _run(tmp_path / "cut", **changes)
            break
        except _Killed:
            assert not (tmp_path / "cut" / "results.json").exists()
    # From nothing once; then from its state, until the duals are there.
    assert starts[0] == 0
    assert 0 not in starts[1:]
    solved = stops.index("target_duals_found")
    assert set(stops[:solved]) == {"target_duals"}
    assert stops[solved + 1 :] == ["distill"] * 3
    # Not once more after that.
    assert len(starts) == solved + 1
    bytes_of = [(tmp_path / n / "arrays.npz").read_bytes() for n in ("whole", "cut")]
    assert bytes_of[0] == bytes_of[1]


def _all_alike(monkeypatch):
    """Every training image becomes the first."""
    load = data.load_set

    def same(*arguments, **options):
        found = load(*arguments, **options)
        first = np.repeat(found.images_train[:1], len(found.class_train), axis=0)
        return dataclasses.replace(found, images_train=first)

    monkeypatch.setattr(choice, "load_set", same)


def test_many_targets_that_cannot_be_solved_name_flags(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(kernel_methods, "_DENSE", 5)
    _all_alike(monkeypatch)
    code, told = _call(capsys, *_arguments(tmp_path, diag_reg=0))
    assert code == 1
    assert "images 0 and 1 coincide): raise diag_reg" in told
    assert told.count("\n") == 1

    def lost(*_, **__):
        raise rkip.NotConvergedError("raise the rank", 0.1, 60)

    monkeypatch.setattr(rkip, "target_duals", lost)
    code, told = _call(capsys, *_arguments(tmp_path, diag_reg=0))
    assert code == 1
    assert "1.0e-01 after 60 steps: raise diag_reg=0.0, such as 1e-5, or use" in told
    for no_flag in ("rank", "max_steps", "tolerance"):
        assert no_flag not in told


def test_a_damaged_set_is_made_again_once_deleted(tmp_path):
    _run(tmp_path)
    arrays = tmp_path / "arrays.npz"
    sound = arrays.read_bytes()
    arrays.write_bytes(sound[:100])
    with pytest.raises(ValueError, match="delete it to make it again"):
        _run(tmp_path, evaluate=True)
    arrays.unlink()
    _run(tmp_path, evaluate=True)
    assert arrays.read_bytes() == sound
    arrays.unlink()
    _run(tmp_path)
    assert arrays.read_bytes() == sound


def test_a_lost_attack_leaves_the_last_good_set(tmp_path, capsys, monkeypatch):
    images = jnp.ones((4, 8, 8, 1), jnp.float32)

    def lost(*_, **__):
        labels = jnp.ones((4, 1), jnp.float32)
        bad = jnp.full(1, jnp.nan)
        return search.Distilled(images, labels, bad, None, jnp.asarray(True))

    monkeypatch.setattr(rkip, "distill_finite", lost)
    code, told = _call(capsys, *_arguments(tmp_path, method="rkip_finite"))
    assert code == 1
    assert "of rkip_finite is not finite after" in told
    assert "The images before it are in" in told
    np.testing.assert_array_equal(_arrays(tmp_path, "last_good.npz")["images"], images)


def test_table_and_defence_run_cells_that_are_runs_of_their_own(tmp_path, monkeypatch):
    changes = {"methods": ("random", "rkip"), "num_runs": 2, "num_finite_runs": 0}
    changes |= {"num_steps": 5}
    table = _run(tmp_path / "table", table=True, **changes)
    rows = {row["method"]: row for row in table["rows"]}
    assert list(rows) == ["random", "rkip"]
    assert [len(rows["rkip"][f"{kind}_values"]) for kind in (
        "infinite", "standard", "linearized")] == [2, 0, 0]  # fmt: skip
    text = (tmp_path / "table" / "table.md").read_text()
    assert text == table["markdown"]
    assert text.startswith("| method | infinite width |")
    assert json.loads((tmp_path / "table" / "table.json").read_text()) == table["rows"]
    study = _config(tmp_path / "table", table=True, **changes)
    cells = _study.cells(study)
    assert [cell.group(Run).seed for cell in cells] == [0, 0, 1, 1]
    # Asked again nothing is computed; asked for more, only that is.
    monkeypatch.setattr(rkip, "distill", None)
    assert _run(tmp_path / "table", table=True, **changes) == table
    more = _run(tmp_path / "table", table=True, **{**changes, "num_finite_runs": 1})
    assert len(more["rows"][0]["standard_values"]) == 1
    # The same cells serve the defence figures, in the same folder.
    told = _run(
        tmp_path / "table",
        defence=True,
        **{**changes, "num_runs": 1, "num_finite_runs": 1},
    )
    assert [row["attack"] for row in told["rows"]] == ["kkt", "auto"] * 2
    assert "| random | kkt | " in told["markdown"]
    for name in ("defence_kkt.png", "defence_auto.png", "defence.md", "table.md"):
        assert (tmp_path / "table" / name).exists()
    studies = json.loads((tmp_path / "table" / "config.json").read_text())["studies"]
    assert {name: told["num_runs"] for name, told in studies.items()} == {
        "table": 2,
        "defence": 1,
    }
    assert studies["table"]["num_finite_runs"] == 1
    config = json.loads((tmp_path / "table" / "rkip_0" / "config.json").read_text())
    assert config["evaluate"]
    assert config["attack"]


def test_a_cell_that_fails_is_told_in_the_table(tmp_path):
    table = _run(tmp_path, table=True, methods=("random", "rkip"), learning_rate=1e30)
    rows = {row["method"]: row for row in table["rows"]}
    assert rows["rkip"]["infinite"] is None
    assert "loss of rkip is not finite" in rows["rkip"]["errors"][0]
    assert rows["random"]["infinite"] > 0.5
    told = (tmp_path / "table.md").read_text()
    assert "Failed:\n\n- rkip, seed 0: The loss of rkip is not finite after 1" in told


def test_a_study_without_a_sound_cell_is_exit_1_with_the_reason(tmp_path, capsys):
    folder = tmp_path / "new"
    code, told = _call(
        capsys, *_arguments(folder, "--table", "--methods=rkip", learning_rate=1e30)
    )
    assert code == 1
    assert "No cell of the study could be run" in told
    assert "The loss of rkip is not finite after 1 steps" in told
    assert told.count("\n") == 1
    assert "rkip, seed 0: The loss of rkip is" in (folder / "table.md").read_text()
    assert not (folder / "results.json").exists()


def test_damaged_files_end_a_study_before_it_starts(tmp_path, capsys, monkeypatch):
    def damaged(*_, **__):
        raise ValueError("train-images is truncated: fetch it again.")

    monkeypatch.setattr(choice, "load_set", damaged)
    folder = tmp_path / "new"
    code, told = _call(capsys, *_arguments(folder, "--table"))
    assert code == 1
    assert told == "error: train-images is truncated: fetch it again.\n"
    assert not folder.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--table", "--num_distilled=5"], "num_distilled=5 does not split evenly"),
        (["--table", "--task=bogus"], "task='bogus' does not exist for digits"),
        (["--defence", "--batch_size=5"], "batch_size=5 must be a positive multiple"),
        (["--defence", "--methods=full"], "methods has full, which is no distilled"),
        (["--table", "--attack"], "attack is no part of --table: ask for --defence"),
        (["--table", "--methods=kip", "--noise_ratio=0.1"],
         "noise_ratio=0.1 is for rkip_noise, which is not among methods=kip"),
        (["--table", "--methods=rkip,kip,rkip"], "methods names rkip twice"),
        (["--table", "--method=kip"], "table and kip are two values of --method"),
    ],
    ids=lambda case: " ".join(case) if isinstance(case, list) else "",
)  # fmt: skip
def test_bad_flags_of_a_study_are_one_line_exit_2_and_leave_nothing(
    tmp_path, capsys, flags, message
):
    folder = tmp_path / "new"
    code, told = _call(capsys, *_arguments(folder, *flags))
    assert code == 2
    assert message in told
    assert told.count("\n") == 1
    assert not folder.exists()


def test_cells_take_only_their_own_flags(tmp_path):
    changes = {"batch_size": 4, "label_solve": True, "noise_ratio": 0.2}
    study = _config(tmp_path, table=True, **changes)
    told = {c.method.name: c.config for c in _study.cells(study)}
    noisy, kip_, real = (told[name] for name in ("rkip_noise", "kip", "random"))
    assert (noisy.batch_size, noisy.label_solve, noisy.noise_ratio) == (4, True, 0.2)
    assert (kip_.batch_size, kip_.label_solve, kip_.noise_ratio) == (4, True, 0.0)
    assert not hasattr(real, "batch_size")
    assert not hasattr(told["full"], "num_distilled")


@pytest.mark.parametrize("method", [kip, rkip], ids=["kip", "rkip"])
def test_label_solve_ends_with_the_labels_of_least_loss(tmp_path, method):
    name = method.__name__.rpartition(".")[2]
    config = _config(tmp_path, method=name, label_solve=True, precision="float64")
    distill.run(config)
    arrays = _arrays(tmp_path)
    found = data.load("digits", num_train=12, key=_key(0))
    x, y = (jnp.asarray(a, jnp.float64) for a in (found.x_train, found.y_train))
    kernel_fn = kernel_methods.kernel_fn("ntk", depth=2, width=16)
    images, labels = (jnp.asarray(arrays[part]) for part in ("images", "labels"))
    best = method.label_solve(images, x, y, kernel_fn=kernel_fn)
    np.testing.assert_allclose(labels, best, rtol=1e-6)
    reached = method.loss(images, labels, x, y, kernel_fn=kernel_fn)
    assert reached < arrays["losses"][-1]


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_last_good_state(
    tmp_path, capsys, monkeypatch
):
    chunks(monkeypatch, 10)
    arguments = _arguments(tmp_path, learning_rate=1e30)
    for _ in range(2):  # the second start repeats the steps since the last checkpoint
        code, told = _call(capsys, *arguments)
        assert code == 1
        assert "The loss of rkip is not finite after 1 steps" in told
        assert "lower learning_rate=1e+30, or raise diag_reg=1e-05" in told
        assert told.count("\n") == 1
    assert not (tmp_path / "results.json").exists()
    assert np.isfinite(_arrays(tmp_path, "last_good.npz")["images"]).all()
    # A state that is lost is no checkpoint.
    assert checkpoint.latest_step(tmp_path / "checkpoints" / "distill") is None


def test_duplicate_images_name_the_ridge(tmp_path, capsys, monkeypatch):
    _all_alike(monkeypatch)
    code, told = _call(capsys, *_arguments(tmp_path, diag_reg=0))
    assert code == 1
    assert "The kernel of x_target is singular with diag_reg=0.0" in told
    assert "raise diag_reg, such as 1e-5" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--num_distilled=0", "num_distilled=0 must be at least 1"),
        ("--num_distilled=14", "num_distilled=14 must lie between 2 and num_train=12"),
        ("--num_distilled=5", "num_distilled=5 does not split evenly into the 2"),
        ("--num_images=13", "num_train=13 does not split evenly"),
        ("--num_steps=0", "num_steps=0 must be at least 1"),
        ("--learning_rate=0", "learning_rate=0.0 must be above 0"),
        ("--diag_reg=-1", "diag_reg=-1.0 must be at least 0"),
        ("--noise_ratio=0.1", "leave it out (it is a flag of kip, rkip_noise, table"),
        ("--method=kip --noise_ratio=2", "noise_ratio=2.0 must lie in [0, 1]"),
        ("--num_finite_runs=2", "num_finite_runs=2 must lie in [0, 1]"),
        ("--batch_size=5", "batch_size=5 must be a positive multiple of the 2"),
        ("--batch_size=1000", "batch_size=1000 must be a positive multiple of the 2"),
        ("--methods=kip", "(it is a flag of table, defence)"),
        ("--method=random --label_solve", "has no effect with --method=random"),
        ("--method=magic", "use one of kip, rkip"),
        ("--method=rkp", "did you mean rkip"),
        ("--method=sre2", "did you mean sre2l"),
        ("--task=animal_vehicle", "task='animal_vehicle' does not exist for digits"),
    ],
)
def test_bad_flags_are_one_line_exit_2_and_leave_nothing(
    tmp_path, capsys, flag, message
):
    folder = tmp_path / "new"
    code, told = _call(capsys, *_arguments(folder, *flag.split()))
    assert code == 2
    assert message in told
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert not folder.exists()


def test_two_studies_at_once_and_an_attack_on_all_images_are_refused():
    with pytest.raises(
        ValueError, match="table and defence are two values of --method"
    ):
        distill.PROGRAM.asked(table=True, defence=True)
    with pytest.raises(ValueError, match=r"experiments\.reconstruct"):
        distill.PROGRAM.asked(method="full", attack=True)


def test_labels_of_another_width_are_refused():
    x = jnp.zeros((6, 4, 4, 1), jnp.float32)
    with pytest.raises(ValueError, match="as wide as the targets"):
        search.init(
            x,
            jnp.ones((6, 1), jnp.float32),
            key=_key(0),
            initial_images=x[:2],
            initial_labels=jnp.ones((2, 3), jnp.float32),
        )
